// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <list>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/buffer/eviction.hpp>

#include "archetypes/buffers.hpp"
#include "conformance/eviction_law.hpp"

// Each policy beside a model of it that is written as its source says it, on random calls.

namespace {

using slots = std::list<std::size_t>;  // oldest first

/// Moves what is used to the end.
struct lru_model {
  explicit lru_model(std::size_t /*n_slots*/) {}
  slots filled;

  void touch(slots::iterator used) { filled.splice(filled.end(), filled, used); }
  void erase(slots::iterator left) { filled.erase(left); }
  std::size_t victim() {
    const std::size_t slot = filled.front();
    filled.pop_front();
    return slot;
  }
};

/// A queue; what was used goes round once more.
struct clock_model {
  explicit clock_model(std::size_t n_slots) : used(n_slots) {}
  slots filled;
  std::vector<bool> used;

  void touch(slots::iterator slot) { used[*slot] = true; }
  void erase(slots::iterator left) {
    used[*left] = false;
    filled.erase(left);
  }
  std::size_t victim() {
    for (;;) {
      const std::size_t slot = filled.front();
      filled.pop_front();
      if (!used[slot]) return slot;
      used[slot] = false;
      filled.push_back(slot);
    }
  }
};

/// Algorithm 1 of the paper, tail first.
struct sieve_model {
  explicit sieve_model(std::size_t n_slots) : used(n_slots) {}
  slots filled;
  std::vector<bool> used;
  slots::iterator hand = filled.end();

  void touch(slots::iterator slot) { used[*slot] = true; }
  void erase(slots::iterator left) {
    used[*left] = false;
    const slots::iterator next = filled.erase(left);
    if (hand == left) hand = next;
  }
  std::size_t victim() {
    slots::iterator at = hand == filled.end() ? filled.begin() : hand;
    while (used[*at]) {
      used[*at] = false;
      ++at;
      if (at == filled.end()) at = filled.begin();
    }
    const std::size_t slot = *at;
    hand = filled.erase(at);
    return slot;
  }
};

template <class Policy, class Model>
void compare(std::uint64_t seed) {
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  for (const std::size_t n_slots : {1U, 2U, 3U, 17U, 64U}) {
    Policy policy(n_slots);
    Model model(n_slots);
    std::vector<std::size_t> free(n_slots);
    for (std::size_t i = 0; i < n_slots; ++i) free[i] = i;
    for (int i = 0; i < 5000; ++i) {
      const std::size_t what = random() % 5;
      const auto any = [&] {
        return std::next(model.filled.begin(),
                         static_cast<std::ptrdiff_t>(random() % model.filled.size()));
      };
      if (what == 0 && !free.empty()) {
        const std::size_t at = random() % free.size();
        policy.insert(free[at]);
        model.filled.push_back(free[at]);
        free.erase(free.begin() + static_cast<std::ptrdiff_t>(at));
      } else if ((what == 1 || what == 4) && !model.filled.empty()) {
        const auto used = any();
        policy.touch(*used);
        model.touch(used);
      } else if (what == 2 && !model.filled.empty()) {
        const std::size_t expected = model.victim();
        REQUIRE(policy.victim() == expected);
        free.push_back(expected);
      } else if (what == 3 && !model.filled.empty()) {
        const auto left = any();
        policy.erase(*left);
        free.push_back(*left);
        model.erase(left);
      }
    }
    while (!model.filled.empty()) {
      const std::size_t expected = model.victim();
      REQUIRE(policy.victim() == expected);
    }
  }
}

}  // namespace

TEST_CASE("lru equals a list that moves what is used to its end") {
  for (const std::uint64_t seed : {1U, 2U, 3U}) compare<wavekv::eviction::lru, lru_model>(seed);
}

TEST_CASE("clock equals a queue in which what was used goes round once more") {
  for (const std::uint64_t seed : {4U, 5U, 6U}) compare<wavekv::eviction::clock, clock_model>(seed);
}

TEST_CASE("sieve equals its paper's algorithm") {
  for (const std::uint64_t seed : {7U, 8U, 9U}) compare<wavekv::eviction::sieve, sieve_model>(seed);
}

TEST_CASE("what each policy keeps when a scan passes through") {
  // Four slots: 0 and 1 are used again and again, 2 and 3 take what is seen once.
  const auto survivors = [](auto policy) {
    for (std::size_t slot = 0; slot < 4; ++slot) policy.insert(slot);
    std::vector<std::size_t> evicted;
    for (int i = 0; i < 8; ++i) {
      policy.touch(0);
      policy.touch(1);
      const std::size_t slot = policy.victim();
      evicted.push_back(slot);
      policy.insert(slot);
    }
    return std::count_if(evicted.begin(), evicted.end(), [](std::size_t slot) { return slot < 2; });
  };
  CHECK(survivors(wavekv_test::first_in_first_out(4)) == 4);
  CHECK(survivors(wavekv::eviction::lru(4)) == 0);
  CHECK(survivors(wavekv::eviction::clock(4)) == 0);
  CHECK(survivors(wavekv::eviction::sieve(4)) == 0);
}
