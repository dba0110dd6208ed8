// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "config.hpp"

namespace transformer {

/// @brief How the next token is chosen.
struct sampling_options {
  float temperature = 0.0F;  ///< 0: greedy
  float top_p = 1.0F;        ///< smallest set of tokens with at least this much probability; 1: all
  std::uint64_t seed = 0;
};

/// @brief Index of the largest logit; the smaller of equals. -1 for no logits.
token_id greedy(std::span<const float> logits) noexcept;

/// @brief Chooses tokens; the same seed and logits give the same tokens on every machine.
class sampler {
 public:
  explicit sampler(sampling_options options) : options_(options), random_(options.seed) {}

  /// @brief The next token. Complexity: O(n log n) with top_p below 1, else O(n).
  token_id choose(std::span<const float> logits);

 private:
  double uniform();

  sampling_options options_;
  std::mt19937_64 random_;
  std::vector<std::pair<float, token_id>> candidates_;
};

}  // namespace transformer
