// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace transformer {

/// @brief A few of the rows that go by, spread evenly over them, however many come: every n-th, where n doubles whenever
/// there would be too many.
class spread_rows {
 public:
  /// @param most   rows to keep at most; 0: none
  /// @param width  floats of a row
  spread_rows(std::size_t most, std::size_t width) : most_(most), width_(width) {}

  /// @brief The next n rows, packed.
  void add(const float* rows, std::size_t n) {
    if (most_ == 0) return;
    for (std::size_t i = 0; i < n; ++i, ++n_seen_) {
      if (n_seen_ % every_ != 0) continue;
      if (size() == most_) drop_every_other();
      if (size() < most_ && n_seen_ % every_ == 0)
        kept_.insert(kept_.end(), rows + i * width_, rows + (i + 1) * width_);
    }
  }

  std::size_t size() const { return kept_.size() / width_; }
  const float* data() const { return kept_.data(); }

 private:
  void drop_every_other() {
    for (std::size_t i = 0; 2 * i < most_; ++i)
      std::copy_n(kept_.data() + 2 * i * width_, width_, kept_.data() + i * width_);
    kept_.resize((most_ + 1) / 2 * width_);
    every_ *= 2;
  }

  std::size_t most_;
  std::size_t width_;
  std::size_t every_ = 1;
  std::size_t n_seen_ = 0;
  std::vector<float> kept_;
};

}  // namespace transformer
