// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "rope.hpp"

#include <cmath>
#include <numbers>

namespace transformer {
namespace {

double llama3_scaled(double frequency, const rope_config& config) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double low_wavelength = config.original_context / config.low_freq_factor;
  const double high_wavelength = config.original_context / config.high_freq_factor;
  if (wavelength < high_wavelength) return frequency;
  if (wavelength > low_wavelength) return frequency / config.factor;
  const double smooth = (config.original_context / wavelength - config.low_freq_factor) /
                        (config.high_freq_factor - config.low_freq_factor);
  return (1 - smooth) * frequency / config.factor + smooth * frequency;
}

}  // namespace

std::vector<float> rope_frequencies(const rope_config& config, std::size_t head_dim) {
  std::vector<float> frequencies(head_dim / 2);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    double frequency =
        std::pow(config.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    if (config.scaling == rope_config::kind::linear) frequency /= config.factor;
    if (config.scaling == rope_config::kind::llama3) frequency = llama3_scaled(frequency, config);
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

rope_table::rope_table(const std::vector<float>& frequencies, std::size_t first_position,
                       std::size_t n_positions)
    : half_(frequencies.size()), cos_(n_positions * half_), sin_(n_positions * half_) {
#pragma omp parallel for schedule(static) if (n_positions > 64)
  for (std::size_t p = 0; p < n_positions; ++p) {
    // The product is rounded to float, as where these models were trained; at large positions that
    // is visible.
    const auto position = static_cast<float>(first_position + p);
    for (std::size_t i = 0; i < half_; ++i) {
      const float angle = position * frequencies[i];
      cos_[p * half_ + i] = std::cos(angle);
      sin_[p * half_ + i] = std::sin(angle);
    }
  }
}

void rope_table::rotate(float* x, std::size_t n_heads) const {
  const std::size_t n_positions = half_ == 0 ? 0 : cos_.size() / half_;
#pragma omp parallel for schedule(static) if (n_positions > 64)
  for (std::size_t p = 0; p < n_positions; ++p) {
    const float* cosines = cos_.data() + p * half_;
    const float* sines = sin_.data() + p * half_;
    for (std::size_t h = 0; h < n_heads; ++h) {
      float* first = x + (p * n_heads + h) * 2 * half_;
      float* second = first + half_;
      for (std::size_t i = 0; i < half_; ++i) {
        const float a = first[i];
        const float b = second[i];
        first[i] = a * cosines[i] - b * sines[i];
        second[i] = b * cosines[i] + a * sines[i];
      }
    }
  }
}

}  // namespace transformer
