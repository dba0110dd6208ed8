// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <wavekv/cuda/block.hpp>
#include <wavekv/index/detail/chunked_rows.cuh>
#include <wavekv/index/detail/seeds.hpp>

/// @file point_set.cuh
/// @brief The points and clusters of Lloyd's algorithm on the device, for all (segment, KV head) of a seal at once.

namespace wavekv::device::detail {

/// The points of all jobs. A job is one (segment, KV head).
struct point_set {
  words4* points = nullptr;                 ///< [n_jobs, capacity, dim] bf16
  const std::uint32_t* n_points = nullptr;  ///< [n_jobs], or null: capacity each
  unsigned n_jobs = 0;
  unsigned capacity = 0;
  unsigned dim = 0;  ///< a multiple of chunk_dim; columns that mean nothing are zero
  float* bases =
      nullptr;  ///< [n_jobs, capacity] how badly a point fits a centroid: base − slope · score
  float* slopes = nullptr;   ///< [n_jobs, capacity]
  float* misfits = nullptr;  ///< [n_jobs, capacity] of the centroid it has

  // Where points lie from; only spherical: the means of keys, and what they are scaled by.
  const float* means = nullptr;   ///< [n_jobs, mean_stride]
  const float* scales = nullptr;  ///< [n_jobs, 2]
  unsigned mean_stride = 0;
  unsigned mean_dim = 0;

  WAVEKV_HOST_DEVICE unsigned n_pieces() const { return dim / 8; }
  WAVEKV_DEVICE unsigned n(unsigned job) const {
    return n_points == nullptr ? capacity : n_points[job];
  }
  WAVEKV_DEVICE words4* row(unsigned job, unsigned i) const {
    return points + (std::size_t{job} * capacity + i) * n_pieces();
  }
  WAVEKV_DEVICE std::size_t place(unsigned job, unsigned i) const {
    return std::size_t{job} * capacity + i;
  }
  /// Eight columns of what was taken off the points.
  WAVEKV_DEVICE void load_mean(unsigned job, unsigned piece, float (&x)[8]) const {
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned column = 8 * piece + i;
      x[i] = column < mean_dim ? means[std::size_t{job} * mean_stride + column] * scales[2 * job]
                               : 0.0F;
    }
  }
};

/// The clusters of all jobs. Points sort by *bucket*: a job's clusters, and one more for points that do not exist.
struct cluster_set {
  unsigned n_clusters = 1;  ///< of a job, at most
  words4* centroids =
      nullptr;  ///< [n_jobs, n_padded() / tile, dim / 32, tile] bf16, left rows (see chunked_rows.cuh)
  float* biases = nullptr;  ///< [n_jobs, n_padded()]
  std::uint32_t* buckets =
      nullptr;  ///< [n_jobs, capacity of the points] job · (n_clusters + 1) + cluster
  bool has_narrow_buckets = false;  ///< they are 16-bit: half as many passes of a radix sort
  std::uint32_t* sorted =
      nullptr;  ///< [n_jobs, capacity of the points] points of a job by bucket, then by number
  std::uint32_t* first =
      nullptr;  ///< [n_jobs, n_clusters + 2] where a bucket begins among its job's points
  std::uint32_t* newcomers =
      nullptr;  ///< [n_jobs, n_clusters] the point that an empty cluster, or every one at first, begins at
  std::uint32_t* vacant = nullptr;  ///< [n_jobs, n_clusters] the empty ones

  static constexpr std::uint32_t nowhere = 0xFFFF'FFFFU;

  static constexpr unsigned tile = 128;  ///< clusters that an assigning block looks at together

  /// Clusters as they are laid out: those past n_clusters attract nothing.
  WAVEKV_HOST_DEVICE unsigned n_padded() const { return round_up(n_clusters, tile); }
  WAVEKV_HOST_DEVICE unsigned n_buckets() const { return n_clusters + 1; }
  WAVEKV_HOST_DEVICE std::uint16_t* narrow_buckets() const {
    return reinterpret_cast<std::uint16_t*>(buckets);
  }
  WAVEKV_DEVICE std::uint32_t bucket(std::size_t at) const {
    return has_narrow_buckets ? narrow_buckets()[at] : buckets[at];
  }
  WAVEKV_DEVICE void put_bucket(std::size_t at, std::uint32_t bucket) const {
    if (has_narrow_buckets) {
      narrow_buckets()[at] = static_cast<std::uint16_t>(bucket);
    } else {
      buckets[at] = bucket;
    }
  }
  /// Where a cluster's tile begins among the centroids, with dim / 32 chunks.
  WAVEKV_DEVICE words4* tile_of(unsigned job, unsigned cluster, unsigned n_chunks) const {
    return centroids +
           (std::size_t{job} * n_padded() + cluster / tile * tile) * n_chunks * chunk_words;
  }
  WAVEKV_DEVICE std::size_t place(unsigned job, unsigned cluster) const {
    return std::size_t{job} * n_clusters + cluster;
  }
  WAVEKV_DEVICE std::uint32_t* first_of(unsigned job) const {
    return first + std::size_t{job} * (n_clusters + 2);
  }
};

/// The sum of eight products.
WAVEKV_DEVICE float dot_eight(const float (&x)[8], const float (&y)[8]) {
  float sum = 0.0F;
  WAVEKV_UNROLL
  for (unsigned i = 0; i < 8; ++i) {
    sum += x[i] * y[i];
  }
  return sum;
}

/// Eight elements of a point.
template <class Block>
WAVEKV_DEVICE void unpack_eight(Block& b, const words4& packed, float (&x)[8]) {
  WAVEKV_UNROLL
  for (unsigned w = 0; w < 4; ++w) {
    b.template unpack<bf16>(packed.word[w], x[2 * w], x[2 * w + 1]);
  }
}

/// What a point's misfit is made of: Euclidean its squared distance, spherical 1 − its cosine. Grid: (ceil(capacity / 8),
/// n_jobs), a warp for each point.
template <wavekv::detail::lloyd_kind Kind>
struct measure_points {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  point_set points;

  std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned point = b.block_x() * (n_threads / warp_size) + b.warp();
    if (point >= points.n(job)) {
      return;
    }
    float square = 0.0F;      // of what the point stands for
    float along_mean = 0.0F;  // its product with the mean
    float square_mean = 0.0F;
    for (unsigned piece = b.lane(); piece < points.n_pieces(); piece += warp_size) {
      float x[8];
      unpack_eight(b, b.load16(points.row(job, point) + piece), x);
      if (Kind == wavekv::detail::lloyd_kind::spherical) {
        float mean[8];
        points.load_mean(job, piece, mean);
        WAVEKV_UNROLL
        for (unsigned i = 0; i < 8; ++i) {
          x[i] += mean[i];
        }
        along_mean += dot_eight(x, mean);
        square_mean += dot_eight(mean, mean);
      }
      square += dot_eight(x, x);
    }
    square = b.warp_sum(square);
    if (Kind == wavekv::detail::lloyd_kind::spherical) {
      along_mean = b.warp_sum(along_mean);
      square_mean = b.warp_sum(square_mean);
    }
    if (b.lane() == 0) {
      float base = square;
      float slope = 2.0F;
      if (Kind == wavekv::detail::lloyd_kind::spherical) {
        slope = square > 0.0F ? 1.0F / std::sqrt(square) : 0.0F;
        base = square_mean > 0.0F ? along_mean / std::sqrt(square_mean) * slope : 0.0F;
        base = square > 0.0F ? 1.0F - base : 0.0F;
      }
      points.bases[points.place(job, point)] = base;
      points.slopes[points.place(job, point)] = slope;
    }
  }
};

}  // namespace wavekv::device::detail
