// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/detail/chunked_rows.cuh>
#include <wavekv/index/detail/seal_rows.cuh>

/// @file moments.cuh
/// @brief Means and total variances over all rows of a job, and scales that keep squares inside a float's range.

namespace wavekv::device::detail {

/// What is known of a job's rows as a whole.
struct row_moments {
  double* partial_sums = nullptr;  // [n_jobs, n_tiles, width] of 128 rows each
  float* means = nullptr;          // [n_jobs, width]
  std::uint32_t* largest =
      nullptr;  // [n_jobs, 2] bits of the largest magnitude among keys, values; zero to begin with
  float* safe_scales = nullptr;    // [n_jobs, 2] for keys, values
  float* key_squares = nullptr;    // [n_jobs, stride] of each row, as queries see it
  float* value_squares = nullptr;  // [n_jobs, stride]
  float* spreads = nullptr;        // [n_jobs, 2] roots of the total variances, scaled
  unsigned stride = 0;             // most rows

  static constexpr unsigned tile_rows = 128;
  WAVEKV_HOST_DEVICE unsigned n_tiles() const { return (stride + tile_rows - 1) / tile_rows; }
};

/// A power of two that brings a magnitude near 1, as safe_scale.hpp has it; 1 for ordinary ones.
WAVEKV_DEVICE float safe_scale_of(std::uint32_t bits) {
  const auto largest = std::bit_cast<float>(bits);
  if (bits == 0 || (largest > 1e-12F && largest < 1e12F)) {
    return 1.0F;
  }
  const int exponent = 127 - static_cast<int>(bits >> 23U);  // of the inverse
  const int in_range = exponent > 126 ? 126 : exponent < -126 ? -126 : exponent;
  return std::bit_cast<float>(static_cast<std::uint32_t>(127 + in_range) << 23U);
}

/// Kernel: sums of columns over 128 rows, and largest magnitudes. Grid: (n_tiles, n_jobs).
template <class Rows>
struct sum_columns {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  Rows rows;
  row_moments moments;
  unsigned key_dim = 0;
  unsigned width = 0;
  bool wants_largest = false;

  std::size_t shared_bytes() const {
    return std::size_t{width} * (n_threads / warp_size) * sizeof(double);
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned first_row = b.block_x() * row_moments::tile_rows;
    const unsigned n_rows = rows.n(job);
    const unsigned n = first_row >= n_rows                           ? 0
                       : n_rows - first_row < row_moments::tile_rows ? n_rows - first_row
                                                                     : row_moments::tile_rows;
    double* const to =
        moments.partial_sums + (std::size_t{job} * moments.n_tiles() + b.block_x()) * width;
    std::uint32_t largest[2] = {};
    add_rows_up<double, 2>(
        b, n, width / 8, reinterpret_cast<double*>(b.shared()),
        [&](unsigned i, unsigned piece, double(&sum)[8]) {
          float x[8];
          read_eight(b, rows.row(job, first_row + i) + 8 * piece, x);
          std::uint32_t most = 0;
          WAVEKV_UNROLL
          for (unsigned e = 0; e < 8; ++e) {
            sum[e] += static_cast<double>(x[e]);
            const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(x[e]) & 0x7FFF'FFFFU;
            most = magnitude > most ? magnitude : most;
          }
          const bool is_key = 8 * piece < key_dim;
          largest[0] = is_key && most > largest[0] ? most : largest[0];
          largest[1] = !is_key && most > largest[1] ? most : largest[1];
        },
        [&](unsigned piece, const double(&sum)[8]) {
          WAVEKV_UNROLL
          for (unsigned e = 0; e < 8; ++e) {
            to[8 * piece + e] = sum[e];
          }
        });
    if (wants_largest) {
      WAVEKV_UNROLL
      for (unsigned part = 0; part < 2; ++part) {
        const unsigned of_warp = b.warp_max(largest[part]);
        if (b.lane() == 0) {
          (void)b.atomic_max(moments.largest + 2 * job + part, of_warp);
        }
      }
    }
  }
};

/// Kernel: means from the tiles' sums; where wanted, the scales. Grid: (ceil(width / 32), n_jobs).
template <class Rows>
struct finish_means {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  Rows rows;
  row_moments moments;
  unsigned width = 0;
  bool wants_scales = false;

  std::size_t shared_bytes() const { return n_threads * sizeof(double); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned column = b.block_x() * warp_size + b.lane();
    if (wants_scales && b.block_x() == 0 && b.thread() < 2) {
      const unsigned at = 2 * job + b.thread();
      moments.safe_scales[at] = safe_scale_of(moments.largest[at]);
    }
    // A lane a column, a warp every eighth tile.
    auto* const of_warps = reinterpret_cast<double*>(b.shared());
    const double* const sums =
        moments.partial_sums + std::size_t{job} * moments.n_tiles() * width + column;
    double sum = 0.0;
    for (unsigned tile = b.warp(); tile < moments.n_tiles() && column < width;
         tile += b.n_warps()) {
      sum += sums[std::size_t{tile} * width];
    }
    of_warps[b.thread()] = sum;
    b.sync();
    if (b.warp() == 0 && column < width) {
      for (unsigned w = 1; w < b.n_warps(); ++w) {
        sum += of_warps[w * warp_size + b.lane()];
      }
      moments.means[std::size_t{job} * width + column] = static_cast<float>(sum / rows.n(job));
    }
  }
};

/// Kernel: squared distance of each row's value from the mean value. Grid: (ceil(most rows / 8), n_jobs).
template <class Rows>
struct square_values {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  from_mean_of_all<Rows> rows;
  row_moments moments;
  unsigned key_dim = 0;

  std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned row = b.block_x() * (n_threads / warp_size) + b.warp();
    if (row >= rows.n(job)) {
      return;
    }
    const float scale = moments.safe_scales[2 * job + 1];
    float square = 0.0F;
    for (unsigned column = key_dim + b.lane() * 8; column < rows.width; column += warp_size * 8) {
      float x[8];
      rows.load(b, job, row, column, scale, x);
      WAVEKV_UNROLL
      for (unsigned i = 0; i < 8; ++i) {
        square += x[i] * x[i];
      }
    }
    square = b.warp_sum(square);
    if (b.lane() == 0) {
      moments.value_squares[std::size_t{job} * moments.stride + row] = square;
    }
  }
};

/// Kernel: roots of total variances from the rows' squares; where wanted, the segment's value_spread.
/// Grid: (1, n_jobs) for keys or values alone, (2, n_jobs) for both.
template <scalar T, class Rows>
struct finish_spreads {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  seal_batch<T> batch;
  Rows rows;
  row_moments moments;
  unsigned first_part = 0;  ///< 0: keys, 1: values
  bool is_kept = false;     ///< whether that of values is the segment's

  std::size_t shared_bytes() const { return n_threads / warp_size * sizeof(double); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned part = first_part + b.block_x();
    const unsigned job = b.block_y();
    const float* const squares = (part == 0 ? moments.key_squares : moments.value_squares) +
                                 std::size_t{job} * moments.stride;
    const unsigned n = rows.n(job);
    double sum = 0.0;
    for (unsigned row = b.thread(); row < n; row += n_threads) {
      sum += static_cast<double>(squares[row]);
    }
    sum = block_sum_of(b, sum, reinterpret_cast<double*>(b.shared()));
    if (b.thread() != 0) {
      return;
    }
    const double spread = std::sqrt(sum / n);
    moments.spreads[2 * job + part] = static_cast<float>(spread);
    if (part == 1 && is_kept) {
      const double unscaled = spread / static_cast<double>(moments.safe_scales[2 * job + 1]);
      batch.item(job).segment.value_spread[batch.head(job)] =
          unscaled < 3e38 ? static_cast<float>(unscaled) : 3e38F;
    }
  }
};

/// Means of all rows and, of the values, squares. Enqueues only.
template <scalar T, class Rows, device_runtime Runtime>
void measure_rows(Runtime& runtime, typename Runtime::stream_type stream,
                  const seal_batch<T>& batch, unsigned n_jobs, const Rows& rows,
                  const row_moments& moments, bool wants_scales) {
  runtime.launch(stream, grid{moments.n_tiles(), n_jobs},
                 sum_columns<Rows>{rows, moments, batch.key_dim, batch.width, wants_scales});
  runtime.launch(stream, grid{(batch.width + 31) / 32, n_jobs},
                 finish_means<Rows>{rows, moments, batch.width, wants_scales});
  runtime.launch(stream, grid{(moments.stride + 7) / 8, n_jobs},
                 square_values<Rows>{{rows, moments.means, batch.width}, moments, batch.key_dim});
}

}  // namespace wavekv::device::detail
