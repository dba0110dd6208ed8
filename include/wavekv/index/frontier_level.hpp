// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <wavekv/index/concepts.hpp>
#include <wavekv/index/search_limits.hpp>

/// @file frontier_level.hpp
/// @brief The nodes of one tree level that a search looks at, and what it finds out about them.

namespace wavekv {

/// @brief One tree level's frontier: columns in segment order, families whole. Reused from step to step: the arrays
/// only grow.
template <class T>
struct frontier_level {
  std::size_t n_nodes = 0;
  std::vector<std::size_t> offset;   ///< [n_segments + 1] columns of each segment
  std::vector<std::uint32_t> node;   ///< [n_nodes] node id in its segment
  std::vector<const T*> value_mean;  ///< [n_nodes]
  std::vector<float> size;           ///< [n_nodes]
  std::vector<float> dispersion;     ///< [n_nodes]
  std::vector<float> logits;         ///< [group_size, n_nodes]
  std::vector<float> share;          ///< [group_size, n_nodes]
  std::vector<float> error;          ///< [group_size, n_nodes]
  std::vector<float> nearness;       ///< [group_size, n_nodes]
  std::vector<float> ranked_share;   ///< [n_nodes]
  std::vector<float> ranked_error;   ///< [n_nodes]
  std::vector<zone> zones;           ///< [n_nodes]

  /// @brief Makes room for any frontier of this level within the limits.  @throw std::bad_alloc
  void reserve(const search_limits& limits, std::size_t level) {
    reserve_room(offset, limits.n_segments + 1);
    for_arrays(
        [&](auto& array, std::size_t rows) { reserve_room(array, limits.n_nodes[level] * rows); },
        limits.group_size);
  }

  /// @brief Takes as many nodes as the offsets end with.
  void resize(std::size_t group_size) {
    n_nodes = offset.back();
    for_arrays(
        [&](auto& array, std::size_t rows) {
          if (array.size() < n_nodes * rows) {
            array.resize(n_nodes * rows);
          }
        },
        group_size);
  }

 private:
  // Calls visit(array, rows of n_nodes) for every array with one column per node.
  template <class Visit>
  void for_arrays(Visit&& visit, std::size_t group_size) {
    visit(node, 1);
    visit(value_mean, 1);
    visit(size, 1);
    visit(dispersion, 1);
    visit(ranked_share, 1);
    visit(ranked_error, 1);
    visit(zones, 1);
    for (auto* array : {&logits, &share, &error, &nearness}) {
      visit(*array, group_size);
    }
  }
};

}  // namespace wavekv
