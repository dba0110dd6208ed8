// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

/// @brief Instantiates a kernel, which may have commas in its name; inside namespace wavekv::device.
#define WAVEKV_INSTANTIATE_KERNEL(...)                                                             \
  template __global__ void run_kernel(const __grid_constant__ __VA_ARGS__)

/// @brief What an attend launches with a bound that plans.
#define WAVEKV_INSTANTIATE_SEARCH(Scalar, Bound, dim)                                              \
  WAVEKV_INSTANTIATE_KERNEL(score_kernel<Scalar, Bound, dim>);                                     \
  WAVEKV_INSTANTIATE_KERNEL(descend_kernel<Scalar, Bound, dim>);                                   \
  WAVEKV_INSTANTIATE_KERNEL(read_kernel<Scalar, Bound, dim>)
