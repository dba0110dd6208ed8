// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <vector>

#include "safetensors.hpp"

namespace transformer {

/// @brief A linear layer: y = W x + b, with W in its stored type and the bias empty where there is
/// none.
struct linear {
  matrix_ref weight;        ///< [n_out, n_in]
  std::vector<float> bias;  ///< [n_out] or empty
};

/// @brief Applies a linear layer to some tokens. A few tokens (decode) read W once, row by row,
/// widened in registers: bound by memory. Many tokens (prefill) widen a block of W at a time and
/// multiply it by all of them (wavekv::simd::tile_product): bound by arithmetic. W is never widened
/// as a whole. Runs on OpenMP's threads; the result does not depend on their number. Keeps scratch
/// memory of up to 512 tokens per calling thread.
/// @param x [n_tokens, n_in]  @param y [n_tokens, n_out], overwritten
void apply(const linear& layer, const float* x, std::size_t n_tokens, float* y);

/// @brief Widens row `r` of a matrix. @param out [n_cols]
void copy_row(const matrix_ref& matrix, std::size_t r, float* out);

}  // namespace transformer
