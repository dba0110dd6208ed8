// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>

#include <wavekv/core/errors.hpp>
#include <wavekv/index/detail/select.hpp>
#include <wavekv/index/frontier.hpp>

namespace wavekv {

/// @brief The paper's rule: fixed fractions of the clusters are read and estimated, the rest is dropped.
///
/// Clusters are ranked by their nearness to the query heads in turn; by the other rankings, and for what the turns leave
/// over, by their share per token.
/// On a tree, coarse nodes compete for retrieve + estimate of the nodes; what is not opened is dropped.
/// The dropped share of the softmax mass is reported in step_stats::dropped_mass.
/// Models estimation_bound. Complexity: O(n_nodes) a level.
/// Source: RetroInfer, arXiv 2505.02922, section 4.2 (tripartite attention; 1.8 % and 23.2 %).
/// @tparam Ranking  rank_by_turns: each query head of a group chooses its part of the budget; or rank_by_sum, rank_by_max.
///                  A sum hides the head that looks for one needle behind those that look at everything: with it the
///                  example model finds 7 of 10 needles, with turns all.
template <class Ranking = rank_by_turns>
struct basic_fixed_budget {
  using ranking = Ranking;
  static constexpr bool drops = true;

  float retrieve = 0.018F;  ///< fraction of the clusters that is read, 0 to 1
  float estimate = 0.232F;  ///< fraction of the clusters that is estimated, 0 to 1

  /// @brief Clusters that each query head may read at least, beyond the fraction on a short context; only with turns.
  std::size_t least_per_head = 4;

  /// @brief Checks both fractions.  @throw config_error
  void validate() const {
    if (!(retrieve >= 0.0F && estimate >= 0.0F && retrieve + estimate <= 1.0F + 1e-6F)) {
      throw config_error(detail::message("fixed_budget: retrieve is ", retrieve,
                                         " and estimate is ", estimate,
                                         "; allowed: both at least 0, together at most 1"));
    }
  }

  void plan(const frontier& nodes, std::span<zone> zones) const noexcept {
    const auto n_of = [&](float fraction, std::size_t n) {
      return std::min(static_cast<std::size_t>(std::ceil(fraction * static_cast<float>(n))),
                      nodes.n_nodes);
    };
    std::ranges::fill(zones, zone::dropped);
    if (nodes.level > 0) {
      take(nodes, n_of(retrieve + estimate, nodes.n_nodes), zones, zone::retrieval);
      return;
    }
    const bool turns = std::is_same_v<Ranking, rank_by_turns>;
    const std::size_t least =
        turns && retrieve > 0.0F ? std::min(least_per_head * nodes.group_size, nodes.n_nodes) : 0;
    take(nodes, std::max(least, n_of(retrieve, nodes.n_clusters)), zones, zone::retrieval);
    take(nodes, std::max(least, n_of(retrieve + estimate, nodes.n_clusters)), zones,
         zone::estimation);
  }

 private:
  // Puts the nearest of the nodes still dropped into a zone, until n in all are not dropped.
  static void take(const frontier& nodes, std::size_t n, std::span<zone> zones,
                   zone into) noexcept {
    const auto n_kept = static_cast<std::size_t>(
        std::ranges::count_if(zones, [](zone z) { return z != zone::dropped; }));
    marker mark{zones, into, n - std::min(n, n_kept)};
    if constexpr (std::is_same_v<Ranking, rank_by_turns>) {
      const auto n_more = [&] { return (mark.n_left + nodes.group_size - 1) / nodes.group_size; };
      detail::for_nearest_until(nodes, n_more, mark);
    } else {
      take_largest_shares(nodes, mark.n_left, zones, mark);
    }
  }

  // Puts up to n_left of the nodes it is called for, if dropped so far, into a zone.
  struct marker {
    std::span<zone> zones;
    zone into;
    std::size_t n_left;

    void operator()(std::size_t i) noexcept {
      if (zones[i] == zone::dropped && n_left != 0) {
        zones[i] = into;
        --n_left;
      }
    }
  };

  // Calls mark for the nodes still dropped that have the largest shares per token, at least `n` of them.
  template <class Mark>
  static void take_largest_shares(const frontier& nodes, std::size_t n, std::span<const zone> zones,
                                  Mark& mark) {
    const auto value = [&](std::size_t i) {
      return zones[i] == zone::dropped ? nodes.share()[i] / nodes.size()[i] : -1.0F;
    };
    float largest = -1.0F;
    for (std::size_t i = 0; i < nodes.n_nodes; ++i) {
      largest = std::max(largest, value(i));
    }
    const auto few_reach = [&](float threshold) {
      std::size_t count = 0;
      for (std::size_t i = 0; i < nodes.n_nodes; ++i) {
        count += value(i) >= threshold ? 1 : 0;
      }
      return count <= n;
    };
    const detail::threshold_step step = detail::narrow(-2.0F, largest, few_reach);
    for (const float threshold : {step.fit, step.unfit}) {
      for (std::size_t i = 0; i < nodes.n_nodes; ++i) {
        if (value(i) >= threshold) {
          mark(i);
        }
      }
    }
  }
};

/// @brief The paper's rule, the heads of a group taking turns.
using fixed_budget = basic_fixed_budget<>;

}  // namespace wavekv
