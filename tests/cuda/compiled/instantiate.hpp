// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

/// @brief Instantiates a kernel, which may have commas in its name; inside namespace wavekv::device.
#define WAVEKV_INSTANTIATE_KERNEL(...)                                                             \
  template __global__ void run_kernel(const __grid_constant__ __VA_ARGS__)
