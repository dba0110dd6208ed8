// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <wavekv/cache/token_rows.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/index/cluster_covariance.hpp>
#include <wavekv/index/frontier.hpp>
#include <wavekv/index/segment.hpp>

/// @file search_input.hpp
/// @brief What a search is about.

namespace wavekv {

/// @brief A cluster that a search read exactly.
struct used_cluster {
  const void* segment = nullptr;  ///< which one, to be compared only: it may be gone
  std::uint32_t place = 0;        ///< of the segment, among the sequence's
  std::uint32_t cluster = 0;
};

/// @brief Whether a cluster that was used is one of these segments' still: they may have been cut off since, and another
/// segment may have taken the place, and even the address, of one that was.
/// @param segments  of the sequence, by pointers
template <class Segments>
[[nodiscard]] bool is_there(const used_cluster& used, const Segments& segments,
                            std::size_t head) noexcept {
  return used.place < segments.size() && segments[used.place].get() == used.segment &&
         used.cluster < segments[used.place]->head(head).levels[0].n_nodes;
}

/// @brief What a search is about: one query token's query heads of one KV head, and what they may see.
/// Views only.
template <scalar T, class Handle>
struct search_input {
  std::span<const std::shared_ptr<const segment<T, Handle>>> segments;
  const token_rows<T>* sink = nullptr;
  const token_rows<T>* tail = nullptr;
  std::size_t n_visible_sink = 0;  ///< sink tokens up to and including the query's own
  std::size_t n_visible_tail = 0;  ///< tail tokens up to and including the query's own
  query_place place;               ///< the query token's
  std::size_t head = 0;            ///< KV head
  std::size_t group_size = 1;
  std::size_t key_dim = 0;
  std::size_t value_dim = 0;
  float softcap = 0.0F;
  const head_covariances* covariances = nullptr;  ///< of this head, or null: none known
  const float* queries = nullptr;                 ///< [group_size, key_dim], times the logit scale
  std::span<const used_cluster>
      used;  ///< by the step before, in order: they will be wanted again, most likely
};

}  // namespace wavekv
