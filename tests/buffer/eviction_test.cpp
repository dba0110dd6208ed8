// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <list>
#include <random>

#include <doctest/doctest.h>

#include <wavekv/buffer/eviction.hpp>

#include "archetypes/buffers.hpp"
#include "conformance/eviction_law.hpp"

TEST_CASE("lru equals a list that moves what is used to its end") {
  std::mt19937_64 random(1);
  for (const std::size_t n_slots : {1U, 2U, 3U, 17U, 64U}) {
    wavekv::eviction::lru policy(n_slots);
    std::list<std::size_t> filled;  // least recently used first
    std::vector<std::size_t> free(n_slots);
    for (std::size_t i = 0; i < n_slots; ++i) free[i] = i;
    for (int i = 0; i < 5000; ++i) {
      const std::size_t what = random() % 4;
      const auto any = [&] {
        return std::next(filled.begin(), static_cast<std::ptrdiff_t>(random() % filled.size()));
      };
      if (what == 0 && !free.empty()) {
        const std::size_t at = random() % free.size();
        policy.insert(free[at]);
        filled.push_back(free[at]);
        free.erase(free.begin() + static_cast<std::ptrdiff_t>(at));
      } else if (what == 1 && !filled.empty()) {
        const auto used = any();
        policy.touch(*used);
        filled.splice(filled.end(), filled, used);
      } else if (what == 2 && !filled.empty()) {
        REQUIRE(policy.victim() == filled.front());
        free.push_back(filled.front());
        filled.pop_front();
      } else if (what == 3 && !filled.empty()) {
        const auto left = any();
        policy.erase(*left);
        free.push_back(*left);
        filled.erase(left);
      }
    }
    for (; !filled.empty(); filled.pop_front()) REQUIRE(policy.victim() == filled.front());
  }
}
