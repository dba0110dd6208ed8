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

/// @brief A block of a reading that can be read now.
template <scalar T>
struct located_block {
  std::size_t i = 0;        ///< which of the blocks asked for
  const T* rows = nullptr;  ///< valid until the reading ends
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
                "wave_buffer: Placement must model wavekv::placement_policy (template tiers<T, "
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
  using tiers_type =
      typename Buffer::placement_type::template tiers<T, typename Buffer::eviction_type>;
  using handle = typename tiers_type::handle;

  /// @brief What one reader needs while it reads: an engine, room for arrivals. Reused from step to step.
  struct lane_type {
    typename Buffer::transfer_type transfer;
    std::vector<located_block<T>> here;     // of the blocks asked for, those in the fast tier
    std::vector<located_block<T>> arrived;  // and those that travel, where they arrive
    aligned_storage<T> arrivals;
  };

  /// @brief Takes the rows of a sealed segment.
  handle keep(aligned_storage<T> rows) { return tiers_.keep(std::move(rows)); }

  /// @brief Reads blocks in the order of the data flow: look all up, start the transfers of the missing, call
  /// meanwhile(), hand on the resident ones, then those that arrived, then offer these to the block cache.
  /// Blocks: until all were handed on. Allocates: only while a lane grows.
  /// @param on_blocks  on_blocks(std::span<const located_block<T>>) for the resident ones, then for those that arrived,
  ///                   where there are any; or on_block(i, rows), which is called for one after the other
  /// @param meanwhile  called once, while transfers are under way
  /// @throw io_error when a fetch fails
  template <class OnBlocks, class Meanwhile>
  read_counts read(const handle& rows, std::span<const block> blocks, lane_type& lane,
                   OnBlocks&& on_blocks, Meanwhile&& meanwhile) {
    read_counts counts;
    find_or_start(rows, blocks, lane);
    meanwhile();
    hand_on(on_blocks, lane.here);
    counts.hits = lane.here.size();
    if constexpr (!tiers_type::always_fast) {
      lane.transfer.wait();
      hand_on(on_blocks, lane.arrived);
      counts.misses = lane.arrived.size();
      for (const auto& [i, at] : lane.arrived) {
        tiers_.admit(rows, blocks[i], at);
        counts.bytes_moved += blocks[i].n_elements * sizeof(T);
      }
    }
    return counts;
  }

  [[nodiscard]] tiers_type& tiers() noexcept { return tiers_; }

 private:
  template <class OnBlocks>
  static void hand_on(OnBlocks& on_blocks, std::span<const located_block<T>> blocks) {
    if constexpr (std::is_invocable_v<OnBlocks&, std::span<const located_block<T>>>) {
      if (!blocks.empty()) {
        on_blocks(blocks);
      }
    } else {
      for (const auto& [i, at] : blocks) {
        on_blocks(i, at);
      }
    }
  }

  void find_or_start(const handle& rows, std::span<const block> blocks, lane_type& lane) {
    lane.here.clear();
    lane.arrived.clear();
    std::size_t n_missing = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const T* at = tiers_.lookup(rows, blocks[i]);
      if constexpr (!tiers_type::always_fast) {
        if (at == nullptr) {
          lane.arrived.push_back({i, nullptr});
          n_missing += blocks[i].n_elements;
          continue;
        }
      }
      lane.here.push_back({i, at});
    }
    if (lane.arrivals.size() < n_missing) {
      lane.arrivals = aligned_storage<T>(n_missing);
    }
    T* to = lane.arrivals.data();
    for (auto& [i, at] : lane.arrived) {
      at = to;
      lane.transfer.start([this, &rows, which = blocks[i], to] { tiers_.fetch(rows, which, to); });
      to += blocks[i].n_elements;
    }
  }

  tiers_type tiers_;
};

}  // namespace wavekv
