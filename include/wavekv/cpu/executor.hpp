// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <exception>

#if defined(_OPENMP)
#include <omp.h>
#endif

/// @file executor.hpp
/// @brief Who runs the tasks of a step: one thread, OpenMP's, or a user's own.

namespace wavekv {

namespace detail {
/// A task body as the concept sees it; real ones are lambdas.
struct archetypal_task {
  void operator()(std::size_t task, std::size_t worker) const;
};
}  // namespace detail

/// @brief Runs numbered tasks, at the same time where it can.
///
/// | expression              | returns       | semantics                                                    |
/// |-------------------------|---------------|--------------------------------------------------------------|
/// | `ex.concurrency()`      | `std::size_t` | workers that may run at once, at least 1; constant over the life of `ex` |
/// | `ex.parallel_for(n, f)` | `void`        | calls `f(task, worker)` once for every task in [0, n), in any order, with worker < concurrency(); no two calls that run at once within one parallel_for have the same worker; returns when all have returned; everything they wrote is visible then. When a call throws, tasks not yet begun may be left out, and the first exception is rethrown |
///
/// All required. The cache calls `parallel_for` from whatever thread its user calls the cache from, so an executor
/// that serves several layers at once must allow several `parallel_for` at the same time; a worker number is unique
/// within one of them. `f` is called as an lvalue, may be called from any thread, and is not copied.
/// A task never calls `parallel_for` of its own executor, unless its user's code does.
///
/// Results of the library do not depend on the executor: how work is cut into tasks never looks at concurrency().
template <class Executor>
concept executor = std::movable<Executor> && requires(Executor& ex, const Executor& constant,
                                                      std::size_t n, detail::archetypal_task& f) {
  { constant.concurrency() } -> std::convertible_to<std::size_t>;
  ex.parallel_for(n, f);
};

/// @brief Runs every task on the calling thread, in order.
struct serial_executor {
  /// @brief 1.
  static constexpr std::size_t concurrency() noexcept { return 1; }

  /// @brief f(0, 0), …, f(n - 1, 0); an exception passes straight through.
  template <class F>
  void parallel_for(std::size_t n, F&& f) const {
    for (std::size_t task = 0; task < n; ++task) f(task, std::size_t{0});
  }
};

/// @brief Runs tasks on an OpenMP team; each worker takes the next task when it is done with its last.
///
/// Copies are independent and cheap. Without OpenMP (no -fopenmp) it has one worker. Within a parallel region of
/// the user's, OpenMP's own rule for nesting decides how many threads a team gets; one is always enough.
class openmp_executor {
 public:
  /// @brief As many workers as omp_get_max_threads() allows at this moment (OMP_NUM_THREADS, by default one a core).
  openmp_executor() : openmp_executor(0) {}

  /// @param n_threads  workers; 0: as the default constructor
  explicit openmp_executor(std::size_t n_threads) noexcept
      : n_threads_(n_threads != 0 ? n_threads : default_threads()) {}

  /// @brief Workers of a team.
  [[nodiscard]] std::size_t concurrency() const noexcept { return n_threads_; }

  /// @brief See wavekv::executor. One task, or one worker, runs on the calling thread without a team.
  template <class F>
  void parallel_for(std::size_t n, F&& f) const {
#if defined(_OPENMP)
    const std::size_t n_workers = std::min(n, n_threads_);
    if (n_workers > 1) {
      run_team(n, n_workers, f);
      return;
    }
#endif
    serial_executor{}.parallel_for(n, f);
  }

 private:
  static std::size_t default_threads() noexcept {
#if defined(_OPENMP)
    return static_cast<std::size_t>(std::max(1, omp_get_max_threads()));
#else
    return 1;
#endif
  }

#if defined(_OPENMP)
  template <class F>
  static void run_team(std::size_t n, std::size_t n_workers, F& f) {
    std::atomic<std::size_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr failure;  // written by the one worker that sets failed, read after the join
#pragma omp parallel num_threads(static_cast<int>(n_workers)) default(none)                        \
    shared(n, f, next, failed, failure)
    {
      const auto worker = static_cast<std::size_t>(omp_get_thread_num());
      for (;;) {
        const std::size_t task = next.fetch_add(1, std::memory_order_relaxed);
        if (task >= n || failed.load(std::memory_order_relaxed)) break;
        try {  // an exception must not leave a parallel region
          f(task, worker);
        } catch (...) {
          if (!failed.exchange(true)) failure = std::current_exception();
        }
      }
    }
    if (failure) std::rethrow_exception(failure);
  }
#endif

  std::size_t n_threads_;
};

static_assert(executor<serial_executor> && executor<openmp_executor>);

}  // namespace wavekv
