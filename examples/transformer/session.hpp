// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "full_attention.hpp"
#include "sliding_window.hpp"

namespace transformer {

/// @brief All that one sequence remembers between steps: its position, and keys and values of every
/// layer.
struct session {
  std::unique_ptr<full_attention> attention;  ///< the full-attention layers
  std::vector<sliding_window> windows;        ///< one per sliding-window layer
  std::size_t n_tokens = 0;

  /// @brief A second session that begins as a copy of this one, its full attention answered by
  /// `forked`.
  session fork(std::unique_ptr<full_attention> forked) const {
    return {std::move(forked), windows, n_tokens};
  }
  session fork() const { return fork(attention->fork()); }
};

}  // namespace transformer
