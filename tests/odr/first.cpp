// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <string>

#include <all_headers.hpp>
#include <doctest/doctest.h>

std::string version_seen_by_the_second_unit();

TEST_CASE("two translation units with every header link and agree") {
  CHECK(version_seen_by_the_second_unit() == WAVEKV_VERSION_STRING);
}
