// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/index/bounds/error_bound.cuh>
#include <wavekv/index/bounds/fixed_budget.cuh>

#include "cuda/search_cases.hpp"
#include "cuda/twin_layers.hpp"

// The library's bounds, whole searches on both sides.
//
// Logits differ by rounding (see `rounding`), and so do the numbers that bounds compare. Where two nodes are as good as
// equal, one side may choose the one and the other side the other: then zones need not be the same, but nearly, and the
// answers are as good as each other. Equal keys, and keys so small that all logits vanish, have no order at all.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
namespace device = wavekv::device;

namespace {

constexpr key_family ordered_families[] = {key_family::uniform, key_family::clustered,
                                           key_family::outlier, key_family::needle};

bool nearly(unsigned long long a, std::uint64_t b) {
  const auto difference = static_cast<double>(a > b ? a - b : b - a);
  return difference <= 0.01 * static_cast<double>(b) + 16.0;
}

template <class S, class Bound>
void check_bound(const search_case& which, const Bound& bound) {
  CAPTURE(which.text());
  with_twins<S>(which, [&](twin_layers<S>& twins, const std::vector<float>& queries) {
    const auto cpu = twins.attend_on_cpu(queries, bound);
    const auto gpu = twins.attend_on_device(queries, bound, which.options);
    const std::size_t dim = which.sizes.value_dim;
    CHECK(gpu.counts.faults == 0);
    CHECK(gpu.counts.groups == cpu.stats.groups);
    CHECK(gpu.counts.rounds == cpu.stats.rounds);
    CHECK(gpu.counts.tokens_held == cpu.stats.tokens_held);
    CHECK(nearly(gpu.counts.tokens_read, cpu.stats.tokens_read));
    CHECK(nearly(gpu.counts.clusters_read, cpu.stats.clusters_read));
    CHECK(nearly(gpu.counts.clusters_estimated, cpu.stats.clusters_estimated));
    CHECK(nearly(gpu.counts.clusters_dropped, cpu.stats.clusters_dropped));
    CHECK(nearly(gpu.counts.summaries_read, cpu.stats.summaries_read));
    const double different = different_zones(cpu.zones, gpu.zones);
    if (different == 0.0) {
      const closeness<S> allowed(which, twins, queries, 4.0);
      CHECK(largest_distance<float, float>(gpu.result.out, cpu.result.out, dim) <= allowed.out);
      CHECK(largest_distance<float, float>(gpu.result.lse, cpu.result.lse, 1) <= allowed.lse);
      CHECK(gpu.counts.capped == cpu.stats.capped);
      return;
    }
    MESSAGE("zones that differ: " << different);
    CHECK(different <= 0.02);
    const reference_attention truth = attend_naively(which.sizes, 0, twins.tokens(), queries);
    const double error = largest_distance<float, double>(gpu.result.out, truth.out, dim);
    const double error_of_cpu = largest_distance<float, double>(cpu.result.out, truth.out, dim);
    CHECK(error <= 1.5 * error_of_cpu + 0.02 * longest_value(which.sizes, twins.tokens()));
  });
}

/// Cases by turns, with what bounds(i) gives.
template <class S, class Bounds>
void check_cases(std::size_t n, const Bounds& bounds) {
  random_engine random(std::random_device{}());
  for (std::size_t i = 0; i < n; ++i)
    check_bound<S>(random_case(random, i, ordered_families), bounds(i));
}

template <class Ranking>
wavekv::error_bound<Ranking> tight(std::size_t i) {
  wavekv::error_bound<Ranking> bound;
  bound.epsilon = i % 2 == 0 ? 0.02F : 0.2F;
  bound.free_tokens = 32;
  bound.max_read = i % 3 == 0 ? 0.3F : 0.02F;
  bound.full_tokens = 256;
  return bound;
}

template <class Ranking>
wavekv::basic_fixed_budget<Ranking> budget(std::size_t i) {
  wavekv::basic_fixed_budget<Ranking> bound;
  if (i % 2 == 1) {
    bound.retrieve = 0.1F;
    bound.estimate = 0.4F;
  }
  return bound;
}

}  // namespace

TEST_CASE_TEMPLATE("error_bound searches alike on both sides", S, bf16, f16, float) {
  check_cases<S>(6, tight<wavekv::rank_by_max>);
}

TEST_CASE_TEMPLATE("fixed_budget searches alike on both sides", S, bf16, f16, float) {
  check_cases<S>(6, budget<wavekv::rank_by_turns>);
}

TEST_CASE("other rankings search alike on both sides") {
  check_cases<bf16>(3, tight<wavekv::rank_by_sum>);
  check_cases<bf16>(3, budget<wavekv::rank_by_sum>);
  check_cases<bf16>(3, budget<wavekv::rank_by_max>);
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
