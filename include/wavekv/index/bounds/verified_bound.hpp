// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/host_device.hpp>
#include <wavekv/index/bounds/error_bound.hpp>
#include <wavekv/index/frontier.hpp>

namespace wavekv {

/// @brief Plans as error_bound does, then checks the answer against tokens sampled from what was not
/// read, and goes on until the sampled relative error of every query head is at most epsilon at
/// confidence 1 - delta; ends in exact attention if it must. Nothing is trained, nothing is dropped.
///
/// The check draws n tokens from the estimated nodes with probability ∝ size · e^(logit of the centroid)
/// · √(e^σ² - 1) and averages the residual of each, importance weighted: an unbiased estimate of the
/// output's error. Added to its squared norm are as many of its standard errors as the normal
/// distribution asks for delta (see error_sampler).
///
/// What a sample finds last is one token that is nothing like the others of its cluster: nearly all draws go elsewhere.
/// So plans have a hidden_share that follows from epsilon and delta (planning_rule). Measured on the example model's keys:
/// without it one in five of all pairs of head and ε missed δ = 1 %; and what is read for it spares rounds, ε = 1 % takes
/// a third fewer bytes (bench/README.md, "Rules side by side").
/// Models verifying_bound.
/// @tparam Ranking  as in error_bound
template <class Ranking = rank_by_max>
struct verified_bound {
  using ranking = Ranking;

  float epsilon = 0.05F;  ///< relative error of the output to keep, above 0
  float delta =
      0.05F;  ///< share of (step, query head) pairs that may miss it, 0 to 0.5, both excluded
  std::size_t samples = 256;  ///< tokens drawn per check and query group, at least 8
  int rounds = 4;             ///< plans tried before everything is read, at least 1
  /// @brief The part of epsilon that the check must stay below, above 0 to 1. A sample cannot see a token that it
  /// did not draw: measured on the example model's keys at δ = 5 %, 1 kept ε in 85 to 97 % of the cases, ½ in 96 %.
  float margin = 0.5F;
  /// @brief How plans are made; its epsilon is the first round's target. All coarse nodes are opened: what hides in one
  /// is the hardest to find by sampling. Its caps are fractions at any length: the check says what is enough.
  error_bound<Ranking> rule{.epsilon = 0.025F,
                            .max_open = 1.0F,
                            .max_read = 0.02F,
                            .coarse_share = 0.0F,
                            .free_tokens = 512,
                            .growth = 1.0F};

  /// @brief Checks every member.  @throw config_error
  void validate() const {
    if (!(epsilon > 0.0F) || !std::isfinite(epsilon)) {
      throw config_error(
          detail::message("verified_bound: epsilon is ", epsilon, "; allowed: finite and above 0"));
    }
    if (!(delta > 0.0F && delta < 0.5F)) {
      throw config_error(
          detail::message("verified_bound: delta is ", delta, "; allowed: above 0, below 0.5"));
    }
    if (samples < 8) {
      throw config_error(
          detail::message("verified_bound: samples is ", samples, "; allowed: 8 or more"));
    }
    if (rounds < 1) {
      throw config_error(
          detail::message("verified_bound: rounds is ", rounds, "; allowed: 1 or more"));
    }
    if (!(margin > 0.0F && margin <= 1.0F)) {
      throw config_error(
          detail::message("verified_bound: margin is ", margin, "; allowed: above 0, at most 1"));
    }
    rule.validate();
  }

  void plan(const frontier& nodes, std::span<zone> zones) const noexcept {
    planning_rule().plan(nodes, zones);
  }

  /// @brief `rule` with the hidden_share that the promise asks for, where rule's own is larger: 0.045 · margin · epsilon ·
  /// delta, below delta = 5 % times delta / 5 %. Tokens that mattered were up to e⁷ times as heavy as the nearest that their
  /// clusters let expect, and the rarer a miss may be, the fewer of these may stay.
  [[nodiscard]] WAVEKV_HOST_DEVICE error_bound<Ranking> planning_rule() const noexcept {
    error_bound<Ranking> planning = rule;
    const float rarer = delta < 0.05F ? delta / 0.05F : 1.0F;
    const float asked = 0.045F * margin * epsilon * delta * rarer;
    planning.hidden_share = asked < rule.hidden_share ? asked : rule.hidden_share;
    return planning;
  }

  [[nodiscard]] std::size_t n_samples() const noexcept { return samples; }
  [[nodiscard]] int max_rounds() const noexcept { return rounds; }
  /// @brief What is reported of an error that summaries predict: as `rule` does.
  [[nodiscard]] WAVEKV_HOST_DEVICE constexpr float scaled_error(float predicted) const noexcept {
    return rule.scaled_error(predicted);
  }
  [[nodiscard]] constexpr bool meets(float /*predicted_error*/) const noexcept {
    return true;
  }  // the check decides
  [[nodiscard]] constexpr bool accepts(float sampled_error) const noexcept {
    return sampled_error <= margin * epsilon;
  }

  /// @brief The one-sided normal quantile of 1 - delta / 8 (Abramowitz and Stegun 26.2.23, error below 4.5e-4): an
  /// answer may be looked at some eight times, with more draws and in later rounds, and each look may err.
  [[nodiscard]] float confidence_deviations() const noexcept {
    const float t = std::sqrt(-2.0F * std::log(delta * 0.125F));
    return t - (2.515517F + t * (0.802853F + t * 0.010328F)) /
                   (1.0F + t * (1.432788F + t * (0.189269F + t * 0.001308F)));
  }

  /// @brief The bound of the next round: its target shrinks to 0.4 of this one's and its caps grow by 4, so
  /// that the last round before exact attention may read much of the index. A fixed schedule, so that an
  /// answer depends on its own query alone.
  [[nodiscard]] verified_bound tightened() const noexcept {
    verified_bound next = *this;
    next.rule.epsilon *= 0.4F;
    next.rule.max_open = std::min(1.0F, 4.0F * rule.max_open);
    next.rule.max_read = std::min(1.0F, 4.0F * rule.max_read);
    next.rule.free_tokens = 4 * rule.free_tokens;
    return next;
  }
};

}  // namespace wavekv
