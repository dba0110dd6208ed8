// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/detail/exp_negative.hpp>
#include <wavekv/cpu/detail/vectors.hpp>

/// @file elementwise.hpp
/// @brief Leaves over arrays: conversions, exponentials, softcap, maxima, and the search for non-finite elements.
/// None allocates; all take any n >= 0 and unaligned pointers.

namespace wavekv::simd {
namespace detail {

/// e^x to about one unit in the last place; 0 below -87.3 (where floats go subnormal) and constant above 88.
/// Range reduction by ln 2 in two parts, then Cephes' polynomial of degree 6 for expf.
HWY_INLINE float_vector exp(float_vector x) {
  constexpr float_tag d{};
  constexpr hn::RebindToSigned<float_tag> di{};
  const auto underflow = hn::Lt(x, hn::Set(d, -87.3F));
  x = hn::Max(hn::Min(x, hn::Set(d, 88.0F)), hn::Set(d, -87.3F));
  const auto n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504F)));
  auto f = hn::NegMulAdd(n, hn::Set(d, 0.693359375F), x);
  f = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4F), f);
  auto p = hn::MulAdd(f, hn::Set(d, 1.9875691500e-4F), hn::Set(d, 1.3981999507e-3F));
  p = hn::MulAdd(p, f, hn::Set(d, 8.3334519073e-3F));
  p = hn::MulAdd(p, f, hn::Set(d, 4.1665795894e-2F));
  p = hn::MulAdd(p, f, hn::Set(d, 1.6666665459e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 5.0000001201e-1F));
  p = hn::MulAdd(p, hn::Mul(f, f), hn::Add(f, hn::Set(d, 1.0F)));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenZeroElse(underflow, hn::Mul(p, hn::BitCast(d, exponent)));
}

/// e^x - 1 for x >= 0, to a few units in the last place.
HWY_INLINE float_vector expm1(float_vector x) {
  constexpr float_tag d{};
  // Near zero e^x - 1 cancels: there the series up to x^7.
  auto series = hn::MulAdd(x, hn::Set(d, 1.0F / 5040.0F), hn::Set(d, 1.0F / 720.0F));
  series = hn::MulAdd(series, x, hn::Set(d, 1.0F / 120.0F));
  series = hn::MulAdd(series, x, hn::Set(d, 1.0F / 24.0F));
  series = hn::MulAdd(series, x, hn::Set(d, 1.0F / 6.0F));
  series = hn::MulAdd(series, x, hn::Set(d, 0.5F));
  series = hn::MulAdd(hn::Mul(series, x), x, x);
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, 0.5F)), series, hn::Sub(exp(x), hn::Set(d, 1.0F)));
}

/// ln x for normal x > 0, to 1e-7 of the larger of 1 and the result. Cephes' polynomial of logf.
HWY_INLINE float_vector log(float_vector x) {
  constexpr float_tag d{};
  constexpr hn::RebindToSigned<float_tag> di{};
  // x = m · 2^e with m in [√½, √2)
  const auto bits = hn::BitCast(di, x);
  const auto shifted = hn::Sub(bits, hn::Set(di, 0x3F3504F3));
  const auto e = hn::ConvertTo(d, hn::ShiftRight<23>(shifted));
  const auto fraction =
      hn::Add(hn::And(shifted, hn::Set(di, 0x007F'FFFF)), hn::Set(di, 0x3F3504F3));
  const auto f = hn::Sub(hn::BitCast(d, fraction), hn::Set(d, 1.0F));
  const auto f2 = hn::Mul(f, f);
  auto p = hn::MulAdd(f, hn::Set(d, 7.0376836292e-2F), hn::Set(d, -1.1514610310e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 1.1676998740e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, -1.2420140846e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 1.4249322787e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, -1.6668057665e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 2.0000714765e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, -2.4999993993e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 3.3333331174e-1F));
  p = hn::NegMulAdd(hn::Set(d, 0.5F), f2, hn::Mul(hn::Mul(p, f), f2));
  return hn::MulAdd(e, hn::Set(d, 0.693147180F), hn::Add(f, p));
}

/// tanh, to a few units in the last place.
HWY_INLINE float_vector tanh(float_vector x) {
  constexpr float_tag d{};
  const auto magnitude = hn::Abs(x);
  // Near zero 1 - e^-2x cancels: there the series up to x^7.
  const auto x2 = hn::Mul(x, x);
  auto series = hn::MulAdd(x2, hn::Set(d, -17.0F / 315.0F), hn::Set(d, 2.0F / 15.0F));
  series = hn::MulAdd(series, x2, hn::Set(d, -1.0F / 3.0F));
  series = hn::MulAdd(hn::Mul(series, x2), magnitude, magnitude);
  const auto e = exp(hn::Mul(magnitude, hn::Set(d, -2.0F)));
  const auto one = hn::Set(d, 1.0F);
  const auto quotient = hn::Div(hn::Sub(one, e), hn::Add(one, e));
  return hn::CopySignToAbs(hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.15F)), series, quotient),
                           x);
}

/// y[i] = f(x[i]) over an array, in place or not.
template <class F>
HWY_INLINE void transform(const float* x, float* y, std::size_t n, const F& f) {
  constexpr float_tag d{};
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(f(hn::LoadU(d, x + i)), d, y + i);
  if (i < n) store_first(f(load_first(x + i, n - i)), y + i, n - i);
}

}  // namespace detail

/// @brief Largest of n floats; -inf for n = 0.
inline float reduce_max(const float* x, std::size_t n) noexcept {
  namespace hn = detail::hn;
  constexpr detail::float_tag d{};
  float largest = -std::numeric_limits<float>::infinity();
  std::size_t i = 0;
  if (n >= detail::lanes) {
    auto v = hn::LoadU(d, x);
    for (i = detail::lanes; i + detail::lanes <= n; i += detail::lanes)
      v = hn::Max(v, hn::LoadU(d, x + i));
    largest = hn::GetLane(hn::MaxOfLanes(d, v));
  }
  for (; i < n; ++i) largest = std::max(largest, x[i]);
  return largest;
}

/// @brief y[i] = e^(x[i] - max), where max is finite and at least every x; returns the sum of y. In place when y == x.
///
/// To 1.5 units in the last place; below e^-87.3 the result is 0. x may hold -inf (a masked logit).
inline float exp_below(const float* x, float* y, std::size_t n, float max) noexcept {
  namespace hn = detail::hn;
  constexpr detail::float_tag d{};
  const auto maxima = hn::Set(d, max);
  auto sums = hn::Zero(d);
  std::size_t i = 0;
  for (; i + detail::lanes <= n; i += detail::lanes) {
    const auto e = detail::exp_negative(hn::Sub(hn::LoadU(d, x + i), maxima));
    hn::StoreU(e, d, y + i);
    sums = hn::Add(sums, e);
  }
  if (i < n) {
    const auto e = detail::exp_negative(hn::Sub(detail::load_first(x + i, n - i), maxima));
    detail::store_first(e, y + i, n - i);
    sums = hn::Add(sums, hn::IfThenElseZero(hn::FirstN(d, n - i), e));
  }
  return detail::sum(sums);
}

/// @brief The sum of weight[i] · e^(x[i] - shift).
///
/// Exponentials are accurate to about one unit in the last place for x - shift in [-87.3, 88]; below that they are 0,
/// above it e^88. x may hold -inf, shift must be finite.
inline float weighted_exp_sum(const float* x, const float* weight, std::size_t n,
                              float shift) noexcept {
  namespace hn = detail::hn;
  constexpr detail::float_tag d{};
  const auto shifts = hn::Set(d, shift);
  auto sums = hn::Zero(d);
  std::size_t i = 0;
  for (; i + detail::lanes <= n; i += detail::lanes)
    sums = hn::MulAdd(hn::LoadU(d, weight + i), detail::exp(hn::Sub(hn::LoadU(d, x + i), shifts)),
                      sums);
  if (i < n)  // the weights past the end are zero
    sums = hn::MulAdd(detail::load_first(weight + i, n - i),
                      detail::exp(hn::Sub(detail::load_first(x + i, n - i), shifts)), sums);
  return detail::sum(sums);
}

/// @brief x[i] = cap · tanh(x[i] / cap): bounds logits to (-cap, cap). cap > 0.
inline void softcap(float* x, std::size_t n, float cap) noexcept {
  namespace hn = detail::hn;
  constexpr detail::float_tag d{};
  const auto caps = hn::Set(d, cap);
  const auto inverse = hn::Set(d, 1.0F / cap);
  detail::transform(x, x, n, [&](detail::float_vector v) HWY_ATTR {
    return hn::Mul(caps, detail::tanh(hn::Mul(v, inverse)));
  });
}

/// @brief x[i] *= factor.
inline void scale(float* x, std::size_t n, float factor) noexcept {
  namespace hn = detail::hn;
  const auto factors = hn::Set(detail::float_tag{}, factor);
  detail::transform(x, x, n, [&](detail::float_vector v) HWY_ATTR { return hn::Mul(v, factors); });
}

/// @brief y[i] += factor · x[i].
inline void add_scaled(const float* x, std::size_t n, float factor, float* y) noexcept {
  namespace hn = detail::hn;
  constexpr detail::float_tag d{};
  const auto factors = hn::Set(d, factor);
  std::size_t i = 0;
  for (; i + detail::lanes <= n; i += detail::lanes)
    hn::StoreU(hn::MulAdd(factors, hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, y + i);
  if (i < n) {
    const std::size_t rest = n - i;
    detail::store_first(
        hn::MulAdd(factors, detail::load_first(x + i, rest), detail::load_first(y + i, rest)),
        y + i, rest);
  }
}

/// @brief to[i] = factor · float(from[i]): brings queries into the form the leaves want.
template <scalar S>
void to_float_scaled(float* to, const S* from, std::size_t n, float factor) noexcept {
  namespace hn = detail::hn;
  constexpr detail::float_tag d{};
  const auto factors = hn::Set(d, factor);
  std::size_t i = 0;
  for (; i + detail::lanes <= n; i += detail::lanes)
    hn::StoreU(hn::Mul(detail::load(from + i), factors), d, to + i);
  if (i < n)
    detail::store_first(hn::Mul(detail::load_first(from + i, n - i), factors), to + i, n - i);
}

/// @brief to[i] = float(from[i]), exact.
template <scalar S>
void to_float(float* to, const S* from, std::size_t n) noexcept {
  if constexpr (std::is_same_v<S, float>) {
    if (n != 0) std::memcpy(to, from, n * sizeof(float));
  } else {
    constexpr detail::float_tag d{};
    std::size_t i = 0;
    for (; i + detail::lanes <= n; i += detail::lanes)
      detail::hn::StoreU(detail::load(from + i), d, to + i);
    if (i < n) detail::store_first(detail::load_first(from + i, n - i), to + i, n - i);
  }
}

/// @brief to[i] = the stored scalar nearest to from[i], ties to even; what does not fit becomes an infinity
/// (see all_finite).
template <scalar S>
void from_float(S* to, const float* from, std::size_t n) noexcept {
  namespace hn = detail::hn;
  if constexpr (std::is_same_v<S, float>) {
    if (n != 0) std::memcpy(to, from, n * sizeof(float));
    return;
  }
  std::size_t i = 0;
  if constexpr (detail::is_16_bit<S> && (std::is_same_v<S, bf16> || detail::native_f16)) {
    constexpr detail::float_tag d{};
    constexpr detail::half_tag dh{};
    for (; i + detail::lanes <= n; i += detail::lanes) {
      const auto x = hn::LoadU(d, from + i);
      auto* bits = reinterpret_cast<std::uint16_t*>(to + i);
      if constexpr (std::is_same_v<S, bf16>) {
        constexpr hn::RebindToUnsigned<detail::float_tag> du{};
        const auto pattern = hn::BitCast(du, x);
        const auto odd = hn::And(hn::ShiftRight<16>(pattern), hn::Set(du, 1U));
        const auto rounded =
            hn::ShiftRight<16>(hn::Add(hn::Add(pattern, hn::Set(du, 0x7FFFU)), odd));
        const auto quiet = hn::Or(hn::ShiftRight<16>(pattern), hn::Set(du, 0x40U));
        const auto nan = hn::RebindMask(du, hn::IsNaN(x));
        hn::StoreU(hn::TruncateTo(dh, hn::IfThenElse(nan, quiet, rounded)), dh, bits);
      } else {
        const hn::Rebind<hwy::float16_t, detail::float_tag> df16{};
        hn::StoreU(hn::BitCast(dh, hn::DemoteTo(df16, x)), dh, bits);
      }
    }
  }
  for (; i < n; ++i) to[i] = wavekv::from_float<S>(from[i]);
}

/// @brief Index of the first element that is an infinity or NaN; n when there is none.
template <scalar S>
std::size_t all_finite(const S* x, std::size_t n) noexcept {
  namespace hn = detail::hn;
  std::size_t i = 0;
  if constexpr (std::is_same_v<S, float>) {
    constexpr detail::float_tag d{};
    for (; i + detail::lanes <= n; i += detail::lanes) {
      const auto v = hn::LoadU(d, x + i);
      if (!hn::AllTrue(d, hn::Eq(hn::Sub(v, v), hn::Zero(d)))) break;  // the loop below finds which
    }
  } else if constexpr (detail::is_16_bit<S>) {
    constexpr hn::ScalableTag<std::uint16_t> d{};
    const auto exponent = hn::Set(d, std::is_same_v<S, bf16> ? 0x7F80U : 0x7C00U);
    const auto* bits = reinterpret_cast<const std::uint16_t*>(x);
    for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) {
      const auto masked = hn::And(hn::LoadU(d, bits + i), exponent);
      if (!hn::AllFalse(d, hn::Eq(masked, exponent))) break;
    }
  }
  for (; i < n; ++i) {
    const float value = wavekv::to_float<S>(x[i]);
    if (!(value - value == 0.0F)) return i;
  }
  return n;
}

}  // namespace wavekv::simd
