// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/host_device.hpp>
#include <wavekv/cpu/simd.hpp>
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
      0.45F;  ///< at most this fraction of a coarse level is opened by expected error, 0 to 1
  float max_read =
      0.015F;  ///< at most this fraction of the index's tokens is read by expected error, 0 to 1
  float coarse_share =
      0.5F;  ///< part of what is left of epsilon² that a coarse level may keep, 0 to 1
  std::size_t free_tokens = 512;  ///< tokens that may be read whatever max_read says

  /// @brief Each query head's nearest coarse nodes, as a fraction of the level, that are opened whatever is predicted, on
  /// top of max_open; 0: none. A summary says too little of a lone needle in a wide node.
  float floor_open = 0.09F;
  std::size_t least_open =
      24;  ///< nodes that floor_open is at least: a short context has few nodes, each a larger part of it
  /// @brief Each query head's nearest clusters, as a fraction of all, that are read whatever is predicted; at least 4;
  /// 0: none.
  float floor_read = 0.01F;

  /// @brief Nodes of whose tokens the nearest is expected to hold this share of some query head's softmax are opened or
  /// read as well, whatever is predicted and on top of the caps, 0 to 1; 0: none. A single token that is nothing like
  /// its cluster hardly moves the cluster's expected error.
  float hidden_share = 0.002F;

  /// @brief Index tokens, at least 1, up to which the four fractions hold. On longer ones what they allow grows as the
  /// tokens to the power of `growth` only: estimates get no worse with the context as they get more, so that a step
  /// need not grow with it.
  std::size_t full_tokens = 32768;
  float growth =
      0.5F;  ///< see full_tokens; 0 to 1. 0: what is allowed stays as it is; 1: it grows with the context

  /// @brief What is predicted from summaries is multiplied by this, above 0, before it is reported and held against
  /// epsilon: how far predictions are off depends on the model, the layer, the length of the context and what is read.
  /// calibrate() learns it (cache/calibration.hpp).
  float error_scale = 1.0F;

  /// @brief Checks every member.  @throw config_error
  void validate() const {
    if (!(epsilon > 0.0F) || !std::isfinite(epsilon)) {
      throw config_error(
          detail::message("error_bound: epsilon is ", epsilon, "; allowed: finite and above 0"));
    }
    if (!(error_scale > 0.0F) || !std::isfinite(error_scale)) {
      throw config_error(detail::message("error_bound: error_scale is ", error_scale,
                                         "; allowed: finite and above 0"));
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
    if (full_tokens < 1 || !(growth >= 0.0F && growth <= 1.0F)) {
      throw config_error(detail::message("error_bound: full_tokens is ", full_tokens,
                                         " and growth is ", growth,
                                         "; allowed: 1 or more, and 0 to 1"));
    }
    if (!(hidden_share >= 0.0F && hidden_share <= 1.0F)) {
      throw config_error(
          detail::message("error_bound: hidden_share is ", hidden_share, "; allowed: 0 to 1"));
    }
  }

  /// @brief What is reported of an error that summaries predict: error_scale times it.
  [[nodiscard]] WAVEKV_HOST_DEVICE constexpr float scaled_error(float predicted) const noexcept {
    return error_scale * predicted;
  }

  /// @brief Whether a plan with this error, scaled, reached the target; if not, a cap was met.
  [[nodiscard]] constexpr bool meets(float predicted_error) const noexcept {
    return predicted_error <= epsilon * 1.0001F;
  }

  /// @brief epsilon in terms of what summaries predict, before error_scale.
  [[nodiscard]] WAVEKV_HOST_DEVICE float summaries_epsilon() const noexcept {
    return epsilon / error_scale;
  }

  void plan(const frontier& nodes, std::span<zone> zones) const noexcept {
    plan_by_error(nodes, zones);
    detail::for_nearest_by_turns(nodes, n_nearest(nodes),
                                 [&](std::size_t i) { zones[i] = zone::retrieval; });
    take_what_hides(nodes, zones);
  }

  /// @brief What may be read by expected error: nodes at a coarse level, tokens at the finest.
  /// @param nodes  a frontier, of the host or of the device
  [[nodiscard]] WAVEKV_HOST_DEVICE float budget(const auto& nodes) const noexcept {
    const bool coarse = nodes.level > 0;
    const float part = shrink(nodes) * (coarse ? max_open : max_read) *
                       static_cast<float>(coarse ? nodes.n_nodes : nodes.n_tokens);
    const float least = coarse ? 1.0F : static_cast<float>(free_tokens);
    return part > least ? part : least;
  }

  /// @brief Nodes that each query head gets whatever is predicted, at most all.
  /// @param nodes  as above
  [[nodiscard]] WAVEKV_HOST_DEVICE std::size_t n_nearest(const auto& nodes) const noexcept {
    const bool coarse = nodes.level > 0;
    const float floor =
        shrink(nodes) * (coarse ? floor_open * static_cast<float>(nodes.n_nodes)
                                : floor_read * static_cast<float>(nodes.n_clusters));
    if (!(floor > 0.0F)) {
      return 0;
    }
    const std::size_t least = coarse ? least_open : 4;
    const auto n = static_cast<std::size_t>(floor);
    const std::size_t n_each = n > least ? n : least;
    return n_each < nodes.n_nodes ? n_each : nodes.n_nodes;
  }

 private:
  // What the fractions shrink by on an index of more than full_tokens.
  WAVEKV_HOST_DEVICE float shrink(const auto& nodes) const noexcept {
    const auto n_tokens = static_cast<float>(nodes.n_tokens);
    const auto full = static_cast<float>(full_tokens);
    return n_tokens <= full ? 1.0F : std::pow(n_tokens / full, growth - 1.0F);
  }

  void plan_by_error(const frontier& nodes, std::span<zone> zones) const noexcept {
    const auto ranked = nodes.error();
    const auto within = [&](float threshold) { return keeps_epsilon(nodes, threshold); };
    if (within(std::numeric_limits<float>::infinity())) {
      return;  // everything may stay estimated
    }
    const float capped = detail::for_largest_within(
        ranked, nodes.level > 0 ? nullptr : nodes.size().data(), budget(nodes),
        [&](std::size_t i) { zones[i] = zone::retrieval; });
    if (capped > 0.0F && !within(capped)) {
      return;
    }
    // Less than the caps allow is enough. Errors 0.4 % apart are not told apart.
    constexpr std::uint32_t resolution = 1U << 15U;
    const float largest = simd::reduce_max(ranked.data(), ranked.size());
    const float enough =
        detail::narrow(capped, largest, [&](float t) { return !within(t); }, resolution).unfit;
    for (std::size_t i = 0; i < nodes.n_nodes; ++i) {
      if (ranked[i] < enough) {
        zones[i] = zone::estimation;
      }
    }
  }

  void take_what_hides(const frontier& nodes, std::span<zone> zones) const noexcept {
    if (!(hidden_share > 0.0F)) {
      return;
    }
    for (std::size_t g = 0; g < nodes.group_size; ++g) {
      const float least = nodes.log_normalizer()[g] + std::log(hidden_share);
      const std::span<const float> nearness = nodes.nearness(g);
      for (std::size_t i = 0; i < nodes.n_nodes; ++i) {
        zones[i] = nearness[i] >= least ? zone::retrieval : zones[i];
      }
    }
  }

  // Whether every head keeps its part of epsilon² when all nodes below a threshold stay estimated.
  bool keeps_epsilon(const frontier& nodes, float threshold) const noexcept {
    const float target = summaries_epsilon();
    for (std::size_t g = 0; g < nodes.group_size; ++g) {
      const float part = nodes.level > 0 ? coarse_share : 1.0F;
      const float allowed = part * (target * target - nodes.settled_squared_error()[g]);
      if (simd::squares_below(nodes.error().data(), nodes.error(g).data(), nodes.n_nodes,
                              threshold) > std::max(allowed, 0.0F)) {
        return false;
      }
    }
    return true;
  }
};

}  // namespace wavekv
