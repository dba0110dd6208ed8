// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/index/bounds/error_bound.hpp>
#include <wavekv/index/bounds/verified_bound.hpp>

/// @file partial_bounds.hpp
/// @brief Bounds that leave something estimated however short the context is, for tests: in one of a few hundred tokens,
/// every token is one of which the defaults would read the cluster for what it may hide.

namespace wavekv_test {

/// @brief Reads some clusters and estimates the others.
inline wavekv::error_bound<> reads_some() {
  wavekv::error_bound<> bound;
  bound.epsilon = 0.01F;
  bound.free_tokens = 60;
  bound.max_open = 1.0F;
  bound.hidden_share = 0.0F;
  return bound;
}

/// @brief A verified_bound that depends on its check.
struct sampled_bound : wavekv::verified_bound<> {
  float accepted = 0.15F;  ///< the sampled error it takes for good enough; negative: none

  sampled_bound() { rule.hidden_share = 0.0F; }

  [[nodiscard]] constexpr bool accepts(float sampled_error) const noexcept {
    return sampled_error <= accepted;
  }
  [[nodiscard]] sampled_bound tightened() const noexcept {
    sampled_bound next = *this;
    static_cast<wavekv::verified_bound<>&>(next) = wavekv::verified_bound<>::tightened();
    return next;
  }
};

/// @brief Plans as reads_some does, and checks.
inline sampled_bound verifies() {
  sampled_bound bound;
  bound.samples = 16;
  bound.rule = reads_some();
  return bound;
}

}  // namespace wavekv_test
