// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The kernels that change what a layer holds, as kernels.cu has the others'.
#include <wavekv/cache/layer_kernels.cuh>
#include <wavekv/cache/step_report.cuh>
#include <wavekv/cuda/hardware_block.cuh>

#include "instantiate.hpp"

namespace wavekv::device {

WAVEKV_INSTANTIATE_KERNEL(append_kernel<bf16>);
WAVEKV_INSTANTIATE_KERNEL(take_counts_kernel);
WAVEKV_INSTANTIATE_KERNEL(set_layer_kernel<bf16>);
WAVEKV_INSTANTIATE_KERNEL(copy_ring_kernel<bf16>);
WAVEKV_INSTANTIATE_KERNEL(publish_kernel<bf16>);
WAVEKV_INSTANTIATE_KERNEL(refit_kernel<bf16>);
WAVEKV_INSTANTIATE_KERNEL(reopen_kernel<bf16>);

}  // namespace wavekv::device
