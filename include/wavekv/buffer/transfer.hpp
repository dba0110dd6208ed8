// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <wavekv/buffer/concepts.hpp>

/// @file transfer.hpp
/// @brief How missing blocks arrive: read at once, or by threads. <wavekv/buffer/io_uring.hpp> has a third way.

namespace wavekv {
namespace detail {

/// What is over of the reads of one reader.
struct finished_read {
  std::size_t tag = 0;
  std::exception_ptr failure;
};

/// Makes a read.
inline finished_read make_read(const slow_read& read, std::size_t tag) noexcept {
  try {
    read();
    return {tag, nullptr};
  } catch (...) {
    return {tag, std::current_exception()};
  }
}

/// Threads that make reads for any number of readers; they begin with the first read and end with the program.
class read_threads {
 public:
  /// Where a reader's finished reads are put.
  struct inbox {
    std::mutex mutex;
    std::condition_variable arrived;
    std::vector<finished_read> finished;
  };

  explicit read_threads(std::size_t n_threads) {
    threads_.reserve(n_threads);
    try {
      while (threads_.size() < n_threads) {
        threads_.emplace_back([this] { work(); });
      }
    } catch (...) {
      if (threads_.empty()) {
        throw;
      }  // fewer do, too
    }
  }
  read_threads(const read_threads&) = delete;
  read_threads& operator=(const read_threads&) = delete;
  read_threads(read_threads&&) = delete;
  read_threads& operator=(read_threads&&) = delete;
  ~read_threads() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  void start(const slow_read& read, std::size_t tag, inbox& to) {
    {
      const std::lock_guard lock(mutex_);
      orders_.push_back({read, tag, &to});
    }
    wanted_.notify_one();
  }

 private:
  struct order {
    slow_read read;
    std::size_t tag;
    inbox* to;
  };

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wanted_.wait(lock, [this] { return ended_ || !orders_.empty(); });
      if (orders_.empty()) {
        return;
      }
      const order next = orders_.front();
      orders_.pop_front();
      lock.unlock();
      finished_read done = make_read(next.read, next.tag);
      {
        const std::lock_guard inbox_lock(next.to->mutex);
        next.to->finished.push_back(std::move(done));  // room was reserved
        next.to->arrived.notify_one();  // under the lock: the reader may leave with the inbox
      }
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wanted_;
  std::deque<order> orders_;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace detail

namespace transfer {

/// @brief Reads a missing block on the calling thread, at once; models transfer_engine. The baseline
/// that overlapped engines are measured against.
class inline_read {
 public:
  /// @brief Makes the read.  Blocks: until it is over.  @throw std::bad_alloc
  void start(const slow_read& read, std::size_t tag) {
    finished_.reserve(finished_.size() + 1);
    finished_.push_back(wavekv::detail::make_read(read, tag));
  }

  /// @brief The tag of a read that is over.
  std::size_t next() noexcept {
    last_ = std::move(finished_.back());
    finished_.pop_back();
    return last_.tag;
  }

  /// @brief What that read threw, or null.
  [[nodiscard]] std::exception_ptr failure() const noexcept { return last_.failure; }

 private:
  std::vector<wavekv::detail::finished_read> finished_;
  wavekv::detail::finished_read last_;
};

/// @brief Reads missing blocks on N threads, which all readers of the program share; models transfer_engine.
/// They begin with the first read, and sleep while there is none.
/// @tparam N  reads that are made at once: disks answer many together in the time of one
template <std::size_t N>
class basic_threads {
  static_assert(N >= 1 && N <= 1024, "basic_threads: 1 to 1024 threads");

 public:
  /// @brief Hands the read to the threads.  @throw std::bad_alloc, std::system_error when not one thread can be made
  void start(const slow_read& read, std::size_t tag) {
    shared_threads().start(read, tag, make_room());
  }

  /// @brief Blocks: until some read is over.
  std::size_t next() {
    std::unique_lock lock(inbox_->mutex);
    inbox_->arrived.wait(lock, [this] { return !inbox_->finished.empty(); });
    last_ = std::move(inbox_->finished.back());
    inbox_->finished.pop_back();
    --n_under_way_;
    return last_.tag;
  }

  /// @brief What that read threw, or null.
  [[nodiscard]] std::exception_ptr failure() const noexcept { return last_.failure; }

 private:
  static wavekv::detail::read_threads& shared_threads() {
    static wavekv::detail::read_threads threads(N);
    return threads;
  }

  wavekv::detail::read_threads::inbox& make_room() {
    if (inbox_ == nullptr) {
      inbox_ = std::make_unique<wavekv::detail::read_threads::inbox>();
    }
    const std::lock_guard lock(inbox_->mutex);
    inbox_->finished.reserve(n_under_way_ + 1);
    ++n_under_way_;
    return *inbox_;
  }

  std::unique_ptr<wavekv::detail::read_threads::inbox>
      inbox_;  // stays where it is when the engine moves
  std::size_t n_under_way_ = 0;
  wavekv::detail::finished_read last_;
};

/// @brief As many reads at once as keep a disk of the usual kind busy.
using threads = basic_threads<16>;

static_assert(transfer_engine<inline_read> && transfer_engine<threads>);

}  // namespace transfer
}  // namespace wavekv
