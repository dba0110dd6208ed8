// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

#include <wavekv/cpu/detail/vectors.hpp>

/// @file exp_negative.hpp
/// @brief The exponential of a softmax, where the largest logit has been subtracted already.

namespace wavekv::simd::detail {

/// e^x for x <= 0, to 1.5 units in the last place; e^0 is 1 exactly, below -87.3 (-inf included) it is 0.
///
/// Three quarters of the instructions of exp(): x·log2(e) is rounded to an integer by adding 1.5·2^23, whose low bits
/// then are the exponent, and fused multiply-adds leave the rest, log2(e) taken in two parts. 2^f on [-1/2, 1/2] is a
/// minimax polynomial of degree 6 (relative error 7e-9 before rounding).
HWY_INLINE float_vector exp_negative(float_vector x) {
  constexpr float_tag d{};
  constexpr hn::RebindToSigned<float_tag> di{};
  const auto least = hn::Set(d, -87.3F);
  const auto log2_e = hn::Set(d, 1.44269504F);
  const auto log2_e_rest = hn::Set(d, 1.92596299e-8F);  // log2(e) = 1.44269502162933 + this
  const auto rounder = hn::Set(d, 0x1.8p23F);
  const auto is_positive = hn::Ge(x, least);
  const auto clamped = hn::Max(x, least);
  const auto shifted = hn::MulAdd(clamped, log2_e, rounder);
  const auto rest = hn::MulSub(clamped, log2_e, hn::Sub(shifted, rounder));
  const auto f = hn::MulAdd(clamped, log2_e_rest, rest);
  auto p = hn::MulAdd(f, hn::Set(d, 1.5455004054e-4F), hn::Set(d, 1.3392989914e-3F));
  p = hn::MulAdd(p, f, hn::Set(d, 9.6180790433e-3F));
  p = hn::MulAdd(p, f, hn::Set(d, 5.5503530560e-2F));
  p = hn::MulAdd(p, f, hn::Set(d, 2.4022650798e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 6.9314719236e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0F));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const auto power = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenElseZero(is_positive, power);
}

}  // namespace wavekv::simd::detail
