// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/detail/clusterer_twin.cuh>
#include <wavekv/index/detail/lloyd.cuh>
#include <wavekv/index/detail/metric_space.cuh>
#include <wavekv/index/detail/moments.cuh>
#include <wavekv/index/spherical_kmeans.hpp>

/// @file spherical_kmeans.cuh
/// @brief spherical_kmeans on the device: clusters keys by direction.

namespace wavekv::device {

namespace detail {

/// Kernel: keys less their mean as points, in bf16. Grid: (ceil(most rows / 32), n_jobs).
template <class Rows>
struct place_keys {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  static constexpr unsigned block_rows = 32;
  from_mean_of_all<Rows> rows;
  row_moments moments;
  point_set points;
  unsigned key_dim = 0;

  std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned n_rows = rows.n(job);
    const unsigned n_pieces = points.n_pieces();
    const float scale = moments.safe_scales[2 * job];
    for (unsigned at = b.thread(); at < block_rows * n_pieces; at += n_threads) {
      const unsigned row = b.block_x() * block_rows + at / n_pieces;
      const unsigned piece = at % n_pieces;
      if (row < n_rows) {
        float x[8] = {};
        if (8 * piece < key_dim) {
          rows.load(b, job, row, 8 * piece, scale, x);
        }
        points.row(job, row)[piece] = pack_eight(b, x);
      }
    }
  }
};

}  // namespace detail

/// @brief As on the CPU, with the differences that lloyd.cuh names: points of bf16, far seeds drawn from all points, empty
/// clusters that begin anew an iteration later.
template <int Iterations>
struct clusterer_twin<spherical_kmeans<Iterations>> {
  static constexpr auto kind = wavekv::detail::lloyd_kind::spherical;
  static constexpr int n_iterations = Iterations;
  static constexpr auto how = wavekv::detail::seeding::half_far_apart;

  static unsigned point_dim(unsigned key_dim, unsigned /*width*/) {
    return detail::round_up(key_dim, detail::chunk_dim);
  }

  /// @brief Writes the points of one level. Enqueues only.
  template <scalar T, class Rows, device_runtime Runtime>
  static void place(Runtime& runtime, typename Runtime::stream_type stream,
                    const detail::seal_batch<T>& batch, const Rows& rows,
                    const detail::row_moments& moments, const detail::metric_factors& /*factors*/,
                    detail::point_set& points) {
    constexpr unsigned block_rows = detail::place_keys<Rows>::block_rows;
    runtime.launch(stream, grid{(points.capacity + block_rows - 1) / block_rows, points.n_jobs},
                   detail::place_keys<Rows>{
                       {rows, moments.means, batch.width}, moments, points, batch.key_dim});
    points.means = moments.means;
    points.scales = moments.safe_scales;
    points.mean_stride = batch.width;
    points.mean_dim = batch.key_dim;
  }
};

}  // namespace wavekv::device
