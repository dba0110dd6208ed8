// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/executor.hpp>

#include "conformance/eviction_law.hpp"

/// @file core_law.hpp
/// @brief The laws of wavekv::scalar and wavekv::executor. Run your own type through them.

namespace wavekv_test {

/// @brief Conversions round to nearest, keep what is stored, keep signs and order, and tell a NaN.
/// For scalars whose numbers lie as bf16's, f16's and float's do; one with a few steps only need not fit.
template <wavekv::scalar S>
verdict scalar_law() {
  using wavekv::from_float;
  using wavekv::to_float;
  const auto stored = [](float x) { return to_float(from_float<S>(x)); };
  const float epsilon = wavekv::scalar_traits<S>::epsilon;
  if (std::string(wavekv::scalar_traits<S>::name).empty()) return "the name is empty";
  if (!(epsilon > 0.0F && epsilon < 1.0F)) return "epsilon is not between 0 and 1";
  if (stored(1.0F) != 1.0F || stored(0.0F) != 0.0F || stored(-1.0F) != -1.0F) {
    return "0, 1 or -1 cannot be stored";
  }
  if (stored(1.0F + epsilon) != 1.0F + epsilon) return "1 + epsilon cannot be stored";
  if (epsilon > 0x1p-22F && stored(1.0F + 0.5F * epsilon) != 1.0F)
    return "a tie does not go to even";
  if (!std::isnan(stored(std::numeric_limits<float>::quiet_NaN()))) return "NaN becomes a number";
  if (!std::isinf(stored(std::numeric_limits<float>::infinity())))
    return "infinity becomes a number";
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  float before = -HUGE_VALF;
  std::vector<float> numbers(4096);
  std::ranges::generate(numbers, [&] { return normal(random) * std::exp(4.0F * normal(random)); });
  std::ranges::sort(numbers);
  for (const float x : numbers) {
    if (std::abs(x) < 1e-3F || std::abs(x) > 1e4F) continue;  // the normal range of every scalar
    const float y = stored(x);
    if (std::abs(y - x) > 0.5F * epsilon * std::abs(x))
      return "a number moves by more than half a step";
    if (stored(y) != y) return "what was stored changes when it is stored again";
    if (stored(-x) != -y) return "the sign matters to the rounding";
    if (y < before) return "the order of two numbers changes";
    before = y;
  }
  return {};
}

/// @brief Every task runs once; no two at once share a worker; an exception comes out, once all is still;
/// several threads may use one executor at the same time.
template <wavekv::executor Executor>
verdict executor_law(Executor executor) {
  const std::size_t n_workers = executor.concurrency();
  if (n_workers < 1) return "concurrency() is 0";
  for (const std::size_t n : {0U, 1U, 2U, 3U, 100U}) {
    std::vector<std::atomic<int>> runs(n);
    std::vector<std::atomic<int>> busy(n_workers);
    std::atomic<bool> shared_worker{false};
    std::atomic<bool> no_such_worker{false};
    auto task = [&, owner = std::unique_ptr<int>()](std::size_t i, std::size_t worker) {
      (void)owner;  // the task cannot be copied
      if (worker >= n_workers) {
        no_such_worker = true;
        return;
      }
      if (busy[worker]++ != 0) shared_worker = true;
      ++runs[i];
      --busy[worker];
    };
    executor.parallel_for(n, task);
    for (const auto& run : runs) {
      if (run != 1) return "a task did not run exactly once before parallel_for returned";
    }
    if (no_such_worker) return "a worker's number is not below concurrency()";
    if (shared_worker) return "two tasks that ran at once had the same worker";
  }
  std::atomic<int> running{0};
  try {
    auto task = [&running](std::size_t i, std::size_t) {
      ++running;
      if (i == 3) {
        --running;
        throw std::runtime_error("task failed");
      }
      --running;
    };
    executor.parallel_for(std::size_t{20}, task);
    return "a task's exception is lost";
  } catch (const std::runtime_error& error) {
    if (std::string(error.what()) != "task failed") return "another exception comes out";
  }
  if (running != 0) return "a task still ran when its sibling's exception came out";

  std::atomic<int> sum{0};
  const auto use = [&] {
    for (int repeat = 0; repeat < 5; ++repeat) {
      auto task = [&sum](std::size_t i, std::size_t) { sum += static_cast<int>(i); };
      executor.parallel_for(std::size_t{10}, task);
    }
  };
  std::thread one(use);
  std::thread two(use);
  one.join();
  two.join();
  return sum == 2 * 5 * 45 ? "" : "two threads cannot use the executor at the same time";
}

}  // namespace wavekv_test
