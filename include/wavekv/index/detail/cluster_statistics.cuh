// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/detail/metric_space.cuh>
#include <wavekv/index/detail/moments.cuh>
#include <wavekv/index/detail/seal_rows.cuh>

/// @file cluster_statistics.cuh
/// @brief Dispersions of the nodes of one level: how far their tokens' keys lie from their mean, as queries see it.

namespace wavekv::device::detail {

/// Kernel: dispersions from the squares of the children's deviations (the law of total variance), and what rounding the
/// centroid to T adds to them. Grid: (ceil(capacity / 8), n_jobs), a warp for each node.
template <scalar T>
struct finish_dispersions {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  seal_batch<T> batch;
  growing_level level;
  growing_level below;  ///< unused at level 0
  unsigned number = 0;
  const float* child_squares = nullptr;     ///< [n_jobs, stride] by tree order
  const float* rounding_squares = nullptr;  ///< [n_jobs, stride] by rank
  unsigned stride = 0;
  const float* safe_scales = nullptr;  ///< [n_jobs, 2], that of keys is in the squares

  std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned rank = b.block_x() * (n_threads / warp_size) + b.warp();
    if (rank >= level.n_nodes[job]) {
      return;
    }
    const level_view<T>& to = batch.item(job).segment.levels[number];
    const unsigned head = batch.head(job);
    const std::uint32_t* const first_child =
        to.first_child + std::size_t{head} * (to.capacity + 1) + rank;
    const auto safe = static_cast<double>(safe_scales[2 * job]);
    const double unit = 1.0 / (safe * safe * batch.key_dim);
    const float* const squares = child_squares + std::size_t{job} * stride;
    double sum = 0.0;
    for (unsigned i = first_child[0] + b.lane(); i < first_child[1]; i += warp_size) {
      double variance = static_cast<double>(squares[i]) * unit;
      if (number != 0) {
        const std::size_t child = below.node(job, i);
        variance += static_cast<double>(below.dispersions[child]);
        variance *= static_cast<double>(below.sizes[below.node(job, below.id_of_rank[child])]);
      }
      sum += variance;
    }
    sum = warp_sum_of(b, sum);
    if (b.lane() == 0) {
      const std::size_t node = level.node(job, rank);
      const double size = static_cast<double>(level.sizes[level.node(job, level.id_of_rank[node])]);
      const float dispersion = limited(sum / size);
      const double rounding =
          static_cast<double>(rounding_squares[std::size_t{job} * stride + rank]) * unit;
      level.dispersions[node] = dispersion;
      to.dispersions[std::size_t{head} * to.capacity + rank] =
          limited(static_cast<double>(dispersion) + rounding);
    }
  }

 private:
  // What is out of a float's range, or came of such, is the largest there is.
  WAVEKV_DEVICE static float limited(double x) {
    constexpr float largest = std::numeric_limits<float>::max();
    return x < static_cast<double>(largest) ? static_cast<float>(x) : largest;
  }
};

/// Dispersions of all levels of an ordered tree. Enqueues only. Overwrites the squares in `moments`.
template <scalar T, device_runtime Runtime>
void disperse_nodes(Runtime& runtime, typename Runtime::stream_type stream,
                    const seal_batch<T>& batch, unsigned n_jobs, const growing_level* levels,
                    unsigned n_levels, const metric_factors& factors, const row_moments& moments) {
  constexpr unsigned block_rows = row_transform::block_rows;
  const auto square = [&](const auto& rows, unsigned n_rows, float* to) {
    using rows_type = std::remove_cvref_t<decltype(rows)>;
    runtime.launch(stream, grid{(n_rows + block_rows - 1) / block_rows, n_jobs},
                   row_squares<rows_type>{rows, factors, batch.key_dim, moments.safe_scales, to,
                                          moments.stride});
  };
  for (unsigned number = 0; number < n_levels; ++number) {
    const growing_level& level = levels[number];
    const growing_level& below = levels[number == 0 ? 0 : number - 1];
    if (number == 0) {
      square(tokens_from_clusters<T>{batch, level}, level.n_rows, moments.key_squares);
    } else {
      square(nodes_from_parents{below, level, batch.width}, level.n_rows, moments.key_squares);
    }
    square(rounding_of_nodes<T>{level, batch.width}, level.capacity, moments.value_squares);
    runtime.launch(stream, grid{(level.capacity + 7) / 8, n_jobs},
                   finish_dispersions<T>{batch, level, below, number, moments.key_squares,
                                         moments.value_squares, moments.stride,
                                         moments.safe_scales});
  }
}

}  // namespace wavekv::device::detail
