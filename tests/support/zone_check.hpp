// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/bounds.hpp"
#include "support/search_oracle.hpp"

/// @file zone_check.hpp
/// @brief Whatever zones a bound chooses, the answer must be the formula
///   numerator = Σ_exact e^s v + Σ_estimated m ṽ,  denominator = Σ_exact e^s + Σ_estimated m,
///   m = n e^(q·c + σ²/2),  ṽ = v̄ + dispersion · slopeᵀ·q
/// (a softcap bounds the exponent and leaves out the slope)
/// over exactly those zones, and the counts of the step must be those of the zones.

namespace wavekv_test {

template <class Counts, class Clusterer>
using index_of = wavekv::wave_index<wavekv::segment_size<64, 32>, Counts, Clusterer, estimate_all>;

template <class S, class Index>
struct filled {
  using cache_type =
      wavekv::kv_cache<S, Index, wavekv::wave_buffer<>, wavekv::cpu<wavekv::serial_executor>>;

  static typename cache_type::options_type options() {
    typename cache_type::options_type chosen;
    chosen.sink_tokens = 4;
    chosen.window_tokens = 16;
    return chosen;
  }

  filled(const wavekv::geometry& chosen, key_family family, std::uint64_t seed)
      : sizes(chosen), cache(chosen, options()), sequence(cache.create()), random(seed) {
    layout.n_sink = 4;
    layout.segments = {64, 64, 64, 37};  // the last one by seal(): odd
    const std::size_t n = 4 + 64 * 3 + 37 + 16;
    const std::vector<float> keys = make_keys(random, family, n, sizes.n_kv_heads, sizes.key_dim);
    const std::vector<float> values = normal_rows(random, n * sizes.n_kv_heads * sizes.value_dim);
    append_rows(cache, sequence, 0, keys, values);
    cache.seal(sequence);
    append_naively<S>(tokens, keys, values);
    REQUIRE(cache.stats(sequence).segments == 4);
  }

  wavekv::geometry sizes;
  cache_type cache;
  wavekv::sequence_id sequence;
  random_engine random;
  naive_layer tokens;
  token_layout layout;
};

/// Runs one step by a recorded bound and compares answer and counts with what its zones imply.
template <class S, class Index, class Bound>
void check_zones(filled<S, Index>& data, const Bound& bound, double tolerance) {
  const wavekv::geometry& sizes = data.sizes;
  const search_oracle<S, Index> oracle(sizes, data.tokens, data.layout);
  std::vector<plan_record> log;
  const std::vector<float> queries = normal_rows(data.random, sizes.n_query_heads * sizes.key_dim);
  const auto [got, stats] =
      attend_counted(data.cache, data.sequence, 0, queries, recording<Bound>{bound, &log});
  const std::size_t n_levels = Index::cluster_count_type::n_levels;
  REQUIRE(std::ranges::count(log, n_levels - 1, &plan_record::level) ==
          static_cast<std::ptrdiff_t>(sizes.n_kv_heads));

  std::size_t tokens_read = 0;
  std::size_t clusters_read = 0;
  std::size_t estimated = 0;
  std::size_t dropped = 0;
  std::size_t summaries = 0;
  double dropped_mass = 0.0;
  reference_attention expected;
  auto next = log.begin();
  for (std::size_t head = 0; head < sizes.n_kv_heads; ++head) {
    // One record a level; a level that nothing was opened for is not asked about.
    std::vector<plan_record> plans(n_levels);
    for (std::size_t level = 0; level < n_levels; ++level) {
      if (next != log.end() && next->level == n_levels - 1 - level) {
        const plan_record& record = plans[level] = *next++;
        CHECK(record.group_size == sizes.group_size());
        CHECK(record.n_tokens == 64 * 3 + 37);
        CHECK(record.n_clusters == oracle.n_clusters(head));
        CHECK(record.n_steady_tokens == 20);
      }
    }
    const std::size_t width = sizes.group_size() * sizes.key_dim;
    const expected_search one =
        oracle.search(std::span(queries).subspan(head * width, width), head, plans);
    expected.out.insert(expected.out.end(), one.out.begin(), one.out.end());
    expected.lse.insert(expected.lse.end(), one.lse.begin(), one.lse.end());
    tokens_read += one.tokens_read;
    clusters_read += one.clusters_read;
    estimated += one.nodes_estimated;
    dropped += one.nodes_dropped;
    summaries += one.summaries_read;
    dropped_mass = std::max(dropped_mass, one.dropped_mass);
  }
  CHECK(next == log.end());
  CHECK(largest_error(sizes, got.out, expected) <= tolerance);
  CHECK(largest_lse_error(got.lse, expected) <= tolerance);

  const std::size_t row_bytes = (sizes.key_dim + sizes.value_dim) * sizeof(S);
  CHECK(stats.groups == sizes.n_kv_heads);
  CHECK(stats.rounds == sizes.n_kv_heads);
  CHECK(stats.tokens_held == sizes.n_kv_heads * length_of(sizes, data.tokens));
  CHECK(stats.tokens_read == tokens_read);
  CHECK(stats.tokens_sampled == 0);
  CHECK(stats.clusters_read == clusters_read);
  CHECK(stats.clusters_estimated == estimated);
  CHECK(stats.clusters_dropped == dropped);
  CHECK(stats.summaries_read == summaries);
  CHECK(stats.hits == clusters_read);
  CHECK(stats.misses == 0);
  CHECK(stats.bytes_moved == 0);
  // K and V of every token, centroid and value mean of every summary with its size and dispersion.
  CHECK(stats.bytes_read == tokens_read * row_bytes + summaries * (row_bytes + 2 * sizeof(float)));
  if (dropped == 0) {
    CHECK(stats.dropped_mass == 0.0F);
  } else {
    // The report is made from summaries: near the truth, not equal to it.
    CHECK(static_cast<double>(stats.dropped_mass) > 0.3 * dropped_mass);
    CHECK(static_cast<double>(stats.dropped_mass) < 2.5 * dropped_mass);
  }
}

inline wavekv::geometry small_geometry() {
  wavekv::geometry sizes;
  sizes.n_query_heads = 6;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 24;
  sizes.value_dim = 20;
  return sizes;
}

// Estimates are added, and those of nodes that turn out to be opened are subtracted again: the mass
// that is taken out costs digits, in float a few times 1e-7 of the largest estimate.
constexpr double tolerance = 1e-4;

template <class S, class Index>
void check_all_bounds(key_family family) {
  filled<S, Index> data(small_geometry(), family, 11);
  INFO("keys ", std::string(name_of(family)));
  check_zones(data, estimate_all{}, tolerance);
  check_zones(data, open_all{}, tolerance);
  check_zones(data, alternate<false>{0}, tolerance);
  check_zones(data, alternate<false>{1}, tolerance);
}

template <class S, class Index>
void check_dropping_bounds(key_family family) {
  filled<S, Index> data(small_geometry(), family, 12);
  INFO("keys ", std::string(name_of(family)));
  check_zones(data, alternate<true>{0}, tolerance);
  check_zones(data, alternate<true>{2}, tolerance);
  check_zones(data, wavekv::fixed_budget{0.1F, 0.4F}, tolerance);
}

using flat = wavekv::tokens_per_cluster<4>;
using two_levels = wavekv::tokens_per_cluster<4, 16>;
using three_levels = wavekv::tokens_per_cluster<2, 8, 32>;

}  // namespace wavekv_test
