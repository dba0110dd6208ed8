// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <wavekv/cpu/executor.hpp>

/// @file executors.hpp
/// @brief Executors as a user might write them: plain threads, and one that is as odd as the concept allows.

namespace wavekv_test {

/// @brief Starts std::threads for every parallel_for; the simplest thing that works. Safe for concurrent use.
class thread_executor {
 public:
  explicit thread_executor(std::size_t n_threads = 2) : n_threads_(n_threads) {}

  std::size_t concurrency() const { return n_threads_; }

  template <class F>
  void parallel_for(std::size_t n, F&& f) const {
    std::atomic<std::size_t> next{0};
    std::mutex mutex;
    std::exception_ptr failure;
    const auto work = [&](std::size_t worker) {
      for (std::size_t task = next++; task < n; task = next++) {
        try {
          f(task, worker);
        } catch (...) {
          const std::lock_guard lock(mutex);
          if (!failure) failure = std::current_exception();
          next = n;
        }
      }
    };
    std::vector<std::thread> threads;
    for (std::size_t worker = 1; worker < std::min(n, n_threads_); ++worker) {
      threads.emplace_back(work, worker);
    }
    work(0);
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
  }

 private:
  std::size_t n_threads_;
};

/// @brief One thread, but tasks run backwards and under ever-changing worker numbers: whoever relies on
/// an order or on "worker 0 comes first" is found out.
struct backward_executor {
  static constexpr std::size_t n_workers = 5;

  std::size_t concurrency() const { return n_workers; }

  template <class F>
  void parallel_for(std::size_t n, F&& f) {
    for (std::size_t task = n; task-- > 0;) f(task, (task * 3 + 1) % n_workers);
  }
};

/// @brief Any of the above, chosen at run time: one cache type serves them all.
class any_executor {
 public:
  enum class kind { serial, openmp, threads, backward };

  any_executor(kind which = kind::serial, std::size_t n_threads = 1)  // NOLINT: converts on purpose
      : kind_(which), openmp_(which == kind::openmp ? n_threads : 1), threads_(n_threads) {}

  [[nodiscard]] kind which() const { return kind_; }

  std::size_t concurrency() const {
    switch (kind_) {
    case kind::openmp:
      return openmp_.concurrency();
    case kind::threads:
      return threads_.concurrency();
    case kind::backward:
      return backward_executor::n_workers;
    default:
      return 1;
    }
  }

  template <class F>
  void parallel_for(std::size_t n, F&& f) const {
    switch (kind_) {
    case kind::openmp:
      openmp_.parallel_for(n, f);
      break;
    case kind::threads:
      threads_.parallel_for(n, f);
      break;
    case kind::backward:
      backward_executor{}.parallel_for(n, f);
      break;
    default:
      wavekv::serial_executor{}.parallel_for(n, f);
    }
  }

 private:
  kind kind_;
  wavekv::openmp_executor openmp_;
  thread_executor threads_;
};

/// @brief The executors whose answers must agree bit for bit.
inline std::vector<any_executor> executors_to_compare() {
  return {any_executor(),
          {any_executor::kind::openmp, 2},
          {any_executor::kind::threads, 2},
          {any_executor::kind::backward, 1}};
}

}  // namespace wavekv_test
