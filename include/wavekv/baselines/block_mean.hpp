// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

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

/// @file block_mean.hpp
/// @brief InfLLM and ktransformers: blocks of 128 tokens, ranked by their mean key.

namespace wavekv::baselines {

/// @brief Keeps the mean of a cluster's keys; scores by the logit of that mean. Models cluster_summary.
///
/// InfLLM keeps a few representative keys of a block instead, those that the prompt's queries attended most; ktransformers offers
/// the mean among others. The choice is each KV head's own. Memory: one row a cluster, as bf16.
/// Source: InfLLM, arXiv 2402.04617, section 3.2; ktransformers, "Long context" (sparse attention framework).
struct block_mean {
  struct kept {
    aligned_storage<bf16> rows;  ///< [n_clusters, key_dim]
    std::size_t n_clusters = 0;

    [[nodiscard]] std::size_t bytes() const noexcept { return rows.bytes(); }
  };

  /// @throw std::bad_alloc
  [[nodiscard]] kept keep(const cluster_rows& clusters) const {
    const std::vector<float> means = clusters.mean_keys();
    kept made{aligned_storage<bf16>(means.size()), clusters.n_clusters()};
    simd::from_float(made.rows.data(), means.data(), means.size());
    return made;
  }

  /// Complexity: O(clusters · key_dim · group size). Allocates: nothing.
  std::size_t score(const kept& of, const query_rows& queries, float* scores,
                    std::size_t stride) const noexcept {
    simd::score_rows(queries.data, queries.n, queries.stride, of.rows.data(), of.n_clusters,
                     queries.dim, scores, stride);
    return of.n_clusters * queries.dim * sizeof(bf16);
  }
};

/// @brief Blocks of 128 tokens, of which 16 (2,048 tokens) are read.
using block_mean_index =
    wave_index<segment_size<>, tokens_per_cluster<128>, consecutive, top_k, block_mean>;

}  // namespace wavekv::baselines
