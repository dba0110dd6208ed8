// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <wavekv/cache/layer_view.cuh>
#include <wavekv/cuda/block.hpp>
#include <wavekv/index/frontier.cuh>
#include <wavekv/index/search_room.cuh>
#include <wavekv/index/segment.cuh>

/// @file search_space.cuh
/// @brief The memory that the searches of one attend work in. A search is one query token's heads of one KV head.

namespace wavekv::device {

/// @brief What went wrong in device code, as bits.
enum class fault : unsigned {
  none = 0,
  query_not_finite = 1,  ///< a query element is not finite
  key_not_finite = 2,  ///< a key or value element is not finite, or does not fit the storage scalar
  workspace_too_small = 4  ///< a sequence has outgrown the workspace that a step was given
};

/// @brief What steps did since it was last asked for, in device memory; the fields are those of step_stats.
struct step_counts {
  unsigned long long groups;
  unsigned long long tokens_held;
  unsigned long long tokens_read;
  unsigned long long tokens_sampled;
  unsigned long long clusters_read;
  unsigned long long clusters_estimated;
  unsigned long long clusters_dropped;
  unsigned long long summaries_read;
  unsigned long long bytes_read;
  unsigned long long rounds;
  unsigned long long capped;
  unsigned predicted_error;  ///< bits of a float, as the next two; none is negative
  unsigned sampled_error;
  unsigned dropped_mass;
  unsigned faults;  ///< bits of fault
};

/// @brief A query token of a batch.
template <class T>
struct query_place {
  const layer_view<T>* layer = nullptr;
  std::uint32_t visible = 0;   ///< tokens it sees
  std::uint32_t sequence = 0;  ///< number of its sequence: what draws depend on
};

/// @brief What a search knows while it runs.
struct search_state {
  std::uint32_t n_runs[max_tree_levels] = {};  ///< of nodes on each level's frontier
  std::uint32_t n_corrected[max_tree_levels] =
      {};  ///< columns whose estimates are taken out again, or added late
  std::uint32_t n_token_runs = 0;
  std::uint32_t done = 0;  ///< the answer stands: what follows has nothing to do
};

/// @brief Batches that a check's draws fall into (see error_sampler): 120 products, a standard error known within a fifth.
inline constexpr unsigned n_sample_batches = 16;

/// @brief Floats of one batch and query head: the sums of weights, of each level's weighted dispersions, of weighted values.
WAVEKV_HOST_DEVICE unsigned batch_floats(unsigned value_dim) {
  return 1 + static_cast<unsigned>(max_tree_levels) + value_dim;
}

/// @brief One level's frontier of all searches.
template <class T>
struct level_space {
  std::uint32_t n_columns = 0;  ///< columns that a search has room for: run_rows a run
  node_run<T>* runs =
      nullptr;  ///< [n_searches, n_columns / run_rows]; null on the top level: the layer has them
  float* sizes = nullptr;          ///< [n_searches, n_columns] 0: an empty column
  float* dispersions = nullptr;    ///< [n_searches, n_columns]
  float* ranked_shares = nullptr;  ///< [n_searches, n_columns]
  float* ranked_errors = nullptr;  ///< [n_searches, n_columns]
  float* logits = nullptr;         ///< [n_searches, group_size, n_columns]
  float* shares = nullptr;         ///< likewise
  float* errors = nullptr;         ///< likewise
  float* nearnesses = nullptr;     ///< likewise
  zone* zones = nullptr;           ///< [n_searches, n_columns]
  std::uint32_t* corrected =
      nullptr;  ///< [n_searches, n_columns] what is corrected from the first on, what is opened from the last back
};

/// @brief The memory of all searches; a kernel argument.
template <class T>
struct search_space {
  model_shape shape;
  unsigned n_searches = 0;
  unsigned n_splits = 1;
  std::uint32_t n_token_runs = 0;    ///< runs of tokens that a search has room for
  query_place<T>* places = nullptr;  ///< [n_queries]
  float* queries =
      nullptr;  ///< [n_searches, group_size, key_dim] scaled, then brought to magnitudes near 1
  float* units = nullptr;      ///< [n_searches, group_size] what that divided them by
  float* variances = nullptr;  ///< [n_searches, n_levels, group_size] see query_leaning
  float* leanings =
      nullptr;  ///< [n_searches, n_levels, group_size, width] queries times the covariance
  float* partials = nullptr;  ///< [n_searches, n_splits, group_size, 2 + value_dim]
  float* merged = nullptr;    ///< [n_searches, group_size, 2 + value_dim]
  float* settled = nullptr;   ///< [n_searches, group_size] squared errors of what stays estimated
  float* typical =
      nullptr;  ///< [n_searches, group_size] squares of the same errors, as they typically are
  float* dropped = nullptr;  ///< [n_searches, group_size] shares of what is dropped
  float* followed =
      nullptr;  ///< [n_searches, n_levels, group_size] sum of share · dispersion, see query_leaning
  float* normalizers = nullptr;  ///< [n_searches, n_levels, group_size] that those shares refer to
  float* relatives = nullptr;    ///< [n_searches, n_levels, group_size] see head_prices
  search_state* states = nullptr;           ///< [n_searches]
  unsigned* counters = nullptr;             ///< [n_searches] zero between launches
  token_run_view<T>* token_runs = nullptr;  ///< [n_searches, n_token_runs] to be read exactly
  level_space<T> levels[max_tree_levels];
  step_counts* report = nullptr;

  // What bounds that check their answers need besides: see error_sampler.cuh.
  std::uint32_t n_all_columns = 0;  ///< of all levels
  float* scored =
      nullptr;  ///< as `merged`: what is known before the first plan, for those that follow
  double* cumulative = nullptr;   ///< [n_searches, n_all_columns] running sums of nodes' weights
  double* part_totals = nullptr;  ///< [n_searches, n_splits] of each block's part of them
  float* batch_sums =
      nullptr;  ///< [n_searches, n_sample_batches, group_size, batch_floats(value_dim)]
};

/// @brief Lays a search space out.  The counters must be zero before its first use.
template <class T>
search_space<T> lay_out_searches(device_arena& arena, const model_shape& shape,
                                 const search_room& room) {
  search_space<T> space;
  space.shape = shape;
  space.n_splits = room.n_splits;
  space.n_searches = room.n_queries * shape.n_kv_heads;
  space.n_token_runs = room.n_token_runs;
  const std::size_t n = space.n_searches;
  const std::size_t n_heads = n * shape.group_size;
  const std::size_t state = 2 + shape.value_dim;
  space.counters = arena.take<unsigned>(n);
  space.states = arena.take<search_state>(n);
  space.places = arena.take<query_place<T>>(room.n_queries);
  space.queries = arena.take<float>(n_heads * shape.key_dim);
  space.units = arena.take<float>(n_heads);
  space.variances = arena.take<float>(n_heads * shape.n_levels);
  space.leanings = arena.take<float>(n_heads * shape.n_levels * shape.width());
  space.partials = arena.take<float>(n_heads * room.n_splits * state);
  space.merged = arena.take<float>(n_heads * state);
  space.settled = arena.take<float>(n_heads);
  space.typical = arena.take<float>(n_heads);
  space.dropped = arena.take<float>(n_heads);
  space.followed = arena.take<float>(n_heads * shape.n_levels);
  space.normalizers = arena.take<float>(n_heads * shape.n_levels);
  space.relatives = arena.take<float>(n_heads * shape.n_levels);
  space.token_runs = arena.take<token_run_view<T>>(n * room.n_token_runs);
  for (unsigned l = 0; l < shape.n_levels; ++l) {
    level_space<T>& level = space.levels[l];
    level.n_columns = room.n_columns[l];
    const std::size_t columns = n * level.n_columns;
    if (l + 1 < shape.n_levels) {
      level.runs = arena.take<node_run<T>>(columns / run_rows);
    }
    level.sizes = arena.take<float>(columns);
    level.dispersions = arena.take<float>(columns);
    level.ranked_shares = arena.take<float>(columns);
    level.ranked_errors = arena.take<float>(columns);
    level.logits = arena.take<float>(columns * shape.group_size);
    level.shares = arena.take<float>(columns * shape.group_size);
    level.errors = arena.take<float>(columns * shape.group_size);
    level.nearnesses = arena.take<float>(columns * shape.group_size);
    level.zones = arena.take<zone>(columns);
    level.corrected = arena.take<std::uint32_t>(columns);
    space.n_all_columns += level.n_columns;
  }
  space.scored = arena.take<float>(n_heads * state);
  space.cumulative = arena.take<double>(n * space.n_all_columns);
  space.part_totals = arena.take<double>(n * room.n_splits);
  space.batch_sums = arena.take<float>(n_heads * n_sample_batches * batch_floats(shape.value_dim));
  return space;
}

/// @brief One search's part of the space; pointers to its own.
template <class T>
struct search_view {
  model_shape shape;
  unsigned head = 0;  ///< KV head
  query_place<T> place;
  float* queries;       ///< [group_size, key_dim]
  float* units;         ///< [group_size]
  float* variances;     ///< [n_levels, group_size]
  float* leanings;      ///< [n_levels, group_size, width]
  float* partials;      ///< [n_splits, group_size, 2 + value_dim]
  float* merged;        ///< [group_size, 2 + value_dim]
  float* settled;       ///< [group_size]
  float* typical;       ///< [group_size]
  float* dropped;       ///< [group_size]
  float* followed;      ///< [n_levels, group_size]
  float* normalizers;   ///< [n_levels, group_size]
  float* relatives;     ///< [n_levels, group_size]
  float* scored;        ///< [group_size, 2 + value_dim]
  double* cumulative;   ///< [n_all_columns]
  double* part_totals;  ///< [n_splits]
  float* batch_sums;    ///< [n_sample_batches, group_size, batch_floats(value_dim)]
  search_state* state;
  unsigned* counter;
  token_run_view<T>* token_runs;

  WAVEKV_DEVICE search_view(const search_space<T>& space, unsigned search)
      : shape(space.shape),
        head(search % space.shape.n_kv_heads),
        place(space.places[search / space.shape.n_kv_heads]) {
    const std::size_t first = std::size_t{search} * shape.group_size;
    queries = space.queries + first * shape.key_dim;
    units = space.units + first;
    variances = space.variances + first * shape.n_levels;
    leanings = space.leanings + first * shape.n_levels * shape.width();
    partials = space.partials + first * space.n_splits * (2 + shape.value_dim);
    merged = space.merged + first * (2 + shape.value_dim);
    settled = space.settled + first;
    typical = space.typical + first;
    dropped = space.dropped + first;
    followed = space.followed + first * shape.n_levels;
    normalizers = space.normalizers + first * shape.n_levels;
    relatives = space.relatives + first * shape.n_levels;
    scored = space.scored + first * (2 + shape.value_dim);
    cumulative = space.cumulative + std::size_t{search} * space.n_all_columns;
    part_totals = space.part_totals + std::size_t{search} * space.n_splits;
    batch_sums = space.batch_sums + first * n_sample_batches * batch_floats(shape.value_dim);
    state = space.states + search;
    counter = space.counters + search;
    token_runs = space.token_runs + std::size_t{search} * space.n_token_runs;
  }
};

/// @brief One search's part of one level.
template <class T>
struct frontier_columns {
  std::uint32_t n_columns;  ///< room
  const node_run<T>* runs;  ///< run i holds the columns from run_rows · i on
  node_run<T>* own_runs;    ///< the same, to be written; null on the top level
  float* sizes;
  float* dispersions;
  float* ranked_shares;
  float* ranked_errors;
  float* logits;  ///< [group_size, n_columns]
  float* shares;
  float* errors;
  float* nearnesses;
  zone* zones;
  std::uint32_t* corrected;

  WAVEKV_DEVICE frontier_columns(const search_space<T>& space, const search_view<T>& own,
                                 unsigned search, unsigned level) {
    const level_space<T>& of = space.levels[level];
    const std::size_t first = std::size_t{search} * of.n_columns;
    n_columns = of.n_columns;
    own_runs = of.runs == nullptr ? nullptr : of.runs + first / run_rows;
    runs = of.runs != nullptr
               ? own_runs
               : own.place.layer->top_runs + std::size_t{own.head} * own.place.layer->top_capacity;
    sizes = of.sizes + first;
    dispersions = of.dispersions + first;
    ranked_shares = of.ranked_shares + first;
    ranked_errors = of.ranked_errors + first;
    logits = of.logits + first * space.shape.group_size;
    shares = of.shares + first * space.shape.group_size;
    errors = of.errors + first * space.shape.group_size;
    nearnesses = of.nearnesses + first * space.shape.group_size;
    zones = of.zones + first;
    corrected = of.corrected + first;
  }
};

}  // namespace wavekv::device
