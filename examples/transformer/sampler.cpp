// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

namespace transformer {

token_id greedy(std::span<const float> logits) noexcept {
  if (logits.empty()) return -1;
  return static_cast<token_id>(std::ranges::max_element(logits) - logits.begin());
}

/// [0, 1) from the upper 53 bits: std::uniform_real_distribution may differ between standard
/// libraries.
double sampler::uniform() { return static_cast<double>(random_() >> 11U) * 0x1p-53; }

token_id sampler::choose(std::span<const float> logits) {
  if (options_.temperature <= 0.0F || logits.empty()) return greedy(logits);
  const float largest = *std::ranges::max_element(logits);
  candidates_.clear();
  double total = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float weight = std::exp((logits[i] - largest) / options_.temperature);
    candidates_.emplace_back(weight, static_cast<token_id>(i));
    total += weight;
  }
  if (options_.top_p < 1.0F) {
    std::ranges::sort(candidates_, [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    double kept = 0;
    std::size_t n = 0;
    while (n < candidates_.size() && (n == 0 || kept < options_.top_p * total))
      kept += candidates_[n++].first;
    candidates_.resize(n);
    total = kept;
  }
  double rest = uniform() * total;
  for (const auto& [weight, token] : candidates_) {
    rest -= weight;
    if (rest < 0) return token;
  }
  return candidates_.back().second;  // rounding used the last of it up
}

}  // namespace transformer
