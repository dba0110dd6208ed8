// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

/// @file host_device.hpp
/// @brief Marks for what kernels and the host share: empty without a CUDA compiler.

#if defined(__CUDACC__)
#define WAVEKV_DEVICE __device__ __forceinline__
#define WAVEKV_HOST_DEVICE __host__ __device__ __forceinline__
#define WAVEKV_DEVICE_CALL __device__ __noinline__
#define WAVEKV_UNROLL _Pragma("unroll")
#else
/// @brief Marks what kernels call.
#define WAVEKV_DEVICE inline
/// @brief Marks what kernels and the host call.
#define WAVEKV_HOST_DEVICE inline
/// @brief Marks what kernels call and do once: on its own, it takes no registers from the loops beside it.
#define WAVEKV_DEVICE_CALL inline
/// @brief Before a loop over a fixed number of registers.
#define WAVEKV_UNROLL
#endif
