// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The kernels of a search that want the most registers: heads of 256, and rows of float, which are three operands each.
#include <wavekv/cuda/hardware_block.cuh>
#include <wavekv/index/bounds/error_bound.cuh>
#include <wavekv/index/bounds/verified_bound.cuh>
#include <wavekv/index/search_runner.cuh>

#include "instantiate.hpp"

namespace wavekv::device {

WAVEKV_INSTANTIATE_SEARCH(bf16, error_bound<>, 256);
WAVEKV_INSTANTIATE_KERNEL(check_kernel<bf16, verified_bound<>, 256>);
WAVEKV_INSTANTIATE_KERNEL(read_all_kernel<bf16, 256>);
WAVEKV_INSTANTIATE_SEARCH(float, error_bound<>, 128);
WAVEKV_INSTANTIATE_SEARCH(float, error_bound<>, 256);
WAVEKV_INSTANTIATE_KERNEL(check_kernel<float, verified_bound<>, 256>);
WAVEKV_INSTANTIATE_KERNEL(read_all_kernel<float, 256>);

}  // namespace wavekv::device
