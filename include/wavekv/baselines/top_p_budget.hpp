// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>

#include <wavekv/core/errors.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/detail/select.hpp>
#include <wavekv/index/frontier.hpp>

/// @file top_p_budget.hpp
/// @brief A budget that follows from the mass: as few clusters as hold p of it.

namespace wavekv::baselines {

/// @brief Reads the fewest clusters whose scores hold a given part of the softmax mass, and drops the rest.
///
/// The mass is what the index's summary says: exact over oracle, an estimate over anything else. What sink and window hold counts. Each
/// query head of a group has its own threshold; what any of them wants is read. Papers of the rule estimate the mass from quantised
/// keys (Twilight) or fit a curve to it (Tactic); here the slot's scores serve, whatever they are.
/// Models estimation_bound. Complexity: O(n_nodes · group_size), some 30 passes. Allocates: nothing.
/// Source: Twilight, arXiv 2502.02770, section 4; Tactic, arXiv 2502.12216, section 3.
struct top_p_budget {
  static constexpr bool drops = true;

  float p = 0.9F;  ///< part of each head's mass to be read, 0 to 1

  /// @brief Checks p.  @throw config_error
  void validate() const {
    if (!(p >= 0.0F && p <= 1.0F)) {
      throw config_error(detail::message("top_p_budget: p is ", p, "; allowed: 0 to 1"));
    }
  }

  void plan(const frontier& nodes, std::span<zone> zones) const noexcept {
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    std::ranges::fill(zones, zone::dropped);
    for (std::size_t g = 0; g < nodes.group_size; ++g) {
      const std::span<const float> nearness = nodes.nearness(g);
      const float* const share = nodes.share(g).data();
      const auto mass_from = [&](float threshold) {
        return simd::sum_at_least(nearness.data(), share, nodes.n_nodes, threshold);
      };
      const float all = mass_from(nothing);
      const float wanted = p - std::max(1.0F - all, 0.0F);  // sink and window hold the rest
      const float largest =
          nodes.n_nodes == 0 ? nothing : simd::reduce_max(nearness.data(), nodes.n_nodes);
      if (!(wanted > 0.0F) || !(largest > nothing)) {
        continue;
      }
      const float least = wanted >= all ? std::numeric_limits<float>::lowest()
                                        : detail::narrow(nothing, largest, [&](float t) {
                                            return mass_from(t) < wanted;
                                          }).unfit;
      simd::for_at_least(nearness.data(), nodes.n_nodes,
                         std::max(least, std::numeric_limits<float>::lowest()),
                         [&](std::size_t i) { zones[i] = zone::retrieval; });
    }
  }
};

}  // namespace wavekv::baselines
