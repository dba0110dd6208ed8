// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/detail/vectors.hpp>
#include <wavekv/cpu/elementwise.hpp>

/// @file tile_product.hpp
/// @brief Products of small float matrices that lie in cache: the leaf of prefill and of clustering.
///
/// The right factor is a panel [k, n], row-major and contiguous, so that a step of the sum reads whole vectors
/// of it; each element of the left factor is broadcast. Keep a panel within 32 KB or so (k · n <= 8192 floats),
/// best with n = 64, and it is read from the nearest caches while it is multiplied by many rows.

namespace wavekv::simd {
namespace detail {

/// Vectors side by side in a tile: with 6 rows, 12 or 24 sums.
inline constexpr std::size_t n_product_vectors = n_registers == 32 ? 4 : 2;

/// Element (i, p) of the left factor lies at a[i * lda + p], or at a[p * lda + i] when it is transposed.
template <bool transposed>
HWY_INLINE float left(const float* a, std::size_t lda, std::size_t i, std::size_t p) {
  return transposed ? a[p * lda + i] : a[i * lda + p];
}

/// A tile of n_tile_rows x n_tile_vectors vectors of the product, sums in registers. With n_columns != 0
/// (one vector only) the tile is the last n_columns (< lanes) columns.
template <std::size_t n_tile_rows, std::size_t n_tile_vectors, bool transposed, bool partial>
HWY_INLINE void product_tile(const float* a, std::size_t lda, const float* b, std::size_t ldb,
                             std::size_t k, float* c, std::size_t ldc, bool accumulate,
                             std::size_t n_columns) {
  static_assert(!partial || n_tile_vectors == 1);
  constexpr float_tag d{};
  float_vector sums[n_tile_rows][n_tile_vectors];
  HWY_UNROLL(6)
  for (std::size_t i = 0; i < n_tile_rows; ++i) {
    HWY_UNROLL(4)
    for (std::size_t v = 0; v < n_tile_vectors; ++v) {
      if (!accumulate) {
        sums[i][v] = hn::Zero(d);
      } else if constexpr (partial) {
        sums[i][v] = load_first(c + i * ldc, n_columns);
      } else {
        sums[i][v] = hn::LoadU(d, c + i * ldc + v * lanes);
      }
    }
  }
  for (std::size_t p = 0; p < k; ++p) {
    float_vector row[n_tile_vectors];
    HWY_UNROLL(4)
    for (std::size_t v = 0; v < n_tile_vectors; ++v) {
      if constexpr (partial) {
        row[v] = load_first(b + p * ldb, n_columns);
      } else {
        row[v] = in_register(hn::LoadU(d, b + p * ldb + v * lanes));
      }
    }
    HWY_UNROLL(6)
    for (std::size_t i = 0; i < n_tile_rows; ++i) {
      const float_vector element = in_register(hn::Set(d, left<transposed>(a, lda, i, p)));
      HWY_UNROLL(4)
      for (std::size_t v = 0; v < n_tile_vectors; ++v)
        sums[i][v] = hn::MulAdd(element, row[v], sums[i][v]);
    }
  }
  HWY_UNROLL(6)
  for (std::size_t i = 0; i < n_tile_rows; ++i) {
    HWY_UNROLL(4)
    for (std::size_t v = 0; v < n_tile_vectors; ++v) {
      if constexpr (partial) {
        store_first(sums[i][v], c + i * ldc, n_columns);
      } else {
        hn::StoreU(sums[i][v], d, c + i * ldc + v * lanes);
      }
    }
  }
}

/// All m rows for the columns of one tile.
template <std::size_t n_tile_vectors, bool transposed, bool partial>
HWY_INLINE void product_columns(const float* a, std::size_t m, std::size_t lda, const float* b,
                                std::size_t ldb, std::size_t k, float* c, std::size_t ldc,
                                bool accumulate, std::size_t n_columns) {
  const auto rows_from = [&](std::size_t i) { return transposed ? a + i : a + i * lda; };
  std::size_t i = 0;
  for (; i + 6 <= m; i += 6)
    product_tile<6, n_tile_vectors, transposed, partial>(rows_from(i), lda, b, ldb, k, c + i * ldc,
                                                         ldc, accumulate, n_columns);
  // What is left over: 4 rows still have sums enough to keep the multiply-adds busy, 2 have not.
  for (; i + 4 <= m; i += 4)
    product_tile<4, n_tile_vectors, transposed, partial>(rows_from(i), lda, b, ldb, k, c + i * ldc,
                                                         ldc, accumulate, n_columns);
  for (; i + 2 <= m; i += 2)
    product_tile<2, n_tile_vectors, transposed, partial>(rows_from(i), lda, b, ldb, k, c + i * ldc,
                                                         ldc, accumulate, n_columns);
  if (i < m)
    product_tile<1, n_tile_vectors, transposed, partial>(rows_from(i), lda, b, ldb, k, c + i * ldc,
                                                         ldc, accumulate, n_columns);
}

template <bool transposed>
HWY_INLINE void product(const float* a, std::size_t m, std::size_t lda, const float* b,
                        std::size_t ldb, std::size_t k, std::size_t n, float* c, std::size_t ldc,
                        bool accumulate) {
  constexpr std::size_t n_vectors = n_product_vectors;
  std::size_t j = 0;
  for (; j + n_vectors * lanes <= n; j += n_vectors * lanes)
    product_columns<n_vectors, transposed, false>(a, m, lda, b + j, ldb, k, c + j, ldc, accumulate,
                                                  0);
  for (; j + lanes <= n; j += lanes)
    product_columns<1, transposed, false>(a, m, lda, b + j, ldb, k, c + j, ldc, accumulate, 0);
  if (j < n)
    product_columns<1, transposed, true>(a, m, lda, b + j, ldb, k, c + j, ldc, accumulate, n - j);
}

}  // namespace detail

/// @brief Columns of the product that are summed in registers at once. A panel of so many is read without gaps,
/// and fits the nearest cache beside whatever it is multiplied by.
inline constexpr std::size_t panel_columns = detail::n_product_vectors * detail::lanes;

/// @brief c = a · b, or c += a · b: c[i * ldc + j] (+)= sum over p of a[i * lda + p] · b_panel[p * n + j].
///
/// An element of c is summed in the order of p by fused multiply-adds, whatever the tile it falls in (in a tile
/// that accumulates, starting from c). Complexity: m · n · k multiply-adds. Allocates nothing.
/// @param a  [m, k] with lda floats from row to row
/// @param b_panel  [k, n] contiguous (see pack_transposed, pack_rows)
/// @param c  [m, n] with ldc
inline void tile_product(const float* a, std::size_t m, std::size_t lda, const float* b_panel,
                         std::size_t k, std::size_t n, float* c, std::size_t ldc,
                         bool accumulate) noexcept {
  detail::product<false>(a, m, lda, b_panel, n, k, n, c, ldc, accumulate);
}

/// @brief As tile_product with the left factor transposed: c (+)= aᵀ · b, where a is [k, m] with lda floats from
/// row to row.
inline void tile_product_transposed(const float* a, std::size_t m, std::size_t lda,
                                    const float* b_panel, std::size_t k, std::size_t n, float* c,
                                    std::size_t ldc, bool accumulate) noexcept {
  detail::product<true>(a, m, lda, b_panel, n, k, n, c, ldc, accumulate);
}

/// @brief Rows as floats: panel[r * panel_stride + c] = factor · rows[r * row_stride + c].
/// @param rows  [n, dim] with row_stride elements from row to row
/// @param panel  [n, dim] with panel_stride
template <scalar S>
void pack_rows(const S* rows, std::size_t n, std::size_t dim, std::size_t row_stride, float* panel,
               std::size_t panel_stride, float factor = 1.0F) noexcept {
  for (std::size_t r = 0; r < n; ++r) {
    if (factor == 1.0F) {
      to_float(panel + r * panel_stride, rows + r * row_stride, dim);
    } else {
      to_float_scaled(panel + r * panel_stride, rows + r * row_stride, dim, factor);
    }
  }
}

/// @brief Rows as the columns of a panel: panel[c * panel_stride + r] = factor · rows[r * row_stride + c].
/// @param rows  [n, dim] with row_stride elements from row to row
/// @param panel  [dim, n] with panel_stride (n for a contiguous panel)
template <scalar S>
void pack_transposed(const S* rows, std::size_t n, std::size_t dim, std::size_t row_stride,
                     float* panel, std::size_t panel_stride, float factor = 1.0F) noexcept {
  // By blocks of 16 x 16, so that both sides stay within a few cache lines.
  constexpr std::size_t block = 16;
  float buffer[block][block];
  for (std::size_t r = 0; r < n; r += block) {
    const std::size_t n_rows = std::min(block, n - r);
    for (std::size_t c = 0; c < dim; c += block) {
      const std::size_t n_columns = std::min(block, dim - c);
      for (std::size_t i = 0; i < n_rows; ++i)
        to_float_scaled(buffer[i], rows + (r + i) * row_stride + c, n_columns, factor);
      for (std::size_t j = 0; j < n_columns; ++j) {
        float* to = panel + (c + j) * panel_stride + r;
        for (std::size_t i = 0; i < n_rows; ++i) to[i] = buffer[i][j];
      }
    }
  }
}

}  // namespace wavekv::simd
