// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include <wavekv/cache/kv_cache.hpp>

#include "reference/full_attention.hpp"
#include "support/rows.hpp"

/// @file model.hpp
/// @brief A naive model of one layer of one sequence: every token in a plain vector, attention by the oracle.

namespace wavekv_test {

/// @brief All tokens of one (sequence, layer), as the floats that its storage scalar stands for.
struct naive_layer {
  std::vector<float> keys;    ///< [n_tokens, n_kv_heads, key_dim]
  std::vector<float> values;  ///< [n_tokens, n_kv_heads, value_dim]
};

inline reference_geometry reference_of(const wavekv::geometry& sizes, std::size_t layer = 0) {
  reference_geometry shape;
  shape.n_query_heads = sizes.n_query_heads;
  shape.n_kv_heads = sizes.n_kv_heads;
  shape.key_dim = sizes.key_dim;
  shape.value_dim = sizes.value_dim;
  shape.scale = sizes.scale != 0.0F ? static_cast<double>(sizes.scale)
                                    : 1.0 / std::sqrt(static_cast<double>(sizes.key_dim));
  shape.logit_softcap = static_cast<double>(sizes.logit_softcap);
  if (!sizes.sink_logits.empty()) {
    const auto first =
        sizes.sink_logits.begin() + static_cast<std::ptrdiff_t>(layer * sizes.n_query_heads);
    shape.sink_logits.assign(first, first + static_cast<std::ptrdiff_t>(sizes.n_query_heads));
  }
  return shape;
}

inline std::size_t length_of(const wavekv::geometry& sizes, const naive_layer& layer) {
  return layer.keys.size() / (sizes.n_kv_heads * sizes.key_dim);
}

/// @brief Full attention of queries whose last one sits at the newest token.
inline reference_attention attend_naively(const wavekv::geometry& sizes, std::size_t layer,
                                          const naive_layer& tokens,
                                          std::span<const float> queries) {
  const std::size_t n_queries = queries.size() / (sizes.n_query_heads * sizes.key_dim);
  const std::size_t n_tokens = length_of(sizes, tokens);
  // The oracle takes a position past the end for "sees all", which is what a single query does.
  const std::size_t first = n_tokens >= n_queries ? n_tokens - n_queries : n_tokens;
  return full_attention<float, float, float>(reference_of(sizes, layer), queries, tokens.keys,
                                             tokens.values, first);
}

/// @brief Appends rounded rows to the model.
template <wavekv::scalar S>
void append_naively(naive_layer& tokens, std::span<const float> keys,
                    std::span<const float> values) {
  const auto put = [](std::vector<float>& to, std::span<const float> rows) {
    const std::vector<float> stored = rounded<S>(rows);
    to.insert(to.end(), stored.begin(), stored.end());
  };
  put(tokens.keys, keys);
  put(tokens.values, values);
}

/// @brief Outputs of one attend, poisoned beforehand so that a row that was not written shows.
struct outputs {
  std::vector<float> out;
  std::vector<float> lse;

  outputs(const wavekv::geometry& sizes, std::size_t n_queries)
      : out(n_queries * sizes.n_query_heads * sizes.value_dim,
            std::numeric_limits<float>::quiet_NaN()),
        lse(n_queries * sizes.n_query_heads, std::numeric_limits<float>::quiet_NaN()) {}

  bool operator==(const outputs& other) const {  // bit for bit: -0 is not 0, and NaN equals itself
    const auto same = [](float a, float b) {
      return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
    };
    return std::ranges::equal(out, other.out, same) && std::ranges::equal(lse, other.lse, same);
  }
};

/// @brief One sequence's attend into poisoned outputs; the number of queries is that of the rows.
template <class Cache, class... Bound>
outputs attend_once(Cache& cache, wavekv::sequence_id sequence, std::size_t layer,
                    const std::vector<float>& queries, const Bound&... bound) {
  const wavekv::geometry& sizes = cache.geometry();
  const std::size_t n = queries.size() / (sizes.n_query_heads * sizes.key_dim);
  outputs result(sizes, n);
  cache.attend(sequence, layer, tokens_of(queries, 0, n, sizes.n_query_heads, sizes.key_dim),
               wavekv::nhd(result.out.data(), n, sizes.n_query_heads, sizes.value_dim),
               wavekv::tensor_view<float, 2>(result.lse.data(), {n, sizes.n_query_heads}),
               bound...);
  return result;
}

/// @brief attend_once that also returns what the step did.
template <class Cache, class Bound>
std::pair<outputs, wavekv::step_stats> attend_counted(Cache& cache, wavekv::sequence_id sequence,
                                                      std::size_t layer,
                                                      const std::vector<float>& queries,
                                                      const Bound& bound) {
  const wavekv::geometry& sizes = cache.geometry();
  const std::size_t n = queries.size() / (sizes.n_query_heads * sizes.key_dim);
  outputs result(sizes, n);
  const wavekv::step_stats stats = cache.attend(
      sequence, layer, tokens_of(queries, 0, n, sizes.n_query_heads, sizes.key_dim),
      wavekv::nhd(result.out.data(), n, sizes.n_query_heads, sizes.value_dim),
      wavekv::tensor_view<float, 2>(result.lse.data(), {n, sizes.n_query_heads}), bound);
  return {std::move(result), stats};
}

/// @brief Appends rows [n, heads, dim] in floats, in chunks of at most `chunk` tokens.
template <class Cache>
void append_rows(Cache& cache, wavekv::sequence_id sequence, std::size_t layer,
                 const std::vector<float>& keys, const std::vector<float>& values,
                 std::size_t chunk = SIZE_MAX) {
  const wavekv::geometry& sizes = cache.geometry();
  const std::size_t n = keys.size() / (sizes.n_kv_heads * sizes.key_dim);
  for (std::size_t first = 0; first < n;) {
    const std::size_t part = std::min(chunk, n - first);
    cache.append(sequence, layer, tokens_of(keys, first, part, sizes.n_kv_heads, sizes.key_dim),
                 tokens_of(values, first, part, sizes.n_kv_heads, sizes.value_dim));
    first += part;
  }
}

/// @brief Largest relative error (Euclidean) of any (query, head) row; infinity when a row holds a NaN.
///
/// Rows are measured beside the oracle's row, but at least beside `floor` times the length of a typical
/// value (tests draw elements of variance 1): an output that cancels to nothing has no digits that could
/// be right.
inline double largest_error(const wavekv::geometry& sizes, std::span<const float> out,
                            const reference_attention& expected, double floor = 0.05) {
  double largest = 0.0;
  floor *= std::sqrt(static_cast<double>(sizes.value_dim));
  for (std::size_t row = 0; row < expected.lse.size(); ++row) {
    double difference = 0.0;
    double norm = 0.0;
    for (std::size_t i = row * sizes.value_dim; i < (row + 1) * sizes.value_dim; ++i) {
      const double delta = static_cast<double>(out[i]) - expected.out[i];
      difference += delta * delta;
      norm += expected.out[i] * expected.out[i];
    }
    const double error = std::sqrt(difference) / std::max(floor, std::sqrt(norm));
    if (!(error <= largest)) largest = std::isnan(error) ? HUGE_VAL : error;
  }
  return largest;
}

/// @brief Largest |lse - expected|, an infinity being equal to itself; infinity when one is NaN.
inline double largest_lse_error(std::span<const float> lse, const reference_attention& expected) {
  double largest = 0.0;
  for (std::size_t row = 0; row < expected.lse.size(); ++row) {
    const auto seen = static_cast<double>(lse[row]);
    if (seen == expected.lse[row]) continue;
    const double error = std::abs(seen - expected.lse[row]);
    if (!(error <= largest)) largest = std::isnan(error) ? HUGE_VAL : error;
  }
  return largest;
}

}  // namespace wavekv_test
