// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include <wavekv/attention/query_rows.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/consecutive.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/summary.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>

/// @file oracle.hpp
/// @brief What every selection rule would like to know: the logits themselves.

namespace wavekv::baselines {

/// @brief Keeps all keys, and scores a cluster by the largest logit among its tokens; models cluster_summary. With clusters of one
/// token the scores are the logits.
///
/// It reads every key and books none of it: its bytes are those of the choice alone, which nobody can have for that. Memory: the keys, in float.
struct oracle {
  struct kept {
    std::vector<float> keys;                 ///< [n_tokens, key_dim]
    std::vector<std::uint32_t> first_token;  ///< [n_clusters + 1]

    [[nodiscard]] std::size_t bytes() const noexcept {
      return keys.size() * sizeof(float) + first_token.size() * sizeof(std::uint32_t);
    }
  };

  /// @throw std::bad_alloc
  [[nodiscard]] kept keep(const cluster_rows& clusters) const {
    return {{clusters.keys, clusters.keys + clusters.n_tokens() * clusters.key_dim},
            {clusters.first_token.begin(), clusters.first_token.end()}};
  }

  /// Complexity: O(tokens · key_dim · group size).
  /// @return 0: see above
  std::size_t score(const kept& of, const query_rows& queries, float* scores,
                    std::size_t stride) const {
    const std::size_t n_tokens = of.first_token.back();
    const std::size_t n_clusters = of.first_token.size() - 1;
    if (n_tokens == n_clusters) {
      simd::score_rows(queries.data, queries.n, queries.stride, of.keys.data(), n_tokens,
                       queries.dim, scores, stride);
      return 0;
    }
    thread_local std::vector<float> logits;
    logits.resize(queries.n * n_tokens);
    simd::score_rows(queries.data, queries.n, queries.stride, of.keys.data(), n_tokens, queries.dim,
                     logits.data(), n_tokens);
    for (std::size_t g = 0; g < queries.n; ++g) {
      for (std::size_t c = 0; c < n_clusters; ++c) {
        scores[g * stride + c] = *std::max_element(
            logits.begin() + static_cast<std::ptrdiff_t>(g * n_tokens + of.first_token[c]),
            logits.begin() + static_cast<std::ptrdiff_t>(g * n_tokens + of.first_token[c + 1]));
      }
    }
    return 0;
  }
};

}  // namespace wavekv::baselines
