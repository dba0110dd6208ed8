// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <wavekv/buffer/block_cache.hpp>
#include <wavekv/buffer/concepts.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/scalar.hpp>

/// @file write_back.hpp
/// @brief The way of sealed rows from memory to the slow tier.

namespace wavekv {

/// @brief The rows of one sealed segment: in memory until they are written, then in a region of the store.
/// Readers of rows in memory count themselves, so that the rows leave when nobody reads them.
template <scalar T, block_store Store>
class kept_rows {
 public:
  /// @brief Rows that are not written yet.
  kept_rows(aligned_storage<T> in_memory, std::vector<std::uint32_t> block_checksums)
      : directory(block_checksums.size()),
        checksums(std::move(block_checksums)),
        n_bytes(in_memory.bytes()),
        rows_(std::move(in_memory)) {}

  /// @brief Rows that a store has already.
  kept_rows(typename Store::region stored, std::vector<std::uint32_t> block_checksums)
      : directory(block_checksums.size()),
        checksums(std::move(block_checksums)),
        n_bytes(stored.size()),
        region_(std::move(stored)),
        readers_(gone) {}

  /// @brief The rows, when they are in memory: they stay there until stop_reading. Null otherwise. No lock.
  const T* read_in_memory() noexcept {
    if (readers_.load(std::memory_order_acquire) < 0) {
      return nullptr;
    }
    if (readers_.fetch_add(1, std::memory_order_acq_rel) >= 0) {
      return rows_.data();
    }
    readers_.fetch_sub(1, std::memory_order_acq_rel);  // they left in between
    return nullptr;
  }
  /// @brief Whether they are in memory at this moment.
  [[nodiscard]] bool is_in_memory() const noexcept {
    return readers_.load(std::memory_order_acquire) >= 0;
  }
  void stop_reading() noexcept { readers_.fetch_sub(1, std::memory_order_acq_rel); }

  /// @brief Where the rows are in the store; when they are not in memory any more.
  [[nodiscard]] const typename Store::region& region() const noexcept { return region_; }

  block_directory directory;             ///< of its blocks that are in the block cache
  std::vector<std::uint32_t> checksums;  ///< [n_blocks] of each block's rows
  std::size_t n_bytes;                   ///< of the rows

 private:
  template <scalar, block_store>
  friend class write_back;

  // Added once the rows are to leave: far below what readers that come too late add meanwhile.
  static constexpr std::int32_t gone = -(1 << 30);

  void write(Store& store) {
    region_ = store.write(std::as_bytes(std::span(rows_.data(), rows_.size())));
  }

  // Sends readers of written rows to the store, all that come from now on.
  void turn_away() noexcept { readers_.fetch_add(gone, std::memory_order_acq_rel); }

  // Frees the memory of rows, unless somebody who came before still reads them.
  bool leave_memory() noexcept {
    if (readers_.load(std::memory_order_acquire) != gone) {
      return false;
    }
    rows_ = {};
    return true;
  }

  aligned_storage<T> rows_;
  typename Store::region region_;
  std::atomic<std::int32_t> readers_{0};  // of rows in memory; below 0 once they have left
};

/// @brief Writes rows to a store on a thread of its own, in the order in which they came, and bounds what waits.
///
/// What cannot be written stays in memory, where it can be read, and is tried again whenever more comes, or a flush.
/// Threads: all calls at once.
template <scalar T, block_store Store>
class write_back {
 public:
  using rows_type = kept_rows<T, Store>;

  /// @param most_bytes  that wait to be written; more only when one segment alone has more
  write_back(Store& store, std::size_t most_bytes)
      : store_(store), most_bytes_(most_bytes), thread_([this] { work(); }) {}
  write_back(const write_back&) = delete;
  write_back& operator=(const write_back&) = delete;
  write_back(write_back&&) = delete;
  write_back& operator=(write_back&&) = delete;

  /// @brief Rows that wait are not written any more.  Blocks: until a write under way is over.
  ~write_back() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  /// @brief Takes rows to be written. Blocks: while too much waits.
  /// @throw what writing threw, when earlier rows could not be written; these are tried again, and the new ones not
  ///        taken. std::bad_alloc
  void push(std::shared_ptr<rows_type> rows) {
    std::unique_lock lock(mutex_);
    const std::size_t n = rows->n_bytes;
    changed_.wait(lock, [&] {
      return failure_ != nullptr || n_waiting_bytes_ == 0 || n_waiting_bytes_ + n <= most_bytes_;
    });
    throw_failure(lock);
    waiting_.push_back(std::move(rows));
    n_waiting_bytes_ += n;
    changed_.notify_all();
  }

  /// @brief Blocks: until all rows are written.  @throw what writing threw
  void drain() {
    std::unique_lock lock(mutex_);
    failure_ = nullptr;  // they are tried once more
    changed_.notify_all();
    changed_.wait(lock, [&] { return failure_ != nullptr || n_waiting_bytes_ == 0; });
    throw_failure(lock);
  }

  /// @brief Bytes that wait to be written.
  [[nodiscard]] std::uint64_t n_waiting_bytes() const noexcept {
    const std::lock_guard lock(mutex_);
    return n_waiting_bytes_;
  }
  /// @brief Bytes written so far.
  [[nodiscard]] std::uint64_t n_written_bytes() const noexcept {
    const std::lock_guard lock(mutex_);
    return n_written_bytes_;
  }
  /// @brief Writes that failed so far.
  [[nodiscard]] std::uint64_t n_failures() const noexcept {
    const std::lock_guard lock(mutex_);
    return n_failures_;
  }

 private:
  // Hands a failure to one caller; the thread tries again then.
  void throw_failure(std::unique_lock<std::mutex>& lock) {
    if (const std::exception_ptr failure = std::exchange(failure_, nullptr)) {
      changed_.notify_all();
      lock.unlock();
      std::rethrow_exception(failure);
    }
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return ended_ || (failure_ == nullptr && !waiting_.empty()); });
      if (ended_) {
        return;
      }
      const std::shared_ptr<rows_type> rows =
          waiting_.front();  // stays in line until it is written
      lock.unlock();
      std::exception_ptr failure;
      const bool wanted = rows.use_count() > 2;  // by more than the line and this function
      if (wanted) {
        try {
          rows->write(store_);
        } catch (...) {
          failure = std::current_exception();
        }
      }
      if (wanted && failure == nullptr) {
        rows->turn_away();
        while (!rows->leave_memory()) {  // readers are gone when their step is over
          std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
      }
      lock.lock();
      if (failure == nullptr) {
        waiting_.pop_front();
        n_waiting_bytes_ -= rows->n_bytes;
        n_written_bytes_ += wanted ? rows->n_bytes : 0;
      } else {
        ++n_failures_;
        failure_ = failure;
      }
      changed_.notify_all();
    }
  }

  Store& store_;
  std::size_t most_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<rows_type>> waiting_;
  std::size_t n_waiting_bytes_ = 0;
  std::uint64_t n_written_bytes_ = 0;
  std::uint64_t n_failures_ = 0;
  std::exception_ptr failure_;  // of the first in line; nothing is tried before somebody was told
  bool ended_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace wavekv
