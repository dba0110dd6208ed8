// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

namespace wavekv {

/// @brief A few queries of one KV head (a group, or the groups of several query tokens).
struct query_rows {
  const float* data = nullptr;  ///< [n, dim], the scale already in it
  std::size_t n = 0;            ///< queries
  std::size_t dim = 0;          ///< key_dim
  std::size_t stride = 0;       ///< floats from one query to the next
};

}  // namespace wavekv
