// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <compare>
#include <cstdint>
#include <ostream>

/// @file ids.hpp
/// @brief Names of things that live in a cache; opaque, cheap to copy.

namespace wavekv {

/// @brief Names one sequence of one cache. A released sequence's id never becomes valid again: a slot
/// is reused under a new generation.
struct sequence_id {
  std::uint32_t slot = UINT32_MAX;  ///< place in the cache's table
  std::uint32_t generation = 0;     ///< how often that place was used before
  friend constexpr auto operator<=>(sequence_id, sequence_id) = default;
  friend constexpr bool operator==(sequence_id,
                                   sequence_id) = default;  // nvcc does not take it from the other
};

/// @brief Prints as slot.generation, the form used in messages.
inline std::ostream& operator<<(std::ostream& stream, sequence_id id) {
  return stream << id.slot << '.' << id.generation;
}

}  // namespace wavekv
