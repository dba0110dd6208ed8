// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <vector>

#include <wavekv/core/scalar.hpp>

namespace transformer {

/// @brief A vector that many bf16 rows are multiplied by, its even and its odd elements apart.
///
/// Two bf16 lie in one 32-bit word: shifted left it is the even one as a float, masked the odd one.
/// So a whole vector of words is widened by two cheap instructions and nothing is shuffled, where
/// widening half a vector at a time takes one load and one shuffle for each.
class split_vector {
 public:
  /// @param x [n]
  split_vector(const float* x, std::size_t n);

  std::size_t size() const noexcept { return n_; }
  const float* even() const noexcept { return values_.data(); }
  const float* odd() const noexcept { return values_.data() + (n_ + 1) / 2; }

 private:
  std::size_t n_;
  std::vector<float> values_;
};

/// @brief y[r] = rows[r] · x for rows that come from memory, each read once.
///
/// Four runs of rows are read side by side: on Zen 3 four streams get more out of memory than
/// one does (1.1 to 1.5 times), and prefetches ahead of them gained nothing. A result depends on its row and
/// x alone. Complexity: n_rows * x.size() multiply-adds. Allocates nothing.
/// @param rows [n_rows, x.size()] contiguous  @param y [n_rows], overwritten
void dot_rows(const split_vector& x, const wavekv::bf16* rows, std::size_t n_rows,
              float* y) noexcept;

}  // namespace transformer
