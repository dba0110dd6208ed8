// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <doctest/doctest.h>

#include "cuda/bound_checks.hpp"

// The library's bounds on f16.

using namespace wavekv_test;

TEST_CASE("f16: error_bound searches alike on both sides") {
  check_cases<wavekv::f16>(6, tight<wavekv::rank_by_max>);
}

TEST_CASE("f16: fixed_budget searches alike on both sides") {
  check_cases<wavekv::f16>(6, budget<wavekv::rank_by_turns>);
}

TEST_CASE("f16: verified_bound draws the same tokens on both sides") {
  check_verified_cases<wavekv::f16>(6);
}
