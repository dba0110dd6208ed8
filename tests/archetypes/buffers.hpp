// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <future>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/errors.hpp>

/// @file buffers.hpp
/// @brief Buffer policies as a user might write them: a placement with two tiers, an engine that overlaps,
/// an eviction policy of the simplest kind.

namespace wavekv_test {

/// @brief Evicts the slot that was filled first; a plain vector.
class first_in_first_out {
 public:
  explicit first_in_first_out(std::size_t n_slots) { filled_.reserve(n_slots); }
  void insert(std::size_t slot) noexcept { filled_.push_back(slot); }
  void touch(std::size_t) noexcept {}
  std::size_t victim() noexcept {
    const std::size_t slot = filled_.front();
    filled_.erase(filled_.begin());
    return slot;
  }
  void erase(std::size_t slot) noexcept { std::erase(filled_, slot); }

 private:
  std::vector<std::size_t> filled_;
};

/// @brief Every read on a thread of its own, a few at once, while the reader goes on.
class overlapped_transfer {
 public:
  static constexpr std::size_t most_threads = 8;

  overlapped_transfer() = default;
  overlapped_transfer(overlapped_transfer&&) = default;
  overlapped_transfer& operator=(overlapped_transfer&&) = default;
  ~overlapped_transfer() {
    for (auto& read : under_way_) read.made.wait();
  }

  void start(const wavekv::slow_read& read, std::size_t tag) {
    if (under_way_.size() >= most_threads) (under_way_.end() - most_threads)->made.wait();
    under_way_.push_back({tag, std::async(std::launch::async, [read] { read(); })});
  }

  std::size_t next() {
    failure_ = nullptr;
    try {
      under_way_.front().made.get();
    } catch (...) {
      failure_ = std::current_exception();
    }
    const std::size_t tag = under_way_.front().tag;
    under_way_.pop_front();
    return tag;
  }

  std::exception_ptr failure() const noexcept { return failure_; }

 private:
  struct order {
    std::size_t tag;
    std::future<void> made;
  };
  std::deque<order> under_way_;
  std::exception_ptr failure_;
};

/// @brief Does nothing before next(), and then works backwards: an engine may be as late as that.
class late_transfer {
 public:
  void start(const wavekv::slow_read& read, std::size_t tag) { waiting_.emplace_back(read, tag); }

  std::size_t next() {
    const auto [read, tag] = waiting_.back();
    waiting_.pop_back();
    failure_ = nullptr;
    try {
      read();
    } catch (...) {
      failure_ = std::current_exception();
    }
    return tag;
  }

  std::exception_ptr failure() const noexcept { return failure_; }

 private:
  std::vector<std::pair<wavekv::slow_read, std::size_t>> waiting_;
  std::exception_ptr failure_;
};

/// @brief How the slow tiers of a test behave, and what they saw. One for the program: tiers are made by the cache.
struct slow_tier {
  std::ptrdiff_t fails_after = -1;  ///< reads until one throws io_error; below 0: none does
  std::size_t n_reads = 0;
  std::size_t n_evictions = 0;
  std::size_t n_kept = 0;    ///< segments whose rows are alive
  std::size_t n_leases = 0;  ///< given out and not given up

  static slow_tier& instance() {
    static slow_tier tier;
    return tier;
  }
};

/// @brief Keeps all rows in a slow tier and the last few blocks in a fast one, chosen by the eviction policy.
///
/// A block that was looked up stays readable until it is released: one that is evicted meanwhile is kept aside. It is
/// shown in runs of a few tokens.
struct two_tiers {
  struct options_type {
    std::size_t n_slots = 4;
    void validate() const {
      if (n_slots > 1000000) throw wavekv::config_error("two_tiers: allowed: 1000000 slots");
    }
  };

  template <wavekv::scalar T, wavekv::eviction_policy Eviction>
  class tiers {
    struct cached_block {
      std::pair<const T*, std::size_t> key;  // the rows, and the block's offset in them
      std::vector<T> rows;
      std::size_t n_leases = 0;
      bool is_evicted = false;
    };
    using place = typename std::list<cached_block>::iterator;

   public:
    static constexpr bool always_fast = false;
    static constexpr std::size_t run_tokens = 3;

    class handle {
     public:
      handle() = default;
      handle(std::shared_ptr<const wavekv::aligned_storage<T>> rows, tiers* owner)
          : rows_(std::move(rows)), owner_(owner) {}
      handle(handle&& other) noexcept
          : rows_(std::move(other.rows_)), owner_(std::exchange(other.owner_, nullptr)) {}
      handle& operator=(handle&& other) noexcept {
        give_up();
        rows_ = std::move(other.rows_);
        owner_ = std::exchange(other.owner_, nullptr);
        return *this;
      }
      ~handle() { give_up(); }
      const T* rows() const noexcept { return rows_->data(); }

     private:
      void give_up() noexcept {
        if (owner_ != nullptr && rows_) owner_->forget(rows_->data());
        owner_ = nullptr;
      }
      std::shared_ptr<const wavekv::aligned_storage<T>> rows_;
      tiers* owner_ = nullptr;
    };

    struct lease {
      cached_block* held = nullptr;
      explicit operator bool() const noexcept { return held != nullptr; }
    };

    tiers(const options_type& options, std::size_t key_dim, std::size_t value_dim)
        : key_dim_(key_dim),
          value_dim_(value_dim),
          slots_(options.n_slots),
          eviction_(options.n_slots) {
      for (std::size_t slot = slots_.size(); slot-- > 0;) free_.push_back(slot);
    }
    tiers(const tiers&) = delete;
    tiers& operator=(const tiers&) = delete;

    handle keep(wavekv::aligned_storage<T> rows, std::span<const wavekv::block> /*blocks*/) {
      auto shared = std::make_shared<const wavekv::aligned_storage<T>>(std::move(rows));
      const std::lock_guard lock(mutex_);
      ++slow_tier::instance().n_kept;
      return {std::move(shared), this};
    }

    lease look_up(const handle& rows, const wavekv::block& which) noexcept {
      const std::lock_guard lock(mutex_);
      const auto found = directory_.find({rows.rows(), which.offset});
      if (found == directory_.end()) return {};
      eviction_.touch(found->second);
      cached_block& held = *slots_[found->second];
      ++held.n_leases;
      ++slow_tier::instance().n_leases;
      return {&held};
    }

    bool holds(const handle& rows, const wavekv::block& which) const noexcept {
      const std::lock_guard lock(mutex_);
      return directory_.contains({rows.rows(), which.offset});
    }

    template <class Run>
    void for_runs(const lease& found, std::size_t n_tokens, Run&& run) const {
      const T* keys = found.held->rows.data();
      const T* values = keys + n_tokens * key_dim_;
      for (std::size_t first = 0; first < n_tokens; first += run_tokens) {
        const std::size_t n = std::min(run_tokens, n_tokens - first);
        run(wavekv::token_run<T>{keys + first * key_dim_, values + first * value_dim_, n});
      }
    }

    void release(std::span<const lease> leases) noexcept {
      const std::lock_guard lock(mutex_);
      for (const lease& one : leases) {
        --slow_tier::instance().n_leases;
        if (--one.held->n_leases == 0 && one.held->is_evicted) {
          aside_.remove_if([&](const cached_block& block) { return &block == one.held; });
        }
      }
    }

    void copy(const handle& rows, std::size_t offset, std::span<T> to) const {
      std::copy_n(rows.rows() + offset, to.size(), to.data());
    }

    std::size_t alignment() const noexcept { return 1; }

    wavekv::slow_read fetch(const handle& rows, std::uint64_t offset, std::span<std::byte> to) {
      wavekv::slow_read read;
      read.make = [](const wavekv::slow_read& wanted) {
        static_cast<const tiers*>(wanted.store)->note_read();
        std::memcpy(wanted.to.data(), static_cast<const std::byte*>(wanted.region) + wanted.offset,
                    wanted.to.size());
      };
      read.store = this;
      read.region = rows.rows();
      read.offset = offset;
      read.to = to;
      return read;
    }

    void check(const handle& rows, const wavekv::block& which, const T* arrived) const {
      if (std::memcmp(arrived, rows.rows() + which.offset, elements_of(which) * sizeof(T)) != 0) {
        throw wavekv::io_error("two_tiers: a block that arrived is not what was kept");
      }
    }

    void admit(const handle& rows, const wavekv::block& which, const T* arrived) noexcept {
      const std::lock_guard lock(mutex_);
      if (slots_.empty() || directory_.contains({rows.rows(), which.offset})) return;
      if (free_.empty()) {
        const std::size_t victim = eviction_.victim();
        directory_.erase(slots_[victim]->key);
        leave(victim);
        ++slow_tier::instance().n_evictions;
      }
      const std::size_t slot = free_.back();
      free_.pop_back();
      cached_block& block = in_slots_.emplace_front();
      block.key = {rows.rows(), which.offset};
      block.rows.assign(arrived, arrived + elements_of(which));
      slots_[slot] = in_slots_.begin();
      directory_[block.key] = slot;
      eviction_.insert(slot);
    }

   private:
    std::size_t elements_of(const wavekv::block& which) const noexcept {
      return which.n_tokens * (key_dim_ + value_dim_);
    }

    void note_read() const {
      const std::lock_guard lock(mutex_);
      slow_tier& tier = slow_tier::instance();
      ++tier.n_reads;
      if (tier.fails_after >= 0 && tier.fails_after-- == 0) {
        throw wavekv::io_error("the slow tier was told to fail; allowed: other calls");
      }
    }

    // Empties a slot; its block stays aside as long as somebody holds it.
    void leave(std::size_t slot) noexcept {
      const place block = slots_[slot];
      block->is_evicted = true;
      if (block->n_leases != 0) {
        aside_.splice(aside_.begin(), in_slots_, block);
      } else {
        in_slots_.erase(block);
      }
      free_.push_back(slot);
    }

    void forget(const T* rows) noexcept {
      const std::lock_guard lock(mutex_);
      --slow_tier::instance().n_kept;
      for (auto entry = directory_.begin(); entry != directory_.end();) {
        if (entry->first.first == rows) {
          eviction_.erase(entry->second);
          leave(entry->second);
          entry = directory_.erase(entry);
        } else {
          ++entry;
        }
      }
    }

    std::size_t key_dim_;
    std::size_t value_dim_;
    mutable std::mutex mutex_;
    std::list<cached_block> in_slots_;
    std::list<cached_block> aside_;  // evicted, but held
    std::vector<place> slots_;
    std::vector<std::size_t> free_;
    std::map<std::pair<const T*, std::size_t>, std::size_t> directory_;
    Eviction eviction_;
  };
};

}  // namespace wavekv_test
