// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include <wavekv/index/segment.hpp>

/// @file search_limits.hpp
/// @brief What a step needs at most, so that its memory can be made beforehand.

namespace wavekv {

/// @brief How large the searches of a step may become, whatever is planned in them.
struct search_limits {
  std::size_t n_parts = 0;
  std::size_t n_segments = 0;
  std::size_t group_size = 0;
  std::size_t key_dim = 0;
  std::size_t value_dim = 0;
  std::size_t n_all_nodes = 0;                         ///< of all levels
  std::size_t n_segment_clusters = 0;                  ///< of the largest segment
  std::array<std::size_t, max_tree_levels> n_nodes{};  ///< of each level
};

/// @brief Room for n elements, and for a quarter more when it has to be made.  @throw std::bad_alloc
template <class Element>
void reserve_room(std::vector<Element>& array, std::size_t n) {
  if (array.capacity() < n) {
    array.reserve(n + n / 4);
  }
}

}  // namespace wavekv
