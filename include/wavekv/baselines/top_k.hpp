// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include <wavekv/core/errors.hpp>
#include <wavekv/index/detail/select.hpp>
#include <wavekv/index/frontier.hpp>

/// @file top_k.hpp
/// @brief The budget of most selection rules: so many tokens, the nearest ones, and nothing of the others.

namespace wavekv::baselines {

/// @brief Reads the clusters with the highest scores until so many tokens are read, and drops the rest.
///
/// The query heads of a group name their nearest clusters in turns: the group shares what is read, and none is outvoted.
/// Models estimation_bound, of a flat index. Complexity: O(n_nodes · group_size), a few passes. Allocates: nothing.
struct top_k {
  using ranking = rank_by_turns;
  static constexpr bool drops = true;

  std::size_t n_tokens =
      2048;  ///< of the index, beside sink and window; the cluster that reaches it is read whole

  void plan(const frontier& nodes, std::span<zone> zones) const noexcept {
    std::ranges::fill(zones, zone::dropped);
    // More than there are is all of them.
    auto left = static_cast<float>(std::min(n_tokens, nodes.n_tokens));
    const float mean_size = static_cast<float>(nodes.n_tokens) /
                            static_cast<float>(std::max<std::size_t>(nodes.n_clusters, 1));
    const auto n_more = [&] {  // the cluster that reaches the budget is read whole
      const float per_head = left / (mean_size * static_cast<float>(nodes.group_size));
      return left > 0.0F ? std::max<std::size_t>(static_cast<std::size_t>(per_head), 1) : 0;
    };
    detail::for_nearest_until(nodes, n_more, [&](std::size_t i) {
      if (zones[i] == zone::dropped && left > 0.0F) {
        zones[i] = zone::retrieval;
        left -= nodes.size()[i];
      }
    });
  }
};

}  // namespace wavekv::baselines
