// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/detail/metric_space.hpp>
#include <wavekv/index/detail/panel_product.hpp>
#include <wavekv/index/detail/safe_scale.hpp>

/// @file cluster_statistics.hpp
/// @brief Sizes, true means and dispersions of the clusters of one level.

namespace wavekv::detail {

/// Per cluster, in the clusterer's ids.
struct cluster_statistics {
  std::vector<std::uint32_t> sizes;
  std::vector<double> key_sums;  // over tokens, so that a coarser level's mean is a true mean, too
  std::vector<double> value_sums;
  std::vector<float> centroids;
  std::vector<float> value_means;
  std::vector<double> dispersions;

  void resize(std::size_t n, std::size_t key_dim, std::size_t value_dim) {
    sizes.assign(n, 0);
    key_sums.assign(n * key_dim, 0.0);
    value_sums.assign(n * value_dim, 0.0);
    centroids.resize(n * key_dim);
    value_means.resize(n * value_dim);
    dispersions.assign(n, 0.0);
  }

  void finish_means(std::size_t key_dim, std::size_t value_dim) {
    for (std::size_t c = 0; c < sizes.size(); ++c) {
      const double share = 1.0 / sizes[c];
      for (std::size_t i = c * key_dim; i < (c + 1) * key_dim; ++i) {
        centroids[i] = static_cast<float>(key_sums[i] * share);
      }
      for (std::size_t i = c * value_dim; i < (c + 1) * value_dim; ++i) {
        value_means[i] = static_cast<float>(value_sums[i] * share);
      }
    }
  }

  void copy_in_order(std::span<const std::uint32_t> ids, std::size_t key_dim, std::size_t value_dim,
                     std::vector<std::uint32_t>& sizes_out, std::vector<float>& centroids_out,
                     std::vector<float>& value_means_out,
                     std::vector<float>& dispersions_out) const {
    sizes_out.resize(ids.size());
    centroids_out.resize(ids.size() * key_dim);
    value_means_out.resize(ids.size() * value_dim);
    dispersions_out.resize(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::size_t id = ids[i];
      sizes_out[i] = sizes[id];
      dispersions_out[i] =
          static_cast<float>(std::min(dispersions[id], double{std::numeric_limits<float>::max()}));
      std::copy_n(&centroids[id * key_dim], key_dim, centroids_out.data() + i * key_dim);
      if (value_dim != 0) {
        std::copy_n(&value_means[id * value_dim], value_dim,
                    value_means_out.data() + i * value_dim);
      }
    }
  }
};

/// Adds ‖Lᵀ·(x − center)‖² / dim of every row to its cluster's dispersion: one weight per row, one center per row.
/// Deviations are formed before they are transformed, so that an offset common to all keys cancels exactly.
template <class Center, class Weight>
void add_dispersions(const float* rows, std::span<const std::uint32_t> assignment, std::size_t dim,
                     const metric_space& space, const Center& center, const Weight& weight,
                     std::vector<double>& dispersions, clustering_scratch& scratch) {
  constexpr std::size_t block_rows = panel_shape::block_rows;
  const panel_shape::tag d;
  float* block = scratch.blocks.take(block_rows * dim);
  const float scale = safe_scale(rows, assignment.size() * dim);
  const double unit =
      1.0 / (static_cast<double>(scale) * static_cast<double>(scale) * static_cast<double>(dim));
  for (std::size_t first = 0; first < assignment.size(); first += block_rows) {
    const std::size_t n_rows = std::min(block_rows, assignment.size() - first);
    float squares[block_rows] = {};
    for (std::size_t r = 0; r < block_rows; ++r) {
      for (std::size_t i = 0; i < dim; ++i) {
        float deviation = 0;
        if (r < n_rows) {
          deviation =
              rows[(first + r) * dim + i] * scale - center(assignment[first + r])[i] * scale;
        }
        block[i * block_rows + r] = deviation;
        if (space.is_identity()) {
          squares[r] += deviation * deviation;
        }
      }
    }
    if (!space.is_identity()) {
      space.transform_block(block, [&](std::size_t row, std::size_t, auto left, auto right) {
        squares[row] +=
            hn::GetLane(hn::SumOfLanes(d, hn::MulAdd(left, left, hn::Mul(right, right))));
      });
    }
    for (std::size_t r = 0; r < n_rows; ++r) {
      dispersions[assignment[first + r]] +=
          weight(first + r) * static_cast<double>(squares[r]) * unit;
    }
  }
}

/// Statistics of the clusters of tokens.
inline cluster_statistics token_statistics(const cluster_request& request,
                                           std::span<const std::uint32_t> assignment,
                                           std::size_t n_clusters, clustering_scratch& scratch) {
  const std::size_t key_dim = request.key_dim;
  const std::size_t value_dim = request.value_dim;
  cluster_statistics result;
  result.resize(n_clusters, key_dim, value_dim);
  for (std::size_t t = 0; t < assignment.size(); ++t) {
    const std::size_t cluster = assignment[t];
    ++result.sizes[cluster];
    double* key_sum = result.key_sums.data() + cluster * key_dim;
    for (std::size_t i = 0; i < key_dim; ++i) {
      key_sum[i] += static_cast<double>(request.keys[t * key_dim + i]);
    }
    double* value_sum = result.value_sums.data() + cluster * value_dim;
    for (std::size_t i = 0; i < value_dim; ++i) {
      value_sum[i] += static_cast<double>(request.values[t * value_dim + i]);
    }
  }
  result.finish_means(key_dim, value_dim);
  const metric_space space(request.metric, key_dim, scratch);
  add_dispersions(
      request.keys, assignment, key_dim, space,
      [&](std::size_t cluster) { return &result.centroids[cluster * key_dim]; },
      [](std::size_t) { return 1.0; }, result.dispersions, scratch);
  for (std::size_t c = 0; c < n_clusters; ++c) {
    result.dispersions[c] /= result.sizes[c];
  }
  return result;
}

/// Statistics of clusters of clusters, over their tokens: the spread inside the parts plus the spread of
/// their means (the law of total variance), without another look at the tokens.
inline cluster_statistics merged_statistics(const cluster_statistics& parts,
                                            std::span<const std::uint32_t> assignment,
                                            std::size_t n_clusters, const cluster_request& request,
                                            clustering_scratch& scratch) {
  const std::size_t key_dim = request.key_dim;
  const std::size_t value_dim = request.value_dim;
  cluster_statistics result;
  result.resize(n_clusters, key_dim, value_dim);
  for (std::size_t p = 0; p < assignment.size(); ++p) {
    const std::size_t cluster = assignment[p];
    result.sizes[cluster] += parts.sizes[p];
    result.dispersions[cluster] += parts.dispersions[p] * parts.sizes[p];
    for (std::size_t i = 0; i < key_dim; ++i) {
      result.key_sums[cluster * key_dim + i] += parts.key_sums[p * key_dim + i];
    }
    for (std::size_t i = 0; i < value_dim; ++i) {
      result.value_sums[cluster * value_dim + i] += parts.value_sums[p * value_dim + i];
    }
  }
  result.finish_means(key_dim, value_dim);
  const metric_space space(request.metric, key_dim, scratch);
  add_dispersions(
      parts.centroids.data(), assignment, key_dim, space,
      [&](std::size_t cluster) { return &result.centroids[cluster * key_dim]; },
      [&](std::size_t part) { return static_cast<double>(parts.sizes[part]); }, result.dispersions,
      scratch);
  for (std::size_t c = 0; c < n_clusters; ++c) {
    result.dispersions[c] /= result.sizes[c];
  }
  return result;
}

}  // namespace wavekv::detail
