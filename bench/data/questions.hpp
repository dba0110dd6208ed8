// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <random>
#include <vector>

#include <wavekv/core/geometry.hpp>
#include <wavekv/core/ids.hpp>

#include "data/attention_data.hpp"

/// @file questions.hpp
/// @brief Which queries of a layer are asked, and which teach.

namespace wavekv_bench {

/// @brief Queries of even tokens teach the metric, odd ones are asked: nobody is asked what it was taught. Half of
/// the questions come from anywhere, half from the end (of a haystack: the questions about its needles).
inline std::vector<std::size_t> question_tokens(const attention_data& data, std::size_t n) {
  std::mt19937_64 random(7);
  std::vector<std::size_t> tokens;
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t range = i < n / 2 ? data.n_tokens : std::min<std::size_t>(300, data.n_tokens);
    const std::size_t token = data.n_tokens - 1 - static_cast<std::size_t>(random() % range);
    tokens.push_back(std::min(token | 1U, (data.n_tokens - 2) | 1U));
  }
  return tokens;
}

/// @brief The queries of n even tokens, spread evenly over the data, [n, n_query_heads, dim]; questions are odd ones.
inline std::vector<float> prompt_queries(const attention_data& data, std::size_t n) {
  const std::size_t row = data.n_query_heads * data.dim;
  std::vector<float> queries(n * row);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t token = ((2 * i + 1) * data.n_tokens / (2 * n)) & ~std::size_t{1};
    std::copy_n(data.queries.data() + token * row, row, queries.data() + i * row);
  }
  return queries;
}

/// @brief Sizes of a cache for one layer's data.
inline wavekv::geometry geometry_of(const attention_data& data) {
  wavekv::geometry sizes;
  sizes.n_layers = 1;
  sizes.n_query_heads = data.n_query_heads;
  sizes.n_kv_heads = data.n_kv_heads;
  sizes.key_dim = sizes.value_dim = data.dim;
  return sizes;
}

/// @brief A new sequence of a cache that holds the layer's tokens, sealed, taught by the queries of even tokens.
template <class Cache>
wavekv::sequence_id append_taught(Cache& cache, const attention_data& data) {
  const wavekv::sequence_id sequence = cache.create();
  constexpr std::size_t chunk = 2048;
  const std::size_t row = data.n_query_heads * data.dim;
  std::vector<float> taught;
  for (std::size_t first = 0; first < data.n_tokens; first += chunk) {
    const std::size_t n = std::min(chunk, data.n_tokens - first);
    taught.resize(n * row);
    for (std::size_t token = 0; token < n; ++token)
      std::copy_n(data.queries.data() + ((first + token) & ~std::size_t{1}) * row, row,
                  taught.data() + token * row);
    cache.append(sequence, 0, data.key_view(first, n), data.value_view(first, n),
                 wavekv::nhd<const float>(taught.data(), n, data.n_query_heads, data.dim));
  }
  cache.seal(sequence);
  return sequence;
}

}  // namespace wavekv_bench
