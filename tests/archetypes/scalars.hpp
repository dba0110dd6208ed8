// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>
#include <string_view>

#include <wavekv/core/scalar.hpp>

/// @file scalars.hpp
/// @brief A storage scalar of a user's own.

namespace wavekv_test {

/// @brief A float with eight more bits of fraction than bf16: 1 sign, 8 exponent, 15 fraction, in four bytes.
struct float24 {
  std::uint32_t bits;
};

}  // namespace wavekv_test

template <>
struct wavekv::scalar_traits<wavekv_test::float24> {
  static constexpr std::string_view name = "float24";
  static constexpr float epsilon = 0x1p-15F;
  static float to_float(wavekv_test::float24 x) noexcept {
    return std::bit_cast<float>(x.bits << 8U);
  }
  static wavekv_test::float24 from_float(float x) noexcept {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    if ((bits & 0x7FFF'FFFFU) > 0x7F80'0000U) return {0x7FC000U | (bits >> 31U << 23U)};
    return {(bits + 0x7FU + ((bits >> 8U) & 1U)) >> 8U};
  }
};
