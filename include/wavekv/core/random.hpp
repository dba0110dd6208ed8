// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstdint>

/// @file random.hpp
/// @brief A counter-based generator: the n-th number is a function of key and counter alone, so that
/// draws do not depend on threads, and a device can make the same ones.

namespace wavekv {

/// @brief Philox 4x32 with 10 rounds: 128 random bits for a 64-bit key and a 128-bit counter.
/// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11.
constexpr std::array<std::uint32_t, 4> philox(std::uint64_t key,
                                              std::array<std::uint32_t, 4> counter) noexcept {
  auto key_low = static_cast<std::uint32_t>(key);
  auto key_high = static_cast<std::uint32_t>(key >> 32U);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53U} * counter[0];
    const std::uint64_t second = std::uint64_t{0xCD9E8D57U} * counter[2];
    counter = {static_cast<std::uint32_t>(second >> 32U) ^ counter[1] ^ key_low,
               static_cast<std::uint32_t>(second),
               static_cast<std::uint32_t>(first >> 32U) ^ counter[3] ^ key_high,
               static_cast<std::uint32_t>(first)};
    key_low += 0x9E3779B9U;
    key_high += 0xBB67AE85U;
  }
  return counter;
}

/// @brief A float in [0, 1) from 32 random bits; 24 of them are used.
constexpr float unit_float(std::uint32_t bits) noexcept {
  return static_cast<float>(bits >> 8U) * 0x1p-24F;
}

}  // namespace wavekv
