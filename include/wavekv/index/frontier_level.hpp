// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <wavekv/attention/exact.hpp>
#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/search_limits.hpp>
#include <wavekv/index/segment.hpp>

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

  /// @brief The first node from column i on that the plan opened, in a segment; the end of its columns if there is none.
  [[nodiscard]] std::size_t next_opened(std::size_t segment, std::size_t i) const noexcept {
    while (i < offset[segment + 1] && zones[i] != zone::retrieval) {
      ++i;
    }
    return i;
  }

  /// @brief Enters n nodes of a tree, first and following, into the columns from `column` on, all but their logits.
  /// @return their summaries, to be scored
  summary_rows<float, T> enter(const tree_level<T>& tree, std::uint32_t first, std::size_t n,
                               std::size_t column, std::size_t key_dim, std::size_t value_dim) {
    const T* centroids = tree.rows + first * (key_dim + value_dim);
    const T* value_means = centroids + n * key_dim;
    for (std::size_t i = 0; i < n; ++i) {
      node[column + i] = first + static_cast<std::uint32_t>(i);
      value_mean[column + i] = value_means + i * value_dim;
      size[column + i] = tree.size[first + i];
      dispersion[column + i] = tree.dispersion[first + i];
    }
    return {centroids, value_means, tree.size + first, tree.dispersion + first, n};
  }

  /// @brief Adds the estimates of a segment's nodes in one zone to a partial softmax, or takes them out of it.
  void accumulate(std::size_t segment, zone wanted, accumulation mode,
                  const partial_softmax_view& into) const {
    constexpr std::size_t most_rows = detail::chunk_rows;
    constexpr std::size_t most_queries = detail::chunk_queries;
    std::array<std::size_t, most_rows> column;
    std::array<const T*, most_rows> means;
    std::array<float, most_rows> sizes;
    std::array<float, most_queries * most_rows> chosen;  // logits
    for (std::size_t i = offset[segment]; i < offset[segment + 1];) {
      std::size_t n = 0;
      for (; i < offset[segment + 1] && n < most_rows; ++i) {
        if (zones[i] == wanted) {
          column[n] = i;
          means[n] = value_mean[i];
          sizes[n] = size[i];
          ++n;
        }
      }
      for (std::size_t g = 0; n > 0 && g < into.n_queries; g += most_queries) {
        const std::size_t n_queries = std::min(most_queries, into.n_queries - g);
        for (std::size_t q = 0; q < n_queries; ++q) {
          const float* row = logits.data() + (g + q) * n_nodes;
          for (std::size_t r = 0; r < n; ++r) {
            chosen[q * most_rows + r] = row[column[r]];
          }
        }
        accumulate_rows_at(chosen.data(), most_rows, sizes.data(), means.data(), n, mode,
                           into.part(g, n_queries));
      }
    }
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
