// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>
#include <iterator>
#include <map>

/// @file extents.hpp
/// @brief Which parts of a file are free.

namespace wavekv::detail {

/// The free runs of a file that grows at its end. Complexity of all calls: O(free runs) at most.
class extents {
 public:
  /// Takes n bytes, from the first free run that is long enough or from the end.  @throw std::bad_alloc
  std::uint64_t take(std::uint64_t n) {
    for (auto run = free_.begin(); run != free_.end(); ++run) {
      const auto [offset, length] = *run;
      if (length < n) {
        continue;
      }
      if (length == n) {
        free_.erase(run);
      } else {  // the run's end is taken, so that its entry stays
        run->second = length - n;
        return offset + length - n;
      }
      return offset;
    }
    const std::uint64_t offset = end_;
    end_ += n;
    return offset;
  }

  /// Gives n bytes back. Where memory for the note has run out, they are lost until the file goes.
  void give_back(std::uint64_t offset, std::uint64_t n) noexcept {
    if (n == 0) {
      return;
    }
    const auto after = free_.lower_bound(offset);
    if (after != free_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == offset) {
        before->second += n;
        if (after != free_.end() && offset + n == after->first) {
          before->second += after->second;
          free_.erase(after);
        }
        return;
      }
    }
    try {
      if (after != free_.end() && offset + n == after->first) {
        n += after->second;
        free_.erase(after);
      }
      free_.emplace(offset, n);
    } catch (...) {
      return;
    }
  }

  /// One past the last byte ever taken.
  [[nodiscard]] std::uint64_t end() const noexcept { return end_; }
  /// Bytes that are free before it.
  [[nodiscard]] std::uint64_t n_free() const noexcept {
    std::uint64_t sum = 0;
    for (const auto& [offset, length] : free_) {
      sum += length;
    }
    return sum;
  }

 private:
  std::map<std::uint64_t, std::uint64_t> free_;  // offset to length, never touching
  std::uint64_t end_ = 0;
};

}  // namespace wavekv::detail
