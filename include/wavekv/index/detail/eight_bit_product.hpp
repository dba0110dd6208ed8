// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include <wavekv/index/detail/panel_product.hpp>

/// @file eight_bit_product.hpp
/// @brief Rows rounded to bytes, with norms of what that lost, and integer products of a tile of them.

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
#define WAVEKV_DETAIL_EIGHT_BIT 1
#else
#define WAVEKV_DETAIL_EIGHT_BIT 0
#endif

#if WAVEKV_DETAIL_EIGHT_BIT

namespace wavekv::detail {

/// How rows become bytes, and how many points a tile of their products holds.
struct eight_bit_shape {
#if HWY_TARGET <= HWY_AVX3 && defined(__AVX512VNNI__) && defined(__AVX512BW__)
  static constexpr bool has_vnni = true;
  static constexpr float point_steps = 127;
  static constexpr float column_steps = 127;
  static constexpr std::int32_t point_offset = 128;  ///< the instruction's first factor is unsigned
  static constexpr std::size_t quads_at_once = 1;    ///< of bytes
  static constexpr std::size_t block_rows = 12;
  static constexpr std::size_t tile_rows = 12;
#else
  static constexpr bool has_vnni = false;
  static constexpr float point_steps = 63;
  static constexpr float column_steps = 64;
  static constexpr std::int32_t point_offset = 64;
  static constexpr std::size_t quads_at_once = 2;
  static constexpr std::size_t block_rows = 8;
  static constexpr std::size_t tile_rows = 4;
#endif
#if HWY_TARGET <= HWY_AVX3
  static constexpr std::size_t rows_at_once = 4;  ///< that share the loads of columns' constants
#else
  static constexpr std::size_t rows_at_once = 2;
#endif
  static_assert(block_rows % tile_rows == 0 && block_rows % rows_at_once == 0);
};

/// What is known of a row that became bytes.
struct quantized_row {
  float scale = 0;         // ŷ = scale · bytes
  float norm = 0;          // at least ‖y‖
  float rounded_norm = 0;  // at least ‖ŷ‖
  float error = 0;         // at least ‖y − ŷ‖
  std::int32_t sum = 0;    // of the bytes
};

/// Rounds row − center to bytes, four at every `stride` of the packed memory; those of points get their offset.
///
/// Errors are measured in steps of the scale, where nothing can vanish, and every norm is nudged up by
/// more than its own rounding.
/// @param deviation  room for dim floats in whole vectors, and as many bytes behind them
template <bool is_point>
quantized_row quantize(const float* row, const float* center, std::size_t dim, std::size_t n_quads,
                       float* deviation, std::int8_t* packed, std::size_t stride) {
  using shape = eight_bit_shape;
  constexpr std::size_t lanes = panel_shape::lanes;
  const std::size_t padded_dim = (4 * n_quads + lanes - 1) / lanes * lanes;
  constexpr float n_steps = is_point ? shape::point_steps : shape::column_steps;
  // 128 does not fit a signed byte: it is added by flipping the sign
  constexpr std::int32_t offset = is_point && !shape::has_vnni ? shape::point_offset : 0;
  constexpr std::uint32_t flip = is_point && shape::has_vnni ? 0x8080'8080U : 0U;
  const panel_shape::tag d;
  const hn::RebindToSigned<panel_shape::tag> di;
  const hn::Rebind<std::int8_t, panel_shape::tag> db;
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < dim; ++i) {
    deviation[i] = row[i] - center[i];
    bits = std::max(bits, std::bit_cast<std::uint32_t>(deviation[i]) & 0x7FFF'FFFFU);
  }
  std::fill(deviation + dim, deviation + padded_dim, 0.0F);
  const auto largest = std::bit_cast<float>(bits);
  quantized_row result;
  if (largest < 1e-30F) {  // its inverse would overflow: rounds to zero, the error is all of it
    const std::uint32_t zeros = 0x0101'0101U * static_cast<std::uint32_t>(offset) ^ flip;
    for (std::size_t q = 0; q < n_quads; ++q) {
      std::memcpy(packed + q * stride, &zeros, 4);
    }
    result.norm = result.error = largest * std::sqrt(static_cast<float>(dim)) * 1.01F;
    return result;
  }
  const auto inverse = hn::Set(d, n_steps / largest);
  auto squares = hn::Zero(d);
  auto rounded_squares = hn::Zero(d);
  auto error_squares = hn::Zero(d);
  auto sums = hn::Zero(d);
  auto* bytes = reinterpret_cast<std::int8_t*>(deviation + padded_dim);
  for (std::size_t i = 0; i < padded_dim; i += lanes) {
    const auto exact = hn::Mul(hn::LoadU(d, deviation + i), inverse);
    const auto integer = hn::NearestInt(exact);
    const auto rounded = hn::ConvertTo(d, integer);
    const auto error = hn::Sub(exact, rounded);
    squares = hn::MulAdd(exact, exact, squares);
    rounded_squares = hn::MulAdd(rounded, rounded, rounded_squares);
    error_squares = hn::MulAdd(error, error, error_squares);
    sums = hn::Add(sums, rounded);
    hn::StoreU(hn::DemoteTo(db, hn::Add(integer, hn::Set(di, offset))), db, bytes + i);
  }
  for (std::size_t q = 0; q < n_quads; ++q) {
    std::uint32_t four = 0;
    std::memcpy(&four, bytes + q * 4, 4);
    four ^= flip;
    std::memcpy(packed + q * stride, &four, 4);
  }
  const auto root = [&](auto sum) {
    return std::sqrt(hn::GetLane(hn::SumOfLanes(d, sum))) * (1.0F + 0x1p-12F);
  };
  const float steps_lost = n_steps * 0x1p-20F * std::sqrt(static_cast<float>(dim));
  result.scale = largest / n_steps;
  result.norm = result.scale * (root(squares) + steps_lost);
  result.rounded_norm = result.scale * root(rounded_squares);
  result.error = result.scale * (root(error_squares) + steps_lost);
  result.sum = static_cast<std::int32_t>(hn::GetLane(hn::SumOfLanes(d, sums)));
  return result;
}

#if !(HWY_TARGET <= HWY_AVX3 && defined(__AVX512VNNI__) && defined(__AVX512BW__))
using integer_vector = hn::Vec<hn::RebindToSigned<panel_shape::tag>>;

/// x·y + z·w over the four bytes of each lane; x and z are unsigned, and no sum of four products leaves 16 bits.
HWY_INLINE integer_vector sums_of_eight(integer_vector x, integer_vector y, integer_vector z,
                                        integer_vector w) {
#if HWY_TARGET <= HWY_AVX3
  const auto pairs =
      _mm512_add_epi16(_mm512_maddubs_epi16(x.raw, y.raw), _mm512_maddubs_epi16(z.raw, w.raw));
  return integer_vector{_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))};
#else
  const auto pairs =
      _mm256_add_epi16(_mm256_maddubs_epi16(x.raw, y.raw), _mm256_maddubs_epi16(z.raw, w.raw));
  return integer_vector{_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))};
#endif
}
#endif

/// Integer products of a tile's points with one panel of centroids, to [tile_rows, n_columns].
/// Not inlined: g++ would hoist its callers' constants into the registers that the tile needs.
template <std::size_t... Row>
HWY_NOINLINE void multiply_tile(const std::int8_t* HWY_RESTRICT block,
                                const std::int8_t* HWY_RESTRICT panel, std::size_t n_quads,
                                const std::int32_t* offsets, std::int32_t* HWY_RESTRICT products,
                                std::size_t n_columns, std::index_sequence<Row...>) {
  const hn::RebindToSigned<panel_shape::tag> d;
  using shape = eight_bit_shape;
  constexpr std::size_t lanes = panel_shape::lanes;
  constexpr std::size_t width = panel_shape::panel_width;
  constexpr std::size_t block_rows = shape::block_rows;
  using vector = hn::Vec<hn::RebindToSigned<panel_shape::tag>>;
  const vector start_left = hn::Load(d, offsets);
  const vector start_right = hn::Load(d, offsets + lanes);
  vector left[] = {((void)Row, start_left)...};
  vector right[] = {((void)Row, start_right)...};
  const auto column = [&](std::size_t i) HWY_ATTR {
    return hn::Load(d, reinterpret_cast<const std::int32_t*>(panel) + i * lanes);
  };
  const auto quad = [&](std::size_t row, std::size_t i) HWY_ATTR {
    std::int32_t four = 0;
    std::memcpy(&four, block + (i * block_rows + row) * 4, 4);
    return hn::Set(d, four);
  };
  for (std::size_t q = 0; q < n_quads; q += shape::quads_at_once) {
#if HWY_TARGET <= HWY_AVX3 && defined(__AVX512VNNI__) && defined(__AVX512BW__)
    const vector column_left = column(0);
    const vector column_right = column(1);
    (
        [&](std::size_t row) HWY_ATTR {
          const vector four = quad(row, 0);
          left[row].raw = _mm512_dpbusd_epi32(left[row].raw, four.raw, column_left.raw);
          right[row].raw = _mm512_dpbusd_epi32(right[row].raw, four.raw, column_right.raw);
        }(Row),
        ...);
#else
    const vector column_left = column(0);
    const vector column_right = column(1);
    const vector next_left = column(2);
    const vector next_right = column(3);
    (
        [&](std::size_t row) HWY_ATTR {
          const vector four = quad(row, 0);
          const vector next = quad(row, 1);
          left[row] = hn::Add(left[row], sums_of_eight(four, column_left, next, next_left));
          right[row] = hn::Add(right[row], sums_of_eight(four, column_right, next, next_right));
        }(Row),
        ...);
#endif
    block += shape::quads_at_once * block_rows * 4;
    panel += shape::quads_at_once * width * 4;
  }
  (hn::Store(left[Row], d, products + Row * n_columns), ...);
  (hn::Store(right[Row], d, products + Row * n_columns + lanes), ...);
}

}  // namespace wavekv::detail

#endif
