// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

/// @file full_attention.hpp
/// @brief The oracle: attention by its definition, in double precision, one obvious loop at a time.
///
/// It shares no code with the library on purpose. Inputs are what the library really stored: convert
/// keys and values to their storage scalar and back before handing them over.

namespace wavekv_test {

/// @brief What the oracle has to know of a layer.
struct reference_geometry {
  std::size_t n_query_heads = 1;
  std::size_t n_kv_heads = 1;  ///< query head h reads KV head h / (n_query_heads / n_kv_heads)
  std::size_t key_dim = 1;
  std::size_t value_dim = 1;
  double scale = 1.0;               ///< factor on q·k
  double logit_softcap = 0;         ///< logit = cap * tanh(logit / cap); 0: none
  std::vector<double> sink_logits;  ///< [n_query_heads], or empty: none
};

/// @brief Output and log-sum-exp of every query and head.
struct reference_attention {
  std::vector<double> out;  ///< [n_queries, n_query_heads, value_dim]
  std::vector<double> lse;  ///< [n_queries, n_query_heads], natural log, the sink included
};

/// @brief Full causal attention. Query i sits at position first_query_position + i and sees the keys at
/// positions 0 to its own; a query at SIZE_MAX or past the last key sees all keys.
/// @param queries  [n_queries, n_query_heads, key_dim], unscaled
/// @param keys  [n_tokens, n_kv_heads, key_dim]
/// @param values  [n_tokens, n_kv_heads, value_dim]
/// A query that sees nothing (no key and no sink) gives zeros and an lse of -inf.
template <class Q, class K, class V>
reference_attention full_attention(const reference_geometry& shape, std::span<const Q> queries,
                                   std::span<const K> keys, std::span<const V> values,
                                   std::size_t first_query_position) {
  const std::size_t n_heads = shape.n_query_heads;
  const std::size_t n_queries = queries.size() / (n_heads * shape.key_dim);
  const std::size_t n_tokens = keys.size() / (shape.n_kv_heads * shape.key_dim);
  const std::size_t group_size = n_heads / shape.n_kv_heads;

  reference_attention result;
  result.out.assign(n_queries * n_heads * shape.value_dim, 0.0);
  result.lse.assign(n_queries * n_heads, -std::numeric_limits<double>::infinity());

  std::vector<double> logits;
  for (std::size_t i = 0; i < n_queries; ++i) {
    const std::size_t position = first_query_position + i;
    const bool sees_all = first_query_position >= n_tokens || position >= n_tokens;
    const std::size_t n_visible = sees_all ? n_tokens : position + 1;
    for (std::size_t h = 0; h < n_heads; ++h) {
      const std::size_t kv_head = h / group_size;
      double max = -std::numeric_limits<double>::infinity();

      logits.assign(n_visible, 0.0);
      for (std::size_t t = 0; t < n_visible; ++t) {
        double dot = 0.0;
        for (std::size_t c = 0; c < shape.key_dim; ++c) {
          dot += static_cast<double>(queries[(i * n_heads + h) * shape.key_dim + c]) *
                 static_cast<double>(keys[(t * shape.n_kv_heads + kv_head) * shape.key_dim + c]);
        }
        double logit = shape.scale * dot;
        if (shape.logit_softcap > 0.0) {
          logit = shape.logit_softcap * std::tanh(logit / shape.logit_softcap);
        }
        logits[t] = logit;
        max = std::fmax(max, logit);
      }
      const bool has_sink = !shape.sink_logits.empty();
      if (has_sink) max = std::fmax(max, shape.sink_logits[h]);
      if (max == -std::numeric_limits<double>::infinity()) continue;

      double denominator = has_sink ? std::exp(shape.sink_logits[h] - max) : 0.0;
      for (std::size_t t = 0; t < n_visible; ++t) denominator += std::exp(logits[t] - max);

      double* out = result.out.data() + (i * n_heads + h) * shape.value_dim;
      for (std::size_t t = 0; t < n_visible; ++t) {
        const double weight = std::exp(logits[t] - max) / denominator;
        for (std::size_t c = 0; c < shape.value_dim; ++c) {
          out[c] += weight * static_cast<double>(
                                 values[(t * shape.n_kv_heads + kv_head) * shape.value_dim + c]);
        }
      }
      result.lse[i * n_heads + h] = max + std::log(denominator);
    }
  }
  return result;
}

/// @brief |a - b| / |b| in the Euclidean norm: how errors of an output are measured everywhere.
/// 0 when both are zero.
template <class A, class B>
double relative_error(std::span<const A> a, std::span<const B> b) {
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double delta = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += delta * delta;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  if (difference == 0.0) return 0.0;
  return std::sqrt(difference) / std::sqrt(norm);
}

}  // namespace wavekv_test
