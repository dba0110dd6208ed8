// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>

#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/detail/panel_product.hpp>

/// @file seeds.hpp
/// @brief Where k-means begins: points that lie apart, without a pass over all of them for each.

namespace wavekv::detail {

enum class lloyd_kind { spherical, euclidean };

/// Which points are seeds. Points that lie far apart give tighter clusters, and smaller ones where keys stand alone.
enum class seeding { evenly_spaced, half_far_apart };

/// In place of a cluster: the point is a seed already.
inline constexpr std::uint32_t taken_as_seed = 0xFFFFFFFFU;

/// The middle of the i-th of `of` equal runs of n points.
constexpr std::size_t evenly_spaced(std::size_t i, std::size_t of, std::size_t n) {
  return (2 * i + 1) * n / (2 * of);
}

/// Chooses the points that centroids start from, half of them far apart: distinct and deterministic.
///
/// One half are evenly spaced points. The other half is drawn from a pool of evenly spaced points, each with a weight of
/// the square of its misfit (1 − cosine, or the squared distance) to the nearest of the first half; drawn at equal steps
/// of the summed weights, so that no random numbers are needed. Two rounds of k-means‖ (Bahmani et al., PVLDB 5(7), 2012)
/// instead of k-means++: keys of a model come in crowds and loners, which evenly spaced seeds serve alike.
/// @tparam Nearest   a finder (see nearest_float); the scratch's finder is overwritten
/// @param n_clusters  2 to n_points − 1
/// @param seeds       [n_clusters], written
template <lloyd_kind Kind, class Nearest>
void choose_far_seeds(const float* points, std::size_t n_points, std::size_t dim,
                      std::size_t n_clusters, clustering_scratch& scratch, std::uint32_t* seeds) {
  const std::size_t n_pool = std::min(n_points, 3 * n_clusters);
  const std::size_t n_even = (n_clusters + 1) / 2;
  float* pool = scratch.pool.take(n_pool * dim);
  for (std::size_t p = 0; p < n_pool; ++p) {
    std::copy_n(points + evenly_spaced(p, n_pool, n_points) * dim, dim, pool + p * dim);
  }
  double* weights = scratch.seed_weights.take(n_pool);
  float* centroids = scratch.centroids.take(n_even * dim);
  float* biases = scratch.biases.take(n_even);
  const auto square = [&](const float* row) {
    return static_cast<double>(dot_product(row, row, dim));
  };
  for (std::size_t c = 0; c < n_even; ++c) {
    const float* row = pool + evenly_spaced(c, n_even, n_pool) * dim;
    const double length = std::sqrt(square(row));
    const double scale = Kind == lloyd_kind::euclidean ? 1.0 : (length > 0 ? 1.0 / length : 0.0);
    std::transform(row, row + dim, centroids + c * dim,
                   [scale](float x) { return static_cast<float>(static_cast<double>(x) * scale); });
    biases[c] = Kind == lloyd_kind::euclidean ? static_cast<float>(-0.5 * length * length) : 0.0F;
  }
  std::span<std::uint32_t> nearest(scratch.previous.take(n_pool), n_pool);
  Nearest finder(pool, n_pool, dim, n_even, scratch);
  finder.set_centroids(centroids, biases);
  finder.assign(nearest);
  for (std::size_t p = 0; p < n_pool; ++p) {
    const float* row = pool + p * dim;
    const std::uint32_t c = nearest[p];
    const double own = square(row);
    const double score =
        static_cast<double>(dot_product(row, centroids + c * dim, dim) + biases[c]);
    const double misfit = Kind == lloyd_kind::euclidean ? own - 2 * score
                          : own > 0                     ? 1 - score / std::sqrt(own)
                                                        : 0.0;
    weights[p] = std::max(misfit, 0.0) * std::max(misfit, 0.0);
  }
  for (std::size_t c = 0; c < n_even; ++c) {
    const std::size_t p = evenly_spaced(c, n_even, n_pool);
    weights[p] = 0;
    nearest[p] = taken_as_seed;
    seeds[c] = static_cast<std::uint32_t>(evenly_spaced(p, n_pool, n_points));
  }
  const std::size_t n_drawn = n_clusters - n_even;
  const double step =
      std::accumulate(weights, weights + n_pool, 0.0) / static_cast<double>(n_drawn);
  std::size_t n = n_even;
  double sum = 0;
  double next = 0.5 * step;
  for (std::size_t p = 0; p < n_pool && n < n_clusters; ++p) {
    sum += weights[p];
    if (sum > next) {
      nearest[p] = taken_as_seed;
      seeds[n++] = static_cast<std::uint32_t>(evenly_spaced(p, n_pool, n_points));
      next += step * std::ceil((sum - next) / step);  // a heavy point is drawn once
    }
  }
  for (std::size_t p = 0; p < n_pool && n < n_clusters;
       ++p) {  // in place of draws that fell together
    if (nearest[p] != taken_as_seed) {
      seeds[n++] = static_cast<std::uint32_t>(evenly_spaced(p, n_pool, n_points));
    }
  }
}

}  // namespace wavekv::detail
