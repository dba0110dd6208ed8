// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include <wavekv/wavekv.hpp>

#include "support/backend.hpp"
#include "support/model.hpp"

/// @file filled_cache.hpp
/// @brief A cache with one sequence of a family of keys, sealed, and the naive model of it: what the promises
/// of bounds are tested on.

namespace wavekv_test {

template <class S, class Counts>
using cache_of =
    tested_cache<S, wavekv::wave_index<wavekv::segment_size<256, 128>, Counts,
                                       wavekv::query_metric_kmeans<4>, wavekv::error_bound<>>>;
using flat = wavekv::tokens_per_cluster<8>;
using tree = wavekv::tokens_per_cluster<8, 32>;

inline wavekv::geometry small_geometry() {
  wavekv::geometry sizes;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 32;
  sizes.value_dim = 32;
  return sizes;
}

/// One sequence of a family and the oracle's view of it.
template <class S, class Counts>
struct filled {
  filled(key_family family, std::size_t n, std::uint64_t seed,
         wavekv::geometry chosen = small_geometry(), any_executor executor = {})
      : sizes(std::move(chosen)),
        cache(sizes, options(executor)),
        sequence(cache.create()),
        random(seed) {
    const std::vector<float> keys = make_keys(random, family, n, sizes.n_kv_heads, sizes.key_dim);
    const std::vector<float> values = normal_rows(random, n * sizes.n_kv_heads * sizes.value_dim);
    append_rows(cache, sequence, 0, keys, values);
    cache.seal(sequence);
    append_naively<S>(tokens, keys, values);
  }

  static auto options(const any_executor& executor) {
    typename cache_of<S, Counts>::options_type chosen;
    chosen.sink_tokens = 4;
    chosen.window_tokens = 16;
    run_on(chosen, executor);
    chosen.seed = 3;
    return chosen;
  }

  std::vector<float> query(float length = 1.0F) {
    return normal_rows(random, sizes.n_query_heads * sizes.key_dim, length);
  }

  wavekv::geometry sizes;
  cache_of<S, Counts> cache;
  wavekv::sequence_id sequence;
  random_engine random;
  naive_layer tokens;
};

inline wavekv::error_bound<> without_caps(float epsilon) {
  wavekv::error_bound<> bound;
  bound.epsilon = epsilon;
  bound.max_open = bound.max_read = 1.0F;
  bound.hidden_share = 0.0F;  // in so few tokens, all could hide
  return bound;
}

inline bool all_finite(const outputs& got) {
  return std::ranges::all_of(got.out, [](float x) { return std::isfinite(x); }) &&
         std::ranges::all_of(got.lse, [](float x) { return std::isfinite(x); });
}

}  // namespace wavekv_test
