// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include <wavekv/index/query_metric.hpp>

/// @file summary.hpp
/// @brief What the index keeps of a cluster: its mean, or what a summary of your own makes of it.

namespace wavekv {

/// @brief The clusters of one KV head of one segment, as a summary is made of them. Views only.
struct cluster_rows {
  const float* keys = nullptr;    ///< [n_tokens, key_dim] cluster by cluster
  const float* values = nullptr;  ///< [n_tokens, value_dim] likewise
  std::size_t key_dim = 0;
  std::size_t value_dim = 0;
  std::span<const std::uint32_t> first_token;  ///< [n_clusters + 1] of each cluster
  const query_metric* metric = nullptr;        ///< the queries seen so far, or null: see clusterer

  [[nodiscard]] std::size_t n_clusters() const noexcept { return first_token.size() - 1; }
  [[nodiscard]] std::size_t n_tokens() const noexcept { return first_token.back(); }

  /// @brief The mean key of every cluster, [n_clusters, key_dim], summed up in double.  @throw std::bad_alloc
  [[nodiscard]] std::vector<float> mean_keys() const {
    std::vector<float> means;
    means.reserve(n_clusters() * key_dim);
    for (std::size_t c = 0; c < n_clusters(); ++c) {
      const std::size_t begin = first_token[c];
      const std::size_t end = first_token[c + 1];
      for (std::size_t i = 0; i < key_dim; ++i) {
        double sum = 0.0;
        for (std::size_t t = begin; t < end; ++t) {
          sum += static_cast<double>(keys[t * key_dim + i]);
        }
        means.push_back(static_cast<float>(sum / static_cast<double>(end - begin)));
      }
    }
    return means;
  }
};

/// @brief Each node's centroid, value mean, size and dispersion: what estimates are made of, on every level of the tree. The
/// default, and the only one that has estimates with an expected error.
struct mean_summary {};

namespace detail {

/// @brief Whether clusters are scored by what the summary keeps, not by their means.
template <class Summary>
inline constexpr bool scores_clusters = !std::is_same_v<Summary, mean_summary>;

/// @brief Memory of what a summary keeps of one head: the object's own, and what it says that it holds beside that.
template <class Kept>
[[nodiscard]] std::size_t kept_bytes(const Kept& kept) noexcept {
  if constexpr (requires { kept.bytes(); }) {
    return sizeof(Kept) + kept.bytes();
  }
  return sizeof(Kept);
}

}  // namespace detail
}  // namespace wavekv
