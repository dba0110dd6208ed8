// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace transformer {

/// @brief RMSNorm: every row divided by its root mean square, times the weights.
/// @param x [n_rows, weights.size()]  @param y the same shape; may be x
inline void rms_norm(const std::vector<float>& weights, float epsilon, const float* x,
                     std::size_t n_rows, float* y) {
  const std::size_t dim = weights.size();
#pragma omp parallel for schedule(static) if (n_rows > 64)
  for (std::size_t r = 0; r < n_rows; ++r) {
    const float* in = x + r * dim;
    float* out = y + r * dim;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::size_t i = 0; i < dim; ++i) sum += in[i] * in[i];
    const float inverse = 1.0F / std::sqrt(sum / static_cast<float>(dim) + epsilon);
    for (std::size_t i = 0; i < dim; ++i) out[i] = in[i] * inverse * weights[i];
  }
}

}  // namespace transformer
