// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/cpu/executor.hpp>

/// @file backend.hpp
/// @brief The CPU backend as a type: what a cache's last slot names.

namespace wavekv {

/// @brief Computes on the CPU, with the SIMD leaves of <wavekv/cpu/simd.hpp>, on the threads of an executor.
/// @tparam Executor  models wavekv::executor
template <class Executor = openmp_executor>
struct cpu {
  static_assert(executor<Executor>,
                "cpu: Executor must model wavekv::executor (concurrency() const -> std::size_t, "
                "parallel_for(n, f) calling f(task, worker)); see <wavekv/cpu/executor.hpp>");

  using executor_type = Executor;  ///< the executor a cache keeps one of

  /// @brief The same backend on another executor.
  template <class Other>
  using with_executor = cpu<Other>;
};

}  // namespace wavekv
