// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "row_dots.hpp"

#include <bit>
#include <cstdint>

#include <wavekv/cpu/simd.hpp>

namespace transformer {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the even bf16 of a word is its low half");

namespace hn = hwy::HWY_NAMESPACE;

constexpr std::size_t n_streams = 4;

#if HWY_TARGET != HWY_SCALAR

/// Dots of n_rows rows, row i at rows + i * stride, sums in registers.
template <std::size_t n_rows>
HWY_INLINE void dot_tile(const split_vector& x, const wavekv::bf16* rows, std::size_t stride,
                         float* y, std::size_t y_stride) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> words;
  const hn::Repartition<std::uint16_t, decltype(words)> halves;
  constexpr std::size_t n_lanes = hn::MaxLanes(hn::ScalableTag<float>{});
  const auto upper = hn::Set(words, 0xFFFF'0000U);
  const float* even = x.even();
  const float* odd = x.odd();
  hn::Vec<decltype(d)> sums[n_rows][2];
  for (auto& sum : sums) sum[0] = sum[1] = hn::Zero(d);
  std::size_t c = 0;  // in words
  const std::size_t n_words = x.size() / 2;
  for (; c + n_lanes <= n_words; c += n_lanes) {
    const auto even_x = hn::LoadU(d, even + c);
    const auto odd_x = hn::LoadU(d, odd + c);
    HWY_UNROLL(4)
    for (std::size_t i = 0; i < n_rows; ++i) {
      const auto* at = reinterpret_cast<const std::uint16_t*>(rows + i * stride + 2 * c);
      const auto pair = hn::BitCast(words, hn::LoadU(halves, at));
      sums[i][0] = hn::MulAdd(hn::BitCast(d, hn::ShiftLeft<16>(pair)), even_x, sums[i][0]);
      sums[i][1] = hn::MulAdd(hn::BitCast(d, hn::And(pair, upper)), odd_x, sums[i][1]);
    }
  }
  HWY_UNROLL(4)
  for (std::size_t i = 0; i < n_rows; ++i) {
    float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sums[i][0], sums[i][1])));
    for (std::size_t k = 2 * c; k < x.size(); ++k)
      sum += wavekv::to_float(rows[i * stride + k]) * (k % 2 == 0 ? even : odd)[k / 2];
    y[i * y_stride] = sum;
  }
}

#endif

}  // namespace

split_vector::split_vector(const float* x, std::size_t n) : n_(n), values_(n) {
  float* even = values_.data();
  float* odd = even + (n + 1) / 2;
  for (std::size_t i = 0; i < n / 2; ++i) {
    even[i] = x[2 * i];
    odd[i] = x[2 * i + 1];
  }
  if (n % 2 == 1) even[n / 2] = x[n - 1];
}

void dot_rows(const split_vector& x, const wavekv::bf16* rows, std::size_t n_rows,
              float* y) noexcept {
  const std::size_t dim = x.size();
#if HWY_TARGET == HWY_SCALAR
  for (std::size_t r = 0; r < n_rows; ++r) {
    y[r] = 0;
    for (std::size_t k = 0; k < dim; ++k)
      y[r] += wavekv::to_float(rows[r * dim + k]) * (k % 2 == 0 ? x.even() : x.odd())[k / 2];
  }
#else
  const std::size_t run = n_rows / n_streams;
  for (std::size_t r = 0; r < run; ++r)
    dot_tile<n_streams>(x, rows + r * dim, run * dim, y + r, run);
  for (std::size_t r = run * n_streams; r < n_rows; ++r)
    dot_tile<1>(x, rows + r * dim, dim, y + r, 1);
#endif
}

}  // namespace transformer
