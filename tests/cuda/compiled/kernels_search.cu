// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The kernels of a search, as kernels.cu has the others': of bf16 with every dimension and the default bound; with each
// other bound, and of each other scalar, where models have most of them.
#include <wavekv/cuda/hardware_block.cuh>
#include <wavekv/index/bounds/error_bound.cuh>
#include <wavekv/index/bounds/fixed_budget.cuh>
#include <wavekv/index/bounds/verified_bound.cuh>
#include <wavekv/index/search_runner.cuh>

#include "instantiate.hpp"

/// @brief What an attend launches with a bound that plans.
#define WAVEKV_INSTANTIATE_SEARCH(Scalar, Bound, dim)                                              \
  WAVEKV_INSTANTIATE_KERNEL(score_kernel<Scalar, Bound, dim>);                                     \
  WAVEKV_INSTANTIATE_KERNEL(descend_kernel<Scalar, Bound, dim>);                                   \
  WAVEKV_INSTANTIATE_KERNEL(read_kernel<Scalar, Bound, dim>)

namespace wavekv::device {

WAVEKV_INSTANTIATE_KERNEL(lean_kernel<bf16>);
WAVEKV_INSTANTIATE_SEARCH(bf16, error_bound<>, 64);
WAVEKV_INSTANTIATE_SEARCH(bf16, error_bound<>, 128);
WAVEKV_INSTANTIATE_SEARCH(bf16, error_bound<>, 256);
WAVEKV_INSTANTIATE_SEARCH(bf16, fixed_budget, 128);
WAVEKV_INSTANTIATE_SEARCH(bf16, verified_bound<>, 128);
WAVEKV_INSTANTIATE_KERNEL(replan_kernel<bf16, verified_bound<>>);
WAVEKV_INSTANTIATE_KERNEL(check_kernel<bf16, verified_bound<>, 64>);
WAVEKV_INSTANTIATE_KERNEL(check_kernel<bf16, verified_bound<>, 128>);
WAVEKV_INSTANTIATE_KERNEL(read_all_kernel<bf16, 64>);
WAVEKV_INSTANTIATE_KERNEL(read_all_kernel<bf16, 128>);
WAVEKV_INSTANTIATE_KERNEL(read_all_kernel<bf16, 256>);
WAVEKV_INSTANTIATE_SEARCH(f16, error_bound<>, 128);
WAVEKV_INSTANTIATE_SEARCH(float, error_bound<>, 128);

}  // namespace wavekv::device
