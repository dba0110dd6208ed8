// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include <wavekv/core/errors.hpp>
#include <wavekv/index/detail/select.hpp>
#include <wavekv/index/frontier.hpp>

namespace wavekv {

/// @brief Reads clusters in order of expected error until the predicted relative error of every query
/// head is at most epsilon, or a cap is met; nothing is dropped. step_stats::predicted_error and
/// step_stats::capped report which.
///
/// Errors of different clusters point in unrelated directions, so their squares add. A coarse level may
/// leave coarse_share of epsilon² in the estimation zone, the level below it that part of what remains, and so
/// on: opening a coarse node costs summaries, reading a cluster costs tokens.
/// Models estimation_bound. Complexity: O(n_nodes · group_size) a level, nothing is sorted.
/// @tparam Ranking  how a cluster's expected error is reduced over a query group: rank_by_max or rank_by_sum
template <class Ranking = rank_by_max>
struct error_bound {
  using ranking = Ranking;

  float epsilon = 0.02F;  ///< predicted relative error of the output to reach, above 0
  float max_open =
      0.25F;  ///< at most this fraction of a coarse level is opened by expected error, 0 to 1
  float max_read =
      0.02F;  ///< at most this fraction of the index's tokens is read by expected error, 0 to 1
  float coarse_share =
      0.5F;  ///< part of what is left of epsilon² that a coarse level may keep, 0 to 1
  std::size_t free_tokens = 512;  ///< tokens that may be read whatever max_read says

  /// @brief Each query head's nearest coarse nodes, as a fraction of the level, that are opened whatever is predicted,
  /// on top of max_open;
  /// at least 4; 0: none. A summary says too little of a lone needle in a wide node.
  float floor_open = 0.09F;
  /// @brief Each query head's nearest clusters, as a fraction of all, that are read whatever is predicted; likewise.
  float floor_read = 0.01F;

  /// @brief Checks every member.  @throw config_error
  void validate() const {
    if (!(epsilon > 0.0F) || !std::isfinite(epsilon)) {
      throw config_error(
          detail::message("error_bound: epsilon is ", epsilon, "; allowed: finite and above 0"));
    }
    if (!(max_open >= 0.0F && max_open <= 1.0F)) {
      throw config_error(
          detail::message("error_bound: max_open is ", max_open, "; allowed: 0 to 1"));
    }
    if (!(floor_open >= 0.0F && floor_open <= 1.0F && floor_read >= 0.0F && floor_read <= 1.0F)) {
      throw config_error(detail::message("error_bound: floor_open is ", floor_open,
                                         " and floor_read is ", floor_read, "; allowed: 0 to 1"));
    }
    if (!(coarse_share >= 0.0F && coarse_share <= 1.0F)) {
      throw config_error(
          detail::message("error_bound: coarse_share is ", coarse_share, "; allowed: 0 to 1"));
    }
    if (!(max_read >= 0.0F && max_read <= 1.0F)) {
      throw config_error(
          detail::message("error_bound: max_read is ", max_read, "; allowed: 0 to 1"));
    }
  }

  /// @brief Whether a plan with this predicted error reached the target; if not, a cap was met.
  [[nodiscard]] bool meets(float predicted_error) const noexcept {
    return predicted_error <= epsilon * 1.0001F;
  }

  void plan(const frontier& nodes, std::span<zone> zones) const noexcept {
    plan_by_error(nodes, zones);
    const float n_floor = nodes.level > 0 ? floor_open * static_cast<float>(nodes.n_nodes)
                                          : floor_read * static_cast<float>(nodes.n_clusters);
    const std::size_t n_each =
        n_floor > 0.0F ? std::max<std::size_t>(4, static_cast<std::size_t>(n_floor)) : 0;
    detail::for_nearest_by_turns(nodes, nodes.group_size * n_each,
                                 [&](std::size_t i) { zones[i] = zone::retrieval; });
  }

 private:
  void plan_by_error(const frontier& nodes, std::span<zone> zones) const noexcept {
    const std::uint32_t threshold = threshold_key(nodes);
    const float budget = token_budget(nodes);
    const auto ranked = nodes.error();
    float planned = 0.0F;
    std::size_t n_planned = 0;
    for (std::size_t i = 0; i < nodes.n_nodes; ++i) {
      if (detail::order_key(ranked[i]) >= threshold && ranked[i] > 0.0F) {
        zones[i] = zone::retrieval;
        planned += cost(nodes, i);
        ++n_planned;
      }
    }
    if (planned <= budget) {
      return;
    }
    // Too much: keep the largest errors that fit. Costs differ by node, so the count is found by halving.
    std::size_t low = 0;
    std::size_t high = n_planned;
    while (low < high) {
      const std::size_t middle = (low + high + 1) / 2;
      float used = 0.0F;
      detail::for_largest(
          nodes.n_nodes, middle, [&](std::size_t i) { return ranked[i]; },
          [&](std::size_t i) { used += cost(nodes, i); });
      (used <= budget ? low : high) = used <= budget ? middle : middle - 1;
    }
    std::ranges::fill(zones, zone::estimation);
    detail::for_largest(
        nodes.n_nodes, low, [&](std::size_t i) { return ranked[i]; },
        [&](std::size_t i) { zones[i] = zone::retrieval; });
  }

  // Eight bins an octave of error, sixteen octaves below the largest; the last bin holds all below.
  static constexpr std::size_t n_bins = 128;
  static constexpr unsigned bin_shift = 20;

  static float cost(const frontier& nodes, std::size_t i) noexcept {
    return nodes.level > 0 ? 1.0F : nodes.size()[i];
  }

  float token_budget(const frontier& nodes) const noexcept {
    if (nodes.level > 0) {
      return std::max(1.0F, max_open * static_cast<float>(nodes.n_nodes));
    }
    return std::max(static_cast<float>(free_tokens), max_read * static_cast<float>(nodes.n_tokens));
  }

  /// The order_key from which on nodes must be opened, so that for every head what stays estimated keeps
  /// within its part of epsilon².
  std::uint32_t threshold_key(const frontier& nodes) const noexcept {
    float largest = 0.0F;
    for (const float error : nodes.error()) {
      largest = std::max(largest, error);
    }
    const std::uint32_t top = detail::order_key(largest) >> bin_shift;
    const auto bin_of = [&](float error) {
      return std::min<std::size_t>(top - (detail::order_key(error) >> bin_shift), n_bins - 1);
    };
    std::size_t first_kept = n_bins;  // bins from here on may stay estimated
    for (std::size_t g = 0; g < nodes.group_size; ++g) {
      std::array<double, n_bins> squared{};
      const auto error = nodes.error(g);
      const auto ranked = nodes.error();
      for (std::size_t i = 0; i < nodes.n_nodes; ++i) {
        squared[bin_of(ranked[i])] += static_cast<double>(error[i]) * static_cast<double>(error[i]);
      }
      double allowed = static_cast<double>(epsilon) * static_cast<double>(epsilon) -
                       static_cast<double>(nodes.settled_squared_error()[g]);
      allowed *= nodes.level > 0 ? static_cast<double>(coarse_share) : 1.0;
      std::size_t kept = n_bins;
      double left = 0.0;
      while (kept > 0 && left + squared[kept - 1] <= allowed) {
        left += squared[kept - 1];
        --kept;
      }
      first_kept = g == 0 ? kept : std::max(first_kept, kept);
    }
    if (first_kept == 0) {
      return UINT32_MAX;  // everything may stay estimated
    }
    if (first_kept == n_bins || first_kept > top) {
      return 0;  // everything with an error at all is opened
    }
    return (top - static_cast<std::uint32_t>(first_kept) + 1U) << bin_shift;
  }
};

}  // namespace wavekv
