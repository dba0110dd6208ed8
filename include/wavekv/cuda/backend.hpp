// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/cuda/runtime.hpp>

/// @file backend.hpp
/// @brief The CUDA backend as a type: what a cache's last slot names.

namespace wavekv {

/// @brief Computes on a device; the cache is in <wavekv/cache/kv_cache.cuh>.
/// @tparam Runtime  models device::device_runtime. wavekv::cuda, from <wavekv/cuda/backend.cuh>, names CUDA's.
template <device::device_runtime Runtime>
struct basic_cuda {
  using runtime_type = Runtime;  ///< what a cache keeps one of
};

}  // namespace wavekv
