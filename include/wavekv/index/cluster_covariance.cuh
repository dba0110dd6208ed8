// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/detail/chunked_rows.cuh>
#include <wavekv/index/detail/seal_rows.cuh>

/// @file cluster_covariance.cuh
/// @brief Learns on the device how keys and values vary together inside nodes: learn_covariances of cluster_covariance.hpp,
/// as sums that are not divided by their weight yet.

namespace wavekv::device::detail {

/// Sums of products that are not added up yet, of one level.
struct product_parts {
  float* sums = nullptr;  ///< [n_jobs, n_parts, key_dim, width]
  unsigned n_parts = 0;   ///< of rows_together rows each

  static constexpr unsigned rows_together = 1024;
  static unsigned n_parts_of(unsigned n_rows) {
    return (n_rows + rows_together - 1) / rows_together;
  }
};

/// Kernel: sums of [key]ᵀ·[key, value] over the deviations of up to 1024 rows, times their weights.
/// Grid: (n_tiles(key_dim) · n_tiles(width) · n_parts, n_jobs).
///
/// On tensor cores, deviations split into two bf16 each (see metric_space.cuh): the products run over rows, so that
/// deviations are written to shared memory transposed, 32 rows at a time, dimensions taking the part of rows. Making them
/// takes about as long as multiplying them, hence the tiles of 128 × 128: at a key_dim of 128 each is made twice.
template <class Deviations>
struct multiply_deviations {
  static constexpr unsigned n_threads = 512;
  static constexpr bool overlaps = true;
  Deviations rows;
  product_parts parts;
  unsigned key_dim = 0;
  unsigned width = 0;

  static unsigned n_tiles(unsigned n) { return (n + tile - 1) / tile; }

  std::size_t shared_bytes() const { return 2 * 4 * tile_words * sizeof(words4); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned part = b.block_x() % parts.n_parts;
    const unsigned n_across = (width + tile - 1) / tile;
    const unsigned first_row_column = b.block_x() / parts.n_parts / n_across * tile;
    const unsigned first_column = b.block_x() / parts.n_parts % n_across * tile;
    const unsigned my_left = b.warp() % 4 * 16 * row_tiles;
    const unsigned my_right = b.warp() / 4 * 8 * column_tiles;
    const bool is_needed = first_row_column + my_left < key_dim && first_column + my_right < width;
    float sums[row_tiles][column_tiles][4] = {};
    const unsigned n_rows = rows.n(job);
    const unsigned begin = part * product_parts::rows_together;
    const unsigned end = n_rows < begin + product_parts::rows_together
                             ? n_rows
                             : begin + product_parts::rows_together;
    // While some warps multiply 32 rows, others make the next 32 ready.
    auto* const shared = reinterpret_cast<words4*>(b.shared());
    const auto load_both = [&](unsigned first, words4* to) {
      load<true>(b, job, first, end, first_row_column, key_dim, to);
      load<false>(b, job, first, end, first_column, width, to + 2 * tile_words);
    };
    if (begin < end) {
      load_both(begin, shared);
    }
    b.sync();
    for (unsigned first = begin, slot = 0; first < end; first += chunk_dim, slot = 1 - slot) {
      if (first + chunk_dim < end) {
        load_both(first + chunk_dim, shared + (1 - slot) * 4 * tile_words);
      }
      if (is_needed) {
        const words4* const left = shared + slot * 4 * tile_words + my_left * chunk_words;
        const words4* const right = shared + (slot * 4 + 2) * tile_words + my_right * chunk_words;
        multiply_split_chunk<row_tiles, column_tiles>(b, left, tile_words, right, tile_words, sums);
      }
      b.sync();
    }
    float* const to = parts.sums + (std::size_t{job} * parts.n_parts + part) * key_dim * width;
    WAVEKV_UNROLL
    for (unsigned r = 0; r < row_tiles; ++r) {
      WAVEKV_UNROLL
      for (unsigned c = 0; c < column_tiles; ++c) {
        WAVEKV_UNROLL
        for (unsigned h = 0; h < 2; ++h) {
          const unsigned i = first_row_column + my_left + 16 * r + b.lane() / 4 * 2 + h;
          const unsigned j = first_column + my_right + 8 * c + b.lane() % 4 * 2;
          if (i < key_dim && j < width) {
            to[std::size_t{i} * width + j] = sums[r][c][2 * h];
            to[std::size_t{i} * width + j + 1] = sums[r][c][2 * h + 1];
          }
        }
      }
    }
  }

 private:
  static constexpr unsigned tile = 128;
  static constexpr unsigned tile_words = tile * chunk_words;
  static constexpr unsigned row_tiles = 2;
  static constexpr unsigned column_tiles = 4;

  // 32 rows from `first` on, columns of one tile from first_column on; zeros where there is nothing. Written as rows of
  // each dimension, [tile, 4], first rounded, then what that leaves: left ones, weighted, or right ones. A warp has eight
  // columns of all rows; two lanes share two rows, and each takes four of the columns, to write pairs.
  template <bool IsLeft, class Block>
  WAVEKV_DEVICE void load(Block& b, unsigned job, unsigned first, unsigned end,
                          unsigned first_column, unsigned n_columns, words4* to) const {
    const unsigned row = b.lane();
    const unsigned column = first_column + 8 * b.warp();
    float x[8] = {};
    if (first + row < end && column < n_columns) {
      rows.load(b, job, first + row, column, 1.0F, x);
      if (IsLeft) {
        const float weight = rows.weight(job, first + row);
        WAVEKV_UNROLL
        for (unsigned i = 0; i < 8; ++i) {
          x[i] *= weight;
        }
      }
    }
    const bool is_odd = row % 2 != 0;
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      const float other = b.shuffle_xor(is_odd ? x[i] : x[i + 4], 1);
      const float pair[2] = {is_odd ? other : x[i], is_odd ? x[i + 4] : other};
      const std::uint32_t high = b.template pack<bf16>(pair[0], pair[1]);
      float seen[2];
      b.template unpack<bf16>(high, seen[0], seen[1]);
      const std::uint32_t low = b.template pack<bf16>(pair[0] - seen[0], pair[1] - seen[1]);
      const unsigned dimension = 8 * b.warp() + (is_odd ? 4 : 0) + i;
      const unsigned word = row % 8 / 2;
      unsigned at = dimension * chunk_words + row / 8;
      unsigned in = word;
      if (IsLeft) {
        const left_place place(dimension, row / 8);
        at = place.first + word / 2 * 32;
        in = place.word + word % 2 * 2;
      }
      to[at].word[in] = high;
      to[tile_words + at].word[in] = low;
    }
  }
};

/// Kernel: per level, the sums of size · dispersion, and of what of it is rounding. Grid: (n_levels, n_jobs).
template <scalar T>
struct weigh_levels {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  seal_batch<T> batch;
  growing_level levels[max_tree_levels];
  unsigned n_levels = 1;
  double* weights = nullptr;  ///< [n_jobs, n_levels, 2]

  std::size_t shared_bytes() const { return n_threads / warp_size * sizeof(double); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned number = b.block_x();
    const unsigned job = b.block_y();
    const growing_level& level = levels[number];
    const level_view<T>& view = batch.item(job).segment.levels[number];
    const std::size_t first = std::size_t{batch.head(job)} * view.capacity;
    const unsigned n = level.n_nodes[job];
    double weight = 0.0;
    double rounding = 0.0;
    for (unsigned rank = b.thread(); rank < n; rank += n_threads) {
      const auto size = static_cast<double>(view.sizes[first + rank]);
      const auto dispersion = static_cast<double>(view.dispersions[first + rank]);
      weight += size * dispersion;
      rounding +=
          size * (dispersion - static_cast<double>(level.dispersions[level.node(job, rank)]));
    }
    auto* const shared = reinterpret_cast<double*>(b.shared());
    weight = block_sum_of(b, weight, shared);
    rounding = block_sum_of(b, rounding, shared);
    if (b.thread() == 0) {
      double* const to = weights + (std::size_t{job} * n_levels + number) * 2;
      to[0] = weight;
      to[1] = rounding > 0.0 ? rounding : 0.0;
    }
  }
};

/// Kernel: what each item has learnt, level by level: a coarser level adds its nodes' means to what the finer ones have.
/// Nothing where keys do not differ inside nodes, or by more than float can hold. Grid: (ceil(key_dim · width / 256), n_jobs).
template <scalar T>
struct add_up_products {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  seal_batch<T> batch;
  product_parts parts[max_tree_levels];
  unsigned n_levels = 1;
  const double* weights = nullptr;  ///< [n_jobs, n_levels, 2]

  std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const learnt_view& learnt = batch.item(job).learnt;
    const std::size_t n = std::size_t{batch.key_dim} * batch.width;
    const std::size_t at = std::size_t{b.block_x()} * n_threads + b.thread();
    if (learnt.products == nullptr || at >= n) {
      return;
    }
    const bool is_diagonal = at / batch.width == at % batch.width;
    float sum = 0.0F;
    for (unsigned number = 0; number < n_levels; ++number) {
      const product_parts& level = parts[number];
      const float* const from = level.sums + std::size_t{job} * level.n_parts * n + at;
      for (unsigned part = 0; part < level.n_parts; ++part) {
        sum += from[part * n];
      }
      const double* const of_level = weights + (std::size_t{job} * n_levels + number) * 2;
      const bool is_known = of_level[0] > 1e-30 && of_level[0] < 1e30;
      const float product = is_diagonal ? sum + static_cast<float>(of_level[1]) : sum;
      const bool is_finite = product > -1e30F && product < 1e30F;
      const std::size_t to = std::size_t{batch.head(job)} * n_levels + number;
      learnt.products[to * n + at] = is_known && is_finite ? product : 0.0F;
      if (at == 0) {
        learnt.weights[to] = is_known ? static_cast<float>(of_level[0]) : 0.0F;
      }
    }
  }
};

/// What the tree's nodes teach, set for each item. Enqueues only.
/// Complexity: O(n_tokens · key_dim · width) per job, on tensor cores.
template <scalar T, device_runtime Runtime>
void learn_products(Runtime& runtime, typename Runtime::stream_type stream,
                    const seal_batch<T>& batch, unsigned n_jobs, const growing_level* levels,
                    const product_parts* parts, unsigned n_levels, double* weights) {
  weigh_levels<T> weigh{batch, {}, n_levels, weights};
  add_up_products<T> add_up{batch, {}, n_levels, weights};
  for (unsigned number = 0; number < n_levels; ++number) {
    const growing_level& level = levels[number];
    weigh.levels[number] = level;
    add_up.parts[number] = parts[number];
    const auto multiply = [&](const auto& rows) {
      using kernel = multiply_deviations<std::remove_cvref_t<decltype(rows)>>;
      runtime.launch(stream,
                     grid{kernel::n_tiles(batch.key_dim) * kernel::n_tiles(batch.width) *
                              parts[number].n_parts,
                          n_jobs},
                     kernel{rows, parts[number], batch.key_dim, batch.width});
    };
    if (number == 0) {
      multiply(tokens_from_clusters<T>{batch, level});
    } else {
      multiply(nodes_from_parents{levels[number - 1], level, batch.width});
    }
  }
  runtime.launch(stream, grid{n_levels, n_jobs}, weigh);
  const auto n = static_cast<unsigned>(std::size_t{batch.key_dim} * batch.width);
  runtime.launch(stream, grid{(n + 255) / 256, n_jobs}, add_up);
}

}  // namespace wavekv::device::detail
