// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/memory_store.hpp>
#include <wavekv/core/errors.hpp>

/// @file stores.hpp
/// @brief A slow tier that breaks when a test tells it to.

namespace wavekv_test {

/// @brief Something that goes wrong in some calls of a kind: after so many, for so many.
class fault {
 public:
  /// @brief The next `after` calls are well, the n after them are not.
  void set(std::size_t after, std::size_t n = 1) {
    const std::lock_guard lock(mutex_);
    n_well_ = after;
    n_left_ = n;
  }
  /// @brief From now on all is well.
  void mend() { set(0, 0); }

  /// @brief Counts a call; whether it goes wrong.
  bool strikes() {
    const std::lock_guard lock(mutex_);
    if (n_left_ == 0) return false;
    if (n_well_ != 0) {
      --n_well_;
      return false;
    }
    --n_left_;
    ++n_struck_;
    return true;
  }
  /// @brief Calls that went wrong so far.
  std::size_t n_struck() const {
    const std::lock_guard lock(mutex_);
    return n_struck_;
  }

 private:
  mutable std::mutex mutex_;
  std::size_t n_well_ = 0;
  std::size_t n_left_ = 0;
  std::size_t n_struck_ = 0;
};

/// @brief What a test tells its stores, and what they saw; shared by the test and its stores. From any thread.
struct store_control {
  static constexpr std::size_t always = SIZE_MAX;

  fault read_fails;     ///< a read throws io_error
  fault read_is_short;  ///< a read leaves the last bytes as they were, which is not right
  fault read_corrupts;  ///< a read changes one byte
  fault write_fails;    ///< a write throws io_error
  std::atomic<std::size_t> space{
      always};                   ///< bytes that fit the store; a write beyond them throws io_error
  std::atomic<int> read_us{0};   ///< microseconds that each read takes
  std::atomic<int> write_us{0};  ///< and each write
  std::atomic<std::size_t> n_reads{0};
  std::atomic<std::size_t> n_writes{0};  ///< that succeeded
  std::atomic<std::size_t> n_flushes{0};
  std::atomic<std::size_t> n_held{0};  ///< bytes of regions that are alive

  void mend() {
    for (fault* one : {&read_fails, &read_is_short, &read_corrupts, &write_fails}) one->mend();
    space = always;
    read_us = write_us = 0;
  }
};

/// @brief A memory_store that does as its control says.
class failing_store {
 public:
  struct options_type {
    std::shared_ptr<store_control> control = std::make_shared<store_control>();
    std::size_t alignment = 1;  ///< reads at multiples of it may reach past a region's end

    void validate() const {
      if (control == nullptr) throw wavekv::config_error("failing_store: no control");
    }
  };

  class region {
   public:
    region() = default;
    region(region&& other) noexcept
        : bytes_(std::move(other.bytes_)), control_(std::move(other.control_)) {}
    region& operator=(region&& other) noexcept {
      give_up();
      bytes_ = std::move(other.bytes_);
      control_ = std::move(other.control_);
      return *this;
    }
    region(const region&) = delete;
    region& operator=(const region&) = delete;
    ~region() { give_up(); }
    [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }

   private:
    friend class failing_store;
    region(wavekv::memory_store::region bytes, std::shared_ptr<store_control> control) noexcept
        : bytes_(std::move(bytes)), control_(std::move(control)) {}
    void give_up() noexcept {
      if (control_ != nullptr) control_->n_held -= bytes_.size();
      control_ = nullptr;
    }
    wavekv::memory_store::region bytes_;
    std::shared_ptr<store_control> control_;
  };

  explicit failing_store(const options_type& options)
      : control_(options.control), alignment_(options.alignment) {
    options.validate();
  }

  region write(std::span<const std::byte> from) const {
    wait(control_->write_us);
    if (control_->write_fails.strikes()) {
      throw wavekv::io_error("failing_store: a write of " + std::to_string(from.size()) +
                             " bytes was told to fail");
    }
    if (control_->n_held + from.size() > control_->space) {
      throw wavekv::io_error("failing_store: no space for " + std::to_string(from.size()) +
                             " bytes");
    }
    region written(memory_.write(from), control_);
    control_->n_held += from.size();
    ++control_->n_writes;
    return written;
  }

  void read(const region& from, std::uint64_t offset, std::span<std::byte> to) const {
    ++control_->n_reads;
    wait(control_->read_us);
    if (control_->read_fails.strikes()) {
      throw wavekv::io_error("failing_store: a read of " + std::to_string(to.size()) +
                             " bytes was told to fail");
    }
    std::size_t n = to.size();
    if (is_aligned(to.data(), offset, n) && offset < from.size() && n > from.size() - offset) {
      const std::size_t past_end = n - (from.size() - offset);
      if (past_end < alignment_) {  // nobody may look at these
        n -= past_end;
        std::ranges::fill(to.subspan(n), std::byte{0xA5});
      }
    }
    const std::span<std::byte> last = to.first(n).subspan(n / 2);
    const bool is_short = control_->read_is_short.strikes();
    const std::vector<std::byte> before(last.begin(), is_short ? last.end() : last.begin());
    memory_.read(from.bytes_, offset, to.first(n));
    if (is_short && n != 0) {
      const std::byte right = last.front();
      std::ranges::copy(before, last.begin());
      if (last.front() == right) last.front() ^= std::byte{0xFF};
    }
    if (n != 0 && control_->read_corrupts.strikes()) to[n / 2] ^= std::byte{0x10};
  }

  [[nodiscard]] std::size_t alignment() const noexcept { return alignment_; }

  void flush() const { ++control_->n_flushes; }

 private:
  static void wait(int microseconds) {
    if (microseconds > 0) std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
  }

  bool is_aligned(const void* memory, std::uint64_t offset, std::size_t n) const noexcept {
    return reinterpret_cast<std::uintptr_t>(memory) % alignment_ == 0 && offset % alignment_ == 0 &&
           n % alignment_ == 0;
  }

  std::shared_ptr<store_control> control_;
  std::size_t alignment_;
  wavekv::memory_store memory_;
};

static_assert(wavekv::block_store<failing_store>);

}  // namespace wavekv_test
