// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstddef>

namespace wavekv {

/// @brief Average tokens of a node, finest level first; models cluster_count.
///
/// `tokens_per_cluster<16>` is the paper's flat index, `<16, 128>` adds a coarser level over it,
/// `<16, 128, 1024>` two. A step scores the coarsest level whole and opens from there.
template <std::size_t Finest = 16, std::size_t... Coarser>
struct tokens_per_cluster {
  static constexpr std::size_t n_levels = 1 + sizeof...(Coarser);
  static constexpr std::size_t tokens_at(std::size_t level) noexcept {
    constexpr std::array<std::size_t, n_levels> tokens{Finest, Coarser...};
    return tokens[level];
  }

  static_assert(Finest >= 1, "tokens_per_cluster: Finest must be at least 1");
  static_assert(
      n_levels <= 3,
      "tokens_per_cluster: at most three levels; see <wavekv/index/tokens_per_cluster.hpp>");
};

}  // namespace wavekv
