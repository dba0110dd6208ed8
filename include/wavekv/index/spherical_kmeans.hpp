// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/detail/lloyd.hpp>
#include <wavekv/index/detail/safe_scale.hpp>

/// @file spherical_kmeans.hpp
/// @brief Clusters keys by direction.

namespace wavekv {

/// @brief Spherical k-means on the keys; models wavekv::clusterer. Values and the query metric are not looked at.
///
/// Centroids start from evenly spaced keys and from keys far from these (detail/seeds.hpp). Each iteration assigns every
/// key to the centroid with the largest dot product (ties: the smaller id), then makes each centroid the unit vector along the sum of
/// its keys. An empty cluster takes the worst-fitting key of a cluster with more than one; when there is none (copies of one key, say),
/// it is removed. Deterministic: the result is a function of the request alone.
///
/// Complexity: O(Iterations · n_tokens · n_clusters · key_dim). Single-threaded: callers run heads and segments
/// side by side. Allocates nothing once the scratch has grown.
/// @tparam Iterations  assignments made, at least 1
/// Source: RetroInfer, arXiv 2505.02922, section 4.2
template <int Iterations = 10>
struct spherical_kmeans {
  static_assert(Iterations >= 1, "spherical_kmeans: Iterations must be at least 1");
  static constexpr int n_iterations = Iterations;  ///< assignments made

  /// @brief Writes a cluster id per token and returns the number of clusters; every id below it is used.
  /// @param request     finite keys; n_tokens of 0 gives 0 clusters
  /// @param assignment  [n_tokens], written
  /// @throw std::bad_alloc
  std::size_t cluster(const cluster_request& request, std::span<std::uint32_t> assignment,
                      clustering_scratch& scratch) const {
    const std::size_t n = request.n_tokens;
    if (const std::size_t done = detail::trivial_clustering(n, request.n_clusters, assignment);
        done != 0 || n == 0) {
      return done;
    }
    const float* points =
        detail::safely_scaled(request.keys, n * request.key_dim, scratch.scaled_keys);
    detail::lloyd<detail::lloyd_kind::spherical> run(points, n, request.key_dim, request.n_clusters,
                                                     assignment, detail::seeding::half_far_apart,
                                                     scratch);
    return run.run(Iterations);
  }

  /// @brief Always equal: the type is the whole choice.
  friend bool operator==(const spherical_kmeans&, const spherical_kmeans&) = default;
};

}  // namespace wavekv
