// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <wavekv/attention/query_rows.hpp>
#include <wavekv/baselines/top_k.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/consecutive.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/summary.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/wave_index.hpp>

/// @file page_bounds.hpp
/// @brief Quest: pages of 16 tokens, ranked by an upper bound of their logits.

namespace wavekv::baselines {

/// @brief Keeps the smallest and the largest element of a cluster's keys in every dimension; scores by the largest logit that a
/// key between them could have. Models cluster_summary.
///
/// Elements are kept as bf16, rounded outwards: the bound holds for every key. Memory: two rows a cluster.
/// Source: Quest, arXiv 2406.10774, section 3.3 (algorithm 1).
struct page_bounds {
  struct kept {
    aligned_storage<bf16> rows;  ///< [n_clusters, 2 · key_dim] maxima, then minima
    std::size_t n_clusters = 0;

    [[nodiscard]] std::size_t bytes() const noexcept { return rows.bytes(); }
  };

  /// @throw std::bad_alloc
  [[nodiscard]] kept keep(const cluster_rows& clusters) const {
    const std::size_t dim = clusters.key_dim;
    kept made{aligned_storage<bf16>(clusters.n_clusters() * 2 * dim), clusters.n_clusters()};
    for (std::size_t c = 0; c < clusters.n_clusters(); ++c) {
      bf16* const row = made.rows.data() + c * 2 * dim;
      for (std::size_t i = 0; i < dim; ++i) {
        float most = clusters.keys[clusters.first_token[c] * dim + i];
        float least = most;
        for (std::size_t t = clusters.first_token[c] + 1; t < clusters.first_token[c + 1]; ++t) {
          most = std::max(most, clusters.keys[t * dim + i]);
          least = std::min(least, clusters.keys[t * dim + i]);
        }
        row[i] = rounded_up(most);
        row[dim + i] = from_float<bf16>(-to_float(rounded_up(-least)));
      }
    }
    return made;
  }

  /// Complexity: O(clusters · 2 · key_dim · group size).
  std::size_t score(const kept& of, const query_rows& queries, float* scores,
                    std::size_t stride) const {
    // sum of max(q·max, q·min) = what of q is positive times the maxima, and what is negative times the minima
    const std::size_t dim = queries.dim;
    thread_local std::vector<float> parts;
    parts.resize(queries.n * 2 * dim);
    for (std::size_t g = 0; g < queries.n; ++g) {
      for (std::size_t i = 0; i < dim; ++i) {
        const float q = queries.data[g * queries.stride + i];
        parts[g * 2 * dim + i] = std::max(q, 0.0F);
        parts[g * 2 * dim + dim + i] = std::min(q, 0.0F);
      }
    }
    simd::score_rows(parts.data(), queries.n, 2 * dim, of.rows.data(), of.n_clusters, 2 * dim,
                     scores, stride);
    return of.n_clusters * 2 * dim * sizeof(bf16);
  }

 private:
  // The smallest bf16 that is at least x.
  static bf16 rounded_up(float x) noexcept {
    bf16 nearest = from_float<bf16>(x);
    if (to_float(nearest) <
        x) {  // one step up: away from zero where positive, towards it where negative
      nearest.bits = static_cast<std::uint16_t>(x > 0.0F ? nearest.bits + 1 : nearest.bits - 1);
    }
    return nearest;
  }
};

/// @brief Quest's index and its default budget of 2,048 tokens.
using page_bounds_index =
    wave_index<segment_size<>, tokens_per_cluster<16>, consecutive, top_k, page_bounds>;

}  // namespace wavekv::baselines
