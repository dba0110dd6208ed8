// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <wavekv/buffer/concepts.hpp>

/// @file eviction_law.hpp
/// @brief The law of wavekv::eviction_policy. Run your own policy through it.

namespace wavekv_test {

/// @brief What a law found: empty when it holds, else what was broken, in words.
using verdict = std::string;

/// @brief A victim is always a filled slot, each slot is filled once, and slots come back when they are free.
template <wavekv::eviction_policy Eviction>
verdict eviction_law(std::uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  for (const std::size_t n_slots : {1U, 2U, 5U, 33U}) {
    Eviction policy(n_slots);
    std::vector<bool> filled(n_slots, false);
    const auto some = [&](bool wanted) {
      std::vector<std::size_t> slots;
      for (std::size_t slot = 0; slot < n_slots; ++slot) {
        if (filled[slot] == wanted) slots.push_back(slot);
      }
      return slots.empty() ? n_slots : slots[random() % slots.size()];
    };
    for (int i = 0; i < 2000; ++i) {
      const std::size_t free = some(false);
      const std::size_t used = some(true);
      switch (random() % 4) {
      case 0:
        if (free < n_slots) {
          policy.insert(free);
          filled[free] = true;
        }
        break;
      case 1:
        if (used < n_slots) policy.touch(used);
        break;
      case 2:
        if (used < n_slots) {
          const std::size_t victim = policy.victim();
          if (victim >= n_slots) return "victim() names a slot past the last";
          if (!filled[victim]) return "victim() names a slot that is not filled";
          filled[victim] = false;
        }
        break;
      default:
        if (used < n_slots) {
          policy.erase(used);
          filled[used] = false;
        }
        break;
      }
      if (i % 500 == 0) policy = Eviction(std::move(policy));  // movable, with its state
    }
    for (std::size_t slot = 0; slot < n_slots; ++slot) {
      if (!filled[slot]) {
        policy.insert(slot);
        filled[slot] = true;
      }
    }
    for (std::size_t i = 0; i < n_slots; ++i) {
      const std::size_t victim = policy.victim();
      if (victim >= n_slots || !filled[victim])
        return "victims of a full policy are not all its slots";
      filled[victim] = false;
    }
  }
  return {};
}

}  // namespace wavekv_test
