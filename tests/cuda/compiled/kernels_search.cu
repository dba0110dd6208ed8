// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The kernels of a search, as kernels.cu has the others': of bf16 with every dimension and the default bound; with each
// other bound, and of f16, where models have most of them. kernels_search_wide.cu has those that want the most registers.
#include <wavekv/cuda/hardware_block.cuh>
#include <wavekv/index/bounds/error_bound.cuh>
#include <wavekv/index/bounds/fixed_budget.cuh>
#include <wavekv/index/bounds/verified_bound.cuh>
#include <wavekv/index/search_runner.cuh>

#include "instantiate.hpp"

namespace wavekv::device {

WAVEKV_INSTANTIATE_KERNEL(lean_kernel<bf16>);
WAVEKV_INSTANTIATE_SEARCH(bf16, error_bound<>, 64);
WAVEKV_INSTANTIATE_SEARCH(bf16, error_bound<>, 128);
WAVEKV_INSTANTIATE_SEARCH(bf16, fixed_budget, 128);
WAVEKV_INSTANTIATE_SEARCH(bf16, verified_bound<>, 128);
WAVEKV_INSTANTIATE_KERNEL(replan_kernel<bf16, verified_bound<>>);
WAVEKV_INSTANTIATE_KERNEL(check_kernel<bf16, verified_bound<>, 64>);
WAVEKV_INSTANTIATE_KERNEL(check_kernel<bf16, verified_bound<>, 128>);
WAVEKV_INSTANTIATE_KERNEL(read_all_kernel<bf16, 64>);
WAVEKV_INSTANTIATE_KERNEL(read_all_kernel<bf16, 128>);
WAVEKV_INSTANTIATE_SEARCH(f16, error_bound<>, 128);

}  // namespace wavekv::device
