// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <wavekv/cache/layer_view.cuh>
#include <wavekv/index/segment.hpp>

/// @file search_room.cuh
/// @brief How much memory searches need, before there is anything to search: a workspace is made once and serves while
/// sequences grow.

namespace wavekv::device {

/// @brief How much a search space has room for.
struct search_room {
  unsigned n_queries = 0;  ///< query tokens
  unsigned n_splits = 1;   ///< blocks that share a search
  std::uint32_t n_columns[max_tree_levels] = {};
  std::uint32_t n_token_runs = 0;
};

/// @brief Most blocks that share a search.
inline constexpr unsigned most_splits = 32;

/// @brief Blocks that share a search: as many as fill the device; and where sequences differ, so many that a long one is not
/// left to few.
/// @param n_searches  query tokens · KV heads of a batch
/// @param n_tokens    of the longest sequence
inline unsigned splits_for(std::size_t n_searches, std::size_t n_tokens,
                           std::size_t n_multiprocessors) {
  constexpr std::size_t tokens_per_block = 32768;
  const std::size_t blocks = std::max(n_multiprocessors / std::max<std::size_t>(n_searches, 1),
                                      n_tokens / tokens_per_block);
  return static_cast<unsigned>(std::clamp<std::size_t>(blocks, 1, most_splits));
}

/// @brief Room for searches over a sequence of up to n_tokens tokens, however these were appended: in whatever segments.
/// Complexity: O(levels).
/// @tparam Index  a wave_index
template <class Index>
search_room room_for(std::size_t n_queries, std::size_t n_tokens, unsigned n_splits) {
  using counts = typename Index::cluster_count_type;
  search_room room;
  room.n_queries = static_cast<unsigned>(n_queries);
  room.n_splits = n_splits;
  // Halves of decode segments are the smallest but for what seal() makes: of one node of the top level, at least.
  const std::size_t least = std::min<std::size_t>((Index::segment_size_type::decode + 1) / 2,
                                                  counts::tokens_at(counts::n_levels - 1));
  const std::size_t n_segments = n_tokens / least + 2;
  std::size_t n_above = 0;
  for (std::size_t level = counts::n_levels; level-- > 0;) {
    const std::size_t n_nodes = n_tokens / counts::tokens_at(level) + n_segments;
    // Runs end where families do: one more for each node above, or for each segment.
    const std::size_t n_runs =
        n_nodes / run_rows + (level + 1 == counts::n_levels ? n_segments : n_above) + 1;
    room.n_columns[level] = static_cast<std::uint32_t>(n_runs * run_rows);
    n_above = n_nodes;
  }
  room.n_token_runs = static_cast<std::uint32_t>(n_tokens / run_rows + n_above + 1);
  return room;
}

}  // namespace wavekv::device
