// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <wavekv/index/cluster_request.hpp>

/// @file safe_scale.hpp
/// @brief Squares of floats near 1e±20 leave the range of float; a scale by a power of two brings them back.

namespace wavekv::detail {

/// A power of two that brings the largest magnitude near 1: exact, and dot products can neither overflow
/// nor vanish. Returns 1 for ordinary data, which then needs no copy.
inline float safe_scale(const float* rows, std::size_t n) {
  // Magnitudes order like their bits, and the compiler may reorder a maximum of integers.
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < n; ++i) {
    bits = std::max(bits, std::bit_cast<std::uint32_t>(rows[i]) & 0x7FFF'FFFFU);
  }
  const auto largest = std::bit_cast<float>(bits);
  if (largest == 0 || (largest > 1e-12F && largest < 1e12F)) {
    return 1.0F;
  }
  // 2^126 at most: the smallest denormals end at 2^-23, which is far from vanishing
  return std::ldexp(1.0F, std::clamp(-std::ilogb(largest), -127, 126));
}

/// Rows in a safe range: the caller's own, or a scaled copy.
inline const float* safely_scaled(const float* rows, std::size_t n,
                                  clustering_scratch::buffer<float>& memory) {
  const float scale = safe_scale(rows, n);
  if (scale == 1.0F) {
    return rows;
  }
  float* scaled = memory.take(n);
  for (std::size_t i = 0; i < n; ++i) {
    scaled[i] = rows[i] * scale;
  }
  return scaled;
}

}  // namespace wavekv::detail
