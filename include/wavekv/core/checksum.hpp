// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

// Inlined, so that nothing is linked.
#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
// gcc 12 takes what its own AVX-512 intrinsics leave undefined for a mistake (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <xxhash.h>

namespace wavekv {

/// @brief XXH3 of bytes, 64 bits: finds accidental changes, not forgeries. Some 10 GB/s and more.
/// Complexity: O(bytes). Allocates nothing.
/// Source: Y. Collet, xxHash, https://xxhash.com.
[[nodiscard]] inline std::uint64_t checksum(std::span<const std::byte> bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/// @brief The half of it that is kept for every block of a segment.
[[nodiscard]] inline std::uint32_t block_checksum(std::span<const std::byte> bytes) noexcept {
  return static_cast<std::uint32_t>(checksum(bytes));
}

}  // namespace wavekv
