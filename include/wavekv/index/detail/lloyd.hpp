// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>

#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/detail/nearest_eight_bit.hpp>
#include <wavekv/index/detail/nearest_float.hpp>
#include <wavekv/index/detail/panel_product.hpp>
#include <wavekv/index/detail/seeds.hpp>

/// @file lloyd.hpp
/// @brief Lloyd's iterations, spherical and Euclidean, with one arithmetic for both.
///
/// Both assign a point x to the centroid with the largest x·c + bias: spherical with unit-norm centroids
/// and no bias, Euclidean with bias −‖c‖²/2. All sums run over the points in their order and in double, so a
/// result depends on the input alone.

namespace wavekv::detail {

/// Gives consecutive ids to the clusters that have points. Returns their number.
inline std::size_t drop_empty_clusters(std::span<std::uint32_t> assignment, std::size_t n_clusters,
                                       std::uint32_t* counts) {
  std::fill_n(counts, n_clusters, 0U);
  for (const std::uint32_t cluster : assignment) {
    counts[cluster] = 1;
  }
  std::uint32_t n_used = 0;
  for (std::size_t c = 0; c < n_clusters; ++c) {
    counts[c] = counts[c] != 0 ? n_used++ : 0;
  }
  if (n_used < n_clusters) {
    for (std::uint32_t& cluster : assignment) {
      cluster = counts[cluster];
    }
  }
  return n_used;
}

/// The finder of this machine.
#if WAVEKV_DETAIL_EIGHT_BIT
using nearest_finder = nearest_eight_bit;
#else
using nearest_finder = nearest_float;
#endif

/// One run of Lloyd's algorithm; a value of the call's pointers and sizes.
template <lloyd_kind Kind, class Nearest = nearest_finder>
class lloyd {
 public:
  lloyd(const float* points, std::size_t n_points, std::size_t dim, std::size_t n_clusters,
        std::span<std::uint32_t> assignment, seeding how, clustering_scratch& scratch)
      : points_(points),
        n_points_(n_points),
        dim_(dim),
        n_clusters_(n_clusters),
        assignment_(assignment),
        scratch_(scratch),
        seeds_(chosen_seeds(points, n_points, dim, n_clusters, how, scratch)),
        centroids_(scratch.centroids.take(n_clusters * dim)),
        biases_(scratch.biases.take(n_clusters)),
        sums_(scratch.sums.take(n_clusters * dim)),
        counts_(scratch.counts.take(n_clusters)),
        is_changed_(scratch.is_changed.take(n_clusters)),
        changed_(scratch.changed.take(n_clusters)),
        nearest_(points, n_points, dim, n_clusters, scratch) {}

  /// Returns the number of clusters; every one has a point.
  std::size_t run(int n_iterations) {
    std::uint32_t* previous = scratch_.previous.take(n_points_);
    take_seeds();
    for (int iteration = 0; iteration < n_iterations; ++iteration) {
      if (iteration < 2) {
        mark_all();
      } else {
        mark_changed(previous);
      }
      if (n_changed_ == 0) {
        break;  // the same assignment would give the same centroids, and so on
      }
      if (iteration > 0) {
        std::copy(assignment_.begin(), assignment_.end(), previous);
        add_up();
      }
      finish_centroids();
      // A centroid whose cluster is what it was need not be looked at again, for nearly every point.
      if (8 * n_changed_ >= 7 * n_clusters_) {
        nearest_.set_centroids(centroids_, biases_);
        nearest_.assign(assignment_);
      } else {
        nearest_.update_centroids(centroids_, biases_, {changed_, n_changed_});
        nearest_.reassign(assignment_, is_changed_);
      }
      repair();
    }
    return drop_empty_clusters(assignment_, n_clusters_, counts_);
  }

 private:
  // Before the points' own finder is made: both work in the scratch.
  static const std::uint32_t* chosen_seeds(const float* points, std::size_t n_points,
                                           std::size_t dim, std::size_t n_clusters, seeding how,
                                           clustering_scratch& scratch) {
    std::uint32_t* seeds = scratch.seeds.take(n_clusters);
    if (how == seeding::half_far_apart) {
      choose_far_seeds<Kind, Nearest>(points, n_points, dim, n_clusters, scratch, seeds);
    } else {
      for (std::size_t c = 0; c < n_clusters; ++c) {
        seeds[c] = static_cast<std::uint32_t>(evenly_spaced(c, n_clusters, n_points));
      }
    }
    return seeds;
  }

  void take_seeds() {
    for (std::size_t c = 0; c < n_clusters_; ++c) {
      std::copy_n(points_ + seeds_[c] * dim_, dim_, sums_ + c * dim_);
      counts_[c] = 1;
    }
  }

  void mark_all() {
    std::fill_n(is_changed_, n_clusters_, std::uint8_t{1});
    std::iota(changed_, changed_ + n_clusters_, 0U);
    n_changed_ = n_clusters_;
  }

  /// Marks the clusters that lost or got a point.
  void mark_changed(const std::uint32_t* previous) {
    std::fill_n(is_changed_, n_clusters_, std::uint8_t{0});
    for (std::size_t p = 0; p < n_points_; ++p) {
      if (assignment_[p] != previous[p]) {
        is_changed_[assignment_[p]] = is_changed_[previous[p]] = 1;
      }
    }
    n_changed_ = 0;
    for (std::size_t c = 0; c < n_clusters_; ++c) {
      if (is_changed_[c] != 0) {
        changed_[n_changed_++] = static_cast<std::uint32_t>(c);
      }
    }
  }

  /// Sums and counts of the changed clusters, anew and in the order of the points.
  void add_up() {
    for (std::size_t i = 0; i < n_changed_; ++i) {
      std::fill_n(sums_ + changed_[i] * dim_, dim_, 0.0);
      counts_[changed_[i]] = 0;
    }
    for (std::size_t p = 0; p < n_points_; ++p) {
      if (is_changed_[assignment_[p]] == 0) {
        continue;
      }
      const float* row = points_ + p * dim_;
      double* sum = sums_ + assignment_[p] * dim_;
      ++counts_[assignment_[p]];
      for (std::size_t i = 0; i < dim_; ++i) {
        sum[i] += static_cast<double>(row[i]);
      }
    }
  }

  /// Changed centroids from sums and counts. A cluster whose sum vanishes, or that is empty, keeps a zero vector:
  /// a legal centroid that attracts only what no other does.
  void finish_centroids() {
    for (std::size_t changed = 0; changed < n_changed_; ++changed) {
      const std::size_t c = changed_[changed];
      const double* sum = sums_ + c * dim_;
      float* centroid = centroids_ + c * dim_;
      double square = 0;
      for (std::size_t i = 0; i < dim_; ++i) {
        square += sum[i] * sum[i];
      }
      double scale = 0;
      if constexpr (Kind == lloyd_kind::spherical) {
        scale = square > 0 ? 1.0 / std::sqrt(square) : 0.0;
        biases_[c] = 0;
      } else {
        scale = counts_[c] > 0 ? 1.0 / counts_[c] : 0.0;
        biases_[c] = static_cast<float>(-0.5 * square * scale * scale);
      }
      for (std::size_t i = 0; i < dim_; ++i) {
        centroid[i] = static_cast<float>(sum[i] * scale);
      }
    }
  }

  struct fit {
    float misfit;     // 1 − cosine, or the squared distance
    float tolerated;  // what rounding alone may make of it
  };

  fit fit_of(std::size_t p) const {
    constexpr float rounding = 1e-5F;
    const float* row = points_ + p * dim_;
    const std::uint32_t c = assignment_[p];
    const float square = dot_product(row, row, dim_);
    const float score = dot_product(row, centroids_ + c * dim_, dim_) + biases_[c];
    if constexpr (Kind == lloyd_kind::spherical) {
      return {square > 0 ? 1.0F - score / std::sqrt(square) : 0.0F, rounding};
    } else {
      return {square - 2.0F * score, rounding * square};
    }
  }

  /// Every empty cluster takes the worst-fitting point of a cluster that has more than one. Points that fit
  /// to rounding stay where they are: copies of one key are one cluster, however many were asked for.
  void repair() {
    std::fill_n(counts_, n_clusters_, 0U);
    for (const std::uint32_t cluster : assignment_) {
      ++counts_[cluster];
    }
    if (std::count(counts_, counts_ + n_clusters_, 0U) == 0) {
      return;
    }
    float* misfits = scratch_.misfits.take(n_points_);
    std::uint32_t* candidates = scratch_.misfit_order.take(n_points_);
    std::size_t n_candidates = 0;
    for (std::size_t p = 0; p < n_points_; ++p) {
      const fit found = fit_of(p);
      misfits[p] = found.misfit;
      if (found.misfit > found.tolerated) {
        candidates[n_candidates++] = static_cast<std::uint32_t>(p);
      }
    }
    std::sort(candidates, candidates + n_candidates, [&](std::uint32_t a, std::uint32_t b) {
      return misfits[a] != misfits[b] ? misfits[a] > misfits[b] : a < b;
    });
    std::size_t next = 0;
    for (std::size_t c = 0; c < n_clusters_; ++c) {
      if (counts_[c] != 0) {
        continue;
      }
      while (next < n_candidates && counts_[assignment_[candidates[next]]] <= 1) {
        ++next;
      }
      if (next == n_candidates) {
        return;
      }
      const std::uint32_t moved = candidates[next++];
      --counts_[assignment_[moved]];
      assignment_[moved] = static_cast<std::uint32_t>(c);
      counts_[c] = 1;
      nearest_.forget(moved);
    }
  }

  const float* points_;
  std::size_t n_points_;
  std::size_t dim_;
  std::size_t n_clusters_;
  std::span<std::uint32_t> assignment_;
  clustering_scratch& scratch_;
  const std::uint32_t* seeds_;  // [n_clusters] points
  float* centroids_;
  float* biases_;
  double* sums_;
  std::uint32_t* counts_;
  std::uint8_t* is_changed_;
  std::uint32_t* changed_;  // ids of the changed clusters, in order
  std::size_t n_changed_ = 0;
  Nearest nearest_;
};

/// The cases every k-means has before it starts. Returns 0 when there is real work to do.
inline std::size_t trivial_clustering(std::size_t n_points, std::size_t n_clusters,
                                      std::span<std::uint32_t> assignment) {
  if (n_clusters >= n_points) {
    std::iota(assignment.begin(), assignment.end(), 0U);
    return n_points;
  }
  if (n_clusters <= 1) {
    std::fill(assignment.begin(), assignment.end(), 0U);
    return 1;
  }
  return 0;
}

}  // namespace wavekv::detail
