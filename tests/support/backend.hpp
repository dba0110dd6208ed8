// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <vector>

#include <wavekv/wavekv.hpp>

#include "archetypes/executors.hpp"

#ifdef WAVEKV_TEST_ON_EMULATED_DEVICE
#include "archetypes/bounds.cuh"
#include "cuda/emulated_runtime.hpp"
#include "cuda/host_cache.hpp"
#endif
#ifdef WAVEKV_TEST_ON_CUDA
#include <wavekv/cuda/backend.cuh>

#include "archetypes/bounds.cuh"
#include "cuda/host_cache.hpp"
#endif

/// @file backend.hpp
/// @brief The cache that the tests of tests/cache are about, by definitions of the preprocessor: the one on the CPU; with
/// WAVEKV_TEST_ON_EMULATED_DEVICE the one on a device, whose kernels run on the CPU (ctest programs cuda_cache_*); with
/// WAVEKV_TEST_ON_CUDA the same on a GPU (tests/cuda/device/cache_*_test.cu). A device cache stands behind a host_cache.

#if defined(WAVEKV_TEST_ON_EMULATED_DEVICE) || defined(WAVEKV_TEST_ON_CUDA)
#define WAVEKV_TEST_ON_DEVICE  ///< either of them
#endif

namespace wavekv_test {

#ifdef WAVEKV_TEST_ON_DEVICE

inline constexpr bool on_device = true;

#ifdef WAVEKV_TEST_ON_CUDA
using device_backend = wavekv::cuda;
inline constexpr bool is_slow = false;
#else
using device_backend = wavekv::basic_cuda<wavekv::testing::emulated_runtime>;
inline constexpr bool is_slow = true;
#endif

template <class S, class Index>
using tested_cache = host_cache<wavekv::kv_cache<S, Index, wavekv::wave_buffer<>, device_backend>>;

/// @brief Lets a cache run by an executor. On the emulated device it is the order of a launch's blocks and threads that
/// answers must not depend on; a GPU has its own.
template <class Options>
void run_on([[maybe_unused]] Options& options, [[maybe_unused]] const any_executor& executor) {
#ifdef WAVEKV_TEST_ON_EMULATED_DEVICE
  wavekv::testing::emulation_options emulation;
  switch (executor.which()) {
  case any_executor::kind::serial:
    break;
  case any_executor::kind::backward:
    emulation.order = wavekv::testing::schedule::backwards;
    break;
  default:
    emulation.order = wavekv::testing::schedule::random;
    emulation.seed = static_cast<unsigned>(executor.which());
  }
  options.runtime = wavekv::testing::emulated_runtime(emulation);
#endif
}

/// @brief The executors whose answers must agree bit for bit.
inline std::vector<any_executor> tested_executors() {
#ifdef WAVEKV_TEST_ON_CUDA
  return {any_executor(), any_executor()};  // answers must not depend on the run, either
#else
  return {any_executor(), {any_executor::kind::threads, 2}, {any_executor::kind::backward, 1}};
#endif
}

/// @brief Lets an answer be the same bits whatever it is asked beside: on a device the blocks that share a search are as many as
/// fill it, unless their number is chosen.
template <class Options>
void fix_sums(Options& options) {
  options.n_splits = 3;
}

/// @brief The dimension of a head that stands for this one: on a device they are multiples of 8.
constexpr std::size_t dim_like(std::size_t dim) { return (dim + 7) / 8 * 8; }

#else

inline constexpr bool on_device = false;
inline constexpr bool is_slow = false;

template <class S, class Index>
using tested_cache = wavekv::kv_cache<S, Index, wavekv::wave_buffer<>, wavekv::cpu<any_executor>>;

template <class Options>
void run_on(Options& options, const any_executor& executor) {
  options.executor = executor;
}

inline std::vector<any_executor> tested_executors() { return executors_to_compare(); }

template <class Options>
void fix_sums(Options& /*options*/) {}

constexpr std::size_t dim_like(std::size_t dim) { return dim; }

#endif

}  // namespace wavekv_test
