// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <span>

#include <wavekv/index/frontier.hpp>

namespace wavekv {

/// @brief Full attention: every token is read. The oracle of the other bounds, and the dense baseline.
/// Models estimation_bound; since it reads everything no summary is looked at.
struct exact {
  static constexpr bool reads_everything = true;

  /// @brief Opens every node. Complexity: O(n_nodes).
  void plan(const frontier& /*nodes*/, std::span<zone> zones) const noexcept {
    std::ranges::fill(zones, zone::retrieval);
  }
};

}  // namespace wavekv
