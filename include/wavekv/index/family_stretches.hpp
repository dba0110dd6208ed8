// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/read_ahead.hpp>
#include <wavekv/index/frontier_level.hpp>
#include <wavekv/index/segment.hpp>

/// @file family_stretches.hpp
/// @brief The order in which a search that descends reads memory.

namespace wavekv {

/// @brief The stretches of memory that descending from a level reads, for simd::read_ahead: a segment's opened families'
/// centroids, then their mean values; and so on with the next segment. What lies beside the rows is asked for here.
/// @tparam Input       a search_input; outlives this, as the level does
/// @tparam HasValues   whether mean values are read segment by segment; false: centroids alone
template <class Input, scalar T, bool HasValues>
class family_stretches {
 public:
  /// @brief From a segment on.
  /// @param from   the level whose opened nodes are descended from, planned
  /// @param level  its number, above 0
  family_stretches(const Input& input, const frontier_level<T>& from, std::size_t segment,
                   std::size_t level) noexcept
      : input_(input), from_(from), level_(level), segment_(segment), i_(from.offset[segment]) {}

  /// @brief The next stretch; false at the end.
  bool operator()(simd::stretch& to) noexcept {
    for (; segment_ < input_.segments.size(); go_on()) {
      i_ = from_.next_opened(segment_, i_);
      if (i_ == from_.offset[segment_ + 1]) {
        continue;
      }
      const head_index<T>& index = input_.segments[segment_]->head(input_.head);
      const std::uint32_t* first_child = index.levels[level_].first_child + from_.node[i_++];
      const std::size_t n = first_child[1] - first_child[0];
      const tree_level<T>& below = index.levels[level_ - 1];
      const T* centroids = below.rows + first_child[0] * (input_.key_dim + input_.value_dim);
      if (of_values_) {
        to = {centroids + n * input_.key_dim, n * input_.value_dim * sizeof(T)};
      } else {
        to = {centroids, n * input_.key_dim * sizeof(T)};
        simd::detail::prefetch(below.size + first_child[0]);
        simd::detail::prefetch(below.dispersion + first_child[0]);
        simd::detail::prefetch(below.first_child + first_child[0]);
      }
      return true;
    }
    return false;
  }

 private:
  // From centroids to mean values, or to the next segment.
  void go_on() noexcept {
    segment_ += of_values_ || !HasValues ? 1 : 0;
    of_values_ = !of_values_ && HasValues;
    i_ = from_.offset[segment_];
  }

  const Input& input_;
  const frontier_level<T>& from_;
  std::size_t level_;
  std::size_t segment_;
  std::size_t i_;
  bool of_values_ = false;
};

}  // namespace wavekv
