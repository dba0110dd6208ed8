// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <wavekv/core/host_device.hpp>
#include <wavekv/cuda/block.hpp>

/// @file rope.cuh
/// @brief Rotated heads on a device: the twin of rope.hpp. Frequencies, with their scaling, are those of the CPU.

namespace transformer {

/// @brief Cosines and sines of a run of positions: the twin of rope_table. Block x: the x-th position.
struct rope_table_kernel {
  static constexpr unsigned n_threads = 64;

  const std::uint32_t* first_position =
      nullptr;  ///< read here, so that a captured graph may be launched again
  const float* frequencies = nullptr;  ///< [half]
  unsigned half = 0;
  float* cosines = nullptr;  ///< [n_blocks_x, half], written
  float* sines = nullptr;    ///< likewise

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    const auto position = static_cast<float>(*first_position + b.block_x());
    for (unsigned i = b.thread(); i < half; i += n_threads) {
      const float angle =
          position * frequencies[i];  // rounded to float, as where these models were trained
      cosines[std::size_t{b.block_x()} * half + i] = std::cos(angle);
      sines[std::size_t{b.block_x()} * half + i] = std::sin(angle);
    }
  }
};

/// @brief What becomes of query and key heads before attention: RMSNorm where the family has it, and rotation where the
/// layer has it. In place. Block (x, y): head y of token x; query heads first, then key heads.
struct heads_kernel {
  static constexpr unsigned n_threads = 64;

  float* heads = nullptr;  ///< [n_blocks_x, stride]; a token's heads come first in its row
  std::size_t stride = 0;  ///< floats from token to token
  unsigned n_query_heads = 0;
  unsigned head_dim = 0;              ///< even
  const float* query_norm = nullptr;  ///< [head_dim] or null: no norm
  const float* key_norm = nullptr;    ///< likewise
  float epsilon = 0.0F;               ///< of the norm
  const float* cosines = nullptr;     ///< [n_blocks_x, head_dim / 2] or null: no rotation
  const float* sines = nullptr;       ///< likewise

  [[nodiscard]] std::size_t shared_bytes() const {
    return n_threads / wavekv::device::warp_size * sizeof(float);
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    const unsigned half = head_dim / 2;
    float* const first = heads + b.block_x() * stride + std::size_t{b.block_y()} * head_dim;
    float* const second = first + half;
    const float* const norm = b.block_y() < n_query_heads ? query_norm : key_norm;
    float inverse = 1.0F;
    if (norm != nullptr) {
      float sum = 0.0F;
      for (unsigned i = b.thread(); i < head_dim; i += n_threads) {
        sum += first[i] * first[i];
      }
      sum = wavekv::device::block_sum(b, sum, reinterpret_cast<float*>(b.shared()));
      inverse = 1.0F / std::sqrt(sum / static_cast<float>(head_dim) + epsilon);
    }
    for (unsigned i = b.thread(); i < half; i += n_threads) {  // a pair is (i, i + half)
      float x = first[i];
      float y = second[i];
      if (norm != nullptr) {
        x *= inverse * norm[i];
        y *= inverse * norm[half + i];
      }
      if (cosines != nullptr) {
        const float cosine = cosines[std::size_t{b.block_x()} * half + i];
        const float sine = sines[std::size_t{b.block_x()} * half + i];
        const float rotated = x * cosine - y * sine;
        y = y * cosine + x * sine;
        x = rotated;
      }
      first[i] = x;
      second[i] = y;
    }
  }
};

}  // namespace transformer
