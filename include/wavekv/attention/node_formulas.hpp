// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>

#include <wavekv/core/host_device.hpp>

/// @file node_formulas.hpp
/// @brief What a single node of the tree weighs for a query, how far its estimate may err, and how near its tokens may
/// come: the definitions, for the CPU and the device alike (no std::min: a kernel cannot refer to a constant).

namespace wavekv {

/// @brief Largest variance of a logit inside a cluster that an estimate corrects for: e^(variance / 2) then stays
/// below 55, so that taking an estimate out again loses less than two digits.
inline constexpr float max_logit_variance = 8.0F;

/// @brief Variance of the logit inside a cluster: ‖q‖²·dispersion, flattened by a softcap's slope at the logit.
/// @param squared_norm  ‖scale·q‖²
WAVEKV_HOST_DEVICE float logit_variance(float squared_norm, float dispersion, float logit,
                                        float softcap) noexcept {
  float variance = squared_norm * dispersion;
  if (softcap > 0.0F) {
    const float part = logit / softcap * (logit / softcap);
    const float slope = part < 1.0F ? 1.0F - part : 0.0F;
    variance *= slope * slope;
  }
  return variance < max_logit_variance ? variance : max_logit_variance;
}

/// @brief Largest variance of a logit inside a node that errors are predicted from: e^variance stays finite.
inline constexpr float max_expected_variance = 24.0F;

/// @brief Variance of a logit inside a node, as errors are predicted from it.
///
/// Under a softcap the centroid may be saturated where the tokens are not: the slope at the centroid, which
/// the estimate itself uses, would then promise an estimate without error. Capped logits lie in [-cap, cap],
/// and so does their variance below cap² (Popoviciu). Otherwise the limit lies well above that of the
/// estimate's own correction: what the correction leaves out is an error to expect.
/// @param variance  per unit of dispersion: see query_leaning
WAVEKV_HOST_DEVICE float expected_variance(float variance, float dispersion,
                                           float softcap) noexcept {
  const float most = softcap > 0.0F && softcap * softcap < max_expected_variance
                         ? softcap * softcap
                         : max_expected_variance;
  return variance * dispersion < most ? variance * dispersion : most;
}

/// @brief Expected error of an estimate relative to the node's mass: the scatter of a mean of `size` log-normal
/// weights, and half the bias that the variance's correction takes away, for what it leaves of it.
WAVEKV_HOST_DEVICE float expected_error(float variance, float size) noexcept {
  const float scatter = std::expm1(variance) / size;
  const float bias = 0.5F * std::expm1(0.5F * variance);
  return std::sqrt(scatter + bias * bias);
}

/// @brief Added to what squares are divided by: all of them may be 0.
inline constexpr float least_square = 1e-30F;

/// @brief Square of the error that a node typically brings into the output.
///
/// An expected error is a root mean square. Where logits scatter by more than one or two it is the mean over events so rare
/// that hardly a step sees one: nearly always the node then holds less than its estimate, and errs by at most that. So
/// e·w / √(e² + w²): e where e is small, never above w. Measured on 1,536 steps of error_bound (example model, diffuse; 33,408
/// tokens, budgets 1/8 to 16): within a factor 2 of the error in 74 % of them; by e itself, 58 %. At 131,072 tokens neither
/// does well: what hides in nodes that were not opened decides there (bench/README.md, "Rules side by side").
/// @param error   expected error, relative to the output
/// @param weight  the node's mass, in the same unit
WAVEKV_HOST_DEVICE float typical_square(float error, float weight) noexcept {
  const float square = error * error;
  const float most = weight * weight;
  return square * (most / (square + most + least_square));
}

/// @brief Largest logit to be expected among `size` tokens whose logits are normally distributed: the mean plus
/// σ·√(2·ln size) (the leading term of extreme value theory).
///
/// A lone needle in a node moves the node's mean little; how far its tokens reach tells more about where to look.
/// Measured on the example model, 32,768 tokens, 400 needles: ranking by the mean lost 7, by this 2 (README).
/// @param logit  that of the estimate, half the variance included
WAVEKV_HOST_DEVICE float expected_largest_logit(float logit, float variance, float size) noexcept {
  const float followed = variance < max_logit_variance ? variance : max_logit_variance;
  return logit - 0.5F * followed + std::sqrt(2.0F * variance * std::log(size > 1.0F ? size : 1.0F));
}

}  // namespace wavekv
