// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <vector>

#include <wavekv/buffer/concepts.hpp>

namespace wavekv::eviction {

/// @brief Least recently used; models eviction_policy. All operations O(1); memory: two indices a slot.
class lru {
 public:
  /// @brief All n_slots slots free.  @throw std::bad_alloc
  explicit lru(std::size_t n_slots) : newer_(n_slots + 1), older_(n_slots + 1) {
    newer_[n_slots] = older_[n_slots] = n_slots;  // the last entry is the ring's head
  }

  /// @brief A free slot was filled: it is the most recently used now.
  void insert(std::size_t slot) noexcept {
    const std::size_t head = newer_.size() - 1;
    const std::size_t newest = older_[head];
    newer_[newest] = slot;
    older_[slot] = newest;
    newer_[slot] = head;
    older_[head] = slot;
  }

  /// @brief A filled slot was used.
  void touch(std::size_t slot) noexcept {
    erase(slot);
    insert(slot);
  }

  /// @brief The slot that was not used for longest; it is free afterwards.
  std::size_t victim() noexcept {
    const std::size_t oldest = newer_.back();
    erase(oldest);
    return oldest;
  }

  /// @brief A filled slot became free.
  void erase(std::size_t slot) noexcept {
    newer_[older_[slot]] = newer_[slot];
    older_[newer_[slot]] = older_[slot];
  }

 private:
  std::vector<std::size_t> newer_;  // a ring of the filled slots through the head, oldest first
  std::vector<std::size_t> older_;
};

static_assert(eviction_policy<lru>);

}  // namespace wavekv::eviction
