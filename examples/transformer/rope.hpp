// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <vector>

#include "config.hpp"

namespace transformer {

/// @brief Angular frequencies of the head_dim / 2 rotated pairs. The llama3 scaling keeps
/// wavelengths short against the original context, divides long ones by `factor`, and interpolates
/// between. Source: Hugging Face transformers, modeling_rope_utils.py.
std::vector<float> rope_frequencies(const rope_config& config, std::size_t head_dim);

/// @brief Cosines and sines of a run of positions: made once a chunk, used by every layer.
class rope_table {
 public:
  rope_table(const std::vector<float>& frequencies, std::size_t first_position,
             std::size_t n_positions);

  /// @brief Rotates every head of every token in place; a pair is (i, i + head_dim / 2), as in all
  /// these checkpoints.
  /// @param x [n_positions, n_heads, head_dim]
  void rotate(float* x, std::size_t n_heads) const;

 private:
  std::size_t half_;
  std::vector<float> cos_;  // [n_positions, half]
  std::vector<float> sin_;
};

}  // namespace transformer
