// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>

#include <wavekv/core/scalar.hpp>
#include <wavekv/core/token_run.hpp>
#include <wavekv/cpu/read_ahead.hpp>

/// @file token_runs.hpp
/// @brief Tokens that lie in many runs, as one sequence of rows that is read a chunk at a time.

namespace wavekv::detail {

inline constexpr std::size_t chunk_rows = 64;  ///< rows a chunk: logits and weights stay in cache

/// The rows of many runs, as one sequence.
template <scalar S, class RunAt>
class run_walk {
 public:
  run_walk(std::size_t n_runs, const RunAt& run_at, std::size_t key_dim,
           std::size_t value_dim) noexcept
      : n_runs_(n_runs), run_at_(&run_at), key_dim_(key_dim), value_dim_(value_dim) {}

  /// The next rows, up to `most` of them, that lie in one run; none at the end.
  token_run<S> take(std::size_t most) {
    while (rest_.n == 0 && next_ < n_runs_) rest_ = (*run_at_)(next_++);
    const token_run<S> piece{rest_.keys, rest_.values, std::min(most, rest_.n)};
    rest_ = {rest_.keys + piece.n * key_dim_, rest_.values + piece.n * value_dim_,
             rest_.n - piece.n};
    return piece;
  }

 private:
  token_run<S> rest_;  // of the run in hand
  std::size_t next_ = 0;
  std::size_t n_runs_;
  const RunAt* run_at_;
  std::size_t key_dim_;
  std::size_t value_dim_;
};

/// The stretches of memory that attend_runs reads, in its order: the keys of a chunk, then its values.
template <class Walk>
class run_stretches {
 public:
  run_stretches(const Walk& walk, std::size_t key_bytes, std::size_t value_bytes) noexcept
      : walk_(walk), chunk_(walk), key_bytes_(key_bytes), value_bytes_(value_bytes) {}

  bool operator()(simd::stretch& to) {
    auto piece = walk_.take(chunk_rows - n_rows_);
    if (piece.n == 0 && n_rows_ != 0) {  // the chunk is over, or all runs are
      if (of_keys_) {
        walk_ = chunk_;
      } else {
        chunk_ = walk_;
      }
      of_keys_ = !of_keys_;
      n_rows_ = 0;
      piece = walk_.take(chunk_rows);
    }
    if (piece.n == 0) return false;
    n_rows_ += piece.n;
    to = of_keys_ ? simd::stretch{piece.keys, piece.n * key_bytes_}
                  : simd::stretch{piece.values, piece.n * value_bytes_};
    return true;
  }

 private:
  Walk walk_;
  Walk chunk_;  // where the chunk in hand begins
  bool of_keys_ = true;
  std::size_t n_rows_ = 0;  // of the chunk's keys, or values, so far
  std::size_t key_bytes_;
  std::size_t value_bytes_;
};

}  // namespace wavekv::detail
