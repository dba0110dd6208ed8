// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
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
  std::uint64_t hits = 0;                ///< blocks found in the fast tier
  std::uint64_t misses = 0;              ///< blocks fetched from the slow tier
  std::uint64_t prefetched = 0;          ///< blocks whose reads began before they were wanted
  std::uint64_t prefetched_in_vain = 0;  ///< of these, not wanted in the end
  std::uint64_t bytes_moved = 0;  ///< bytes read from the slow tier, with what alignment adds
  std::uint64_t stall_ns = 0;     ///< nanoseconds spent on starting reads and waiting for them
};

/// @brief A block that was in the fast tier.
struct found_block {
  std::size_t tag = 0;        ///< as the caller named it
  std::size_t first_run = 0;  ///< of its runs of tokens
};

/// @brief A block that came from the slow tier.
template <scalar T>
struct arrived_block {
  std::size_t tag = 0;  ///< as the caller named it
  token_run<T> tokens;  ///< valid until the next call of the reader on this lane
};

/// @brief Composes the buffer's policies; a type without a value. `with_…` changes one slot and names no other.
/// @tparam Placement  models wavekv::placement_policy
/// @tparam Eviction   models wavekv::eviction_policy
/// @tparam Transfer   models wavekv::transfer_engine
/// Source: RetroInfer, arXiv 2505.02922, section 4.3 (wave buffer).
template <class Placement = placement::resident, class Eviction = eviction::lru,
          class Transfer = transfer::inline_read>
struct wave_buffer {
  static_assert(
      placement_policy<Placement>,
      "wave_buffer: Placement must model wavekv::placement_policy (options_type, template "
      "tiers<T, Eviction> with handle, lease, always_fast, keep, look_up, for_runs, "
      "release, copy, and unless always_fast holds, alignment, fetch, check, admit); "
      "see <wavekv/buffer/concepts.hpp>");
  static_assert(
      eviction_policy<Eviction>,
      "wave_buffer: Eviction must model wavekv::eviction_policy (Eviction(n_slots), insert(slot), "
      "touch(slot), "
      "victim() -> std::size_t, erase(slot), all noexcept); see <wavekv/buffer/concepts.hpp>");
  static_assert(transfer_engine<Transfer>,
                "wave_buffer: Transfer must model wavekv::transfer_engine (Transfer(), "
                "start(read, tag), next() -> std::size_t, failure() noexcept -> "
                "std::exception_ptr); "
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
///
/// A *reading* goes the way of the data: open, look_up of every block that is wanted, start; then attend what was found
/// (lane.runs), while the rest travels; then next until it gives nothing; then close, which offers what arrived to the
/// block cache. A reading whose reads need more room than a lane has is served in rounds. After an exception: abandon.
/// @tparam T       storage scalar
/// @tparam Buffer  a wave_buffer
template <scalar T, class Buffer>
class block_reader {
 public:
  using placement_type = typename Buffer::placement_type;
  using tiers_type = typename placement_type::template tiers<T, typename Buffer::eviction_type>;
  using handle = typename tiers_type::handle;
  static constexpr bool always_fast = tiers_type::always_fast;

  /// @brief Room for arrivals of a lane, unless one block alone is larger.
  static constexpr std::size_t lane_bytes = std::size_t{1} << 20U;
  /// @brief Neighbours are read together up to so many bytes, so that attending can begin before all are here.
  static constexpr std::size_t most_read_bytes = std::size_t{1} << 17U;

  /// @brief What one reader needs while it reads: an engine, room for arrivals. Reused from step to step.
  class lane_type {
   public:
    std::vector<token_run<T>>
        runs;  ///< of the blocks that were found, in the order in which they were looked up
    std::vector<found_block>
        found;  ///< those blocks; the runs of one end where the next one's begin
    bool admits =
        true;  ///< false for readers that pass by all blocks, and would only drive out those that are used

    /// @brief Makes room for n blocks that are found, a run each.  @throw std::bad_alloc
    void reserve(std::size_t n) {
      if (runs.capacity() < n) {
        runs.reserve(n + n / 4);
        found.reserve(n + n / 4);
      }
    }

    /// @brief The runs of a found block.
    [[nodiscard]] std::span<const token_run<T>> runs_of(std::size_t i) const noexcept {
      const std::size_t end = i + 1 < found.size() ? found[i + 1].first_run : runs.size();
      return std::span(runs).subspan(found[i].first_run, end - found[i].first_run);
    }

   private:
    friend class block_reader;

    struct missing_block {
      std::size_t tag;
      const handle* rows;
      block which;
    };
    // Missing blocks that are read together: neighbours in one segment.
    struct read_order {
      std::size_t first;  // of the missing blocks
      std::size_t n;
      std::uint64_t offset;  // bytes from the start of the segment's rows, aligned as n_bytes is
      std::size_t n_bytes;
      std::byte* to = nullptr;
    };
    // Half of the room: while one half's reads are attended and replaced by the next, the other's travel.
    struct half {
      aligned_storage<std::byte> memory;
      std::size_t first = 0;  // of its reads
      std::size_t n = 0;
      std::size_t n_left = 0;  // of these, not attended yet
    };

    typename Buffer::transfer_type transfer_;
    std::vector<typename tiers_type::lease> leases_;
    std::vector<missing_block> missing_;
    std::vector<read_order> reads_;
    std::vector<arrived_block<T>> arrived_;
    std::array<half, 2> halves_;
    std::size_t n_prefetched_ =
        0;                       // of the missing blocks, which come first: not wanted yet, perhaps
    std::size_t next_read_ = 0;  // not started yet
    std::size_t n_under_way_ = 0;
    std::size_t attended_ = nothing;  // the read whose blocks are being attended
    read_counts counts_;

    static constexpr std::size_t nothing = SIZE_MAX;
  };

  /// @throw what the placement's tiers throw
  block_reader(const typename placement_type::options_type& options, std::size_t key_dim,
               std::size_t value_dim)
      : key_dim_(key_dim), width_(key_dim + value_dim), tiers_(options, key_dim, value_dim) {}

  /// @brief Takes the rows of a sealed segment.  @throw io_error
  handle keep(aligned_storage<T> rows, std::span<const block> blocks) {
    return tiers_.keep(std::move(rows), blocks);
  }

  /// @brief Begins a reading.
  static void open(lane_type& lane) noexcept {
    lane.runs.clear();
    lane.found.clear();
    lane.leases_.clear();
    lane.missing_.clear();
    lane.reads_.clear();
    lane.n_prefetched_ = 0;
    lane.next_read_ = 0;
    lane.attended_ = lane_type::nothing;
    lane.counts_ = {};
  }

  /// @brief Blocks that will be wanted most likely, right after open: what of them is missing is read from now on, as far
  /// as half of a lane has room. What is not wanted in the end is forgotten: which blocks the cache holds does not depend
  /// on guesses.
  /// @param n         blocks, each at most once, in the order of their rows
  /// @param block_at  block_at(i) -> std::pair<const handle*, block>
  template <class BlockAt>
  void prefetch(lane_type& lane, std::size_t n, BlockAt&& block_at) {
    if constexpr (!always_fast) {
      std::size_t n_bytes = 0;
      for (std::size_t i = 0; i < n; ++i) {
        const auto [rows, which] = block_at(i);
        if (tiers_.holds(*rows, which)) {
          continue;
        }
        n_bytes += which.n_tokens * width_ * sizeof(T) + 2 * tiers_.alignment();
        if (n_bytes > lane_bytes / 2) {
          break;
        }
        lane.missing_.push_back({nobody, rows, which});
      }
      lane.n_prefetched_ = lane.missing_.size();
      lane.counts_.prefetched = lane.counts_.prefetched_in_vain = lane.n_prefetched_;
      order_reads(lane, 0);
      start_half(lane, lane.halves_[0]);
    }
  }

  /// @brief Wants a block, which is found, or else read from start on.  Allocates: while the lane grows.
  /// @param rows  stays where it is until the reading ends
  /// @param tag   the caller's name for it
  void look_up(lane_type& lane, const handle& rows, const block& which, std::size_t tag) {
    const auto lease = tiers_.look_up(rows, which);
    if constexpr (!always_fast) {
      if (!lease) {
        for (std::size_t i = 0; i < lane.n_prefetched_; ++i) {
          if (lane.missing_[i].rows == &rows && lane.missing_[i].which.index == which.index &&
              lane.missing_[i].tag == nobody) {
            lane.missing_[i].tag = tag;
            --lane.counts_.prefetched_in_vain;
            return;
          }
        }
        lane.missing_.push_back({tag, &rows, which});
        return;
      }
      try {
        lane.leases_.push_back(lease);
      } catch (...) {
        tiers_.release(std::span(&lease, 1));
        throw;
      }
    }
    lane.found.push_back({tag, lane.runs.size()});
    tiers_.for_runs(lease, which.n_tokens,
                    [&](const token_run<T>& run) { lane.runs.push_back(run); });
  }

  /// @brief Starts the reads of what is missing. Blocks: as the engine does.
  void start(lane_type& lane) {
    lane.counts_.hits = lane.found.size();
    if constexpr (!always_fast) {
      lane.counts_.misses = lane.missing_.size() - lane.counts_.prefetched_in_vain;
      order_reads(lane, lane.n_prefetched_);
      for (auto& half : lane.halves_) {
        if (half.n == 0) {
          start_half(lane, half);
        }
      }
    }
  }

  /// @brief Blocks that have arrived, each once in a reading; none when all have. They were compared with their checksums.
  /// Blocks: until there are some.  @throw io_error
  std::span<const arrived_block<T>> next(lane_type& lane) {
    if constexpr (!always_fast) {
      lane.arrived_.clear();
      while (lane.arrived_.empty()) {  // nobody may have wanted what came
        finish_attended(lane);
        if (lane.n_under_way_ == 0) {
          break;
        }
        take_arrival(lane);
      }
      return lane.arrived_;
    } else {
      return {};
    }
  }

  /// @brief Ends a reading whose blocks have all been attended; nothing of it may be used any more. Offers what arrived to
  /// the block cache.
  read_counts close(lane_type& lane) noexcept {
    if constexpr (!always_fast) {
      for (auto& half : lane.halves_) {
        admit(lane, half);
      }
      release(lane);
    }
    return lane.counts_;
  }

  /// @brief Ends a reading wherever it is. Blocks: until what is under way has arrived.
  void abandon(lane_type& lane) noexcept {
    if constexpr (!always_fast) {
      while (lane.n_under_way_ != 0) {
        (void)lane.transfer_.next();
        --lane.n_under_way_;
      }
      for (auto& half : lane.halves_) {
        half.n = half.n_left = 0;
      }
      release(lane);
    }
  }

  /// @brief What the reading did so far.
  [[nodiscard]] static const read_counts& counts(const lane_type& lane) noexcept {
    return lane.counts_;
  }

  /// @brief A whole reading of blocks of one segment: calls on_block(i, runs) for each, in any order.
  /// Blocks: until all were handed on. Allocates: only while a lane grows.
  /// @throw io_error when a read fails
  template <class OnBlock>
  read_counts read(const handle& rows, std::span<const block> blocks, lane_type& lane,
                   OnBlock&& on_block) {
    open(lane);
    try {
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        look_up(lane, rows, blocks[i], i);
      }
      start(lane);
      for (std::size_t i = 0; i < lane.found.size(); ++i) {
        on_block(lane.found[i].tag, lane.runs_of(i));
      }
      for (auto arrived = next(lane); !arrived.empty(); arrived = next(lane)) {
        for (const arrived_block<T>& one : arrived) {
          on_block(one.tag, std::span(&one.tokens, 1));
        }
      }
    } catch (...) {
      abandon(lane);
      throw;
    }
    return close(lane);
  }

  [[nodiscard]] tiers_type& tiers() noexcept { return tiers_; }
  [[nodiscard]] const tiers_type& tiers() const noexcept { return tiers_; }

 private:
  using clock = std::chrono::steady_clock;
  using half_type = typename lane_type::half;

  static constexpr std::size_t nobody = SIZE_MAX;  // the tag of a block that is not wanted yet

  static void add_time_since(clock::time_point begin, std::uint64_t& to) noexcept {
    to += static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(clock::now() - begin).count());
  }

  [[nodiscard]] static const T* rows_at(const typename lane_type::read_order& read,
                                        const block& which) noexcept {
    return reinterpret_cast<const T*>(read.to + (which.offset * sizeof(T) - read.offset));
  }

  // Cuts what is missing into reads. Blocks were looked up in the order of their rows, so that neighbours follow each
  // other.
  void order_reads(lane_type& lane, std::size_t from) const {
    const std::uint64_t unit = tiers_.alignment();
    for (std::size_t i = from; i < lane.missing_.size(); ++i) {
      const auto& one = lane.missing_[i];
      const std::uint64_t first = one.which.offset * sizeof(T);
      const std::uint64_t begin = first / unit * unit;
      const std::uint64_t end =
          (first + one.which.n_tokens * width_ * sizeof(T) + unit - 1) / unit * unit;
      if (i != from) {
        auto& last = lane.reads_.back();
        if (lane.missing_[i - 1].rows == one.rows && begin >= last.offset &&
            begin <= last.offset + last.n_bytes && end - last.offset <= most_read_bytes) {
          last.n_bytes = std::max<std::size_t>(last.n_bytes, end - last.offset);
          ++last.n;
          continue;
        }
      }
      lane.reads_.push_back({i, 1, begin, static_cast<std::size_t>(end - begin)});
    }
    lane.arrived_.reserve(lane.missing_.size());
  }

  // Starts as many of the next reads as fit a half, which is empty.
  void start_half(lane_type& lane, half_type& half) {
    const std::size_t unit = std::max<std::size_t>(tiers_.alignment(), alignof(T));
    const auto room_for = [&](std::size_t n_bytes) { return (n_bytes + unit - 1) / unit * unit; };
    half.first = lane.next_read_;
    half.n = half.n_left = 0;
    std::size_t n_bytes = 0;
    std::size_t end = lane.next_read_;
    for (; end < lane.reads_.size(); ++end) {
      const std::size_t room = room_for(lane.reads_[end].n_bytes);
      if (n_bytes != 0 && n_bytes + room > lane_bytes / 2) {
        break;
      }
      n_bytes += room;
    }
    if (n_bytes == 0) {
      return;
    }
    const auto begun = clock::now();
    if (half.memory.size() < n_bytes + unit) {
      half.memory = aligned_storage<std::byte>(std::max(n_bytes, lane_bytes / 16) + unit);
    }
    const auto at = reinterpret_cast<std::uintptr_t>(half.memory.data());
    std::byte* to = half.memory.data() + (room_for(at) - at);
    for (; lane.next_read_ < end; ++lane.next_read_) {
      auto& read = lane.reads_[lane.next_read_];
      read.to = to;
      to += room_for(read.n_bytes);
      lane.transfer_.start(tiers_.fetch(*lane.missing_[read.first].rows, read.offset,
                                        std::span(read.to, read.n_bytes)),
                           lane.next_read_);
      ++lane.n_under_way_;
      ++half.n;
      ++half.n_left;
      lane.counts_.bytes_moved += read.n_bytes;
    }
    if constexpr (requires { lane.transfer_.submit(); }) {
      lane.transfer_.submit();
    }
    add_time_since(begun, lane.counts_.stall_ns);
  }

  // What the last call of next gave has been attended: its half may be used again once all of it has.
  void finish_attended(lane_type& lane) {
    if (lane.attended_ == lane_type::nothing) {
      return;
    }
    auto& half = lane.halves_[lane.attended_ - lane.halves_[0].first < lane.halves_[0].n ? 0 : 1];
    lane.attended_ = lane_type::nothing;
    if (--half.n_left == 0 && lane.next_read_ < lane.reads_.size()) {
      admit(lane, half);
      start_half(lane, half);
    }
  }

  void take_arrival(lane_type& lane) {
    const auto begun = clock::now();
    const std::size_t which = lane.transfer_.next();
    --lane.n_under_way_;
    add_time_since(begun, lane.counts_.stall_ns);
    if (const std::exception_ptr failure = lane.transfer_.failure()) {
      std::rethrow_exception(failure);
    }
    const auto& read = lane.reads_[which];
    for (std::size_t i = read.first; i < read.first + read.n; ++i) {
      const auto& one = lane.missing_[i];
      const T* rows = rows_at(read, one.which);
      tiers_.check(*one.rows, one.which, rows);
      const std::size_t n = one.which.n_tokens;
      if (one.tag != nobody) {
        lane.arrived_.push_back({one.tag, {rows, rows + n * key_dim_, n}});
      }
    }
    lane.attended_ = which;
  }

  void admit(lane_type& lane, half_type& half) noexcept {
    for (std::size_t r = half.first; lane.admits && r < half.first + half.n; ++r) {
      const auto& read = lane.reads_[r];
      for (std::size_t i = read.first; i < read.first + read.n; ++i) {
        const auto& one = lane.missing_[i];
        if (one.tag != nobody) {  // the block cache keeps what is used, whatever was read besides
          tiers_.admit(*one.rows, one.which, rows_at(read, one.which));
        }
      }
    }
    half.n = half.n_left = 0;
  }

  void release(lane_type& lane) noexcept {
    tiers_.release(std::span<const typename tiers_type::lease>(lane.leases_));
    lane.leases_.clear();
  }

  std::size_t key_dim_;
  std::size_t width_;
  tiers_type tiers_;
};

}  // namespace wavekv
