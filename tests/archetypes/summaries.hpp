// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <wavekv/index/concepts.hpp>

/// @file summaries.hpp
/// @brief The smallest use of the concept of a summary.

namespace wavekv_test {

/// @brief A cluster is what its first key is.
struct first_key {
  using kept = std::vector<std::vector<float>>;

  [[nodiscard]] kept keep(const wavekv::cluster_rows& clusters) const {
    kept keys;
    for (std::size_t c = 0; c < clusters.n_clusters(); ++c) {
      const float* const key = clusters.keys + clusters.first_token[c] * clusters.key_dim;
      keys.emplace_back(key, key + clusters.key_dim);
    }
    return keys;
  }

  std::size_t score(const kept& keys, const wavekv::query_rows& queries, float* scores,
                    std::size_t stride) const {
    for (std::size_t g = 0; g < queries.n; ++g) {
      for (std::size_t c = 0; c < keys.size(); ++c) {
        float sum = 0.0F;
        for (std::size_t i = 0; i < queries.dim; ++i) {
          sum += queries.data[g * queries.stride + i] * keys[c][i];
        }
        scores[g * stride + c] = sum;
      }
    }
    return keys.size() * queries.dim * sizeof(float);
  }
};

}  // namespace wavekv_test
