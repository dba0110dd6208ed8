// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/index/bounds/verified_bound.hpp>

/// @file sampled_bound.hpp
/// @brief A verified_bound that depends on its check, for tests.

namespace wavekv_test {

/// @brief Checks by sampling however short the context is: in one of a few hundred tokens, every token is one of which
/// verified_bound would read the cluster for what it may hide.
struct sampled_bound : wavekv::verified_bound<> {
  float accepted = 0.15F;  ///< the sampled error it takes for good enough; negative: none

  sampled_bound() { epsilon = 1e6F; }  // nothing is read for what it may hide

  [[nodiscard]] constexpr bool accepts(float sampled_error) const noexcept {
    return sampled_error <= accepted;
  }
  [[nodiscard]] sampled_bound tightened() const noexcept {
    sampled_bound next = *this;
    static_cast<wavekv::verified_bound<>&>(next) = wavekv::verified_bound<>::tightened();
    return next;
  }
};

}  // namespace wavekv_test
