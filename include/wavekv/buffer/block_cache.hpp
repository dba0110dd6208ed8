// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/core/token_run.hpp>

/// @file block_cache.hpp
/// @brief The fast tier's slots, the directories that find a block in them, and who leaves when they are full.

namespace wavekv {

/// @brief Where the blocks of one segment lie in a block_cache: a slot for each, or none.
/// Memory: four bytes a block.
class block_directory {
 public:
  static constexpr std::uint32_t nowhere = 0xFFFFFFFFU;  ///< not in the cache

  /// @brief All blocks are nowhere.  @throw std::bad_alloc
  explicit block_directory(std::size_t n_blocks) : slots_(n_blocks) {
    for (std::atomic<std::uint32_t>& slot : slots_) {
      slot.store(nowhere, std::memory_order_relaxed);
    }
  }

  /// @brief Blocks of the segment.
  [[nodiscard]] std::size_t size() const noexcept { return slots_.size(); }

 private:
  template <scalar T, eviction_policy Eviction>
  friend class block_cache;

  std::vector<std::atomic<std::uint32_t>> slots_;
};

/// @brief A fixed number of slots for blocks of any segment.
///
/// Blocks are of different sizes and slots are not: a block takes as many slots as it needs, wherever they are, each
/// with keys and then values of a few tokens (some 2 KB: less is wasted at a block's end than blocks are long, and runs
/// are long enough to be read at speed). A block is named by its first slot; the others are chained to it.
///
/// Threads: all calls at once, but `drop` only when nobody uses that directory any more. A hit takes no lock: it pins
/// the slot by one atomic addition and finds out whether the slot still is that block's. Admission, eviction, and the
/// uses that an eviction policy books, exclude each other.
/// @tparam T         storage scalar
/// @tparam Eviction  names what leaves; its slots are first slots of blocks
/// Source: RetroInfer, arXiv 2505.02922, section 4.3 (block cache and its mapping table).
template <scalar T, eviction_policy Eviction>
class block_cache {
 public:
  static constexpr std::uint32_t nowhere = block_directory::nowhere;
  static constexpr std::size_t slot_bytes_wanted = 2048;

  /// @brief An empty cache of as many slots as fit n_bytes; none are possible, too.
  /// Allocates: all of it, now.  @throw std::bad_alloc
  block_cache(std::size_t n_bytes, std::size_t key_dim, std::size_t value_dim)
      : key_dim_(key_dim),
        value_dim_(value_dim),
        slot_tokens_(
            std::max<std::size_t>(1, slot_bytes_wanted / ((key_dim + value_dim) * sizeof(T)))),
        n_slots_(std::min<std::size_t>(n_bytes / (slot_elements() * sizeof(T) + slot_overhead),
                                       nowhere - 1)),
        memory_(n_slots_ * slot_elements()),
        pins_(n_slots_),
        next_(n_slots_),
        owners_(n_slots_),
        eviction_(n_slots_) {
    for (std::size_t slot = n_slots_; slot-- > 0;) {
      pins_[slot].store(evicted, std::memory_order_relaxed);
      push_free(static_cast<std::uint32_t>(slot));
    }
  }

  /// @brief Finds a block and keeps it from being evicted until it is unpinned; nowhere if it is not here.
  /// Complexity: O(1), no lock. Allocates nothing.
  [[nodiscard]] std::uint32_t pin(const block_directory& directory, std::size_t block) noexcept {
    const std::atomic<std::uint32_t>& place = directory.slots_[block];
    const std::uint32_t slot = place.load(std::memory_order_acquire);
    if (slot >= n_slots_) {
      return nowhere;
    }
    // An eviction takes pins only from 0 to `evicted`, and clears the directory before the slot gets another block: whoever
    // has added a pin to 0 or more and still finds the block there holds it. A pin that came too late is taken back;
    // all changes but that one add, so that none is lost on the way.
    std::atomic<std::int32_t>& pins = pins_[slot];
    if (pins.fetch_add(1, std::memory_order_acq_rel) >= 0 &&
        place.load(std::memory_order_acquire) == slot) {
      return slot;
    }
    pins.fetch_sub(1, std::memory_order_acq_rel);
    return nowhere;
  }

  /// @brief Whether a block is here at this moment.
  [[nodiscard]] bool holds(const block_directory& directory, std::size_t block) const noexcept {
    return directory.slots_[block].load(std::memory_order_relaxed) < n_slots_;
  }

  /// @brief Calls run(token_run<T>) for the tokens of a pinned block, in order.
  /// @param n_tokens  of the block
  template <class Run>
  void for_runs(std::uint32_t slot, std::size_t n_tokens, Run&& run) const {
    for (std::size_t first = 0; first < n_tokens; first += slot_tokens_, slot = next_[slot]) {
      const T* keys = memory_.data() + slot * slot_elements();
      run(token_run<T>{keys, keys + slot_tokens_ * key_dim_,
                       std::min(slot_tokens_, n_tokens - first)});
    }
  }

  /// @brief Books the uses of pinned blocks and lets go of them. Complexity: O(blocks), one lock.
  void unpin(std::span<const std::uint32_t> slots) noexcept {
    if (slots.empty()) {
      return;
    }
    {
      const std::lock_guard lock(mutex_);
      for (const std::uint32_t slot : slots) {
        eviction_.touch(slot);
      }
    }
    for (const std::uint32_t slot : slots) {
      pins_[slot].fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  /// @brief Copies a block into the cache, unless it is there, or all that could leave is pinned.
  /// Complexity: O(slots evicted) and the copy. Allocates nothing.
  /// @param rows  the block as segments keep it: [n_tokens, key_dim] keys, then [n_tokens, value_dim] values
  /// @return whether it is in the cache now
  bool admit(block_directory& directory, std::size_t block, const T* rows,
             std::size_t n_tokens) noexcept {
    const std::size_t n_needed = (n_tokens + slot_tokens_ - 1) / slot_tokens_;
    if (n_needed == 0 || n_needed > n_slots_) {
      return false;
    }
    std::atomic<std::uint32_t>& place = directory.slots_[block];
    std::uint32_t first = nowhere;
    {
      const std::lock_guard lock(mutex_);
      if (place.load(std::memory_order_relaxed) != nowhere) {
        return true;  // by another thread
      }
      if (!make_room(n_needed)) {
        ++n_refused_;
        return false;
      }
      for (std::size_t i = 0; i < n_needed; ++i) {
        const std::uint32_t slot = pop_free();
        next_[slot] = first;
        first = slot;
      }
      owners_[first] = {&directory, block, n_needed};
      place.store(coming, std::memory_order_relaxed);
      eviction_.insert(first);  // its pins are below 0 yet: neither evicted nor found
    }
    copy_in(first, rows, n_tokens);
    place.store(first, std::memory_order_release);
    pins_[first].fetch_sub(evicted, std::memory_order_acq_rel);  // last: now both may happen
    return true;
  }

  /// @brief Frees the slots of all blocks of a directory, which nobody uses any more.
  /// Complexity: O(blocks of the directory).
  void drop(block_directory& directory) noexcept {
    const std::lock_guard lock(mutex_);
    for (std::atomic<std::uint32_t>& place : directory.slots_) {
      const std::uint32_t slot = place.exchange(nowhere, std::memory_order_acq_rel);
      if (slot < n_slots_) {
        eviction_.erase(slot);
        pins_[slot].fetch_add(evicted, std::memory_order_acq_rel);
        free_block(slot);
      }
    }
  }

  [[nodiscard]] std::size_t n_slots() const noexcept { return n_slots_; }
  [[nodiscard]] std::size_t slot_tokens() const noexcept { return slot_tokens_; }
  /// @brief Bytes held, whether used or not.
  [[nodiscard]] std::size_t bytes() const noexcept {
    return memory_.bytes() + n_slots_ * slot_overhead;
  }
  /// @brief Blocks evicted so far.
  [[nodiscard]] std::uint64_t n_evicted() const noexcept {
    const std::lock_guard lock(mutex_);
    return n_evicted_;
  }
  /// @brief Blocks not taken so far, because all that could leave was pinned.
  [[nodiscard]] std::uint64_t n_refused() const noexcept {
    const std::lock_guard lock(mutex_);
    return n_refused_;
  }

 private:
  struct owner {
    block_directory* directory = nullptr;
    std::size_t block = 0;
    std::size_t n_slots = 0;
  };

  static constexpr std::uint32_t coming = nowhere - 1;  // in a directory: being copied in
  // Added to the pins of a slot that is free, not a block's first, or being filled; far below what pins that come too
  // late add meanwhile.
  static constexpr std::int32_t evicted = -(1 << 30);
  // A slot's share of what is kept beside its rows.
  static constexpr std::size_t slot_overhead = sizeof(std::atomic<std::int32_t>) +
                                               sizeof(std::uint32_t) + sizeof(owner) +
                                               3 * sizeof(std::size_t);

  [[nodiscard]] std::size_t slot_elements() const noexcept {
    return slot_tokens_ * (key_dim_ + value_dim_);
  }

  void push_free(std::uint32_t slot) noexcept {
    next_[slot] = free_;
    free_ = slot;
    ++n_free_;
  }

  std::uint32_t pop_free() noexcept {
    const std::uint32_t slot = free_;
    free_ = next_[slot];
    --n_free_;
    return slot;
  }

  void free_block(std::uint32_t first) noexcept {
    for (std::size_t i = owners_[first].n_slots; i-- > 0;) {
      const std::uint32_t next = next_[first];
      push_free(first);
      first = next;
    }
  }

  // Evicts until n slots are free. A victim that is pinned, or being copied in, is given another turn.
  bool make_room(std::size_t n) noexcept {
    std::size_t n_passed_over = 0;
    while (n_free_ < n) {
      if (n_passed_over > n_slots_) {
        return false;
      }
      const auto victim = static_cast<std::uint32_t>(eviction_.victim());
      std::int32_t unpinned = 0;
      if (!pins_[victim].compare_exchange_strong(unpinned, evicted, std::memory_order_acq_rel)) {
        eviction_.insert(victim);
        ++n_passed_over;
        continue;
      }
      const owner& left = owners_[victim];
      left.directory->slots_[left.block].store(nowhere, std::memory_order_release);
      free_block(victim);
      ++n_evicted_;
    }
    return true;
  }

  void copy_in(std::uint32_t slot, const T* rows, std::size_t n_tokens) noexcept {
    const T* values = rows + n_tokens * key_dim_;
    for (std::size_t first = 0; first < n_tokens; first += slot_tokens_, slot = next_[slot]) {
      const std::size_t n = std::min(slot_tokens_, n_tokens - first);
      T* to = memory_.data() + slot * slot_elements();
      std::copy_n(rows + first * key_dim_, n * key_dim_, to);
      std::copy_n(values + first * value_dim_, n * value_dim_, to + slot_tokens_ * key_dim_);
    }
  }

  std::size_t key_dim_;
  std::size_t value_dim_;
  std::size_t slot_tokens_;
  std::size_t n_slots_;
  aligned_storage<T> memory_;
  std::vector<std::atomic<std::int32_t>> pins_;  // of first slots
  std::vector<std::uint32_t> next_;              // of the same block, or the next free one
  std::vector<owner> owners_;                    // of first slots
  mutable std::mutex mutex_;                     // guards all below, and owners and chains
  Eviction eviction_;
  std::uint32_t free_ = nowhere;
  std::size_t n_free_ = 0;
  std::uint64_t n_evicted_ = 0;
  std::uint64_t n_refused_ = 0;
};

}  // namespace wavekv
