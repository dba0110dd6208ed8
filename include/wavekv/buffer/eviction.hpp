// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/detail/slot_ring.hpp>

/// @file eviction.hpp
/// @brief Which slot of the block cache is reused: three policies, all O(1) (amortized over the calls).

namespace wavekv::eviction {

/// @brief Least recently used; models eviction_policy. Every use moves a slot, so that uses exclude each other.
class lru {
 public:
  /// @brief All n_slots slots free.  @throw std::bad_alloc
  explicit lru(std::size_t n_slots) : filled_(n_slots) {}

  /// @brief A free slot was filled: it is the most recently used now.
  void insert(std::size_t slot) noexcept { filled_.insert(slot); }

  /// @brief A filled slot was used.
  void touch(std::size_t slot) noexcept {
    filled_.erase(slot);
    filled_.insert(slot);
  }

  /// @brief The slot that was not used for longest; it is free afterwards.
  std::size_t victim() noexcept {
    const std::size_t oldest = filled_.oldest();
    filled_.erase(oldest);
    return oldest;
  }

  /// @brief A filled slot became free.
  void erase(std::size_t slot) noexcept { filled_.erase(slot); }

 private:
  wavekv::detail::slot_ring filled_;
};

/// @brief First in, first out, with a second chance for a slot that was used since it came in or was last passed over;
/// models eviction_policy. A use only sets a mark. It comes close to lru, and a scan once through many blocks costs
/// it no more.
/// Source: Corbató, A paging experiment with the Multics system, 1968.
class clock {
 public:
  /// @brief All n_slots slots free.  @throw std::bad_alloc
  explicit clock(std::size_t n_slots) : filled_(n_slots), used_(n_slots, 0) {}

  /// @brief A free slot was filled.
  void insert(std::size_t slot) noexcept {
    filled_.insert(slot);
    used_[slot] = 0;
  }

  /// @brief A filled slot was used.
  void touch(std::size_t slot) noexcept { used_[slot] = 1; }

  /// @brief The slot that is oldest of those not used; those passed over go to the end. It is free afterwards.
  std::size_t victim() noexcept {
    std::size_t oldest = filled_.oldest();
    for (; used_[oldest] != 0; oldest = filled_.oldest()) {
      used_[oldest] = 0;
      filled_.erase(oldest);
      filled_.insert(oldest);
    }
    filled_.erase(oldest);
    return oldest;
  }

  /// @brief A filled slot became free.
  void erase(std::size_t slot) noexcept { filled_.erase(slot); }

 private:
  wavekv::detail::slot_ring filled_;
  std::vector<std::uint8_t> used_;
};

/// @brief As clock, but a slot that is passed over keeps its place, so that newcomers that nobody uses leave soon; models
/// eviction_policy.
/// Source: Zhang et al., SIEVE is simpler than LRU, NSDI 2024, algorithm 1.
class sieve {
 public:
  /// @brief All n_slots slots free.  @throw std::bad_alloc
  explicit sieve(std::size_t n_slots) : filled_(n_slots), used_(n_slots, 0), hand_(n_slots) {}

  /// @brief A free slot was filled.
  void insert(std::size_t slot) noexcept {
    filled_.insert(slot);
    used_[slot] = 0;
  }

  /// @brief A filled slot was used.
  void touch(std::size_t slot) noexcept { used_[slot] = 1; }

  /// @brief The first unused slot from the hand on, towards the newer ones; it is free afterwards.
  std::size_t victim() noexcept {
    std::size_t at = from_hand();
    for (; used_[at] != 0; at = from_hand()) {
      used_[at] = 0;
      hand_ = filled_.newer(at);
    }
    erase(at);
    return at;
  }

  /// @brief A filled slot became free.
  void erase(std::size_t slot) noexcept {
    if (hand_ == slot) {
      hand_ = filled_.newer(slot);
    }
    filled_.erase(slot);
  }

 private:
  // Where the hand points; past the newest it begins again at the oldest.
  [[nodiscard]] std::size_t from_hand() const noexcept {
    return hand_ == filled_.head() ? filled_.oldest() : hand_;
  }

  wavekv::detail::slot_ring filled_;
  std::vector<std::uint8_t> used_;
  std::size_t hand_;
};

static_assert(eviction_policy<lru> && eviction_policy<clock> && eviction_policy<sieve>);

}  // namespace wavekv::eviction
