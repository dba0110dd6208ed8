// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <wavekv/core/tensor_view.hpp>

/// @file attention_data.hpp
/// @brief Queries, keys and values of one attention layer, and how far its attention spreads.

namespace wavekv_bench {

/// @brief What one layer computed for a run of tokens, row-major.
struct attention_data {
  std::string name;
  std::size_t n_tokens = 0;
  std::size_t n_query_heads = 0;
  std::size_t n_kv_heads = 0;
  std::size_t dim = 0;         ///< of a key and of a value
  std::vector<float> queries;  ///< [n_tokens, n_query_heads, dim]; may be empty
  std::vector<float> keys;     ///< [n_tokens, n_kv_heads, dim]
  std::vector<float> values;   ///< [n_tokens, n_kv_heads, dim]

  [[nodiscard]] std::size_t group_size() const noexcept { return n_query_heads / n_kv_heads; }

  /// @brief Rows [first, first + n) as the cache takes them.
  [[nodiscard]] auto query_view(std::size_t first, std::size_t n) const {
    return wavekv::nhd(queries.data() + first * n_query_heads * dim, n, n_query_heads, dim);
  }
  [[nodiscard]] auto key_view(std::size_t first, std::size_t n) const {
    return wavekv::nhd(keys.data() + first * n_kv_heads * dim, n, n_kv_heads, dim);
  }
  [[nodiscard]] auto value_view(std::size_t first, std::size_t n) const {
    return wavekv::nhd(values.data() + first * n_kv_heads * dim, n, n_kv_heads, dim);
  }
};

/// @brief The q-quantile of some numbers, nearest rank; 0 of none.
template <class T>
T quantile(std::vector<T> numbers, double q) {
  if (numbers.empty()) return T{};
  const auto at = static_cast<std::ptrdiff_t>(q * static_cast<double>(numbers.size() - 1) + 0.5);
  std::ranges::nth_element(numbers, numbers.begin() + at);
  return numbers[static_cast<std::size_t>(at)];
}

/// @brief For every query head the number of tokens, heaviest first, that hold `share` of a query's softmax
/// mass over all tokens: the median over n_probes queries spread evenly over the tokens. Large means diffuse.
/// Complexity: O(n_probes · n_query_heads · n_tokens · dim), in double.
inline std::vector<std::size_t> tokens_holding(const attention_data& data, double share = 0.9,
                                               std::size_t n_probes = 9) {
  std::vector<std::size_t> medians;
  std::vector<double> weights(data.n_tokens);
  for (std::size_t head = 0; head < data.n_query_heads; ++head) {
    std::vector<std::size_t> counts;
    for (std::size_t probe = 0; probe < n_probes; ++probe) {
      const std::size_t token = (2 * probe + 1) * data.n_tokens / (2 * n_probes);
      const float* query = data.queries.data() + (token * data.n_query_heads + head) * data.dim;
      double largest = -INFINITY;
      for (std::size_t t = 0; t < data.n_tokens; ++t) {
        const float* key =
            data.keys.data() + (t * data.n_kv_heads + head / data.group_size()) * data.dim;
        float product = 0;
        for (std::size_t i = 0; i < data.dim; ++i) product += query[i] * key[i];
        weights[t] = static_cast<double>(product) / std::sqrt(static_cast<double>(data.dim));
        largest = std::max(largest, weights[t]);
      }
      double total = 0;
      for (double& weight : weights) total += weight = std::exp(weight - largest);
      std::ranges::sort(weights, std::greater<>());
      std::size_t n = 0;
      for (double held = 0; n < data.n_tokens && held < share * total; ++n) held += weights[n];
      counts.push_back(n);
    }
    medians.push_back(quantile(counts, 0.5));
  }
  return medians;
}

/// @brief |found - expected| / |expected| of one row.
template <class T, class U>
float relative_error(const T* found, const U* expected, std::size_t n) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double wanted = static_cast<double>(expected[i]);
    const double off = static_cast<double>(found[i]) - wanted;
    difference += off * off;
    norm += wanted * wanted;
  }
  return static_cast<float>(std::sqrt(difference / std::max(norm, 1e-30)));
}

}  // namespace wavekv_bench
