// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>

#include <wavekv/cpu/detail/vectors.hpp>

/// @file read_ahead.hpp
/// @brief Asks memory for what comes next while leaves work on what is there.

namespace wavekv::simd {

/// @brief A stretch of memory.
struct stretch {
  const void* first = nullptr;
  std::size_t n_bytes = 0;
};

/// @brief What will be read, in the order of reading, asked for a little at a time while rows in hand are worked on.
///
/// Hardware prefetchers stop at the ends of pages and of runs, and a burst of prefetches stalls: so a leaf asks for as
/// many bytes as it works on, spread over its multiply-adds, and stays as far ahead as the beginning was.
class read_ahead {
 public:
  /// How far ahead of the rows in work its successors are asked for: a core has to keep some 3 KB under way to read at
  /// full bandwidth.
  static constexpr std::size_t lead_bytes = 6144;

  /// @brief Asks for the first lead_bytes at once.
  /// @param next  bool next(stretch&): writes the next stretch to be read, or returns false when none is known; must
  ///              outlive this
  template <class Next>
  explicit read_ahead(Next& next)
      : state_(&next),
        next_([](void* state, stretch& to) { return (*static_cast<Next*>(state))(to); }) {
    ask(lead_bytes);
  }

  /// @brief Where the next n_bytes lie, to be prefetched; null: nothing is known to come. They may reach past the end of
  /// a stretch, and of an array: as many of the next stretch are then asked for here.
  [[nodiscard]] const char* take(std::size_t n_bytes) {
    ask(owed_);
    owed_ = 0;
    while (left_ == 0) {
      if (!begin_next()) return nullptr;
    }
    const char* from = at_;
    owed_ = n_bytes - advance(n_bytes);
    return from;
  }

 private:
  bool begin_next() {
    stretch to;
    if (!next_(state_, to)) return false;
    at_ = static_cast<const char*>(to.first);
    left_ = to.n_bytes;
    return true;
  }

  // Goes on by up to n_bytes of the stretch in hand; how many.
  std::size_t advance(std::size_t n_bytes) {
    const std::size_t n = std::min(left_, n_bytes);
    at_ += n;
    left_ -= n;
    return n;
  }

  void ask(std::size_t n_bytes) {
    while (n_bytes > 0 && (left_ > 0 || begin_next())) {
      const char* from = at_;
      const std::size_t n = advance(n_bytes);
      for (std::size_t b = 0; b < n; b += 64) detail::prefetch(from + b);
      n_bytes -= n;
    }
  }

  void* state_;
  bool (*next_)(void*, stretch&);
  const char* at_ = nullptr;
  std::size_t left_ = 0;  // bytes of the stretch in hand
  std::size_t owed_ = 0;  // bytes due that lay past the end of a stretch
};

}  // namespace wavekv::simd
