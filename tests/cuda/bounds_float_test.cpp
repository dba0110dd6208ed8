// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <doctest/doctest.h>

#include "cuda/bound_checks.hpp"

// The library's bounds on float.

using namespace wavekv_test;

TEST_CASE("float: error_bound searches alike on both sides") {
  check_cases<float>(6, tight<wavekv::rank_by_max>);
}

TEST_CASE("float: fixed_budget searches alike on both sides") {
  check_cases<float>(6, budget<wavekv::rank_by_turns>);
}

TEST_CASE("float: verified_bound draws the same tokens on both sides") {
  check_verified_cases<float>(6);
}
