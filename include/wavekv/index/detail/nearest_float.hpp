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

/// The finder for every machine.
///
/// All finders have these calls, in this order: the points once, set_centroids and assign for all centroids, then for
/// each iteration either these two again or update_centroids and reassign. The latter score the centroids that changed
/// and no others, and give the same: a point keeps the score of its centroid and a bound of every other one, which tell
/// whether an unchanged centroid can win. Ties go to the smaller id.
class nearest_float {
 public:
  nearest_float(const float* points, std::size_t n_points, std::size_t dim, std::size_t n_clusters,
                clustering_scratch& scratch)
      : points_(points),
        n_points_(n_points),
        dim_(dim),
        n_clusters_(n_clusters),
        blocks_(scratch.blocks.take((panel_shape::n_blocks(n_points) + 1) * block_rows * dim)),
        panels_(scratch.panels.take(2 * panel_floats(n_clusters))),
        changed_panels_(panels_ + panel_floats(n_clusters)),
        biases_(scratch.padded_biases.take(2 * n_columns(n_clusters))),
        changed_biases_(biases_ + n_columns(n_clusters)),
        scores_(scratch.scores.take(2 * n_points)),
        others_(scores_ + n_points),
        open_points_(scratch.candidates.take(n_points)) {
    for (std::size_t first = 0; first < n_points; first += block_rows) {
      pack_block(points + first * dim, std::min(block_rows, n_points - first), dim, dim,
                 blocks_ + first * dim);
    }
  }

  /// @param centroids  [n_clusters, dim]
  /// @param biases     [n_clusters]
  void set_centroids(const float* centroids, const float* biases) {
    pack_panels_of_rows(centroids, n_clusters_, dim_, panels_);
    pad_biases(std::copy_n(biases, n_clusters_, biases_), biases_, n_clusters_);
  }

  void assign(std::span<std::uint32_t> assignment) {
    for (std::size_t first = 0; first < n_points_; first += block_rows) {
      const std::size_t n_rows = std::min(block_rows, n_points_ - first);
      largest_two found[block_rows];
      largest_scores(blocks_ + first * dim_, n_rows, panels_, biases_, n_clusters_, dim_, found);
      for (std::size_t r = 0; r < n_rows; ++r) {
        take(first + r, found[r], assignment);
      }
    }
  }

  /// Takes the centroids that changed; the others must be those of before.
  /// @param changed  their ids, in order
  void update_centroids(const float* centroids, const float* biases,
                        std::span<const std::uint32_t> changed) {
    changed_ = changed;
    constexpr std::size_t width = panel_shape::panel_width;
    for (std::size_t i = 0; i < n_columns(changed.size()); ++i) {
      float* packed = changed_panels_ + i / width * width * dim_ + i % width;
      if (i >= changed.size()) {
        for (std::size_t j = 0; j < dim_; ++j) {
          packed[j * width] = 0.0F;
        }
        continue;
      }
      const std::size_t c = changed[i];
      float* place = panels_ + c / width * width * dim_ + c % width;
      for (std::size_t j = 0; j < dim_; ++j) {
        packed[j * width] = place[j * width] = centroids[c * dim_ + j];
      }
      changed_biases_[i] = biases_[c] = biases[c];
    }
    pad_biases(changed_biases_ + changed.size(), changed_biases_, changed.size());
  }

  /// @param is_changed  [n_clusters] not 0 for the ids given to update_centroids
  void reassign(std::span<std::uint32_t> assignment, const std::uint8_t* is_changed) {
    std::size_t n_open = 0;
    for (std::size_t first = 0; first < n_points_; first += block_rows) {
      const std::size_t n_rows = std::min(block_rows, n_points_ - first);
      largest_two found[block_rows];
      largest_scores(blocks_ + first * dim_, n_rows, changed_panels_, changed_biases_,
                     changed_.size(), dim_, found);
      for (std::size_t r = 0; r < n_rows; ++r) {
        found[r].column = changed_[found[r].column];
        if (!take_changed(first + r, found[r], assignment, is_changed)) {
          open_points_[n_open++] = static_cast<std::uint32_t>(first + r);
        }
      }
    }
    float* block = blocks_ + panel_shape::n_blocks(n_points_) * block_rows * dim_;
    for (std::size_t first = 0; first < n_open; first += block_rows) {
      const std::size_t n_rows = std::min(block_rows, n_open - first);
      for (std::size_t r = 0; r < block_rows; ++r) {
        const float* row = points_ + open_points_[first + std::min(r, n_rows - 1)] * dim_;
        for (std::size_t i = 0; i < dim_; ++i) {
          block[i * block_rows + r] = row[i];
        }
      }
      largest_two found[block_rows];
      largest_scores(block, n_rows, panels_, biases_, n_clusters_, dim_, found);
      for (std::size_t r = 0; r < n_rows; ++r) {
        take(open_points_[first + r], found[r], assignment);
      }
    }
  }

  /// A point was given another centroid than the nearest: reassign looks at all centroids for it.
  void forget(std::size_t point) { others_[point] = std::numeric_limits<float>::infinity(); }

 private:
  static constexpr std::size_t block_rows = panel_shape::block_rows;

  static constexpr std::size_t n_columns(std::size_t n) {
    return panel_shape::n_panels(n) * panel_shape::panel_width;
  }
  std::size_t panel_floats(std::size_t n) const { return n_columns(n) * dim_; }

  static void pad_biases(float* padding, float* biases, std::size_t n) {
    std::fill(padding, biases + n_columns(n), std::numeric_limits<float>::lowest());
  }

  void take(std::size_t point, const largest_two& found, std::span<std::uint32_t> assignment) {
    assignment[point] = found.column;
    scores_[point] = found.largest;
    others_[point] = found.second;
  }

  /// Decides by the changed centroids and what is known of the others; false where that is not enough.
  bool take_changed(std::size_t point, const largest_two& found,
                    std::span<std::uint32_t> assignment, const std::uint8_t* is_changed) {
    const std::uint32_t held = assignment[point];
    const float score = scores_[point];
    const float others = others_[point];
    if (others == std::numeric_limits<float>::infinity()) {
      return false;
    }
    if (is_changed[held] != 0) {
      if (!(found.largest > others)) {
        return false;
      }
      take(point, {found.column, found.largest, std::max(others, found.second)}, assignment);
    } else if (found.largest > score || (found.largest == score && found.column < held)) {
      take(point, {found.column, found.largest, std::max({others, score, found.second})},
           assignment);
    } else {
      others_[point] = std::max(others, found.largest);
    }
    return true;
  }

  const float* points_;
  std::size_t n_points_;
  std::size_t dim_;
  std::size_t n_clusters_;
  float* blocks_;  // one more than the points fill
  float* panels_;
  float* changed_panels_;
  float* biases_;
  float* changed_biases_;
  float* scores_;  // [n_points] of the centroid that the point has
  float* others_;  // [n_points] no other centroid has a larger score
  std::uint32_t* open_points_;
  std::span<const std::uint32_t> changed_;
};

}  // namespace wavekv::detail
