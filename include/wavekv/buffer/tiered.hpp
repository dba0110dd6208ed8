// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <wavekv/buffer/block_cache.hpp>
#include <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/file_store.hpp>
#include <wavekv/buffer/tier_statistics.hpp>
#include <wavekv/buffer/write_back.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/checksum.hpp>
#include <wavekv/core/errors.hpp>
#include <wavekv/core/scalar.hpp>

/// @file tiered.hpp
/// @brief Blocks in two tiers: a block cache in memory over a store.

namespace wavekv::placement {

/// @brief Sealed rows live in a store, and the blocks that were used lately in memory, too; models placement_policy.
///
/// Rows are written in the background; until then they are read from memory. A block's checksum is taken when its
/// segment is sealed, and compared whenever it comes from the store.
/// Memory: options.fast_bytes for the block cache and at most options.write_back_bytes of rows not written yet (one
/// segment's at least). Summaries, sink, tail and segments in the making are in memory besides, in any placement.
/// @tparam Store  models wavekv::block_store
/// Source: RetroInfer, arXiv 2505.02922, section 4.3 (wave buffer).
template <block_store Store>
struct tiered_over {
  /// @brief Budgets, shared by all sequences, and the store's options.
  struct options_type {
    std::size_t fast_bytes = std::size_t{1} << 30U;  ///< block cache; 0 is possible
    std::size_t write_back_bytes = std::size_t{1}
                                   << 28U;  ///< rows that wait to be written; then append waits
    typename Store::options_type store{};   ///< where the slow tier is

    /// @throw config_error
    void validate() const {
      if (fast_bytes > (std::size_t{1} << 46U)) {
        throw config_error(wavekv::detail::message("placement::tiered: fast_bytes is ", fast_bytes,
                                                   "; allowed: 0 to ", std::size_t{1} << 46U));
      }
      store.validate();
    }
  };

  template <scalar T, eviction_policy Eviction>
  class tiers {
   public:
    static constexpr bool always_fast = false;

    /// @brief Names kept rows; copies share them. Giving up the last gives up the rows, and their slots.
    class handle {
     public:
      handle() = default;

     private:
      friend class tiers;
      explicit handle(std::shared_ptr<kept_rows<T, Store>> rows) noexcept
          : rows_(std::move(rows)) {}
      std::shared_ptr<kept_rows<T, Store>> rows_;
    };

    /// @brief A block in memory, which stays there: in a slot, or in rows that are not written yet.
    struct lease {
      const T* rows = nullptr;
      kept_rows<T, Store>* of = nullptr;
      std::uint32_t slot = block_directory::nowhere;
      explicit operator bool() const noexcept {
        return rows != nullptr || slot != block_directory::nowhere;
      }
    };

    /// @throw io_error when the store cannot be made; std::bad_alloc
    tiers(const options_type& options, std::size_t key_dim, std::size_t value_dim)
        : key_dim_(key_dim),
          value_dim_(value_dim),
          store_(options.store),
          cache_(std::make_shared<cache_type>(options.fast_bytes, key_dim, value_dim)),
          write_back_(store_, options.write_back_bytes) {}

    /// @brief Takes rows, which are written in the background. Blocks: while too many wait.
    /// Complexity: O(bytes), for the checksums.
    /// @throw io_error when earlier rows could not be written; std::bad_alloc
    handle keep(aligned_storage<T> rows, std::span<const block> blocks) {
      std::vector<std::uint32_t> checksums(blocks.size());
      for (const block& one : blocks) {
        checksums[one.index] = checksum_of(rows.data() + one.offset, one);
      }
      handle kept = share(std::move(rows), std::move(checksums));
      write_back_.push(kept.rows_);
      return kept;
    }

    /// @brief Opens a saved file whose rows adopt is to take.  @throw io_error
    [[nodiscard]] auto open(const std::filesystem::path& path) const
      requires adopting_store<Store>
    {
      return store_.open(path);
    }

    /// @brief Takes rows that lie in a file, without a copy.  @throw io_error, std::bad_alloc
    /// @param file       as open gave it
    /// @param offset     of the rows in the file, a multiple of 4,096
    /// @param checksums  of the rows' blocks
    template <class File>
    handle adopt(const File& file, std::uint64_t offset, std::size_t n_bytes,
                 std::vector<std::uint32_t> checksums)
      requires adopting_store<Store>
    {
      return share(store_.adopt(file, offset, n_bytes), std::move(checksums));
    }

    /// @brief Complexity: O(1), no lock.
    lease look_up(const handle& rows, const block& which) noexcept {
      kept_rows<T, Store>& kept = *rows.rows_;
      if (const T* in_memory = kept.read_in_memory()) {
        return {in_memory + which.offset, &kept, block_directory::nowhere};
      }
      return {nullptr, nullptr, cache_->pin(kept.directory, which.index)};
    }

    /// @brief Whether look_up would find a block at this moment.
    [[nodiscard]] bool holds(const handle& rows, const block& which) const noexcept {
      return rows.rows_->is_in_memory() || cache_->holds(rows.rows_->directory, which.index);
    }

    /// @brief Calls run(token_run<T>) for the tokens of a block that was found, in order.
    template <class Run>
    void for_runs(const lease& found, std::size_t n_tokens, Run&& run) const {
      if (found.rows != nullptr) {
        run(token_run<T>{found.rows, found.rows + n_tokens * key_dim_, n_tokens});
      } else {
        cache_->for_runs(found.slot, n_tokens, run);
      }
    }

    /// @brief Books the uses of blocks, and gives them up. One lock for every 64.
    void release(std::span<const lease> leases) noexcept {
      std::array<std::uint32_t, 64> slots;
      std::size_t n = 0;
      for (const lease& one : leases) {
        if (one.rows != nullptr) {
          one.of->stop_reading();
          continue;
        }
        slots[n++] = one.slot;
        if (n == slots.size()) {
          cache_->unpin(slots);
          n = 0;
        }
      }
      cache_->unpin(std::span(slots.data(), n));
    }

    [[nodiscard]] std::size_t alignment() const noexcept { return store_.alignment(); }

    /// @brief A read of bytes [offset, offset + to.size()) of rows that are in the store.
    slow_read fetch(const handle& rows, std::uint64_t offset, std::span<std::byte> to) noexcept {
      slow_read read;
      read.make = [](const slow_read& made) {
        static_cast<const tiers*>(made.store)
            ->store_.read(*static_cast<const typename Store::region*>(made.region), made.offset,
                          made.to);
      };
      read.store = this;
      read.region = &rows.rows_->region();
      read.offset = offset;
      read.to = to;
      if constexpr (file_backed<Store>) {
        const file_place place = store_.in_file(rows.rows_->region());
        read.file = place.file;
        read.file_offset = place.offset + offset;
      }
      return read;
    }

    /// @throw format_error when rows that arrived are not what was kept
    void check(const handle& rows, const block& which, const T* arrived) const {
      const std::uint32_t seen = checksum_of(arrived, which);
      const std::uint32_t kept = rows.rows_->checksums[which.index];
      if (seen != kept) {
        throw format_error(wavekv::detail::message(
            "slow tier: ", described(rows.rows_->region()), ": block ", which.index,
            " of a segment, bytes ", which.offset * sizeof(T), " to ",
            (which.offset + which.n_tokens * width()) * sizeof(T), " of its rows, has checksum ",
            seen, "; allowed: ", kept, ", that of what was written"));
      }
    }

    /// @brief Copies a block into the block cache, where there is room that is not in use.
    void admit(const handle& rows, const block& which, const T* arrived) noexcept {
      (void)cache_->admit(rows.rows_->directory, which.index, arrived, which.n_tokens);
    }

    /// @brief Copies elements [offset, offset + to.size()) of rows, wherever they are. Not checked.
    /// Blocks: until they are here.  @throw io_error
    void copy(const handle& rows, std::size_t offset, std::span<T> to) const {
      kept_rows<T, Store>& kept = *rows.rows_;
      if (const T* in_memory = kept.read_in_memory()) {
        std::copy_n(in_memory + offset, to.size(), to.data());
        kept.stop_reading();
      } else {
        store_.read(kept.region(), offset * sizeof(T), std::as_writable_bytes(to));
      }
    }

    /// @brief Blocks until all rows are in the slow tier, and survive the process where its file does.
    /// @throw io_error
    void flush() {
      write_back_.drain();
      store_.flush();
    }

    /// @brief The checksums of a segment's blocks.
    [[nodiscard]] std::span<const std::uint32_t> checksums(const handle& rows) const noexcept {
      return rows.rows_->checksums;
    }

    [[nodiscard]] tier_statistics stats() const noexcept {
      tier_statistics now;
      now.cache_bytes = cache_->bytes();
      now.waiting_bytes = write_back_.n_waiting_bytes();
      now.written_bytes = write_back_.n_written_bytes();
      now.write_failures = write_back_.n_failures();
      now.evictions = cache_->n_evicted();
      now.refusals = cache_->n_refused();
      return now;
    }

    [[nodiscard]] Store& store() noexcept { return store_; }

   private:
    using cache_type = block_cache<T, Eviction>;

    [[nodiscard]] std::size_t width() const noexcept { return key_dim_ + value_dim_; }

    [[nodiscard]] std::uint32_t checksum_of(const T* rows, const block& which) const noexcept {
      return block_checksum(std::as_bytes(std::span(rows, which.n_tokens * width())));
    }

    static std::string described(const typename Store::region& rows) {
      if constexpr (requires { Store::describe(rows); }) {
        return Store::describe(rows);
      } else {
        return "the store";
      }
    }

    template <class Rows>
    handle share(Rows rows, std::vector<std::uint32_t> checksums) {
      auto made = std::make_unique<kept_rows<T, Store>>(std::move(rows), std::move(checksums));
      return handle(std::shared_ptr<kept_rows<T, Store>>(
          made.release(), [cache = cache_](kept_rows<T, Store>* left) {
            cache->drop(left->directory);
            delete left;
          }));
    }

    std::size_t key_dim_;
    std::size_t value_dim_;
    Store store_;
    std::shared_ptr<cache_type> cache_;
    write_back<T, Store> write_back_;
  };
};

/// @brief Sealed rows in a file, the blocks used lately in memory.
using tiered = tiered_over<file_store>;

static_assert(placement_policy<tiered>);

}  // namespace wavekv::placement
