// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>

/// @file scalar.hpp
/// @brief The types K and V may be stored in, and their conversions. All arithmetic is done in float.

namespace wavekv {

/// @brief bfloat16: the upper half of a float (8 exponent bits, 7 fraction bits). Storage only.
struct bf16 {
  std::uint16_t bits;
  friend constexpr bool operator==(bf16, bf16) = default;
};

/// @brief IEEE binary16 (5 exponent bits, 10 fraction bits; largest finite value 65504). Storage only.
struct f16 {
  std::uint16_t bits;
  friend constexpr bool operator==(f16, f16) = default;
};

/// @brief What the library must know of a storage scalar; specialise it for a type of your own.
///
/// | expression                          | returns            | semantics                                   |
/// |-------------------------------------|--------------------|---------------------------------------------|
/// | `scalar_traits<S>::to_float(s)`     | `float`            | exact                                       |
/// | `scalar_traits<S>::from_float(x)`   | `S`                | nearest, ties to even; overflow gives an infinity |
/// | `scalar_traits<S>::name`            | `std::string_view` | used in messages                            |
/// | `scalar_traits<S>::epsilon`         | `float`            | distance from 1 to the next larger value    |
template <class S>
struct scalar_traits;

template <>
struct scalar_traits<float> {
  static constexpr std::string_view name = "float";
  static constexpr float epsilon = 0x1p-23F;
  static constexpr float to_float(float x) noexcept { return x; }
  static constexpr float from_float(float x) noexcept { return x; }
};

template <>
struct scalar_traits<bf16> {
  static constexpr std::string_view name = "bf16";
  static constexpr float epsilon = 0x1p-7F;
  static constexpr float to_float(bf16 x) noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16U);
  }
  static constexpr bf16 from_float(float x) noexcept {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    if ((bits & 0x7FFF'FFFFU) > 0x7F80'0000U) {  // NaN: rounding could carry it into an infinity
      return {static_cast<std::uint16_t>((bits >> 16U) | 0x0040U)};
    }
    return {static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U)};
  }
};

template <>
struct scalar_traits<f16> {
  static constexpr std::string_view name = "f16";
  static constexpr float epsilon = 0x1p-10F;
  static constexpr float to_float(f16 x) noexcept {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000U) << 16U;
    const std::uint32_t magnitude = x.bits & 0x7FFFU;
    if (magnitude >= 0x7C00U) {  // infinity, NaN
      return std::bit_cast<float>(sign | 0x7F80'0000U | ((magnitude & 0x3FFU) << 13U));
    }
    if (magnitude < 0x0400U) {  // zero, subnormal: the magnitude counts units of 2^-24
      const float value = static_cast<float>(magnitude) * 0x1p-24F;
      return sign != 0 ? -value : value;
    }
    return std::bit_cast<float>(sign | ((magnitude << 13U) + (112U << 23U)));
  }
  static constexpr f16 from_float(float x) noexcept {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const auto sign = static_cast<std::uint16_t>((bits >> 16U) & 0x8000U);
    const std::uint32_t magnitude = bits & 0x7FFF'FFFFU;
    if (magnitude > 0x7F80'0000U) {
      return {static_cast<std::uint16_t>(sign | 0x7E00U)};
    }
    if (magnitude >= 0x477F'F000U) {  // rounds to 65520 or more: infinity
      return {static_cast<std::uint16_t>(sign | 0x7C00U)};
    }
    if (magnitude <
        0x3880'0000U) {  // below 2^-14: adding 0.5 lets the float adder round to units of 2^-24
      const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
      const auto units = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0.5F);
      return {static_cast<std::uint16_t>(sign | units)};
    }
    const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13U) & 1U);
    return {static_cast<std::uint16_t>(sign | ((rounded - (112U << 23U)) >> 13U))};
  }
};

/// @brief A type that K and V can be stored in: trivially copyable, with scalar_traits.
template <class S>
concept scalar = std::is_trivially_copyable_v<S> && requires(S stored, float value) {
  { scalar_traits<S>::to_float(stored) } noexcept -> std::same_as<float>;
  { scalar_traits<S>::from_float(value) } noexcept -> std::same_as<S>;
  { scalar_traits<S>::name } -> std::convertible_to<std::string_view>;
  { scalar_traits<S>::epsilon } -> std::convertible_to<float>;
};

/// @brief The float a stored scalar stands for; exact.
template <scalar S>
constexpr float to_float(S stored) noexcept {
  return scalar_traits<S>::to_float(stored);
}

/// @brief The stored scalar nearest to a float, ties to even.
template <scalar S>
constexpr S from_float(float value) noexcept {
  return scalar_traits<S>::from_float(value);
}

static_assert(scalar<float> && scalar<bf16> && scalar<f16>);

}  // namespace wavekv
