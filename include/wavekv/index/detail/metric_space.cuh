// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <wavekv/cuda/block.hpp>
#include <wavekv/index/detail/chunked_rows.cuh>
#include <wavekv/index/detail/seal_rows.cuh>
#include <wavekv/index/query_metric.hpp>

/// @file metric_space.cuh
/// @brief Lᵀ·x for many rows x, where L·Lᵀ is the query metric: the space in which keys are seen by queries.
///
/// Lᵀ and the rows are split into two bf16 each, what the first leaves of a float being the second, and three products of the
/// four are added on tensor cores: 16 bits of a float's 24 survive, at a quarter of the time of the common cores (for a
/// segment of 8192 tokens and keys of 128: 3 · 134 MFLOP a KV head, half of the matrix being zero).

namespace wavekv::device::detail {

/// The factors of all jobs' metrics: rows of Lᵀ, as the products want them.
struct metric_factors {
  words4* high =
      nullptr;  // [n_jobs, n_rows(key_dim) / tile, chunks, tile] bf16, left rows (see chunked_rows.cuh)
  words4* low = nullptr;              // what that leaves
  std::uint32_t* is_known = nullptr;  // [n_jobs]; if not, L is the identity and not written

  static constexpr unsigned tile = 64;  // rows of Lᵀ that a block multiplies with together

  WAVEKV_HOST_DEVICE static unsigned n_rows(unsigned key_dim) { return round_up(key_dim, tile); }
  WAVEKV_HOST_DEVICE static unsigned n_pieces(unsigned key_dim) {
    return round_up(key_dim, chunk_dim) / 8;
  }
  /// words4 of `high`, and of `low`, for one job.
  WAVEKV_HOST_DEVICE static std::size_t n_words(unsigned key_dim) {
    return std::size_t{n_rows(key_dim)} * n_pieces(key_dim);
  }
};

/// Kernel: factorises each job's metric, normalised as query_metric::normalized has it. Float is enough: with the ridge no
/// eigenvalue is below 1/2 or above (key_dim + 1) / 2. Grid: (1, n_jobs).
/// Right-looking, on the upper half, packed in shared memory: 33 KB at a key_dim of 128, 132 KB at 256.
template <scalar T>
struct factorize_metrics {
  static constexpr unsigned n_threads = 512;
  static constexpr bool overlaps = true;
  seal_batch<T> batch;
  metric_factors factors;

  std::size_t shared_bytes() const {
    shared_arena arena;
    (void)shared_memory(arena, batch.key_dim);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned dim = batch.key_dim;
    shared_arena arena(b.shared());
    const memory shared = shared_memory(arena, dim);
    const metric_view& metric = batch.item(job).metric;
    const float* products = metric.products;
    double mean = 0.0;
    if (products != nullptr) {
      const unsigned head = batch.head(job);
      products += std::size_t{head} * dim * dim;
      if (metric.weights[head] > 0.0F) {
        double trace = 0.0;
        for (unsigned i = b.thread(); i < dim; i += n_threads) {
          trace += static_cast<double>(products[std::size_t{i} * dim + i]);
        }
        mean = block_sum_of(b, trace, shared.sums) / dim;
      }
    }
    const bool is_known = mean > 0.0 && mean < 1e37;
    if (b.thread() == 0) {
      factors.is_known[job] = is_known ? 1 : 0;
    }
    if (!is_known) {
      return;
    }
    constexpr auto ridge = static_cast<float>(query_metric::ridge);
    const auto scale = static_cast<float>(1.0 / mean);
    for (unsigned i = b.warp(); i < dim; i += b.n_warps()) {
      for (unsigned j = i + b.lane(); j < dim; j += warp_size) {
        shared.upper[place(dim, i, j)] =
            (products[std::size_t{i} * dim + j] * scale + (i == j ? ridge : 0.0F)) / (1.0F + ridge);
      }
    }
    b.sync();
    eliminate(b, dim, shared.upper);
    write(b, job, dim, shared.upper);
  }

 private:
  struct memory {
    double* sums;  // one per warp
    float* upper;  // the upper half of the matrix by rows, in the end Lᵀ
  };
  WAVEKV_HOST_DEVICE static memory shared_memory(shared_arena& arena, unsigned dim) {
    memory shared;
    shared.sums = arena.take<double>(n_threads / warp_size);
    shared.upper = arena.take<float>(std::size_t{dim} * (dim + 1) / 2);
    return shared;
  }
  WAVEKV_DEVICE static unsigned place(unsigned dim, unsigned i, unsigned j) {
    return i * (2 * dim - i - 1) / 2 + j;
  }

  // Each row is taken off those below it, over its pivot; rows are divided by the pivots' roots when they are written, so
  // that a step needs one meeting only.
  template <class Block>
  WAVEKV_DEVICE static void eliminate(Block& b, unsigned dim, float* upper) {
    for (unsigned k = 0; k < dim; ++k) {
      const float* const row = upper + place(dim, k, 0);
      const float inverse = 1.0F / pivot(row[k]);
      for (unsigned i = k + 1 + b.warp(); i < dim; i += b.n_warps()) {
        float* const rest = upper + place(dim, i, 0);
        const float element = row[i] * inverse;
        for (unsigned j = i + b.lane(); j < dim; j += warp_size) {
          rest[j] -= element * row[j];
        }
      }
      b.sync();
    }
  }
  // The ridge keeps pivots near or above a half; the floor only guards against rounding.
  WAVEKV_DEVICE static float pivot(float square) { return square > 1e-3F ? square : 1e-3F; }

  template <class Block>
  WAVEKV_DEVICE void write(Block& b, unsigned job, unsigned dim, const float* upper) const {
    constexpr unsigned tile = metric_factors::tile;
    const unsigned n_pieces = metric_factors::n_pieces(dim);
    const std::size_t n = metric_factors::n_words(dim);
    for (unsigned at = b.thread(); at < n; at += n_threads) {
      const unsigned i = at / n_pieces;
      const unsigned first = at % n_pieces * 8;
      const float scale = i < dim ? 1.0F / std::sqrt(pivot(upper[place(dim, i, i)])) : 0.0F;
      float x[8];
      WAVEKV_UNROLL
      for (unsigned e = 0; e < 8; ++e) {
        const unsigned j = first + e;
        x[e] = i <= j && j < dim ? upper[place(dim, i, j)] * scale : 0.0F;
      }
      words4 high;
      words4 low;
      split_eight(b, x, high, low);
      const std::size_t chunk =
          job * n + (std::size_t{i / tile} * (n_pieces / chunk_words) + first / chunk_dim) * tile *
                        chunk_words;
      const left_place to(i % tile, first % chunk_dim / 8);
      put_left(factors.high + chunk, to, high);
      put_left(factors.low + chunk, to, low);
    }
  }
};

/// *block* of 128 threads: 64 rows times L, tile by tile; what row_squares and place_points have in common.
struct row_transform {
  static constexpr unsigned n_threads = 128;
  static constexpr unsigned block_rows = 64;

  struct memory {
    words4*
        high;  // [chunks, rows + 1, 4] of the rows; the odd row keeps what is written side by side in other banks
    words4* low;      // likewise
    words4* factors;  // [2 stages, high and low, tile, 4]
  };
  WAVEKV_HOST_DEVICE static memory shared_memory(shared_arena& arena, unsigned key_dim) {
    memory shared;
    const std::size_t n = std::size_t{round_up(key_dim, chunk_dim) / chunk_dim} * chunk_stride;
    shared.high = arena.take<words4>(n);
    shared.low = arena.take<words4>(n);
    shared.factors = arena.take<words4>(4 * tile_words);
    return shared;
  }

  static constexpr unsigned row_tiles = 4;
  static constexpr unsigned column_tiles = 2;
  static constexpr unsigned warp_rows = 8 * row_tiles;
  static constexpr unsigned warp_columns = 16 * column_tiles;

  /// The block's row that a lane has in tile r, part p.
  template <class Block>
  WAVEKV_DEVICE static unsigned row_of(Block& b, unsigned r, unsigned p) {
    return b.warp() % 2 * warp_rows + 8 * r + b.lane() % 4 * 2 + p;
  }

  /// Calls emit(r, p, column, x, y) for elements column and column + 1 of row row_of(r, p) of Lᵀ·(the deviation · scale);
  /// columns past key_dim come too, and are zero. The metric is known.
  template <class Deviations, class Block, class Emit>
  WAVEKV_DEVICE static void run(Block& b, const memory& shared, const Deviations& rows,
                                const metric_factors& factors, unsigned job, unsigned first_row,
                                unsigned key_dim, float scale, const Emit& emit) {
    const unsigned n_chunks = round_up(key_dim, chunk_dim) / chunk_dim;
    const unsigned n_tiles = metric_factors::n_rows(key_dim) / metric_factors::tile;
    const std::size_t n_words = metric_factors::n_words(key_dim);
    const words4* const high = factors.high + job * n_words;
    const words4* const low = factors.low + job * n_words;
    load_factors(b, high, low, n_chunks, 0, 0, shared.factors);
    split_rows(b, shared, rows, job, first_row, key_dim, scale);
    unsigned slot = 0;
    for (unsigned tile = 0; tile < n_tiles; ++tile) {
      float sums[column_tiles][row_tiles][4] = {};
      // Lᵀ is zero left of its diagonal.
      for (unsigned chunk = first_chunk(tile); chunk < n_chunks; ++chunk) {
        b.template wait_copies<0>();
        b.sync();
        const bool ends_tile = chunk + 1 == n_chunks;
        const unsigned next_tile = ends_tile ? tile + 1 : tile;
        if (next_tile < n_tiles) {
          load_factors(b, high, low, n_chunks, next_tile,
                       ends_tile ? first_chunk(next_tile) : chunk + 1,
                       shared.factors + (1 - slot) * 2 * tile_words);
        }
        const unsigned rows_at = chunk * chunk_stride + b.warp() % 2 * warp_rows * chunk_words;
        const words4* const columns =
            shared.factors + slot * 2 * tile_words + b.warp() / 2 * warp_columns * chunk_words;
        multiply_split_chunk<column_tiles, row_tiles>(
            b, columns, tile_words, shared.high + rows_at,
            static_cast<unsigned>(shared.low - shared.high), sums);
        slot = 1 - slot;
      }
      const unsigned first_column =
          tile * metric_factors::tile + b.warp() / 2 * warp_columns + b.lane() / 4 * 2;
      WAVEKV_UNROLL
      for (unsigned c = 0; c < column_tiles; ++c) {
        WAVEKV_UNROLL
        for (unsigned r = 0; r < row_tiles; ++r) {
          WAVEKV_UNROLL
          for (unsigned p = 0; p < 2; ++p) {
            emit(r, p, first_column + 16 * c, sums[c][r][p], sums[c][r][2 + p]);
          }
        }
      }
    }
  }

 private:
  static constexpr unsigned chunk_stride = (block_rows + 1) * chunk_words;
  static constexpr unsigned tile_words = metric_factors::tile * chunk_words;

  WAVEKV_DEVICE static unsigned first_chunk(unsigned tile) {
    return tile * metric_factors::tile / chunk_dim;
  }

  template <class Block>
  WAVEKV_DEVICE static void load_factors(Block& b, const words4* high, const words4* low,
                                         unsigned n_chunks, unsigned tile, unsigned chunk,
                                         words4* to) {
    const std::size_t from = (std::size_t{tile} * n_chunks + chunk) * tile_words;
    for (unsigned at = b.thread(); at < tile_words; at += n_threads) {
      b.copy_async16(to + at, high + from + at);
      b.copy_async16(to + tile_words + at, low + from + at);
    }
    b.commit_copies();
  }

  template <class Deviations, class Block>
  WAVEKV_DEVICE static void split_rows(Block& b, const memory& shared, const Deviations& rows,
                                       unsigned job, unsigned first_row, unsigned key_dim,
                                       float scale) {
    const unsigned n_rows = rows.n(job);
    const unsigned n_pieces = metric_factors::n_pieces(key_dim);
    for (unsigned at = b.thread(); at < block_rows * n_pieces; at += n_threads) {
      const unsigned row = at / n_pieces;
      const unsigned piece = at % n_pieces;
      float x[8] = {};
      if (first_row + row < n_rows && piece * 8 < key_dim) {
        rows.load(b, job, first_row + row, piece * 8, scale, x);
      }
      const unsigned to =
          piece / chunk_words * chunk_stride + row * chunk_words + piece % chunk_words;
      split_eight(b, x, shared.high[to], shared.low[to]);
    }
  }
};

/// Kernel: ‖Lᵀ·x‖² of every row's deviation x of keys, scaled. Grid: (ceil(most rows / 64), n_jobs).
template <class Deviations>
struct row_squares {
  static constexpr unsigned n_threads = row_transform::n_threads;
  static constexpr bool overlaps = true;
  Deviations rows;
  metric_factors factors;
  unsigned key_dim = 0;
  const float* scales = nullptr;  ///< [n_jobs, 2] of keys, of values
  float* squares = nullptr;       ///< [n_jobs, stride]
  unsigned stride = 0;            ///< most rows

  std::size_t shared_bytes() const {
    shared_arena arena;
    (void)row_transform::shared_memory(arena, key_dim);
    (void)arena.take<float>(2 * row_transform::block_rows);
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
    float* const to = squares + std::size_t{job} * stride;
    const float scale = scales[2 * job];
    if (factors.is_known[job] == 0) {
      plain(b, job, first_row, n_rows, scale, to);
      return;
    }
    shared_arena arena(b.shared());
    const row_transform::memory shared = row_transform::shared_memory(arena, key_dim);
    float* const halves = arena.take<float>(2 * row_transform::block_rows);
    float mine[row_transform::row_tiles][2] = {};
    row_transform::run(
        b, shared, rows, factors, job, first_row, key_dim, scale,
        [&](unsigned r, unsigned p, unsigned, float x, float y) { mine[r][p] += x * x + y * y; });
    WAVEKV_UNROLL
    for (unsigned r = 0; r < row_transform::row_tiles; ++r) {
      WAVEKV_UNROLL
      for (unsigned p = 0; p < 2; ++p) {
        WAVEKV_UNROLL
        for (unsigned mask = 4; mask < warp_size; mask *= 2) {
          mine[r][p] += b.shuffle_xor(mine[r][p], mask);
        }
        if (b.lane() < 4) {
          halves[b.warp() / 2 * row_transform::block_rows + row_transform::row_of(b, r, p)] =
              mine[r][p];
        }
      }
    }
    b.sync();
    const unsigned row = b.thread();
    if (row < row_transform::block_rows && first_row + row < n_rows) {
      to[first_row + row] = halves[row] + halves[row_transform::block_rows + row];
    }
  }

 private:
  template <class Block>
  WAVEKV_DEVICE void plain(Block& b, unsigned job, unsigned first_row, unsigned n_rows, float scale,
                           float* to) const {
    for (unsigned row = first_row + b.warp();
         row < first_row + row_transform::block_rows && row < n_rows; row += b.n_warps()) {
      float square = 0.0F;
      for (unsigned column = b.lane() * 8; column < key_dim; column += warp_size * 8) {
        float x[8];
        rows.load(b, job, row, column, scale, x);
        WAVEKV_UNROLL
        for (unsigned i = 0; i < 8; ++i) {
          square += x[i] * x[i];
        }
      }
      square = b.warp_sum(square);
      if (b.lane() == 0) {
        to[row] = square;
      }
    }
  }
};

}  // namespace wavekv::device::detail
