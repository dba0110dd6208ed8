// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <atomic>
#include <chrono>
#include <cstddef>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cpu/backend.hpp>
#include <wavekv/cpu/executor.hpp>

namespace {

// A user's own executor: a fresh thread a worker, tasks dealt round.
class thread_executor {
 public:
  [[nodiscard]] std::size_t concurrency() const noexcept { return 3; }

  template <class F>
  void parallel_for(std::size_t n, F&& f) {
    std::vector<std::thread> threads;
    for (std::size_t worker = 0; worker < concurrency(); ++worker) {
      threads.emplace_back([&, worker] {
        for (std::size_t task = worker; task < n; task += 3) f(task, worker);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

struct no_concurrency {
  template <class F>
  void parallel_for(std::size_t, F&&) {}
};

struct no_worker_argument {
  [[nodiscard]] std::size_t concurrency() const { return 1; }
  void parallel_for(std::size_t n, void (*f)(std::size_t)) {
    for (std::size_t task = 0; task < n; ++task) f(task);
  }
};

static_assert(wavekv::executor<wavekv::serial_executor>);
static_assert(wavekv::executor<wavekv::openmp_executor>);
static_assert(wavekv::executor<thread_executor>);
static_assert(!wavekv::executor<no_concurrency>);
static_assert(!wavekv::executor<no_worker_argument>);
static_assert(!wavekv::executor<int>);
static_assert(std::is_same_v<wavekv::cpu<>::executor_type, wavekv::openmp_executor>);
static_assert(
    std::is_same_v<wavekv::cpu<>::with_executor<thread_executor>, wavekv::cpu<thread_executor>>);

// Every task once, workers in range, no worker in two places at once.
template <class Executor>
void check_law(Executor& ex) {
  REQUIRE(ex.concurrency() >= 1);
  for (const std::size_t n : {0, 1, 2, 3, 7, 1000}) {
    std::vector<std::atomic<int>> calls(n);
    std::vector<std::atomic<int>> inside(ex.concurrency());
    std::atomic<int> violations{0};
    ex.parallel_for(n, [&](std::size_t task, std::size_t worker) {
      if (task >= n || worker >= inside.size() || inside[worker].fetch_add(1) != 0) {
        ++violations;
        return;
      }
      ++calls[task];
      inside[worker].fetch_sub(1);
    });
    CHECK(violations == 0);
    for (const auto& count : calls) CHECK(count == 1);
  }
}

}  // namespace

TEST_CASE("executors run every task once") {
  wavekv::serial_executor serial;
  check_law(serial);
  for (const std::size_t n_threads : {0, 1, 2, 5}) {
    wavekv::openmp_executor openmp(n_threads);
    if (n_threads != 0) CHECK(openmp.concurrency() == n_threads);
    check_law(openmp);
  }
  thread_executor own;
  check_law(own);
}

TEST_CASE("openmp_executor uses several threads") {
  wavekv::openmp_executor ex(2);
  std::atomic<int> arrived{0};
  std::atomic<bool> met{false};
  // Each task waits for the other (for a while): only threads that run at once meet.
  ex.parallel_for(2, [&](std::size_t, std::size_t) {
    ++arrived;
    for (int i = 0; i < 2000 && !met; ++i) {
      if (arrived == 2) met = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
#if defined(_OPENMP)
  CHECK(met);
#endif
}

TEST_CASE("an exception of a task reaches the caller, and the executor works on") {
  wavekv::serial_executor serial;
  CHECK_THROWS_AS(
      serial.parallel_for(3, [](std::size_t, std::size_t) { throw std::domain_error("a"); }),
      std::domain_error);
  for (const std::size_t n_threads : {1, 2, 4}) {
    wavekv::openmp_executor ex(n_threads);
    for (const std::size_t failing : {0, 17, 99}) {
      std::atomic<int> calls{0};
      CHECK_THROWS_WITH_AS(ex.parallel_for(100,
                                           [&](std::size_t task, std::size_t) {
                                             ++calls;
                                             if (task == failing) throw std::domain_error("task");
                                           }),
                           "task", std::domain_error);
      CHECK(calls <= 100);
      check_law(ex);
    }
    // All fail: one of the exceptions arrives, the others are dropped.
    CHECK_THROWS_AS(
        ex.parallel_for(50, [](std::size_t, std::size_t) { throw std::domain_error("all"); }),
        std::domain_error);
  }
}

TEST_CASE("parallel_for inside a task, and from several threads") {
  wavekv::openmp_executor ex(2);
  std::atomic<int> sum{0};
  ex.parallel_for(4, [&](std::size_t, std::size_t) {
    ex.parallel_for(10, [&](std::size_t task, std::size_t worker) {
      if (worker < ex.concurrency()) sum += static_cast<int>(task);
    });
  });
  CHECK(sum == 4 * 45);

  sum = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 50; ++repeat)
        ex.parallel_for(10, [&](std::size_t task, std::size_t) { sum += static_cast<int>(task); });
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(sum == 3 * 50 * 45);
}
