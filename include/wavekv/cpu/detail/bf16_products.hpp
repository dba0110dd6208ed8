// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/detail/vectors.hpp>

/// @file bf16_products.hpp
/// @brief The row leaves on the bf16 dot-product instruction (AVX512-BF16), which Highway 1.0.3 does not use.
///
/// Widening bf16 rows to float costs as many instructions as multiplying them with two queries, and keeps a
/// group of four from running at memory's speed. vdpbf16ps takes the rows as they are. The other factor (a
/// query, a weight) is split into two bf16 that add up to it within 2^-17 relative, so that nothing visible is
/// lost against float; the products are exact and the sums are float.
///
/// Where the instruction is slow, widening wins: Sapphire Rapids and its successors, which AVX512-FP16 tells from Zen,
/// take some three cycles for each, and rows in cache then run at half the speed (see bench/README.md).

#if defined(__AVX512BF16__) && !defined(__AVX512FP16__) && HWY_TARGET <= HWY_AVX3 &&               \
    !defined(WAVEKV_NO_BF16_PRODUCTS)
#define WAVEKV_BF16_PRODUCTS 1
#include <immintrin.h>
#else
#define WAVEKV_BF16_PRODUCTS 0
#endif

#if WAVEKV_BF16_PRODUCTS

namespace wavekv::simd::detail {

inline constexpr std::size_t pair_lanes = 32;  ///< bf16 in a vector

/// The two bf16 terms of 32 floats, in the order of the floats.
struct bf16_terms {
  __m512i high;
  __m512i low;
};

HWY_INLINE bf16_terms split(__m512 first, __m512 second) {
  const auto high = (__m512i)_mm512_cvtne2ps_pbh(second, first);
  const auto widened = [](__m256i half) HWY_ATTR {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  };
  const __m512 first_rest = _mm512_sub_ps(first, widened(_mm512_castsi512_si256(high)));
  const __m512 second_rest = _mm512_sub_ps(second, widened(_mm512_extracti64x4_epi64(high, 1)));
  return {high, (__m512i)_mm512_cvtne2ps_pbh(second_rest, first_rest)};
}

/// The first n (<= 32) of an array of floats as bf16 terms; zeros behind, and nothing past from + n is read.
HWY_INLINE bf16_terms split_first(const float* from, std::size_t n) {
  if (n >= pair_lanes) return split(_mm512_loadu_ps(from), _mm512_loadu_ps(from + lanes));
  const auto mask = static_cast<__mmask32>((1U << n) - 1U);
  return split(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from),
               _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16U), from + lanes));
}

HWY_INLINE __m512 add_products(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

HWY_INLINE __m512i pinned(__m512i v) {
  asm("" : "+v"(v));  // see in_register
  return v;
}

/// A few queries as bf16 terms, on the stack.
class split_queries {
 public:
  static constexpr std::size_t max_queries = 8;
  static constexpr std::size_t max_dim = 256;
  static constexpr std::size_t query_stride = 2 * max_dim;  ///< high terms, then low terms

  HWY_INLINE split_queries(const float* q, std::size_t n_q, std::size_t q_stride, std::size_t dim) {
    for (std::size_t g = 0; g < n_q; ++g) {
      for (std::size_t c = 0; c < dim; c += pair_lanes) {
        const bf16_terms terms = split_first(q + g * q_stride + c, dim - c);
        _mm512_store_si512(bits_ + g * query_stride + c, terms.high);
        _mm512_store_si512(bits_ + g * query_stride + max_dim + c, terms.low);
      }
    }
  }

  [[nodiscard]] const std::uint16_t* of(std::size_t g) const { return bits_ + g * query_stride; }

 private:
  alignas(64) std::uint16_t bits_[max_queries * query_stride];
};

/// As score_tile, for queries in bf16 terms.
template <std::size_t n_tile_rows, std::size_t n_tile_queries>
HWY_INLINE void score_tile_bf16(const std::uint16_t* q, const bf16* rows, std::size_t dim,
                                float* logits, std::size_t logits_stride, const char* asked) {
  const auto* bits = reinterpret_cast<const std::uint16_t*>(rows);
  __m512 sums[n_tile_rows][n_tile_queries];
  HWY_UNROLL(8)
  for (std::size_t r = 0; r < n_tile_rows; ++r) {
    HWY_UNROLL(8)
    for (std::size_t g = 0; g < n_tile_queries; ++g) sums[r][g] = _mm512_setzero_ps();
  }
  const auto step = [&](const auto& load_row, std::size_t c) HWY_ATTR {
    __m512i row[n_tile_rows];
    HWY_UNROLL(8)
    for (std::size_t r = 0; r < n_tile_rows; ++r) row[r] = load_row(bits + r * dim + c);
    HWY_UNROLL(8)
    for (std::size_t g = 0; g < n_tile_queries; ++g) {
      HWY_UNROLL(2)
      for (std::size_t term = 0; term < 2; ++term) {
        const __m512i query = pinned(_mm512_load_si512(q + g * split_queries::query_stride +
                                                       term * split_queries::max_dim + c));
        HWY_UNROLL(8)
        for (std::size_t r = 0; r < n_tile_rows; ++r)
          sums[r][g] = add_products(sums[r][g], row[r], query);
      }
    }
  };
  std::size_t c = 0;
  for (; c + pair_lanes <= dim; c += pair_lanes) {
    if (asked != nullptr) {
      HWY_UNROLL(8)
      for (std::size_t r = 0; r < n_tile_rows; ++r)
        prefetch(ahead(asked, (r * dim + c) * sizeof(bf16)));
    }
    step([](const std::uint16_t* p) HWY_ATTR { return pinned(_mm512_loadu_si512(p)); }, c);
  }
  if (c < dim) {
    const auto mask = static_cast<__mmask32>((1U << (dim - c)) - 1U);
    step([mask](const std::uint16_t* p) HWY_ATTR { return _mm512_maskz_loadu_epi16(mask, p); }, c);
  }
  float_vector vectors[n_tile_rows][n_tile_queries];
  HWY_UNROLL(8)
  for (std::size_t r = 0; r < n_tile_rows; ++r) {
    HWY_UNROLL(8)
    for (std::size_t g = 0; g < n_tile_queries; ++g) vectors[r][g] = float_vector{sums[r][g]};
  }
  store_tile(vectors, logits, logits_stride);
}

/// Weights of a chunk of rows as bf16 terms, on the stack: the high term in the lower half of a word.
class split_weights {
 public:
  static constexpr std::size_t max_rows = 64;

  HWY_INLINE split_weights(const float* w, std::size_t n_q, std::size_t w_stride,
                           std::size_t n_rows) {
    for (std::size_t g = 0; g < n_q; ++g) {
      for (std::size_t r = 0; r < n_rows; r += lanes) {
        const auto mask =
            static_cast<__mmask16>(n_rows - r >= lanes ? 0xFFFFU : (1U << (n_rows - r)) - 1U);
        const __m512 weight = _mm512_maskz_loadu_ps(mask, w + g * w_stride + r);
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(weight));
        const __m512 rest = _mm512_sub_ps(weight, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(rest));
        _mm512_store_si512(words_ + g * max_rows + r,
                           _mm512_or_si512(high, _mm512_slli_epi32(low, 16)));
      }
    }
  }

  /// Weight of row r for query g in every lane.
  [[nodiscard]] HWY_INLINE __m512i operator()(std::size_t g, std::size_t r) const {
    return _mm512_set1_epi32(static_cast<int>(words_[g * max_rows + r]));
  }

 private:
  alignas(64) std::uint32_t words_[4 * max_rows];
};

/// As add_weighted_tile over 64 columns. A value times both terms of its weight is one instruction, so that
/// rows are still added one after the other.
/// @param row_at  row_at(r): the tile's first column of row r
template <std::size_t n_tile_queries, class RowAt>
HWY_INLINE void add_weighted_tile_bf16(const split_weights& w, const RowAt& row_at,
                                       std::size_t n_rows, float* acc, std::size_t acc_stride,
                                       const char* asked) {
  alignas(64) static constexpr std::uint16_t twice[2][32] = {
      {0, 0, 1, 1, 2,  2,  3,  3,  4,  4,  5,  5,  6,  6,  7,  7,
       8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15},
      {16, 16, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21, 22, 22, 23, 23,
       24, 24, 25, 25, 26, 26, 27, 27, 28, 28, 29, 29, 30, 30, 31, 31}};
  const __m512i first_half = _mm512_load_si512(twice[0]);
  const __m512i second_half = _mm512_load_si512(twice[1]);
  __m512 sums[n_tile_queries][4];
  HWY_UNROLL(8)
  for (std::size_t g = 0; g < n_tile_queries; ++g) {
    HWY_UNROLL(8)
    for (std::size_t v = 0; v < 4; ++v)
      sums[g][v] = _mm512_loadu_ps(acc + g * acc_stride + v * lanes);
  }
  for (std::size_t r = 0; r < n_rows; ++r) {
    const auto* row = reinterpret_cast<const std::uint16_t*>(row_at(r));
    if (asked != nullptr) {
      prefetch(ahead(asked, r * 128));
      prefetch(ahead(asked, r * 128 + 64));
    }
    const __m512i left = _mm512_loadu_si512(row);
    const __m512i right = _mm512_loadu_si512(row + pair_lanes);
    const __m512i values[4] = {
        _mm512_permutexvar_epi16(first_half, left), _mm512_permutexvar_epi16(second_half, left),
        _mm512_permutexvar_epi16(first_half, right), _mm512_permutexvar_epi16(second_half, right)};
    HWY_UNROLL(8)
    for (std::size_t g = 0; g < n_tile_queries; ++g) {
      const __m512i weight = pinned(w(g, r));
      HWY_UNROLL(8)
      for (std::size_t v = 0; v < 4; ++v) sums[g][v] = add_products(sums[g][v], values[v], weight);
    }
  }
  HWY_UNROLL(8)
  for (std::size_t g = 0; g < n_tile_queries; ++g) {
    HWY_UNROLL(8)
    for (std::size_t v = 0; v < 4; ++v)
      _mm512_storeu_ps(acc + g * acc_stride + v * lanes, sums[g][v]);
  }
}

}  // namespace wavekv::simd::detail

#endif
