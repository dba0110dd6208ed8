// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/cuda/backend.hpp>
#include <wavekv/cuda/cuda_runtime.cuh>

/// @file backend.cuh
/// @brief wavekv::cuda.

namespace wavekv {

/// @brief Computes on a CUDA device of compute capability 8.0 or above, on the caller's streams.
using cuda = basic_cuda<device::cuda_runtime>;

}  // namespace wavekv
