// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cstdint>

#include <wavekv/core/host_device.hpp>

namespace wavekv::detail {

/// @brief An integer that orders as the float does (-0 below 0).
WAVEKV_HOST_DEVICE std::uint32_t order_key(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return (bits >> 31U) != 0 ? ~bits : bits | 0x8000'0000U;
}

/// @brief The float of an order_key.
WAVEKV_HOST_DEVICE float from_order_key(std::uint32_t key) noexcept {
  return std::bit_cast<float>((key >> 31U) != 0 ? key & 0x7FFF'FFFFU : ~key);
}

}  // namespace wavekv::detail
