// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include <liburing.h>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/transfer.hpp>

/// @file io_uring.hpp
/// @brief Missing blocks read by Linux's io_uring. Needs liburing: link wavekv::io_uring. Not in <wavekv/wavekv.hpp>.

namespace wavekv {
namespace detail {

/// A ring of the kernel's, and the reads in it. For one thread at a time.
class read_ring {
 public:
  static constexpr std::size_t depth = 128;

  read_ring() noexcept : error_(-::io_uring_queue_init(depth, &ring_, 0)) {
    for (order& one : orders_) {
      one.next_free = std::exchange(free_, &one);
    }
  }
  read_ring(const read_ring&) = delete;
  read_ring& operator=(const read_ring&) = delete;
  read_ring(read_ring&&) = delete;
  read_ring& operator=(read_ring&&) = delete;
  ~read_ring() {
    if (error_ == 0) {
      ::io_uring_queue_exit(&ring_);
    }
  }

  /// Why the kernel gave no ring, as errno says it, or 0.
  [[nodiscard]] int error() const noexcept { return error_; }

  [[nodiscard]] std::size_t n_queued() const noexcept { return n_queued_; }
  [[nodiscard]] std::size_t n_held() const noexcept { return n_queued_ + n_in_flight_; }

  /// Takes a read, which submit() or wait() begins. Only where fewer than `depth` are held.
  void queue(const slow_read& read, std::size_t tag) noexcept {
    order& one = *std::exchange(free_, free_->next_free);
    one.read = read;
    one.tag = tag;
    one.is_held = true;
    io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_);  // never null: as many as orders
    ::io_uring_prep_read(entry, read.file, read.to.data(), static_cast<unsigned>(read.to.size()),
                         read.file_offset);
    ::io_uring_sqe_set_data(entry, &one);
    ++n_queued_;
  }

  /// Begins what is queued, or as much of it as the kernel takes.
  void submit() noexcept {
    if (n_queued_ != 0) {
      submit_and_wait(0);
    }
  }

  /// Puts what is over into a list that has room for all that are held. Does not wait.
  void collect(std::vector<finished_read>& finished) noexcept {
    io_uring_cqe* entry = nullptr;
    while (::io_uring_peek_cqe(&ring_, &entry) == 0) {
      auto& one = *static_cast<order*>(::io_uring_cqe_get_data(entry));
      const bool is_whole =
          entry->res >= 0 && static_cast<std::size_t>(entry->res) == one.read.to.size();
      ::io_uring_cqe_seen(&ring_, entry);
      --n_in_flight_;
      finish(one, is_whole, finished);
    }
  }

  /// Begins what is queued, and collects. Blocks: until some read is over. False where the kernel takes no reads any more:
  /// all that were held have been made here then.
  bool wait(std::vector<finished_read>& finished) noexcept {
    const std::size_t n_before = finished.size();
    while (finished.size() == n_before) {
      submit_and_wait(1);
      if (n_in_flight_ == 0) {
        for (order& one : orders_) {
          if (one.is_held) {
            finish(one, false, finished);
          }
        }
        return false;
      }
      if (n_queued_ != 0) {  // not all were taken; it does not wait then
        io_uring_cqe* entry = nullptr;
        (void)::io_uring_wait_cqe(&ring_, &entry);
      }
      collect(finished);
    }
    return true;
  }

 private:
  struct order {
    slow_read read;
    std::size_t tag = 0;
    bool is_held = false;
    order* next_free = nullptr;
  };

  void submit_and_wait(unsigned n_finished) noexcept {
    int n = -EINTR;
    while (n == -EINTR) {
      n = ::io_uring_submit_and_wait(&ring_, n_finished);
    }
    if (n > 0) {  // else it takes none, for now
      n_queued_ -= static_cast<std::size_t>(n);
      n_in_flight_ += static_cast<std::size_t>(n);
    }
  }

  // What failed or came short is made again: it succeeds, or throws what its store has to say.
  void finish(order& one, bool is_whole, std::vector<finished_read>& finished) noexcept {
    finished.push_back(is_whole ? finished_read{one.tag, nullptr} : make_read(one.read, one.tag));
    one.is_held = false;
    one.next_free = std::exchange(free_, &one);
  }

  ::io_uring ring_{};
  int error_;
  std::array<order, depth> orders_;
  order* free_ = nullptr;
  std::size_t n_queued_ = 0;
  std::size_t n_in_flight_ =
      0;  // the kernel has them; never more than it has room for when they are over
};

/// Says once that the kernel gives no ring.
inline void report_no_ring(int error) noexcept {
  static std::atomic_flag is_said;
  if (!is_said.test_and_set()) {
    std::fprintf(
        stderr, "wavekv: transfer::io_uring: the kernel gives no ring (%s); threads read instead\n",
        std::strerror(error));
  }
}

}  // namespace detail

namespace transfer {

/// @brief Has missing blocks read by the kernel, many at once and without threads; models transfer_engine. For stores in
/// files; what is in no file is read on the calling thread.
///
/// Each engine has a ring, made with its first read. Where the kernel gives none (ENOSYS, EPERM, ...) it reads as
/// transfer::threads does, and says so once on stderr. Linux only.
class io_uring {
 public:
  /// @brief Reads under way at once; start() waits for one to be over where there are more.
  static constexpr std::size_t depth = wavekv::detail::read_ring::depth;

  /// @brief Reads that begin together, in one call of the kernel.
  static constexpr std::size_t batch = 8;

  /// @brief Queues the read; each time that `batch` are queued, they begin.
  /// Blocks: while `depth` are under way, and for reads in no file.  @throw std::bad_alloc, std::system_error as threads do
  void start(const slow_read& read, std::size_t tag) {
    if (!has_no_ring_) {
      make_room();
      if (read.file < 0 || read.to.size() > max_bytes) {
        finished_.push_back(wavekv::detail::make_read(read, tag));
        return;
      }
      if (ring_ != nullptr && ring_->n_held() == depth) {
        wait();
      }
      if (ring_ != nullptr || make_ring()) {
        ring_->queue(read, tag);
        if (ring_->n_queued() >= batch) {
          ring_->submit();
        }
        return;
      }
    }
    threads_.start(read, tag);
  }

  /// @brief Begins the reads that are still queued; without it, next() does.
  void submit() noexcept {
    if (ring_ != nullptr) {
      ring_->submit();
    }
  }

  /// @brief Blocks: until some read is over. One that failed or came short is made again on the calling thread.
  std::size_t next() {
    if (ring_ != nullptr) {
      if (finished_.empty()) {
        ring_->collect(finished_);
      }
      if (finished_.empty()) {
        wait();
      } else {
        ring_->submit();
      }
    }
    if (finished_.empty()) {
      last_.tag = threads_.next();
      last_.failure = threads_.failure();
    } else {
      last_ = std::move(finished_.back());
      finished_.pop_back();
    }
    return last_.tag;
  }

  /// @brief What that read threw, or null.
  [[nodiscard]] std::exception_ptr failure() const noexcept { return last_.failure; }

 private:
  static constexpr std::size_t max_bytes = std::size_t{1} << 30U;  // of one read by the kernel

  // In the list, for all that are under way and one more.
  void make_room() {
    const std::size_t n = finished_.size() + (ring_ == nullptr ? 0 : ring_->n_held());
    if (finished_.capacity() <= n) {
      finished_.reserve(std::max(depth, 2 * n));
    }
  }

  bool make_ring() {
    ring_ = std::make_unique<wavekv::detail::read_ring>();
    if (ring_->error() != 0) {
      wavekv::detail::report_no_ring(ring_->error());
      ring_ = nullptr;
      has_no_ring_ = true;
    }
    return !has_no_ring_;
  }

  void wait() noexcept {
    if (!ring_->wait(finished_)) {
      ring_ = nullptr;  // the next read asks for another
    }
  }

  std::unique_ptr<wavekv::detail::read_ring> ring_;  // stays where it is when the engine moves
  std::vector<wavekv::detail::finished_read> finished_;
  threads threads_;  // idle, unless the kernel gives no ring
  bool has_no_ring_ = false;
  wavekv::detail::finished_read last_;
};

static_assert(transfer_engine<io_uring> && std::movable<io_uring>);

}  // namespace transfer
}  // namespace wavekv
