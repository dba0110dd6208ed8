// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstdint>

#include <wavekv/buffer/tier_statistics.hpp>

namespace wavekv {

/// @brief What one attend did, summed over its sequences, KV heads and queries.
///
/// A "group" below is one query token's query heads of one KV head: the unit that is planned together.
struct step_stats {
  std::uint64_t groups = 0;          ///< query groups answered
  std::uint64_t tokens_held = 0;     ///< tokens full attention would have read, per group
  std::uint64_t tokens_read = 0;     ///< tokens read exactly, steady zone and samples included
  std::uint64_t tokens_sampled = 0;  ///< of these, drawn to check an answer
  std::uint64_t clusters_read = 0;   ///< clusters of the retrieval zone
  std::uint64_t clusters_estimated =
      0;  ///< clusters and unopened coarse nodes of the estimation zone
  std::uint64_t clusters_dropped = 0;    ///< clusters and coarse nodes left out
  std::uint64_t summaries_read = 0;      ///< summary rows scored, all levels
  std::uint64_t bytes_read = 0;          ///< bytes of K, V and summaries read
  std::uint64_t hits = 0;                ///< blocks found in the fast tier
  std::uint64_t misses = 0;              ///< blocks fetched from the slow tier
  std::uint64_t prefetched = 0;          ///< blocks whose fetch began before they were wanted
  std::uint64_t prefetched_in_vain = 0;  ///< of these, not wanted in the end
  std::uint64_t bytes_moved = 0;         ///< bytes fetched from the slow tier
  std::uint64_t stall_ns =
      0;  ///< nanoseconds spent on starting fetches and waiting for them, all workers
  std::uint64_t rounds = 0;      ///< plans made; more than groups when checks asked for more
  std::uint64_t capped = 0;      ///< groups whose bound met a cap before its target
  float predicted_error = 0.0F;  ///< largest predicted relative error of any query head
  float sampled_error = 0.0F;    ///< largest sampled relative error accepted (verifying bounds)
  float dropped_mass = 0.0F;     ///< largest share of softmax mass dropped by any query head

  /// @brief Adds another step: counts add up, errors take the larger.
  step_stats& operator+=(const step_stats& other) noexcept {
    groups += other.groups;
    tokens_held += other.tokens_held;
    tokens_read += other.tokens_read;
    tokens_sampled += other.tokens_sampled;
    clusters_read += other.clusters_read;
    clusters_estimated += other.clusters_estimated;
    clusters_dropped += other.clusters_dropped;
    summaries_read += other.summaries_read;
    bytes_read += other.bytes_read;
    hits += other.hits;
    misses += other.misses;
    prefetched += other.prefetched;
    prefetched_in_vain += other.prefetched_in_vain;
    bytes_moved += other.bytes_moved;
    stall_ns += other.stall_ns;
    rounds += other.rounds;
    capped += other.capped;
    predicted_error = std::max(predicted_error, other.predicted_error);
    sampled_error = std::max(sampled_error, other.sampled_error);
    dropped_mass = std::max(dropped_mass, other.dropped_mass);
    return *this;
  }
};

/// @brief What a sequence holds and what its steps did so far.
struct statistics {
  std::uint64_t tokens = 0;    ///< tokens held by every layer
  std::uint64_t segments = 0;  ///< sealed segments, all layers
  std::uint64_t clusters = 0;  ///< clusters (level 0), all layers and KV heads
  std::uint64_t kv_bytes =
      0;  ///< K and V of sealed tokens; shared segments count in every sequence
  std::uint64_t index_bytes = 0;  ///< summaries and tree structure beyond K and V
  std::uint64_t learnt_bytes =
      0;  ///< query metrics and covariances inside clusters: the same at any length
  std::uint64_t steady_bytes = 0;  ///< sink and tail, reserved, and segments in the making
  std::uint64_t chores_in_making =
      0;  ///< sealing's work done on segments that are not finished yet, two chores a KV head and one to finish, all layers
  std::uint64_t steps = 0;  ///< attend calls
  step_stats last;          ///< the last attend of each layer, added up
  step_stats total;         ///< all attends so far
};

/// @brief What a whole cache did, of all sequences, those that were released, too.
struct cache_statistics {
  std::uint64_t sequences = 0;  ///< alive now
  std::uint64_t steps = 0;      ///< attend calls so far
  step_stats total;             ///< what they did
  tier_statistics tiers;        ///< of the two tiers; zeros where everything stays in the fast one
};

}  // namespace wavekv
