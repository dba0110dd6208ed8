// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <variant>

#include <wavekv/wavekv.hpp>

namespace transformer {

/// @brief An estimation bound of our own: nothing but sink and window is read, the rest is dropped.
/// It answers no question about the far past; beside the others it shows what retrieval is for.
struct window_only {
  static constexpr bool drops = true;

  void plan(const wavekv::frontier&, std::span<wavekv::zone> zones) const noexcept {
    std::ranges::fill(zones, wavekv::zone::dropped);
  }
};

/// @brief The bounds that can be chosen on the command line; attend takes any of them per call.
using any_bound = std::variant<wavekv::exact, wavekv::fixed_budget, wavekv::error_bound<>,
                               wavekv::verified_bound<>, window_only>;

}  // namespace transformer
