// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <wavekv/cpu/detail/highway.hpp>

/// @file panel_product.hpp
/// @brief Dot products of many rows with many columns, a register tile at a time, handed to an epilogue.
///
/// Clustering needs the largest of n_clusters scores of a point, not the scores: a general matrix product
/// would write 16 MB per iteration that are read once. Here a tile's scores go from registers to the epilogue.
///
/// Rows are packed in blocks of `block_rows`, [block][dim][block_rows]; columns in panels of `panel_width`,
/// [panel][dim][panel_width]. A panel of 128 dimensions (16 KB with 512-bit vectors) stays in the L1 cache
/// next to a block; all panels stay in L2.

namespace wavekv::detail {

namespace hn = hwy::HWY_NAMESPACE;

/// Not hn::Vec<...>-typed members anywhere: these are plain numbers usable in array bounds.
struct panel_shape {
  using tag = hn::ScalableTag<float>;
  static constexpr std::size_t lanes = HWY_LANES(float);
  /// Two vectors of columns by as many rows as leave registers for the columns and one broadcast:
  /// 24 accumulators of 32 registers, or 12 of 16.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
  static constexpr std::size_t block_rows = 6;
#else
  static constexpr std::size_t block_rows = 12;
#endif
  static constexpr std::size_t panel_width = 2 * lanes;

  static constexpr std::size_t n_blocks(std::size_t n_rows) {
    return (n_rows + block_rows - 1) / block_rows;
  }
  static constexpr std::size_t n_panels(std::size_t n_columns) {
    return (n_columns + panel_width - 1) / panel_width;
  }
};

/// Packs one block of rows, [dim][block_rows]; rows past n_rows are zeros.
inline void pack_block(const float* rows, std::size_t n_rows, std::size_t stride, std::size_t dim,
                       float* block) {
  constexpr std::size_t width = panel_shape::block_rows;
  for (std::size_t r = 0; r < width; ++r) {
    for (std::size_t i = 0; i < dim; ++i) {
      block[i * width + r] = r < n_rows ? rows[r * stride + i] : 0.0F;
    }
  }
}

/// Packs columns given as rows of a [n_columns, dim] matrix (centroids); columns past the end are zeros.
inline void pack_panels_of_rows(const float* rows, std::size_t n_columns, std::size_t dim,
                                float* panels) {
  constexpr std::size_t width = panel_shape::panel_width;
  for (std::size_t p = 0; p < panel_shape::n_panels(n_columns); ++p) {
    float* panel = panels + p * width * dim;
    for (std::size_t c = 0; c < width; ++c) {
      const std::size_t column = p * width + c;
      for (std::size_t i = 0; i < dim; ++i) {
        panel[i * width + c] = column < n_columns ? rows[column * dim + i] : 0.0F;
      }
    }
  }
}

/// Packs the columns of a [dim, n_columns] row-major matrix (a factor); columns past the end are zeros.
inline void pack_panels_of_columns(const float* matrix, std::size_t n_columns, std::size_t dim,
                                   float* panels) {
  constexpr std::size_t width = panel_shape::panel_width;
  for (std::size_t p = 0; p < panel_shape::n_panels(n_columns); ++p) {
    float* panel = panels + p * width * dim;
    for (std::size_t i = 0; i < dim; ++i) {
      for (std::size_t c = 0; c < width; ++c) {
        const std::size_t column = p * width + c;
        panel[i * width + c] = column < n_columns ? matrix[i * n_columns + column] : 0.0F;
      }
    }
  }
}

/// Scores of one block against one panel, started from a bias per column (null: 0); then calls
/// epilogue(row constant, left, right) for every row with its two vectors of scores.
/// The index pack unrolls the tile whatever the optimisation level, so that it lives in registers.
template <class Epilogue, std::size_t... Row>
HWY_INLINE void tile_scores(const float* HWY_RESTRICT block, const float* HWY_RESTRICT panel,
                            std::size_t dim, const float* bias, const Epilogue& epilogue,
                            std::index_sequence<Row...>) {
  const panel_shape::tag d;
  using vector = hn::Vec<panel_shape::tag>;
  const vector start_left = bias != nullptr ? hn::Load(d, bias) : hn::Zero(d);
  const vector start_right = bias != nullptr ? hn::Load(d, bias + panel_shape::lanes) : hn::Zero(d);
  vector left[] = {((void)Row, start_left)...};
  vector right[] = {((void)Row, start_right)...};
  for (std::size_t i = 0; i < dim; ++i) {
    const vector column_left = hn::Load(d, panel);
    const vector column_right = hn::Load(d, panel + panel_shape::lanes);
    (
        [&](std::size_t row) HWY_ATTR {
          const vector element = hn::Set(d, block[row]);
          left[row] = hn::MulAdd(element, column_left, left[row]);
          right[row] = hn::MulAdd(element, column_right, right[row]);
        }(Row),
        ...);
    block += panel_shape::block_rows;
    panel += panel_shape::panel_width;
  }
  (epilogue(Row, left[Row], right[Row]), ...);
}

template <class Epilogue>
HWY_INLINE void tile_scores(const float* block, const float* panel, std::size_t dim,
                            const float* bias, const Epilogue& epilogue) {
  tile_scores(block, panel, dim, bias, epilogue,
              std::make_index_sequence<panel_shape::block_rows>());
}

/// The two largest scores of a row, and where the largest is.
struct largest_two {
  std::uint32_t column;  ///< of the largest; of equal ones the smallest
  float largest;
  float second;  ///< the largest of all other columns
};

/// For the rows of one packed block: the two largest scores of each.
/// @param bias  [n_panels · panel_width]; padding columns must hold the lowest float, so that they never win
inline void largest_scores(const float* block, std::size_t n_rows, const float* panels,
                           const float* bias, std::size_t n_columns, std::size_t dim,
                           largest_two* found) {
  constexpr std::size_t lanes = panel_shape::lanes;
  const panel_shape::tag d;
  const hn::RebindToSigned<panel_shape::tag> di;
  HWY_ALIGN float best[panel_shape::block_rows * lanes];
  HWY_ALIGN float second[panel_shape::block_rows * lanes];
  HWY_ALIGN std::int32_t best_vector[panel_shape::block_rows * lanes];
  std::fill_n(best, panel_shape::block_rows * lanes, hwy::LowestValue<float>());
  std::fill_n(second, panel_shape::block_rows * lanes, hwy::LowestValue<float>());
  std::fill_n(best_vector, panel_shape::block_rows * lanes, 0);
  const std::size_t n_panels = panel_shape::n_panels(n_columns);
  for (std::size_t p = 0; p < n_panels; ++p) {
    const auto first = static_cast<std::int32_t>(2 * p);
    // Per lane a strict comparison, in order of the columns: equal scores keep the smaller column.
    tile_scores(
        block, panels + p * panel_shape::panel_width * dim, dim,
        bias + p * panel_shape::panel_width, [&](std::size_t row, auto left, auto right) HWY_ATTR {
          const auto is_right = hn::Gt(right, left);
          const auto larger = hn::IfThenElse(is_right, right, left);
          const auto which = hn::IfThenElse(hn::RebindMask(di, is_right), hn::Set(di, first + 1),
                                            hn::Set(di, first));
          const auto held = hn::Load(d, best + row * lanes);
          const auto wins = hn::Gt(larger, held);
          hn::Store(hn::IfThenElse(wins, larger, held), d, best + row * lanes);
          const auto loser = hn::Max(hn::Min(left, right), hn::Min(larger, held));
          hn::Store(hn::Max(hn::Load(d, second + row * lanes), loser), d, second + row * lanes);
          const auto held_vector = hn::Load(di, best_vector + row * lanes);
          hn::Store(hn::IfThenElse(hn::RebindMask(di, wins), which, held_vector), di,
                    best_vector + row * lanes);
        });
  }
  for (std::size_t r = 0; r < n_rows; ++r) {
    const float* scores = best + r * lanes;
    const std::int32_t* vectors = best_vector + r * lanes;
    float top = scores[0];
    for (std::size_t lane = 1; lane < lanes; ++lane) {
      top = std::max(top, scores[lane]);
    }
    std::size_t winner = n_columns - 1;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      const std::size_t candidate = static_cast<std::size_t>(vectors[lane]) * lanes + lane;
      if (scores[lane] == top) {
        winner = std::min(winner, candidate);
      }
    }
    float next = hwy::LowestValue<float>();
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      next = std::max(next, lane == winner % lanes ? second[r * lanes + lane] : scores[lane]);
    }
    found[r] = {static_cast<std::uint32_t>(winner), top, next};
  }
}

/// x·y in float. The order of the sum depends on dim and the vector length alone.
inline float dot_product(const float* x, const float* y, std::size_t dim) {
  constexpr std::size_t lanes = panel_shape::lanes;
  const panel_shape::tag d;
  auto even = hn::Zero(d);
  auto odd = hn::Zero(d);
  std::size_t i = 0;
  for (; i + 2 * lanes <= dim; i += 2 * lanes) {
    even = hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, y + i), even);
    odd = hn::MulAdd(hn::LoadU(d, x + i + lanes), hn::LoadU(d, y + i + lanes), odd);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  for (; i < dim; ++i) {
    sum += x[i] * y[i];
  }
  return sum;
}

}  // namespace wavekv::detail
