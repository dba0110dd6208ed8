// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/eviction.hpp>
#include <wavekv/buffer/placement.hpp>
#include <wavekv/buffer/transfer.hpp>
#include <wavekv/core/aligned_storage.hpp>

/// @file wave_buffer.hpp
/// @brief Which block of KV lives in which memory tier, and how a step reads blocks.

namespace wavekv {

/// @brief What one reading of blocks did.
struct read_counts {
  std::uint64_t hits = 0;         ///< blocks found in the fast tier
  std::uint64_t misses = 0;       ///< blocks fetched from the slow tier
  std::uint64_t bytes_moved = 0;  ///< bytes fetched from the slow tier
};

/// @brief Composes the buffer's policies; a type without a value. `with_…` changes one slot and names no other.
/// @tparam Placement  models wavekv::placement_policy
/// @tparam Eviction   models wavekv::eviction_policy
/// @tparam Transfer   models wavekv::transfer_engine
/// Source: RetroInfer, arXiv 2505.02922, section 4.3 (wave buffer).
template <class Placement = placement::resident, class Eviction = eviction::lru,
          class Transfer = transfer::inline_read>
struct wave_buffer {
  static_assert(placement_policy<Placement>,
                "wave_buffer: Placement must model wavekv::placement_policy (template store<T, "
                "Eviction> with handle, "
                "always_fast, keep, lookup, fetch, admit); see <wavekv/buffer/concepts.hpp>");
  static_assert(
      eviction_policy<Eviction>,
      "wave_buffer: Eviction must model wavekv::eviction_policy (Eviction(n_slots), insert(slot), "
      "touch(slot), "
      "victim() -> std::size_t, erase(slot), all noexcept); see <wavekv/buffer/concepts.hpp>");
  static_assert(transfer_engine<Transfer>,
                "wave_buffer: Transfer must model wavekv::transfer_engine (Transfer(), "
                "start(fetch), wait()); "
                "see <wavekv/buffer/concepts.hpp>");

  using placement_type = Placement;
  using eviction_type = Eviction;
  using transfer_type = Transfer;

  template <class P>
  using with_placement = wave_buffer<P, Eviction, Transfer>;
  template <class E>
  using with_eviction = wave_buffer<Placement, E, Transfer>;
  template <class T>
  using with_transfer = wave_buffer<Placement, Eviction, T>;
};

/// @brief The run-time half: keeps blocks of segments and reads them for a step.
/// @tparam T       storage scalar
/// @tparam Buffer  a wave_buffer
template <scalar T, class Buffer>
class block_reader {
 public:
  using store_type =
      typename Buffer::placement_type::template store<T, typename Buffer::eviction_type>;
  using handle = typename store_type::handle;

  /// @brief What one reader needs while it reads: an engine, room for arrivals. Reused from step to step.
  struct lane_type {
    typename Buffer::transfer_type transfer;
    std::vector<const T*> found;  // [blocks], null where missing
    aligned_storage<T> arrivals;
  };

  /// @brief Takes the rows of a sealed segment.
  handle keep(aligned_storage<T> rows) { return store_.keep(std::move(rows)); }

  /// @brief Reads blocks in the order of the data flow: look all up, start the transfers of the missing, call
  /// meanwhile(), hand on the resident ones, then those that arrived, then offer these to the block cache.
  /// Blocks: until all were handed on. Allocates: only while a lane grows.
  /// @param on_block   called as on_block(i, rows), or on_block(i, rows, next) when it takes that, once for each
  ///                   block, in no promised order; next: where the next one lies if that is known, else null
  /// @param meanwhile  called once, while transfers are under way
  /// @throw io_error when a fetch fails
  template <class OnBlock, class Meanwhile>
  read_counts read(const handle& rows, std::span<const block> blocks, lane_type& lane,
                   OnBlock&& on_block, Meanwhile&& meanwhile) {
    read_counts counts;
    if constexpr (store_type::always_fast) {
      meanwhile();
      const T* at = blocks.empty() ? nullptr : store_.lookup(rows, blocks[0]);
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        const T* next = i + 1 < blocks.size() ? store_.lookup(rows, blocks[i + 1]) : nullptr;
        hand_on(on_block, i, at, next);
        at = next;
      }
      counts.hits = blocks.size();
    } else {
      find_or_start(rows, blocks, lane);
      meanwhile();
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        if (lane.found[i] != nullptr) {
          hand_on(on_block, i, lane.found[i], i + 1 < blocks.size() ? lane.found[i + 1] : nullptr);
          ++counts.hits;
        }
      }
      lane.transfer.wait();
      const T* arrived = lane.arrivals.data();
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        if (lane.found[i] == nullptr) {
          hand_on(on_block, i, arrived, nullptr);
          store_.admit(rows, blocks[i], arrived);
          arrived += blocks[i].n_elements;
          counts.bytes_moved += blocks[i].n_elements * sizeof(T);
          ++counts.misses;
        }
      }
    }
    return counts;
  }

  [[nodiscard]] store_type& store() noexcept { return store_; }

 private:
  template <class OnBlock>
  static void hand_on(OnBlock& on_block, std::size_t i, const T* rows, const T* next) {
    if constexpr (std::is_invocable_v<OnBlock&, std::size_t, const T*, const T*>) {
      on_block(i, rows, next);
    } else {
      on_block(i, rows);
    }
  }

  void find_or_start(const handle& rows, std::span<const block> blocks, lane_type& lane) {
    lane.found.clear();
    std::size_t n_missing = 0;
    for (const block& which : blocks) {
      lane.found.push_back(store_.lookup(rows, which));
      n_missing += lane.found.back() == nullptr ? which.n_elements : 0;
    }
    if (lane.arrivals.size() < n_missing) {
      lane.arrivals = aligned_storage<T>(n_missing);
    }
    T* to = lane.arrivals.data();
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (lane.found[i] == nullptr) {
        lane.transfer.start(
            [this, &rows, which = blocks[i], to] { store_.fetch(rows, which, to); });
        to += blocks[i].n_elements;
      }
    }
  }

  store_type store_;
};

}  // namespace wavekv
