// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/detail/lloyd.hpp>

/// @file clustering_reference.hpp
/// @brief Data to cluster, and k-means written as plainly as possible, in double, to compare with.

namespace clustering_reference {

inline std::vector<float> normal_rows(std::size_t n, std::size_t dim, std::uint32_t seed,
                                      float mean = 0.0F, float deviation = 1.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(mean, deviation);
  std::vector<float> rows(n * dim);
  for (float& element : rows) {
    element = normal(random);
  }
  return rows;
}

struct planted_rows {
  std::vector<float> rows;
  std::vector<std::uint32_t> label;
};

/// n points around n_clusters directions of norm `spread`, noise of deviation `noise`; the first n_clusters
/// points have one of each, in shuffled order over the rest.
inline planted_rows planted(std::size_t n, std::size_t dim, std::size_t n_clusters,
                            std::uint32_t seed, float spread, float noise) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> centers(n_clusters * dim);
  for (float& element : centers) {
    element = normal(random) * spread;
  }
  planted_rows data{std::vector<float>(n * dim), std::vector<std::uint32_t>(n)};
  for (std::size_t p = 0; p < n; ++p) {
    data.label[p] = static_cast<std::uint32_t>(p % n_clusters);
  }
  for (std::size_t p = 0; p < n; ++p) {
    for (std::size_t i = 0; i < dim; ++i) {
      data.rows[p * dim + i] = centers[data.label[p] * dim + i] + normal(random) * noise;
    }
  }
  return data;
}

/// Distinct clusterings up to the names of clusters.
inline bool same_partition(std::span<const std::uint32_t> a, std::span<const std::uint32_t> b) {
  std::vector<std::int64_t> to_b(a.size() + b.size(), -1);
  std::vector<std::int64_t> to_a(a.size() + b.size(), -1);
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] >= to_b.size() || b[i] >= to_a.size()) {
      return false;
    }
    if (to_b[a[i]] < 0) {
      to_b[a[i]] = b[i];
    }
    if (to_a[b[i]] < 0) {
      to_a[b[i]] = a[i];
    }
    if (to_b[a[i]] != b[i] || to_a[b[i]] != a[i]) {
      return false;
    }
  }
  return true;
}

inline double dot(const double* a, const double* b, std::size_t dim) {
  double sum = 0;
  for (std::size_t i = 0; i < dim; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

inline std::vector<double> widened(std::span<const float> rows) {
  return {rows.begin(), rows.end()};
}

/// The seeds that the library takes for these points; a draw on a rounding error's width is its own to decide.
inline std::vector<std::uint32_t> library_seeds(const std::vector<double>& points, std::size_t n,
                                                std::size_t dim, std::size_t n_clusters,
                                                bool spherical) {
  using namespace wavekv::detail;
  const std::vector<float> rows(points.begin(), points.end());
  std::vector<std::uint32_t> seeds(n_clusters);
  wavekv::clustering_scratch scratch;
  if (spherical) {
    choose_far_seeds<lloyd_kind::spherical, nearest_finder>(rows.data(), n, dim, n_clusters,
                                                            scratch, seeds.data());
  } else {
    for (std::size_t c = 0; c < n_clusters; ++c) {
      seeds[c] = static_cast<std::uint32_t>((2 * c + 1) * n / (2 * n_clusters));
    }
  }
  return seeds;
}

/// Lloyd's iterations with the library's rules: from its seeds, ties to the smaller id,
/// an empty cluster takes the worst-fitting point that is not alone, what stays empty is removed.
inline std::size_t lloyd(const std::vector<double>& points, std::size_t n, std::size_t dim,
                         std::size_t n_clusters, int n_iterations, bool spherical,
                         std::vector<std::uint32_t>& assignment) {
  std::vector<double> centroids(n_clusters * dim);
  const auto unit = [&](std::size_t c) {
    const double norm = std::sqrt(dot(&centroids[c * dim], &centroids[c * dim], dim));
    for (std::size_t i = 0; i < dim && norm > 0; ++i) {
      centroids[c * dim + i] /= norm;
    }
  };
  const std::vector<std::uint32_t> seeds = library_seeds(points, n, dim, n_clusters, spherical);
  for (std::size_t c = 0; c < n_clusters; ++c) {
    std::copy_n(&points[seeds[c] * dim], dim, &centroids[c * dim]);
    if (spherical) {
      unit(c);
    }
  }
  assignment.assign(n, 0);
  std::vector<std::size_t> counts(n_clusters);
  std::vector<double> misfit(n);
  for (int iteration = 0; iteration < n_iterations; ++iteration) {
    if (iteration > 0) {
      std::fill(centroids.begin(), centroids.end(), 0.0);
      for (std::size_t p = 0; p < n; ++p) {
        for (std::size_t i = 0; i < dim; ++i) {
          centroids[assignment[p] * dim + i] +=
              points[p * dim + i] / static_cast<double>(counts[assignment[p]]);
        }
      }
      for (std::size_t c = 0; c < n_clusters && spherical; ++c) {
        unit(c);
      }
    }
    for (std::size_t p = 0; p < n; ++p) {
      const double square = dot(&points[p * dim], &points[p * dim], dim);
      double best = -INFINITY;
      for (std::size_t c = 0; c < n_clusters; ++c) {
        const double* centroid = &centroids[c * dim];
        const double score = dot(&points[p * dim], centroid, dim) -
                             (spherical ? 0.0 : 0.5 * dot(centroid, centroid, dim));
        if (score > best) {
          best = score;
          assignment[p] = static_cast<std::uint32_t>(c);
        }
      }
      misfit[p] = spherical ? (square > 0 ? 1 - best / std::sqrt(square) : 0.0) : square - 2 * best;
      if (misfit[p] <= 1e-5 * (spherical ? 1.0 : square)) {
        misfit[p] = -1;
      }
    }
    std::fill(counts.begin(), counts.end(), 0);
    for (const std::uint32_t c : assignment) {
      ++counts[c];
    }
    for (std::size_t c = 0; c < n_clusters; ++c) {
      if (counts[c] != 0) {
        continue;
      }
      std::size_t worst = n;
      for (std::size_t p = 0; p < n; ++p) {
        if (misfit[p] >= 0 && counts[assignment[p]] > 1 &&
            (worst == n || misfit[p] > misfit[worst])) {
          worst = p;
        }
      }
      if (worst == n) {
        break;
      }
      --counts[assignment[worst]];
      assignment[worst] = static_cast<std::uint32_t>(c);
      counts[c] = 1;
      misfit[worst] = -1;
    }
  }
  std::vector<std::uint32_t> ids(n_clusters);
  std::uint32_t n_used = 0;
  for (std::size_t c = 0; c < n_clusters; ++c) {
    ids[c] = counts[c] != 0 ? n_used++ : 0;
  }
  for (std::uint32_t& c : assignment) {
    c = ids[c];
  }
  return n_used;
}

/// Mean cosine between points and the sum of their cluster.
inline double mean_cosine(std::span<const float> rows, std::size_t dim,
                          std::span<const std::uint32_t> assignment, std::size_t n_clusters) {
  std::vector<double> sums(n_clusters * dim);
  const std::vector<double> points = widened(rows);
  const std::size_t n = assignment.size();
  for (std::size_t p = 0; p < n; ++p) {
    for (std::size_t i = 0; i < dim; ++i) {
      sums[assignment[p] * dim + i] += points[p * dim + i];
    }
  }
  double total = 0;
  for (std::size_t p = 0; p < n; ++p) {
    const double* sum = &sums[assignment[p] * dim];
    const double norms = dot(sum, sum, dim) * dot(&points[p * dim], &points[p * dim], dim);
    total += norms > 0 ? dot(sum, &points[p * dim], dim) / std::sqrt(norms) : 1.0;
  }
  return total / static_cast<double>(n);
}

/// Sum over clusters of the norm of the sum of their points: what spherical k-means makes large.
inline double spherical_objective(std::span<const float> rows, std::size_t dim,
                                  std::span<const std::uint32_t> assignment,
                                  std::size_t n_clusters) {
  std::vector<double> sums(n_clusters * dim);
  for (std::size_t p = 0; p < assignment.size(); ++p) {
    for (std::size_t i = 0; i < dim; ++i) {
      sums[assignment[p] * dim + i] += static_cast<double>(rows[p * dim + i]);
    }
  }
  double total = 0;
  for (std::size_t c = 0; c < n_clusters; ++c) {
    total += std::sqrt(dot(&sums[c * dim], &sums[c * dim], dim));
  }
  return total;
}

/// Sum of squared distances to the means: what Euclidean k-means makes small.
inline double euclidean_objective(const std::vector<double>& points, std::size_t dim,
                                  std::span<const std::uint32_t> assignment,
                                  std::size_t n_clusters) {
  std::vector<double> sums(n_clusters * dim);
  std::vector<double> counts(n_clusters);
  double total = 0;
  for (std::size_t p = 0; p < assignment.size(); ++p) {
    ++counts[assignment[p]];
    for (std::size_t i = 0; i < dim; ++i) {
      sums[assignment[p] * dim + i] += points[p * dim + i];
    }
    total += dot(&points[p * dim], &points[p * dim], dim);
  }
  for (std::size_t c = 0; c < n_clusters; ++c) {
    total -= counts[c] > 0 ? dot(&sums[c * dim], &sums[c * dim], dim) / counts[c] : 0.0;
  }
  return total;
}

/// Whether ids are 0 .. n_clusters - 1 and all used.
inline bool is_clustering(std::span<const std::uint32_t> assignment, std::size_t n_clusters) {
  std::vector<bool> used(n_clusters, false);
  for (const std::uint32_t c : assignment) {
    if (c >= n_clusters) {
      return false;
    }
    used[c] = true;
  }
  return std::find(used.begin(), used.end(), false) == used.end();
}

struct clustering {
  std::vector<std::uint32_t> assignment;
  std::size_t n_clusters = 0;
};

/// Runs a clusterer into poisoned memory.
template <class Clusterer>
clustering run(const Clusterer& clusterer, const wavekv::cluster_request& request,
               wavekv::clustering_scratch& scratch) {
  clustering result{std::vector<std::uint32_t>(request.n_tokens, 0xDEAD'BEEFU), 0};
  result.n_clusters = clusterer.cluster(request, result.assignment, scratch);
  return result;
}

}  // namespace clustering_reference
