// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>

#include <wavekv/core/host_device.hpp>
#include <wavekv/cuda/block.hpp>

namespace transformer {

/// @brief RMSNorm on a device: the twin of rms_norm. Block x: the x-th row.
struct rms_norm_kernel {
  static constexpr unsigned n_threads = 256;

  const float* weights = nullptr;  ///< [dim]
  float epsilon = 0.0F;
  unsigned dim = 0;
  const float* x = nullptr;  ///< [n_blocks_x, dim]
  float* y = nullptr;        ///< the same shape, written; may be x

  [[nodiscard]] std::size_t shared_bytes() const {
    return n_threads / wavekv::device::warp_size * sizeof(float);
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    const std::size_t row = std::size_t{b.block_x()} * dim;
    float sum = 0.0F;
    for (unsigned i = b.thread(); i < dim; i += n_threads) {
      sum += x[row + i] * x[row + i];
    }
    sum = wavekv::device::block_sum(b, sum, reinterpret_cast<float*>(b.shared()));
    const float inverse = 1.0F / std::sqrt(sum / static_cast<float>(dim) + epsilon);
    for (unsigned i = b.thread(); i < dim; i += n_threads) {
      y[row + i] = x[row + i] * inverse * weights[i];
    }
  }
};

}  // namespace transformer
