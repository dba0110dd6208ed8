// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
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

/// @brief Every fetch on a thread of its own, while the reader goes on.
class overlapped_transfer {
 public:
  overlapped_transfer() = default;
  overlapped_transfer(overlapped_transfer&&) = default;
  overlapped_transfer& operator=(overlapped_transfer&&) = default;
  ~overlapped_transfer() {
    for (auto& fetch : under_way_) fetch.wait();
  }

  template <class Fetch>
  void start(Fetch&& fetch) {
    under_way_.push_back(std::async(std::launch::async, std::forward<Fetch>(fetch)));
  }

  void wait() {
    std::exception_ptr first;
    for (auto& fetch : under_way_) {
      try {
        fetch.get();
      } catch (...) {
        if (!first) first = std::current_exception();
      }
    }
    under_way_.clear();
    if (first) std::rethrow_exception(first);
  }

 private:
  std::vector<std::future<void>> under_way_;
};

/// @brief Does nothing before wait(), and then works backwards: an engine may be as late as that.
class late_transfer {
 public:
  template <class Fetch>
  void start(Fetch&& fetch) {
    waiting_.push_back(std::make_unique<one<std::decay_t<Fetch>>>(std::forward<Fetch>(fetch)));
  }

  void wait() {
    std::exception_ptr first;
    for (; !waiting_.empty(); waiting_.pop_back()) {
      try {
        waiting_.back()->run();
      } catch (...) {
        if (!first) first = std::current_exception();
      }
    }
    if (first) std::rethrow_exception(first);
  }

 private:
  struct any_fetch {
    virtual ~any_fetch() = default;
    virtual void run() = 0;
  };
  template <class Fetch>
  struct one final : any_fetch {
    explicit one(Fetch chosen) : fetch(std::move(chosen)) {}
    void run() override { fetch(); }
    Fetch fetch;
  };
  std::vector<std::unique_ptr<any_fetch>> waiting_;
};

/// @brief How the stores of a test behave, and what they saw. One for the program: stores are made by the cache.
struct slow_tier {
  std::size_t n_slots = 4;          ///< of every store made from now on
  std::ptrdiff_t fails_after = -1;  ///< fetches until one throws io_error; below 0: none does
  std::size_t n_fetches = 0;
  std::size_t n_evictions = 0;
  std::size_t n_kept = 0;  ///< segments whose rows are alive

  static slow_tier& instance() {
    static slow_tier tier;
    return tier;
  }
};

/// @brief Keeps all rows in a slow tier and the last few blocks in a fast one, chosen by the eviction policy.
///
/// A block given out by lookup stays readable: an evicted block's memory is kept until the store goes, since a
/// store is not told when a step ends.
struct two_tiers {
  template <wavekv::scalar T, wavekv::eviction_policy Eviction>
  class tiers {
   public:
    static constexpr bool always_fast = false;

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

    tiers() : slots_(slow_tier::instance().n_slots), eviction_(slots_.size()) {
      for (std::size_t slot = slots_.size(); slot-- > 0;) free_.push_back(slot);
    }

    handle keep(wavekv::aligned_storage<T> rows) {
      auto shared = std::make_shared<const wavekv::aligned_storage<T>>(std::move(rows));
      const std::lock_guard lock(mutex_);
      ++slow_tier::instance().n_kept;
      return {std::move(shared), this};
    }

    const T* lookup(const handle& rows, wavekv::block which) noexcept {
      const std::lock_guard lock(mutex_);
      const auto found = directory_.find({rows.rows(), which.offset});
      if (found == directory_.end()) return nullptr;
      eviction_.touch(found->second);
      return slots_[found->second].block->data();
    }

    void fetch(const handle& rows, wavekv::block which, T* to) {
      {
        const std::lock_guard lock(mutex_);
        slow_tier& tier = slow_tier::instance();
        ++tier.n_fetches;
        if (tier.fails_after >= 0 && tier.fails_after-- == 0) {
          throw wavekv::io_error("the slow tier was told to fail; allowed: other calls");
        }
      }
      std::copy_n(rows.rows() + which.offset, which.n_elements, to);
    }

    void admit(const handle& rows, wavekv::block which, const T* fetched) noexcept {
      const std::lock_guard lock(mutex_);
      if (slots_.empty() || directory_.contains({rows.rows(), which.offset})) return;
      if (free_.empty()) {
        const std::size_t victim = eviction_.victim();
        directory_.erase(slots_[victim].key);
        retired_.push_back(std::move(slots_[victim].block));
        free_.push_back(victim);
        ++slow_tier::instance().n_evictions;
      }
      const std::size_t slot = free_.back();
      free_.pop_back();
      slots_[slot].key = {rows.rows(), which.offset};
      slots_[slot].block = std::make_unique<std::vector<T>>(fetched, fetched + which.n_elements);
      directory_[slots_[slot].key] = slot;
      eviction_.insert(slot);
    }

   private:
    using key_type = std::pair<const T*, std::size_t>;
    struct slot_type {
      key_type key;
      std::unique_ptr<std::vector<T>> block;
    };

    void forget(const T* rows) noexcept {
      const std::lock_guard lock(mutex_);
      --slow_tier::instance().n_kept;
      for (auto entry = directory_.begin(); entry != directory_.end();) {
        if (entry->first.first == rows) {
          eviction_.erase(entry->second);
          retired_.push_back(std::move(slots_[entry->second].block));
          free_.push_back(entry->second);
          entry = directory_.erase(entry);
        } else {
          ++entry;
        }
      }
    }

    std::mutex mutex_;
    std::vector<slot_type> slots_;
    std::vector<std::size_t> free_;
    std::map<key_type, std::size_t> directory_;
    std::vector<std::unique_ptr<std::vector<T>>> retired_;
    Eviction eviction_;
  };
};

}  // namespace wavekv_test
