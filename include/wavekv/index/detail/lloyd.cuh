// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <thrust/sort.h>

#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/detail/assign_points.cuh>
#include <wavekv/index/detail/move_centroids.cuh>
#include <wavekv/index/detail/point_set.cuh>
#include <wavekv/index/detail/seeds.hpp>

/// @file lloyd.cuh
/// @brief Lloyd's iterations on the device, for all (segment, KV head) of a seal at once.
///
/// As in lloyd.hpp a point goes to the centroid with the largest x·c + bias. Points and centroids are bf16, sums float.
/// So that bf16 is enough, whatever keys have in common, points are what is left of rows when the mean of all is taken off,
/// and so, spherical, are centroids: with unit vectors c, and c₀ along the mean m, k·c differs from (k − m)·(c − c₀) +
/// m·(c − c₀) by what is the same for all c. What differs from the CPU besides: seeds that lie
/// far apart are drawn from all points instead of three for each cluster, and an empty cluster begins anew at the worst-fitting point in the next iteration, instead of taking it away from its
/// cluster in this one; in the last one it is removed.
///
/// An iteration is: centroids from the points of each cluster; assignment; a stable sort of the points by (job, cluster);
/// where each cluster begins; new points for the empty ones. Sums run over a cluster's points in sorted order, so that a
/// result depends on the input alone, and not on what else is in the batch.

namespace wavekv::device::detail {

/// Finds where each bucket begins among sorted ones. Grid: (ceil((n_clusters + 2) / 128), n_jobs).
struct find_buckets {
  static constexpr unsigned n_threads = 128;
  static constexpr bool overlaps = true;
  cluster_set clusters;
  unsigned capacity = 0;  ///< of the points

  std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned bucket = b.block_x() * n_threads + b.thread();
    const unsigned job = b.block_y();
    if (bucket > clusters.n_buckets()) {
      return;
    }
    const std::size_t first = std::size_t{job} * capacity;
    const std::uint32_t wanted = job * clusters.n_buckets() + bucket;
    unsigned begin = 0;
    unsigned end = capacity;
    while (begin < end) {
      const unsigned middle = begin + (end - begin) / 2;
      if (clusters.bucket(first + middle) < wanted) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    clusters.first_of(job)[bucket] = begin;
  }
};

/// Sorts the points of all jobs by bucket. Enqueues only.
template <device_runtime Runtime>
void sort_points(Runtime& runtime, typename Runtime::stream_type stream, const point_set& points,
                 const cluster_set& clusters) {
  const std::size_t n = std::size_t{points.n_jobs} * points.capacity;
  const auto sort = [&](auto* buckets) {
    runtime.with_policy(stream, [buckets, sorted = clusters.sorted, n](const auto& policy) {
      thrust::stable_sort_by_key(policy, buckets, buckets + n, sorted);
    });
  };
  if (clusters.has_narrow_buckets) {
    sort(clusters.narrow_buckets());
  } else {
    sort(clusters.buckets);
  }
  runtime.launch(stream,
                 grid{(clusters.n_clusters + 1 + find_buckets::n_threads) / find_buckets::n_threads,
                      points.n_jobs},
                 find_buckets{clusters, points.capacity});
}

/// Runs Lloyd's algorithm; afterwards `sorted` and `first` say what is in each cluster. Enqueues only.
/// Complexity: n_iterations · n_jobs · capacity · n_clusters · dim, on tensor cores.
template <wavekv::detail::lloyd_kind Kind, device_runtime Runtime>
void run_lloyd(Runtime& runtime, typename Runtime::stream_type stream, const point_set& points,
               const cluster_set& clusters, int n_iterations, wavekv::detail::seeding how) {
  const grid of_centroids{clusters.n_padded(), points.n_jobs};
  const grid of_points{(points.capacity + assign_points::block_points - 1) /
                           assign_points::block_points,
                       points.n_jobs};
  if (clusters.n_clusters == 1 || clusters.n_clusters >= points.capacity) {  // nothing to compare
    point_set unplaced = points;
    unplaced.misfits = nullptr;
    runtime.launch(stream, of_points, assign_points{unplaced, clusters});
    sort_points(runtime, stream, points, clusters);
    return;
  }
  runtime.launch(stream, grid{(points.capacity + 7) / 8, points.n_jobs},
                 measure_points<Kind>{points});
  const bool half_far = how == wavekv::detail::seeding::half_far_apart;
  const unsigned n_even = half_far ? (clusters.n_clusters + 1) / 2 : clusters.n_clusters;
  runtime.launch(stream, grid{(clusters.n_clusters + 127) / 128, points.n_jobs},
                 choose_even_seeds{points, clusters, n_even});
  runtime.launch(stream, of_centroids, move_centroids<Kind, true>{points, clusters});
  if (half_far) {
    runtime.launch(stream, of_points, assign_points{points, clusters});
    runtime.launch(stream, grid{1, points.n_jobs}, draw_far_seeds{points, clusters, n_even});
    runtime.launch(stream, of_centroids, move_centroids<Kind, true>{points, clusters});
  }
  for (int iteration = 0;; ++iteration) {
    runtime.launch(stream, of_points, assign_points{points, clusters});
    sort_points(runtime, stream, points, clusters);
    if (iteration + 1 == n_iterations) {
      break;
    }
    runtime.launch(stream, grid{1, points.n_jobs}, fill_vacancies<Kind>{points, clusters});
    runtime.launch(stream, of_centroids, move_centroids<Kind, false>{points, clusters});
  }
}

}  // namespace wavekv::device::detail
