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
#include <wavekv/index/query_metric_kmeans.hpp>

/// @file query_metric_kmeans.cuh
/// @brief query_metric_kmeans on the device: clusters keys as the queries see them, together with their values.

namespace wavekv::device {

namespace detail {

/// Kernel: the points [Lᵀ·(k − mean) / σ, ½·(v − mean) / σ_v], in bf16. Columns without variance are zeros.
/// Grid: (ceil(most rows / 64), n_jobs).
template <class Rows>
struct place_seen_rows {
  static constexpr unsigned n_threads = row_transform::n_threads;
  static constexpr bool overlaps = true;
  from_mean_of_all<Rows> rows;
  metric_factors factors;
  row_moments moments;
  point_set points;
  unsigned key_dim = 0;
  float value_weight = 1.0F;

  std::size_t shared_bytes() const {
    shared_arena arena;
    (void)row_transform::shared_memory(arena, key_dim);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned first_row = b.block_x() * row_transform::block_rows;
    const unsigned n_rows = rows.n(job);
    if (first_row >= n_rows) {
      return;
    }
    const float safe = moments.safe_scales[2 * job];
    const float scale = inverse(moments.spreads[2 * job]);
    if (factors.is_known[job] == 0) {
      copy(b, job, first_row, n_rows, 0, key_dim, safe, scale);
    } else {
      shared_arena arena(b.shared());
      row_transform::run(b, row_transform::shared_memory(arena, key_dim), rows, factors, job,
                         first_row, key_dim, safe,
                         [&](unsigned r, unsigned p, unsigned column, float x, float y) {
                           const unsigned row = first_row + row_transform::row_of(b, r, p);
                           if (row < n_rows && column < key_dim) {
                             points.row(job, row)[column / 8].word[column % 8 / 2] =
                                 b.template pack<bf16>(x * scale, y * scale);
                           }
                         });
    }
    copy(b, job, first_row, n_rows, key_dim, points.dim, moments.safe_scales[2 * job + 1],
         value_weight * inverse(moments.spreads[2 * job + 1]));
  }

 private:
  WAVEKV_DEVICE static float inverse(float spread) { return spread > 0.0F ? 1.0F / spread : 0.0F; }

  // Columns [first, end) of the block's rows; zeros where rows have none.
  template <class Block>
  WAVEKV_DEVICE void copy(Block& b, unsigned job, unsigned first_row, unsigned n_rows,
                          unsigned first, unsigned end, float safe, float scale) const {
    const unsigned n_pieces = (end - first) / 8;
    for (unsigned at = b.thread(); at < row_transform::block_rows * n_pieces; at += n_threads) {
      const unsigned row = first_row + at / n_pieces;
      const unsigned column = first + at % n_pieces * 8;
      if (row < n_rows) {
        float x[8] = {};
        if (column < rows.width) {
          rows.load(b, job, row, column, safe, x);
          WAVEKV_UNROLL
          for (unsigned i = 0; i < 8; ++i) {
            x[i] *= scale;
          }
        }
        points.row(job, row)[column / 8] = pack_eight(b, x);
      }
    }
  }
};

}  // namespace detail

/// @brief As on the CPU, with the differences that lloyd.cuh names: points of bf16, and empty clusters that begin anew an
/// iteration later.
template <int Iterations>
struct clusterer_twin<query_metric_kmeans<Iterations>> {
  static constexpr auto kind = wavekv::detail::lloyd_kind::euclidean;
  static constexpr int n_iterations = Iterations;
  static constexpr auto how = wavekv::detail::seeding::evenly_spaced;

  static unsigned point_dim(unsigned /*key_dim*/, unsigned width) {
    return detail::round_up(width, detail::chunk_dim);
  }

  /// @brief Writes the points of one level. Enqueues only.
  template <scalar T, class Rows, device_runtime Runtime>
  static void place(Runtime& runtime, typename Runtime::stream_type stream,
                    const detail::seal_batch<T>& batch, const Rows& rows,
                    const detail::row_moments& moments, const detail::metric_factors& factors,
                    detail::point_set& points) {
    using deviations = detail::from_mean_of_all<Rows>;
    constexpr unsigned block_rows = detail::row_transform::block_rows;
    const deviations from_mean{rows, moments.means, batch.width};
    const grid of_rows{(points.capacity + block_rows - 1) / block_rows, points.n_jobs};
    runtime.launch(stream, of_rows,
                   detail::row_squares<deviations>{from_mean, factors, batch.key_dim,
                                                   moments.safe_scales, moments.key_squares,
                                                   moments.stride});
    runtime.launch(stream, grid{2, points.n_jobs},
                   detail::finish_spreads<T, Rows>{batch, rows, moments, 0, false});
    runtime.launch(stream, of_rows,
                   detail::place_seen_rows<Rows>{
                       from_mean, factors, moments, points, batch.key_dim,
                       static_cast<float>(query_metric_kmeans<Iterations>::value_weight)});
  }
};

}  // namespace wavekv::device
