// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <Eigen/Dense>
#include <Eigen/Eigenvalues>

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

/// @file low_rank.hpp
/// @brief InfiniGen and SparQ: tokens ranked by a few directions of their keys.

namespace wavekv::baselines {

/// @brief Keeps each cluster's mean key along the leading directions of the segment's keys; scores by the logit that these tell.
/// Models cluster_summary; of clusters of one token, as the papers'.
///
/// The directions are the eigenvectors of the largest eigenvalues of the mean of k·kᵀ. InfiniGen finds its directions once and for all, from
/// the queries and keys of a sample text, and takes 30 % of them; SparQ takes the elements of the key where the query is largest.
/// Memory: Rank numbers of bf16 a cluster, and the directions.
/// @tparam Rank  directions, at least 1; all of them where a key has no more elements
/// Source: InfiniGen, arXiv 2406.19707, section 4; SparQ, arXiv 2312.04985, section 4.
template <std::size_t Rank = 32>
struct low_rank {
  static_assert(Rank >= 1, "low_rank: Rank must be at least 1");

  struct kept {
    std::vector<float> directions;      ///< [rank, key_dim]
    aligned_storage<bf16> coordinates;  ///< [n_clusters, rank]
    std::size_t rank = 0;
    std::size_t n_clusters = 0;

    [[nodiscard]] std::size_t bytes() const noexcept {
      return directions.size() * sizeof(float) + coordinates.bytes();
    }
  };

  /// Complexity: O(n_tokens · key_dim² + key_dim³).  @throw std::bad_alloc
  [[nodiscard]] kept keep(const cluster_rows& clusters) const {
    using rows_type = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const auto dim = static_cast<Eigen::Index>(clusters.key_dim);
    const auto n_tokens = static_cast<Eigen::Index>(clusters.n_tokens());
    const auto n_clusters = static_cast<Eigen::Index>(clusters.n_clusters());
    const auto rank = std::min(static_cast<Eigen::Index>(Rank), dim);
    const Eigen::Map<const rows_type> keys(clusters.keys, n_tokens, dim);
    Eigen::MatrixXd products = Eigen::MatrixXd::Zero(dim, dim);
    for (Eigen::Index first = 0; first < n_tokens;
         first += 1024) {  // in double, but not all keys at once
      const Eigen::MatrixXd some =
          keys.middleRows(first, std::min<Eigen::Index>(1024, n_tokens - first))
              .template cast<double>();
      products.selfadjointView<Eigen::Lower>().rankUpdate(some.transpose());
    }
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(products);  // eigenvalues ascend
    const rows_type directions =
        solver.eigenvectors().rightCols(rank).transpose().template cast<float>();
    kept made;
    made.rank = static_cast<std::size_t>(rank);
    made.n_clusters = clusters.n_clusters();
    made.directions.assign(directions.data(), directions.data() + directions.size());
    made.coordinates = aligned_storage<bf16>(made.n_clusters * made.rank);
    const std::vector<float> means = clusters.mean_keys();
    const rows_type along =
        Eigen::Map<const rows_type>(means.data(), n_clusters, dim) * directions.transpose();
    simd::from_float(made.coordinates.data(), along.data(), made.n_clusters * made.rank);
    return made;
  }

  /// Complexity: O((clusters + key_dim) · rank · group size).
  std::size_t score(const kept& of, const query_rows& queries, float* scores,
                    std::size_t stride) const {
    thread_local std::vector<float> along;  // [queries.n, rank]
    along.resize(queries.n * of.rank);
    simd::score_rows(queries.data, queries.n, queries.stride, of.directions.data(), of.rank,
                     queries.dim, along.data(), of.rank);
    simd::score_rows(along.data(), queries.n, of.rank, of.coordinates.data(), of.n_clusters,
                     of.rank, scores, stride);
    return of.directions.size() * sizeof(float) + of.n_clusters * of.rank * sizeof(bf16);
  }
};

/// @brief Every token ranked by 32 directions, 2,048 of them read.
using low_rank_index =
    wave_index<segment_size<>, tokens_per_cluster<1>, consecutive, top_k, low_rank<>>;

}  // namespace wavekv::baselines
