// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include <wavekv/index/frontier.hpp>

/// @file select.hpp
/// @brief Selection without sorting: the k largest of n by a radix search over the bits of the floats.

namespace wavekv::detail {

/// @brief Bits of a float that order as the float does; negative numbers and NaN count as 0.
inline std::uint32_t order_key(float value) noexcept {
  return value > 0.0F ? std::bit_cast<std::uint32_t>(value) : 0U;
}

/// @brief Calls chosen(i), i ascending, for the k largest of value(0) ... value(n - 1); ties go to the
/// smaller index. Complexity: O(n), four passes over the values. Allocates: nothing.
template <class Value, class Chosen>
void for_largest(std::size_t n, std::size_t k, Value&& value, Chosen&& chosen) {
  if (k >= n) {
    for (std::size_t i = 0; i < n; ++i) {
      chosen(i);
    }
    return;
  }
  if (k == 0) {
    return;
  }
  // Narrow down the key of the k-th largest value, digit by digit: `above` values lie above the prefix.
  constexpr std::array<unsigned, 3> shifts{21, 10, 0};
  constexpr std::array<unsigned, 3> widths{11, 11, 10};
  std::uint32_t prefix = 0;
  std::uint32_t prefix_mask = 0;
  std::size_t wanted = k;
  for (std::size_t pass = 0; pass < shifts.size(); ++pass) {
    std::array<std::uint32_t, 2048> count{};
    const std::uint32_t digit_mask = (1U << widths[pass]) - 1U;
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t key = order_key(value(i));
      if ((key & prefix_mask) == prefix) {
        ++count[(key >> shifts[pass]) & digit_mask];
      }
    }
    std::uint32_t digit = digit_mask;
    while (count[digit] < wanted) {
      wanted -= count[digit];
      --digit;
    }
    prefix |= digit << shifts[pass];
    prefix_mask |= digit_mask << shifts[pass];
  }
  // Now `prefix` is the key of the k-th largest; `wanted` of the values equal to it are taken.
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t key = order_key(value(i));
    if (key > prefix) {
      chosen(i);
    } else if (key == prefix && wanted > 0) {
      --wanted;
      chosen(i);
    }
  }
}

/// @brief Calls chosen(i) for the nodes nearest to some query head of the group: each head
/// names n / group_size nodes (rounded up), a node may be named by several.
/// Complexity: O(n_nodes · group_size). Allocates: nothing.
template <class Chosen>
void for_nearest_by_turns(const frontier& nodes, std::size_t n, Chosen&& chosen) {
  const std::size_t n_each = (n + nodes.group_size - 1) / nodes.group_size;
  for (std::size_t g = 0; g < nodes.group_size; ++g) {
    const auto nearness = nodes.nearness(g);
    for_largest(nodes.n_nodes, n_each, [&](std::size_t i) { return nearness[i]; }, chosen);
  }
}

}  // namespace wavekv::detail
