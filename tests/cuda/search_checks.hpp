// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/index/bounds/exact.hpp>

#include "cuda/search_cases.hpp"
#include "cuda/twin_layers.hpp"

/// @file search_checks.hpp
/// @brief The machinery of a search on the device: exact attention against an oracle in double; a search whose plan depends on
/// no number, so that it is the same on the CPU, against that. Seeds are drawn anew; a check that fails says which.

namespace a_user {

/// A bound of a user's: nodes take zones in turns, whatever the numbers say. Its twin on the CPU is the archetype.
template <bool Drops>
struct taking_turns : wavekv_test::alternate<Drops> {
  [[nodiscard]] WAVEKV_HOST_DEVICE float scaled_error(float predicted) const {
    return 3 * predicted;
  }
};

template <class Block, bool Drops>
WAVEKV_DEVICE void plan_on_device(Block& b, const taking_turns<Drops>& bound,
                                  const wavekv::device::frontier_view& nodes, wavekv::zone* zones,
                                  const wavekv::device::plan_memory& memory) {
  constexpr wavekv::zone turns[] = {wavekv::zone::retrieval, wavekv::zone::estimation,
                                    wavekv::zone::dropped};
  unsigned before = 0;  // nodes
  for (unsigned first = 0; first < nodes.n_columns; first += b.n_threads()) {
    const unsigned column = first + b.thread();
    const bool is_node = column < nodes.n_columns && nodes.is_node(column);
    unsigned n = 0;
    const unsigned i =
        before + wavekv::device::block_scan(b, is_node ? 1U : 0U, memory.of_warps, n);
    if (is_node) zones[column] = turns[(i + bound.offset + nodes.level) % (Drops ? 3 : 2)];
    before += n;
  }
}

}  // namespace a_user

namespace wavekv_test {

/// What both did, number by number.
inline void check_counts(const wavekv::device::step_counts& counts,
                         const wavekv::step_stats& stats) {
  CHECK(counts.faults == 0);
  CHECK(counts.groups == stats.groups);
  CHECK(counts.rounds == stats.rounds);
  CHECK(counts.tokens_held == stats.tokens_held);
  CHECK(counts.tokens_read == stats.tokens_read);
  CHECK(counts.tokens_sampled == 0);
  CHECK(counts.clusters_read == stats.clusters_read);
  CHECK(counts.clusters_estimated == stats.clusters_estimated);
  CHECK(counts.clusters_dropped == stats.clusters_dropped);
  CHECK(counts.summaries_read == stats.summaries_read);
  CHECK(counts.bytes_read == stats.bytes_read);
  CHECK(counts.capped == stats.capped);
}

template <class S>
void check_exact(const search_case& which) {
  CAPTURE(which.text());
  with_twins<S>(which, [&](twin_layers<S>& twins, const std::vector<float>& queries) {
    const auto cpu = twins.attend_on_cpu(queries, wavekv::exact{});
    const auto gpu = twins.attend_on_device(queries, wavekv::exact{}, which.options);
    check_counts(gpu.counts, cpu.stats);
    const reference_attention truth = attend_naively(which.sizes, 0, twins.tokens(), queries);
    const closeness<S> allowed(which, twins, queries);
    CHECK(largest_distance<float, double>(gpu.result.out, truth.out, which.sizes.value_dim) <=
          allowed.out);
    CHECK(largest_lse_error(gpu.result.lse, truth) <= allowed.lse);
  });
}

template <class S, bool Drops>
void check_turns(const search_case& which) {
  CAPTURE(which.text());
  CAPTURE(Drops);
  with_twins<S>(which, [&](twin_layers<S>& twins, const std::vector<float>& queries) {
    const a_user::taking_turns<Drops> bound{{which.seed % 3}};
    const auto cpu = twins.attend_on_cpu(queries, bound);
    const auto gpu = twins.attend_on_device(queries, bound, which.options);
    REQUIRE(different_zones(cpu.zones, gpu.zones) == 0.0);
    check_counts(gpu.counts, cpu.stats);
    // An estimate that is taken out again may have been some 55 times what takes its place (see group_search.hpp), but
    // seldom is: four times the rounding leave room enough.
    const closeness<S> allowed(which, twins, queries, 4.0);
    CHECK(largest_distance<float, float>(gpu.result.out, cpu.result.out, which.sizes.value_dim) <=
          allowed.out);
    CHECK(largest_distance<float, float>(gpu.result.lse, cpu.result.lse, 1) <= allowed.lse);
    // Shares follow the rounding of logits; errors are sums of such squares.
    const auto close = [&](unsigned bits, float expected) {
      return std::abs(std::bit_cast<float>(bits) - expected) <=
             (allowed.lse + 1e-5) * static_cast<double>(expected);
    };
    CHECK(close(gpu.counts.predicted_error, cpu.stats.predicted_error));  // both scaled
    CHECK(close(gpu.counts.dropped_mass, cpu.stats.dropped_mass));
  });
}

/// @brief Exact attention keeps to the oracle.
template <class S>
void check_exact_cases(std::size_t n) {
  random_engine random(std::random_device{}());
  for (std::size_t i = 0; i < n; ++i) check_exact<S>(random_case(random, i));
}

/// @brief A plan that is the same on both sides gives the same answer.
template <class S>
void check_turns_cases(std::size_t n) {
  random_engine random(std::random_device{}());
  // Not an outlier for the bound that drops: it may drop all but nothing, and then the CPU's shares of the rest, which it
  // corrects the values by, are flushed to zero earlier than the device's.
  constexpr key_family no_outlier[] = {key_family::uniform, key_family::clustered,
                                       key_family::needle, key_family::equal, key_family::tiny};
  for (std::size_t i = 0; i < n; ++i) {
    check_turns<S, false>(random_case(random, i));
    check_turns<S, true>(random_case(random, i, no_outlier));
  }
}

}  // namespace wavekv_test
