// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "cuda/bound_checks.hpp"

// The library's bounds on bf16; plan_test.cpp has their other rankings.

using namespace wavekv_test;
using wavekv::bf16;

TEST_CASE("error_bound searches alike on both sides") {
  check_cases<bf16>(6, tight<wavekv::rank_by_max>);
  check_cases<bf16>(3, tight<wavekv::rank_by_sum>);
}

TEST_CASE("fixed_budget searches alike on both sides") {
  check_cases<bf16>(6, budget<wavekv::rank_by_turns>);
}

TEST_CASE("keys without an order: the answer is right whatever is chosen") {
  constexpr key_family without_order[] = {key_family::tiny, key_family::equal};
  random_engine random(std::random_device{}());
  for (std::size_t i = 0; i < 6; ++i) {
    const search_case which = random_case(random, i, without_order);
    CAPTURE(which.text());
    with_twins<bf16>(which, [&](twin_layers<bf16>& twins, const std::vector<float>& queries) {
      const auto gpu =
          twins.attend_on_device(queries, tight<wavekv::rank_by_max>(i), which.options);
      const reference_attention truth = attend_naively(which.sizes, 0, twins.tokens(), queries);
      const closeness<bf16> allowed(which, twins, queries, 4.0);
      CHECK(gpu.counts.faults == 0);
      // All tokens weigh the same, so that estimates have no error but the rounding of means.
      CHECK(largest_lse_error(gpu.result.lse, truth) <= 0.02 + allowed.lse);
      CHECK(largest_distance<float, double>(gpu.result.out, truth.out, which.sizes.value_dim) <=
            0.02 * longest_value(which.sizes, twins.tokens()) + allowed.out);
    });
  }
}
