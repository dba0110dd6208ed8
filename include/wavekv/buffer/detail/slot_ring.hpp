// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <vector>

/// @file slot_ring.hpp
/// @brief The filled slots in the order in which they were filled: what eviction policies have in common.

namespace wavekv::detail {

/// A ring of slots through a head: from the head to older ones, the newest comes first. All operations O(1); memory: two
/// indices a slot.
class slot_ring {
 public:
  /// No slot is in the ring.  @throw std::bad_alloc
  explicit slot_ring(std::size_t n_slots) : newer_(n_slots + 1), older_(n_slots + 1) {
    newer_[n_slots] = older_[n_slots] = n_slots;
  }

  /// Takes in a slot as the newest.
  void insert(std::size_t slot) noexcept {
    const std::size_t newest = older_[head()];
    newer_[newest] = slot;
    older_[slot] = newest;
    newer_[slot] = head();
    older_[head()] = slot;
  }

  void erase(std::size_t slot) noexcept {
    newer_[older_[slot]] = newer_[slot];
    older_[newer_[slot]] = older_[slot];
  }

  /// The oldest slot, or head() when there is none.
  [[nodiscard]] std::size_t oldest() const noexcept { return newer_[head()]; }
  /// The next newer slot, or head() after the newest.
  [[nodiscard]] std::size_t newer(std::size_t slot) const noexcept { return newer_[slot]; }
  /// No slot: both ends of the ring.
  [[nodiscard]] std::size_t head() const noexcept { return newer_.size() - 1; }

 private:
  std::vector<std::size_t> newer_;
  std::vector<std::size_t> older_;
};

}  // namespace wavekv::detail
