// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <doctest/doctest.h>

#include "cuda/search_checks.hpp"

// search_test.cpp on float.

TEST_CASE("float: exact attention on the device keeps to an oracle") {
  wavekv_test::check_exact_cases<float>(7);
}

TEST_CASE("float: a plan that is the same on both sides gives the same answer") {
  wavekv_test::check_turns_cases<float>(6);
}
