// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/ids.hpp>

namespace wavekv {

/// @brief One sequence's part of an attend: how many query tokens it has in the call.
struct query_run {
  sequence_id sequence;
  /// the last one sits at the sequence's newest token, the others before it
  std::size_t n_queries = 1;
};

namespace detail {

/// @brief Query tokens of a batch.
inline std::size_t count_queries(std::span<const query_run> batch) noexcept {
  std::size_t n = 0;
  for (const query_run& run : batch) {
    n += run.n_queries;
  }
  return n;
}

/// @brief Checks that no sequence stands twice in a batch. Complexity: O(n log n).  @throw sequence_error, std::bad_alloc
inline void check_each_once(std::span<const query_run> batch) {
  if (batch.size() < 2) {
    return;
  }
  std::vector<sequence_id> sequences;
  sequences.reserve(batch.size());
  for (const query_run& run : batch) {
    sequences.push_back(run.sequence);
  }
  std::ranges::sort(sequences, {}, &sequence_id::slot);  // all are alive: one a slot
  const auto twice = std::ranges::adjacent_find(sequences);
  if (twice != sequences.end()) {
    throw sequence_error(
        message("append: sequence ", *twice, " stands twice in the batch; allowed: once"));
  }
}

/// @brief Checks that a run's queries may lie where they do. A sealed segment shows all of its tokens or none, so that what
/// a query must not see has to lie in the tail (after a truncation it may hold less than the window).
/// @param length         tokens of the layer
/// @param n_tail         of them, not sealed
/// @param is_sealed      whether any are
/// @param window_tokens  most queries of one sequence
/// @throw shape_error
inline void check_query_places(const query_run& run, std::size_t length, std::size_t n_tail,
                               bool is_sealed, std::size_t window_tokens) {
  const std::size_t behind = run.n_queries == 0 ? 0 : run.n_queries - 1;  // the first query
  if (behind != 0 &&
      (behind >= length || (is_sealed && (behind >= window_tokens || behind > n_tail)))) {
    throw shape_error(message(
        "attend: ", run.n_queries, " queries for sequence ", run.sequence, " of ", length,
        " tokens, ", n_tail, " of them not sealed; allowed: at most window_tokens, which is ",
        window_tokens, ", at most one per token, and one more than is not sealed"));
  }
}

}  // namespace detail
}  // namespace wavekv
