// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/detail/panel_product.hpp>

/// @file nearest_float.hpp
/// @brief For every point the centroid with the largest x·c + bias, by float products of tiles.

namespace wavekv::detail {

/// The finder for every machine. All finders have these three calls, in this order: points once, then centroids
/// and assign once per iteration. Ties go to the smaller id.
class nearest_float {
 public:
  nearest_float(const float* points, std::size_t n_points, std::size_t dim, std::size_t n_clusters,
                clustering_scratch& scratch)
      : n_points_(n_points),
        dim_(dim),
        n_clusters_(n_clusters),
        blocks_(scratch.blocks.take(panel_shape::n_blocks(n_points) * block_rows * dim)),
        panels_(scratch.panels.take(panel_shape::n_panels(n_clusters) * panel_shape::panel_width *
                                    dim)),
        biases_(scratch.padded_biases.take(panel_shape::n_panels(n_clusters) *
                                           panel_shape::panel_width)) {
    for (std::size_t first = 0; first < n_points; first += block_rows) {
      pack_block(points + first * dim, std::min(block_rows, n_points - first), dim, dim,
                 blocks_ + first * dim);
    }
  }

  /// @param centroids  [n_clusters, dim]
  /// @param biases     [n_clusters]
  void set_centroids(const float* centroids, const float* biases) {
    pack_panels_of_rows(centroids, n_clusters_, dim_, panels_);
    float* padding = std::copy_n(biases, n_clusters_, biases_);
    std::fill(padding, biases_ + panel_shape::n_panels(n_clusters_) * panel_shape::panel_width,
              std::numeric_limits<float>::lowest());
  }

  void assign(std::span<std::uint32_t> assignment) const {
    for (std::size_t first = 0; first < n_points_; first += block_rows) {
      largest_scores(blocks_ + first * dim_, std::min(block_rows, n_points_ - first), panels_,
                     biases_, n_clusters_, dim_, &assignment[first]);
    }
  }

 private:
  static constexpr std::size_t block_rows = panel_shape::block_rows;

  std::size_t n_points_;
  std::size_t dim_;
  std::size_t n_clusters_;
  float* blocks_;
  float* panels_;
  float* biases_;
};

}  // namespace wavekv::detail
