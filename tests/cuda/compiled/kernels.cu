// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Every kernel of the library, instantiated as its caches instantiate it. bench/cuda/resources.txt says what each needs;
// one that is added here is added there by `bash bench/cuda/resources.sh --update`.
#include <wavekv/cuda/hardware_block.cuh>

#include "sample_kernel.cuh"

/// @brief Instantiates a kernel, which may have commas in its name.
#define WAVEKV_INSTANTIATE_KERNEL(...)                                                             \
  template __global__ void run_kernel(const __grid_constant__ __VA_ARGS__)

namespace wavekv::device {

WAVEKV_INSTANTIATE_KERNEL(testing::sample_kernel<false>);
WAVEKV_INSTANTIATE_KERNEL(testing::sample_kernel<true>);

}  // namespace wavekv::device
