// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/buffer/tiered.hpp>
#include <wavekv/wavekv.hpp>

#include "archetypes/executors.hpp"
#include "support/model.hpp"
#include "support/partial_bounds.hpp"
#include "support/scratch_folder.hpp"

/// @file tiered_cache.hpp
/// @brief A cache with two tiers beside a resident one, to which the same is done: their answers must agree.

namespace wavekv_test::tiered {

using wavekv::sequence_id;

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::spherical_kmeans<3>, wavekv::error_bound<>>;
template <class Buffer>
using cache_of = wavekv::kv_cache<float, index_type, Buffer, wavekv::cpu<any_executor>>;
using plain_cache = cache_of<wavekv::wave_buffer<>>;

inline constexpr std::size_t key_dim = 16;
inline constexpr std::size_t value_dim = 12;
inline constexpr std::size_t n_heads = 2;
inline constexpr std::size_t n_query_heads = 4;
/// @brief K and V of a token, all heads.
inline constexpr std::size_t token_bytes = n_heads * (key_dim + value_dim) * sizeof(float);

inline wavekv::geometry small_geometry(std::size_t n_layers = 1) {
  wavekv::geometry sizes;
  sizes.n_layers = n_layers;
  sizes.n_query_heads = n_query_heads;
  sizes.n_kv_heads = n_heads;
  sizes.key_dim = key_dim;
  sizes.value_dim = value_dim;
  return sizes;
}

template <class Buffer>
typename cache_of<Buffer>::options_type small_options(
    typename Buffer::placement_type::options_type placement = {},
    const any_executor& executor = {}) {
  typename cache_of<Buffer>::options_type options;
  options.window_tokens = 16;
  options.seed = 5;
  options.bound.free_tokens = 60;
  options.executor = executor;
  options.placement = std::move(placement);
  return options;
}

// Beside reads_some and verifies: estimates a part and drops the rest.
inline constexpr wavekv::fixed_budget some_budget{0.2F, 0.5F};

struct token_rows {
  std::vector<float> keys;
  std::vector<float> values;
};

inline token_rows make_tokens(random_engine& random, std::size_t n) {
  return {make_keys(random, key_family::clustered, n, n_heads, key_dim),
          normal_rows(random, n * n_heads * value_dim)};
}

inline std::vector<float> make_queries(random_engine& random, std::size_t n = 1) {
  return normal_rows(random, n * n_query_heads * key_dim);
}

/// @brief The larger of the relative error of the outputs and the absolute error of their log-sum-exps.
inline double distance(const outputs& got, const outputs& expected) {
  double largest =
      relative_error(std::span<const float>(got.out), std::span<const float>(expected.out));
  for (std::size_t i = 0; i < got.lse.size(); ++i) {
    if (got.lse[i] == expected.lse[i]) continue;  // of an empty sequence both are infinite
    const double error =
        std::abs(static_cast<double>(got.lse[i]) - static_cast<double>(expected.lse[i]));
    if (!(error <= largest)) largest = std::isnan(error) ? HUGE_VAL : error;
  }
  return largest;
}

inline constexpr double tolerance = 1e-5;

/// @brief The same calls on a cache with two tiers and on a resident one. Sequences are named by the order of their making.
template <class Buffer>
class twins {
 public:
  using cache_type = cache_of<Buffer>;

  explicit twins(const typename Buffer::placement_type::options_type& placement,
                 const any_executor& executor = {}, std::size_t n_layers = 1,
                 std::uint64_t seed = 71)
      : cache(small_geometry(n_layers), small_options<Buffer>(placement, executor)),
        plain(small_geometry(n_layers), small_options<wavekv::wave_buffer<>>({}, executor)),
        random(seed) {}

  std::size_t create() { return enter(cache.create(), plain.create()); }
  std::size_t fork(std::size_t s) {
    return enter(cache.fork(sequences[s].first), plain.fork(sequences[s].second));
  }
  void release(std::size_t s) {
    cache.release(sequences[s].first);
    plain.release(sequences[s].second);
  }
  void truncate(std::size_t s, std::size_t n) {
    cache.truncate(sequences[s].first, n);
    plain.truncate(sequences[s].second, n);
  }
  void seal(std::size_t s) {
    cache.seal(sequences[s].first);
    plain.seal(sequences[s].second);
  }
  void append(std::size_t s, std::size_t n, std::size_t chunk = SIZE_MAX, std::size_t layer = 0) {
    append(s, make_tokens(random, n), chunk, layer);
  }
  void append(std::size_t s, const token_rows& tokens, std::size_t chunk = SIZE_MAX,
              std::size_t layer = 0) {
    append_rows(cache, sequences[s].first, layer, tokens.keys, tokens.values, chunk);
    append_rows(plain, sequences[s].second, layer, tokens.keys, tokens.values, chunk);
  }
  void prefill(std::size_t s, std::size_t n, std::size_t layer = 0) {
    const token_rows tokens = make_tokens(random, n);
    const std::vector<float> queries = make_queries(random, n);
    CHECK(distance(prefill_one(cache, sequences[s].first, layer, queries, tokens),
                   prefill_one(plain, sequences[s].second, layer, queries, tokens)) <= tolerance);
  }

  /// @brief Asks both; what the cache with two tiers did.
  template <class Bound>
  wavekv::step_stats compare(std::size_t s, const Bound& bound, const std::vector<float>& queries,
                             std::size_t layer = 0) {
    const auto [got, stats] = attend_counted(cache, sequences[s].first, layer, queries, bound);
    const auto [expected, plain_stats] =
        attend_counted(plain, sequences[s].second, layer, queries, bound);
    CHECK(distance(got, expected) <= tolerance);
    CHECK(stats.clusters_read == plain_stats.clusters_read);
    CHECK(stats.clusters_estimated == plain_stats.clusters_estimated);
    CHECK(stats.tokens_read == plain_stats.tokens_read);
    CHECK(stats.tokens_sampled == plain_stats.tokens_sampled);
    CHECK(stats.rounds == plain_stats.rounds);
    CHECK(stats.hits + stats.misses == plain_stats.hits);
    CHECK(stats.prefetched_in_vain <= stats.prefetched);
    CHECK(stats.prefetched <= stats.misses + stats.prefetched_in_vain);
    CHECK((stats.bytes_moved == 0) == (stats.misses + stats.prefetched_in_vain == 0));
    return stats;
  }
  template <class Bound>
  wavekv::step_stats compare(std::size_t s, const Bound& bound) {
    return compare(s, bound, make_queries(random));
  }
  /// @brief By all bounds.
  void compare(std::size_t s) {
    CAPTURE(s);
    compare(s, wavekv::exact{});
    compare(s, some_budget);
    compare(s, reads_some());
    compare(s, verifies());
  }

  /// @brief A ragged batch: (sequence, queries) each.
  using batch_type = std::vector<std::pair<std::size_t, std::size_t>>;

  template <class Bound>
  void compare_batch(const batch_type& runs, const Bound& bound, std::size_t layer = 0) {
    const std::vector<float> queries = queries_for(runs);
    CHECK(distance(attend_batch(cache, batch_of(runs, true), layer, queries, bound),
                   attend_batch(plain, batch_of(runs, false), layer, queries, bound)) <= tolerance);
  }
  /// @brief Asks the cache with two tiers only.
  template <class Bound>
  void ask_batch(const batch_type& runs, const Bound& bound) {
    attend_batch(cache, batch_of(runs, true), 0, queries_for(runs), bound);
  }

  [[nodiscard]] std::size_t length(std::size_t s) const { return cache.length(sequences[s].first); }
  [[nodiscard]] wavekv::statistics stats(std::size_t s) const {
    return cache.stats(sequences[s].first);
  }
  [[nodiscard]] wavekv::tier_statistics tiers() const { return cache.stats().tiers; }

  template <class Cache>
  static outputs prefill_one(Cache& of, sequence_id sequence, std::size_t layer,
                             const std::vector<float>& queries, const token_rows& tokens) {
    const std::size_t n = queries.size() / (n_query_heads * key_dim);
    outputs result(of.geometry(), n);
    of.prefill(sequence, layer, tokens_of(queries, 0, n, n_query_heads, key_dim),
               tokens_of(tokens.keys, 0, n, n_heads, key_dim),
               tokens_of(tokens.values, 0, n, n_heads, value_dim),
               wavekv::nhd(result.out.data(), n, n_query_heads, value_dim),
               wavekv::tensor_view<float, 2>(result.lse.data(), {n, n_query_heads}));
    return result;
  }

  cache_type cache;
  plain_cache plain;
  random_engine random;
  std::vector<std::pair<sequence_id, sequence_id>> sequences;

 private:
  std::size_t enter(sequence_id a, sequence_id b) {
    CHECK(a.slot == b.slot);  // what is sampled depends on it
    sequences.emplace_back(a, b);
    return sequences.size() - 1;
  }

  [[nodiscard]] std::vector<wavekv::query_run> batch_of(const batch_type& runs, bool tiered) const {
    std::vector<wavekv::query_run> batch;
    for (const auto& [s, n_queries] : runs) {
      batch.push_back({tiered ? sequences[s].first : sequences[s].second, n_queries});
    }
    return batch;
  }
  std::vector<float> queries_for(const batch_type& runs) {
    std::size_t n = 0;
    for (const auto& run : runs) n += run.second;
    return make_queries(random, n);
  }

  template <class Cache, class Bound>
  static outputs attend_batch(Cache& of, const std::vector<wavekv::query_run>& batch,
                              std::size_t layer, const std::vector<float>& queries,
                              const Bound& bound) {
    const std::size_t n = queries.size() / (n_query_heads * key_dim);
    outputs all(of.geometry(), n);
    of.attend(std::span<const wavekv::query_run>(batch), layer,
              tokens_of(queries, 0, n, n_query_heads, key_dim),
              wavekv::nhd(all.out.data(), n, n_query_heads, value_dim),
              wavekv::tensor_view<float, 2>(all.lse.data(), {n, n_query_heads}), bound);
    return all;
  }
};

}  // namespace wavekv_test::tiered
