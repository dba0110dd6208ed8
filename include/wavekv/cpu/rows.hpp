// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/detail/bf16_products.hpp>
#include <wavekv/cpu/detail/vectors.hpp>
#include <wavekv/cpu/read_ahead.hpp>

/// @file rows.hpp
/// @brief The two leaves that decode spends its time in: dot products of a few queries with a run of rows,
/// and weighted sums of a run of rows. Both convert a stored row once for all queries of a group.
///
/// Rows are contiguous, row-major, of any dim >= 1, aligned to alignof(S) only. Nothing past an array's
/// end is read or written. All accumulation is in float. Neither allocates.

namespace wavekv::simd {

/// @brief How the row leaves walk memory; measured on Zen 3 and Zen 4 (see bench/README.md).
struct row_tuning {
  /// Rows of a weighted sum that are walked once per tile of columns; they stay in the first-level cache.
  static constexpr std::size_t chunk_bytes = 4096;
  static constexpr std::size_t min_chunk_rows =
      8;  ///< but at least so many: sums are loaded and stored for each chunk
  static constexpr std::size_t max_chunk_rows = 64;  ///< and at most so many
};

namespace detail {

/// Dots of n_tile_rows rows with n_tile_queries queries, all sums in registers.
/// @param asked  as many bytes as the rows have, to be prefetched; or null
template <std::size_t n_tile_rows, std::size_t n_tile_queries, scalar S>
HWY_INLINE void score_tile(const float* q, std::size_t q_stride, const S* rows, std::size_t dim,
                           float* logits, std::size_t logits_stride, const char* asked) {
  constexpr float_tag d{};
  float_vector sums[n_tile_rows][n_tile_queries];
  HWY_UNROLL(8)
  for (std::size_t r = 0; r < n_tile_rows; ++r) {
    HWY_UNROLL(8)
    for (std::size_t g = 0; g < n_tile_queries; ++g) sums[r][g] = hn::Zero(d);
  }
  const auto step = [&](const auto& load_query, const auto& load_row, std::size_t c) HWY_ATTR {
    float_vector row[n_tile_rows];
    HWY_UNROLL(8)
    for (std::size_t r = 0; r < n_tile_rows; ++r) row[r] = load_row(rows + r * dim + c);
    HWY_UNROLL(8)
    for (std::size_t g = 0; g < n_tile_queries; ++g) {
      const float_vector query = in_register(load_query(q + g * q_stride + c));
      HWY_UNROLL(8)
      for (std::size_t r = 0; r < n_tile_rows; ++r)
        sums[r][g] = hn::MulAdd(query, row[r], sums[r][g]);
    }
  };
  const auto load_full = [](const auto* p) HWY_ATTR { return load(p); };
  constexpr std::size_t line = std::max<std::size_t>(1, 64 / (lanes * sizeof(S))) * lanes;
  std::size_t c = 0;
  for (; c + line <= dim; c += line) {
    if (asked != nullptr) {  // a line of each row at a time: a burst of them stalls
      HWY_UNROLL(8)
      for (std::size_t r = 0; r < n_tile_rows; ++r)
        prefetch(ahead(asked, (r * dim + c) * sizeof(S)));
    }
    HWY_UNROLL(8)
    for (std::size_t i = 0; i < line; i += lanes) step(load_full, load_full, c + i);
  }
  for (; c + lanes <= dim; c += lanes) step(load_full, load_full, c);
  if (c < dim) {
    const std::size_t n = dim - c;
    step([n](const float* p) HWY_ATTR { return load_first(p, n); },
         [n](const S* p) HWY_ATTR { return load_first(p, n); }, c);
  }
  store_tile(sums, logits, logits_stride);
}

/// acc[g] += sum_r w[g][r] * rows[r] for a tile of n_tile_vectors vectors of columns, sums in registers.
/// With n_columns != 0 the tile is the last n_columns (< lanes) columns.
/// @param row_at  row_at(r): the tile's first column of row r
/// @param asked   as many bytes as the tile has, to be prefetched; or null
template <std::size_t n_tile_vectors, std::size_t n_tile_queries, bool partial, class RowAt>
HWY_INLINE void add_weighted_tile(const float* w, std::size_t w_stride, const RowAt& row_at,
                                  std::size_t n_rows, float* acc, std::size_t acc_stride,
                                  std::size_t n_columns, const char* asked) {
  using stored = std::remove_cvref_t<decltype(*row_at(0))>;
  static_assert(!partial || n_tile_vectors == 1);
  constexpr float_tag d{};
  float_vector sums[n_tile_queries][n_tile_vectors];
  HWY_UNROLL(8)
  for (std::size_t g = 0; g < n_tile_queries; ++g) {
    HWY_UNROLL(8)
    for (std::size_t v = 0; v < n_tile_vectors; ++v) {
      const float* from = acc + g * acc_stride + v * lanes;
      if constexpr (partial) {
        sums[g][v] = load_first(from, n_columns);
      } else {
        sums[g][v] = hn::LoadU(d, from);
      }
    }
  }
  HWY_UNROLL(2)
  for (std::size_t r = 0; r < n_rows; ++r) {
    const stored* row = row_at(r);
    constexpr std::size_t row_bytes = n_tile_vectors * lanes * sizeof(stored);
    if (asked != nullptr && r * row_bytes % 64 < row_bytes) {  // no line twice
      HWY_UNROLL(8)
      for (std::size_t b = 0; b < row_bytes; b += 64) prefetch(ahead(asked, r * row_bytes + b));
    }
    float_vector values[n_tile_vectors];
    HWY_UNROLL(8)
    for (std::size_t v = 0; v < n_tile_vectors; ++v) {
      if constexpr (partial) {
        values[v] = load_first(row, n_columns);
      } else {
        values[v] = load(row + v * lanes);
      }
    }
    HWY_UNROLL(8)
    for (std::size_t g = 0; g < n_tile_queries; ++g) {
      const float_vector weight = in_register(hn::Set(d, w[g * w_stride + r]));
      HWY_UNROLL(8)
      for (std::size_t v = 0; v < n_tile_vectors; ++v)
        sums[g][v] = hn::MulAdd(weight, values[v], sums[g][v]);
    }
  }
  HWY_UNROLL(8)
  for (std::size_t g = 0; g < n_tile_queries; ++g) {
    HWY_UNROLL(8)
    for (std::size_t v = 0; v < n_tile_vectors; ++v) {
      float* to = acc + g * acc_stride + v * lanes;
      if constexpr (partial) {
        store_first(sums[g][v], to, n_columns);
      } else {
        hn::StoreU(sums[g][v], d, to);
      }
    }
  }
}

/// All columns of a chunk of rows that lie wherever row_at(r) says, for n_tile_queries queries.
template <std::size_t n_tile_queries, class RowAt>
HWY_INLINE void add_weighted_chunk(const float* w, std::size_t w_stride, const RowAt& row_at,
                                   std::size_t n_rows, std::size_t dim, float* acc,
                                   std::size_t acc_stride, read_ahead* then) {
  using stored = std::remove_cvref_t<decltype(*row_at(0))>;
  constexpr std::size_t n_vectors = n_registers == 32 ? 4 : 2;
  std::size_t c = 0;
  const auto at_column = [&] { return [&row_at, c](std::size_t r) { return row_at(r) + c; }; };
  const auto asked = [&](std::size_t n_columns) {
    return then == nullptr ? nullptr : then->take(n_rows * n_columns * sizeof(stored));
  };
#if WAVEKV_BF16_PRODUCTS
  if constexpr (std::is_same_v<stored, bf16>) {
    if (dim >= n_vectors * lanes) {
      const split_weights weights(w, n_tile_queries, w_stride, n_rows);
      for (; c + n_vectors * lanes <= dim; c += n_vectors * lanes)
        add_weighted_tile_bf16<n_tile_queries>(weights, at_column(), n_rows, acc + c, acc_stride,
                                               asked(n_vectors * lanes));
    }
  }
#endif
  for (; c + n_vectors * lanes <= dim; c += n_vectors * lanes)
    add_weighted_tile<n_vectors, n_tile_queries, false>(w, w_stride, at_column(), n_rows, acc + c,
                                                        acc_stride, 0, asked(n_vectors * lanes));
  for (; c + lanes <= dim; c += lanes)
    add_weighted_tile<1, n_tile_queries, false>(w, w_stride, at_column(), n_rows, acc + c,
                                                acc_stride, 0, asked(lanes));
  if (c < dim)
    add_weighted_tile<1, n_tile_queries, true>(w, w_stride, at_column(), n_rows, acc + c,
                                               acc_stride, dim - c, asked(dim - c));
}

/// Calls f with a compile-time 4, 2 or 1 until n_q queries are covered; f(size, first).
template <class F>
HWY_INLINE void by_query_tiles(std::size_t n_q, const F& f) {
  std::size_t g = 0;
  for (; g + 4 <= n_q; g += 4) f(std::integral_constant<std::size_t, 4>{}, g);
  if (g + 2 <= n_q) {
    f(std::integral_constant<std::size_t, 2>{}, g);
    g += 2;
  }
  if (g < n_q) f(std::integral_constant<std::size_t, 1>{}, g);
}

/// Walks a run of rows by tiles: tile(n_tile_rows, n_tile_queries, first query, rows, dim, logits, logits_stride,
/// bytes to be prefetched).
template <scalar S, class Tile>
HWY_INLINE void score_tiles(std::size_t n_q, const S* rows, std::size_t n_rows, std::size_t dim,
                            float* logits, std::size_t logits_stride, read_ahead* then,
                            const Tile& tile) {
  constexpr std::size_t walked = 8;  // rows that all queries see before the next ones are read
  for (std::size_t r = 0; r < n_rows; r += walked) {
    const std::size_t n = std::min(walked, n_rows - r);
    by_query_tiles(n_q, [&](auto size, std::size_t g) {
      constexpr std::size_t together = std::min(walked, tile_rows<decltype(size)::value>);
      const S* row = rows + r * dim;
      float* to = logits + g * logits_stride + r;
      const auto asked = [&](std::size_t n_tile_rows) {
        return g != 0 || then == nullptr ? nullptr : then->take(n_tile_rows * dim * sizeof(S));
      };
      std::size_t i = 0;
      for (; i + together <= n; i += together)
        tile(std::integral_constant<std::size_t, together>{}, size, g, row + i * dim, dim, to + i,
             logits_stride, asked(together));
      for (; i < n; ++i)
        tile(std::integral_constant<std::size_t, 1>{}, size, g, row + i * dim, dim, to + i,
             logits_stride, asked(1));
    });
  }
}

/// Weighted sums of rows that lie wherever row_at(r) says, a chunk of rows at a time.
template <class RowAt>
HWY_INLINE void add_weighted_chunks(const float* w, std::size_t n_q, std::size_t w_stride,
                                    const RowAt& row_at, std::size_t n_rows, std::size_t dim,
                                    float* acc, std::size_t acc_stride, read_ahead* then) {
  const std::size_t row_bytes = dim * sizeof(*row_at(0));
  const std::size_t chunk = std::clamp(row_tuning::chunk_bytes / row_bytes,
                                       row_tuning::min_chunk_rows, row_tuning::max_chunk_rows);
  for (std::size_t r = 0; r < n_rows; r += chunk) {
    const std::size_t n = std::min(chunk, n_rows - r);
    by_query_tiles(n_q, [&](auto size, std::size_t g) {
      add_weighted_chunk<decltype(size)::value>(
          w + g * w_stride + r, w_stride, [&row_at, r](std::size_t i) { return row_at(r + i); }, n,
          dim, acc + g * acc_stride, acc_stride, g == 0 ? then : nullptr);
    });
  }
}

}  // namespace detail

/// @brief Dot products of a few queries with a run of rows: logits[g * logits_stride + r] = q[g] · rows[r].
///
/// A logit depends on its query and row alone: not on the other queries, nor on where the run begins
/// or ends. Complexity: n_q · n_rows · dim multiply-adds, one read of the rows. Allocates nothing.
/// @param q  [n_q, dim] with q_stride floats from one query to the next; the scale is already in it
/// @param rows  [n_rows, dim] contiguous
/// @param logits  [n_q, n_rows] with logits_stride; overwritten
/// @param then  what will be read, or null; as many bytes as the run has are asked for
template <scalar S>
void score_rows(const float* q, std::size_t n_q, std::size_t q_stride, const S* rows,
                std::size_t n_rows, std::size_t dim, float* logits, std::size_t logits_stride,
                read_ahead* then = nullptr) noexcept {
#if WAVEKV_BF16_PRODUCTS
  if constexpr (std::is_same_v<S, bf16>) {
    if (dim <= detail::split_queries::max_dim) {
      for (std::size_t g = 0; g < n_q; g += detail::split_queries::max_queries) {
        const std::size_t n = std::min(detail::split_queries::max_queries, n_q - g);
        const detail::split_queries queries(q + g * q_stride, n, q_stride, dim);
        detail::score_tiles(
            n, rows, n_rows, dim, logits + g * logits_stride, logits_stride, then,
            [&](auto n_tile_rows, auto n_tile_queries, std::size_t first, const auto&... tile) {
              detail::score_tile_bf16<n_tile_rows, n_tile_queries>(queries.of(first), tile...);
            });
      }
      return;
    }
  }
#endif
  detail::score_tiles(
      n_q, rows, n_rows, dim, logits, logits_stride, then,
      [&](auto n_tile_rows, auto n_tile_queries, std::size_t first, const auto&... tile) {
        detail::score_tile<n_tile_rows, n_tile_queries>(q + first * q_stride, q_stride, tile...);
      });
}

/// @brief Weighted sums of a run of rows: acc[g] += sum over r of w[g * w_stride + r] · rows[r].
///
/// Rows are added in order, so a run may be cut anywhere without changing a bit of the result.
/// Complexity: n_q · n_rows · dim multiply-adds, one read of the rows. Allocates nothing.
/// @param w  [n_q, n_rows] with w_stride
/// @param rows  [n_rows, dim] contiguous
/// @param acc  [n_q, dim] with acc_stride; added to
/// @param then  what will be read, or null; as many bytes as the run has are asked for
template <scalar S>
void add_weighted_rows(const float* w, std::size_t n_q, std::size_t w_stride, const S* rows,
                       std::size_t n_rows, std::size_t dim, float* acc, std::size_t acc_stride,
                       read_ahead* then = nullptr) noexcept {
  detail::add_weighted_chunks(
      w, n_q, w_stride, [rows, dim](std::size_t r) { return rows + r * dim; }, n_rows, dim, acc,
      acc_stride, then);
}

/// @brief Weighted sums of rows that lie anywhere: acc[g] += sum over r of w[g * w_stride + r] · rows[r][].
///
/// As add_weighted_rows, bit for bit, where the rows lie behind each other. Allocates nothing.
/// @param rows  [n_rows] pointers to rows of dim elements
template <scalar S>
void add_weighted_rows_at(const float* w, std::size_t n_q, std::size_t w_stride,
                          const S* const* rows, std::size_t n_rows, std::size_t dim, float* acc,
                          std::size_t acc_stride, read_ahead* then = nullptr) noexcept {
  detail::add_weighted_chunks(
      w, n_q, w_stride, [rows](std::size_t r) { return rows[r]; }, n_rows, dim, acc, acc_stride,
      then);
}

}  // namespace wavekv::simd
