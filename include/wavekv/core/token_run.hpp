// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

#include <wavekv/core/scalar.hpp>

namespace wavekv {

/// @brief Tokens whose keys, and whose values, lie behind each other.
template <scalar S>
struct token_run {
  const S* keys = nullptr;    ///< [n, key_dim] contiguous
  const S* values = nullptr;  ///< [n, value_dim] contiguous
  std::size_t n = 0;          ///< tokens
};

}  // namespace wavekv
