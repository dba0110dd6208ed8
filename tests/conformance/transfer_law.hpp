// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <unistd.h>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/core/errors.hpp>

#include "conformance/eviction_law.hpp"

/// @file transfer_law.hpp
/// @brief The law of wavekv::transfer_engine. Run your own engine through it.

namespace wavekv_test {

/// @brief Random bytes, in memory and in a file, and reads of them.
class readable_bytes {
 public:
  explicit readable_bytes(std::size_t n, std::uint64_t seed)
      : bytes_(n), file_(std::tmpfile(), &std::fclose) {
    std::mt19937_64 random(seed);
    for (std::byte& byte : bytes_) byte = static_cast<std::byte>(random());
    is_written_ = file_ != nullptr && std::fwrite(bytes_.data(), 1, n, file_.get()) == n &&
                  std::fflush(file_.get()) == 0;
  }

  [[nodiscard]] bool is_written() const noexcept { return is_written_; }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }

  /// @brief A read; one that reaches past the end throws io_error. Some take their time.
  [[nodiscard]] wavekv::slow_read read(std::uint64_t offset, std::span<std::byte> to,
                                       bool from_file) const {
    wavekv::slow_read read;
    read.make = [](const wavekv::slow_read& wanted) {
      const auto& bytes = static_cast<const readable_bytes*>(wanted.store)->bytes_;
      if (wanted.offset % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(20));
      if (wanted.offset + wanted.to.size() > bytes.size())
        throw wavekv::io_error("past the end: " + std::to_string(wanted.offset));
      std::memcpy(wanted.to.data(), bytes.data() + wanted.offset, wanted.to.size());
    };
    read.store = this;
    read.offset = offset;
    read.to = to;
    if (from_file) {
      read.file = ::fileno(file_.get());
      read.file_offset = offset;
    }
    return read;
  }

  [[nodiscard]] std::byte at(std::size_t offset) const { return bytes_[offset]; }

  /// @brief Whether these are the bytes at an offset.
  [[nodiscard]] bool are_at(std::size_t offset, std::span<const std::byte> got) const {
    return std::equal(got.begin(), got.end(), bytes_.begin() + static_cast<std::ptrdiff_t>(offset));
  }

 private:
  std::vector<std::byte> bytes_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  bool is_written_ = false;
};

/// @brief The reads that an engine has under way; finds out whether it answers for them as it must.
template <wavekv::transfer_engine Transfer>
class watched_reads {
 public:
  watched_reads(Transfer& engine, const readable_bytes& bytes, std::uint64_t seed)
      : engine_(engine), bytes_(bytes), random_(seed) {}

  [[nodiscard]] std::size_t n() const noexcept { return under_way_.size(); }

  /// @brief Starts a read of some bytes, from the file or not, and of some that are not there if it is to fail.
  void start(bool is_to_fail) {
    auto one = std::make_unique<started>();
    const std::size_t sizes[] = {1, 64, 511, 512, 1 + random_() % 5000};
    one->to.assign(sizes[random_() % std::size(sizes)], std::byte{});
    one->is_to_fail = is_to_fail;
    // Past the end, or across it.
    one->offset = is_to_fail ? bytes_.size() - random_() % one->to.size()
                             : random_() % (bytes_.size() - one->to.size());
    for (std::size_t i = 0; i < one->to.size(); ++i)  // not one byte is right by chance
      one->to[i] = is_to_fail ? std::byte{0x5A} : ~bytes_.at(one->offset + i);
    do {
      const std::size_t tags[] = {0, std::numeric_limits<std::size_t>::max(), random_() % 10000};
      one->tag = tags[random_() % std::size(tags)];
    } while (find(one->tag) != under_way_.end());
    under_way_.push_back(std::move(one));
    const started& last = *under_way_.back();
    engine_.start(bytes_.read(last.offset, under_way_.back()->to, random_() % 2 == 0), last.tag);
  }

  /// @brief Begins the reads, where the engine wants to be told.
  void submit() {
    if constexpr (requires(Transfer& engine) { engine.submit(); }) engine_.submit();
  }

  /// @brief Waits for one.
  verdict next() {
    const std::size_t tag = engine_.next();
    const auto at = find(tag);
    if (at == under_way_.end()) return "next() returns a tag that is not under way";
    const std::exception_ptr failure = engine_.failure();
    const std::unique_ptr<started> one = std::move(*at);
    under_way_.erase(at);
    if (one->is_to_fail) {
      if (failure == nullptr) return "a read's exception is lost";
      try {
        std::rethrow_exception(failure);
      } catch (const wavekv::io_error& error) {
        if (error.what() != "past the end: " + std::to_string(one->offset))
          return "failure() is another read's";
      } catch (...) {
        return "failure() is not what the read threw";
      }
      return {};
    }
    if (failure != nullptr) return "failure() where the read did not fail";
    if (!bytes_.are_at(one->offset, one->to)) return "next() returns before the bytes are there";
    return {};
  }

  /// @brief Waits for all.
  verdict finish() {
    while (n() != 0) {
      if (verdict broken = next(); !broken.empty()) return broken;
    }
    return {};
  }

 private:
  struct started {
    std::size_t offset = 0;
    std::vector<std::byte> to;
    std::size_t tag = 0;
    bool is_to_fail = false;
  };

  auto find(std::size_t tag) {
    return std::ranges::find_if(under_way_, [tag](const auto& one) { return one->tag == tag; });
  }

  Transfer& engine_;
  const readable_bytes& bytes_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<started>> under_way_;
};

/// @brief next() names every read once, with its bytes there or with what it threw, however many are under way, whether
/// they name a file or not; engines go on after failures, move while nothing is under way, and do not know each other.
template <wavekv::transfer_engine Transfer>
  requires std::movable<Transfer>
verdict transfer_law(std::uint64_t seed = 1) {
  const readable_bytes bytes(std::size_t{1} << 20U, seed);
  if (!bytes.is_written()) return "no temporary file can be made";
  const auto work = [&bytes, seed](std::uint64_t own) -> verdict {
    std::mt19937_64 random(seed + own);
    Transfer engine;
    watched_reads<Transfer> reads(engine, bytes, random());
    const auto all_at_once = [&](std::size_t n, unsigned one_fails_of) {
      for (std::size_t i = 0; i < n; ++i)
        reads.start(one_fails_of != 0 && random() % one_fails_of == 0);
      if (random() % 2 == 0) reads.submit();
      return reads.finish();
    };
    for (const std::size_t n : {1U, 7U, 130U, 1500U}) {
      for (const unsigned one_fails_of : {0U, 3U, 1U, 0U}) {
        if (verdict broken = all_at_once(n, one_fails_of); !broken.empty()) return broken;
        Transfer moved(std::move(engine));
        if (random() % 2 == 0) engine = Transfer();
        engine = std::move(moved);
      }
    }
    for (int i = 0; i < 3000; ++i) {  // some are over while others begin
      if (reads.n() < 300 && random() % 5 < 3) {
        reads.start(random() % 10 == 0);
        if (random() % 8 == 0) reads.submit();
      } else if (reads.n() != 0) {
        if (verdict broken = reads.next(); !broken.empty()) return broken;
      }
    }
    return reads.finish();
  };
  verdict found = work(0);
  if (!found.empty()) return found;
  std::vector<verdict> verdicts(3);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < verdicts.size(); ++t)
    threads.emplace_back([&, t] { verdicts[t] = work(t + 1); });
  for (std::thread& thread : threads) thread.join();
  for (const verdict& one : verdicts) {
    if (!one.empty()) return "with an engine on each of several threads: " + one;
  }
  return {};
}

}  // namespace wavekv_test
