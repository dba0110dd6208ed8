// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <string>

#include <all_headers.hpp>

std::string version_seen_by_the_second_unit();

std::string version_seen_by_the_second_unit() { return WAVEKV_VERSION_STRING; }
