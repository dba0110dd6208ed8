// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include <wavekv/attention/node_formulas.hpp>
#include <wavekv/attention/row_tile.cuh>
#include <wavekv/cache/layer_view.cuh>
#include <wavekv/cuda/block.hpp>
#include <wavekv/index/frontier.cuh>
#include <wavekv/index/search_space.cuh>

/// @file search_stage.cuh
/// @brief What the launches of a search have in common: warps that take tiles, blocks that share a search, and the last of
/// them, which merges what all have found.

namespace wavekv::device {

/// @brief One warp's part of a search stage: scores, estimates, corrects and attends tiles.
/// @tparam T       storage scalar
/// @tparam MaxDim  most elements of a key or a value: 64, 128 or 256
template <class T, unsigned MaxDim>
class search_warp {
 public:
  /// @brief Shared memory that a block's queries take.
  static constexpr unsigned shared_words4 = query_tile<T, MaxDim>::shared_words4;

  /// @brief *block*: for the query heads [first, first + tile_queries) of a search's group.
  /// @param queries  [shared_words4] of shared memory, in use while the warp is
  template <class Block>
  WAVEKV_DEVICE search_warp(Block& b, const search_view<T>& search, unsigned first, words4* queries)
      : search_(search),
        first_(first),
        n_(search.shape.group_size - first < tile_queries ? search.shape.group_size - first
                                                          : tile_queries),
        query_(first + b.lane() / 4),
        mine_(b.lane() / 4 < n_) {
    queries_.load(b, search.queries + first * search.shape.key_dim, n_, search.shape.key_dim,
                  queries);
    unit_ = mine_ ? search.units[query_] : 1.0F;
  }

  /// @brief *warp*: scores a tile of nodes, runs 2 · tile and the next, and writes their logits and what their plan needs.
  /// @tparam Accumulate  whether they are estimated, too
  template <bool Accumulate, class Block>
  WAVEKV_DEVICE void estimate(Block& b, const frontier_columns<T>& columns, unsigned n_runs,
                              unsigned level, unsigned tile) {
    const model_shape& shape = search_.shape;
    const unsigned i = b.lane() / 4;
    const unsigned j = b.lane() % 4;
    node_run<T> runs[2];
    WAVEKV_UNROLL
    for (unsigned half = 0; half < 2; ++half) {
      if (2 * tile + half < n_runs) {
        runs[half] = columns.runs[2 * tile + half];
      }
    }
    const values_type values = values_of(b, runs[0], runs[1], Accumulate);
    float logits[4];
    multiply(b, runs[0], runs[1], logits);
    const float variance = mine_ ? search_.variances[level * shape.group_size + query_] : 0.0F;
    float weighted[4];
    WAVEKV_UNROLL
    for (unsigned e = 0; e < 4; ++e) {
      const node_run<T>& run = runs[e / 2];
      const unsigned row = 2 * j + e % 2;
      const unsigned column = (2 * tile + e / 2) * run_rows + row;
      const bool is_node = row < run.n;
      const float size = is_node ? run.sizes[row] : 0.0F;
      const float dispersion = is_node ? run.dispersions[row] : 0.0F;
      float logit = capped(logits[e]);
      logit += 0.5F * logit_variance(variance, dispersion, logit, shape.softcap);
      if (shape.softcap > 0.0F && logit > shape.softcap) {
        logit = shape.softcap;  // no token's logit lies above
      }
      if (mine_ && column < columns.n_columns) {
        const std::size_t at = std::size_t{query_} * columns.n_columns + column;
        const float expected = expected_variance(variance, dispersion, shape.softcap);
        columns.logits[at] = logit;
        columns.errors[at] = is_node ? expected_error(expected, size) : 0.0F;  // per share, as yet
        columns.nearnesses[at] =
            is_node ? expected_largest_logit(logit, expected, size) : minus_infinity();
      }
      if (first_ == 0 && i == 0 && 2 * tile + e / 2 < n_runs) {
        columns.sizes[column] = size;
        columns.dispersions[column] = dispersion;
      }
      weighted[e] = is_node ? logit + std::log(size) : minus_infinity();
    }
    if constexpr (Accumulate) {
      state_.add(b, weighted, values);
    }
  }

  /// @brief *warp*: takes the estimates of a tile of the listed columns out again (sign -1), or adds them (sign 1).
  template <class Block>
  WAVEKV_DEVICE void correct(Block& b, const frontier_columns<T>& columns, unsigned n_corrected,
                             unsigned tile, float sign) {
    const unsigned width = search_.shape.width();
    const unsigned j = b.lane() % 4;
    float logits[4];
    const T* values[4];
    WAVEKV_UNROLL
    for (unsigned e = 0; e < 4; ++e) {
      const unsigned at = tile * tile_rows + e / 2 * run_rows + 2 * j + e % 2;
      logits[e] = minus_infinity();
      values[e] = nullptr;
      if (at < n_corrected) {
        const unsigned column = columns.corrected[at];
        const T* const row =
            columns.runs[column / run_rows].rows + std::size_t{column % run_rows} * width;
        values[e] = row + search_.shape.key_dim;
        if (mine_) {
          logits[e] = columns.logits[std::size_t{query_} * columns.n_columns + column] +
                      std::log(columns.sizes[column]);
        }
      }
    }
    add(b, logits, values, sign);
  }

  /// @brief *warp*: attends two runs of tokens exactly.
  template <class Block>
  WAVEKV_DEVICE void attend(Block& b, const token_run_view<T>& one, const token_run_view<T>& two) {
    const unsigned j = b.lane() % 4;
    const values_type values = values_of(b, one, two);
    float logits[4];
    multiply(b, one, two, logits);
    WAVEKV_UNROLL
    for (unsigned e = 0; e < 4; ++e) {
      logits[e] = 2 * j + e % 2 < (e < 2 ? one.n : two.n) ? capped(logits[e]) : minus_infinity();
    }
    state_.add(b, logits, values);
  }

  /// @brief *warp*: the logits of a tile of token rows.
  /// @param rows  this lane's rows i and 8 + i; null: no such row, its logit means nothing
  template <class Block>
  WAVEKV_DEVICE void score(Block& b, const T* const (&rows)[2], float (&logits)[4]) const {
    queries_.multiply(b, rows, search_.shape.key_dim, logits);
    WAVEKV_UNROLL
    for (unsigned e = 0; e < 4; ++e) {
      logits[e] = capped(logits[e]);
    }
  }

  /// @brief *warp*: adds a tile of values, weighted by e^logit: see softmax_tile.
  template <class Block>
  WAVEKV_DEVICE void add(Block& b, const float (&logits)[4], const T* const (&values)[4],
                         float sign) {
    state_.add(b, logits, values_type(b, values, search_.shape.value_dim), sign);
  }

  /// @brief *warp*: writes what was added: [n, 2 + value_dim].
  template <class Block>
  WAVEKV_DEVICE void store(Block& b, float* to) const {
    state_.store(b, to, n_, search_.shape.value_dim);
  }

  /// @brief *warp*: forgets what was added.
  WAVEKV_DEVICE void clear() { state_ = softmax_tile<T, MaxDim>(); }

  /// @brief Query heads of this warp's tile.
  [[nodiscard]] WAVEKV_DEVICE unsigned n() const { return n_; }

 private:
  using values_type = value_tile<T, MaxDim>;

  WAVEKV_DEVICE static float minus_infinity() { return -std::numeric_limits<float>::infinity(); }

  WAVEKV_DEVICE float capped(float product) const {
    const float logit = product * unit_;
    const float cap = search_.shape.softcap;
    return cap > 0.0F ? cap * std::tanh(logit / cap) : logit;
  }

  template <class Run>
  WAVEKV_DEVICE const T* row(const Run& run, unsigned r) const {
    return r < run.n ? run.rows + std::size_t{r} * search_.shape.width() : nullptr;
  }

  template <class Run>
  WAVEKV_DEVICE const T* value(const Run& run, unsigned r) const {
    return r < run.n ? run.rows + std::size_t{r} * search_.shape.width() + search_.shape.key_dim
                     : nullptr;
  }

  template <class Block, class Run>
  WAVEKV_DEVICE void multiply(Block& b, const Run& one, const Run& two,
                              float (&products)[4]) const {
    const unsigned i = b.lane() / 4;
    queries_.multiply(b, {row(one, i), row(two, i)}, search_.shape.key_dim, products);
  }

  // The values of two runs begin to arrive; none do unless they are wanted.
  template <class Block, class Run>
  WAVEKV_DEVICE values_type values_of(Block& b, const Run& one, const Run& two,
                                      bool wanted = true) const {
    const unsigned j = b.lane() % 4;
    return values_type(
        b, {value(one, 2 * j), value(one, 2 * j + 1), value(two, 2 * j), value(two, 2 * j + 1)},
        wanted ? search_.shape.value_dim : 0);
  }

  const search_view<T>& search_;
  unsigned first_;
  unsigned n_;
  unsigned query_;  // this lane's
  bool mine_;       // whether there is such a query
  float unit_;
  query_tile<T, MaxDim> queries_;
  softmax_tile<T, MaxDim> state_;
};

/// @brief *block*: merges what the blocks of a stage have found, in their order, and what was merged before.
///
/// The search's other blocks have ended, so that only latency counts here: a warp takes 32 floats of one query head, and
/// loads those of eight blocks before it uses the first.
/// @param first_stage  nothing was merged before
template <class T, class Block>
WAVEKV_DEVICE void merge_splits(Block& b, const search_view<T>& search, unsigned n_splits,
                                bool first_stage) {
  constexpr unsigned at_once = 8;
  constexpr float nothing = -std::numeric_limits<float>::infinity();
  const unsigned floats = state_floats(search.shape.value_dim);
  const unsigned group = search.shape.group_size;
  const unsigned n_pieces = (floats + warp_size - 1) / warp_size;
  const std::size_t step = std::size_t{group} * floats;  // from one block's states to the next's
  const auto max_of = [&](unsigned g, unsigned split) {
    return split < n_splits ? search.partials[split * step + g * floats] : nothing;
  };
  const auto max_before = [&](unsigned g) {
    return first_stage ? nothing : search.merged[g * floats];
  };
  const auto max_of_all = [&](unsigned g) {
    float most = max_before(g);
    for (unsigned s = 0; s < n_splits; s += warp_size) {
      const float max = b.warp_max(max_of(g, s + b.lane()));
      most = max > most ? max : most;
    }
    return most;
  };
  for (unsigned piece = b.warp(); piece < group * n_pieces; piece += b.n_warps()) {
    const unsigned g = piece / n_pieces;
    const unsigned at = piece % n_pieces * warp_size + b.lane();
    const bool has_one = at != 0 && at < floats;
    const float most = max_of_all(g);
    const float before = max_before(g);
    float* const merged = search.merged + g * floats + at;
    float sum = has_one && before > nothing ? *merged * std::exp(before - most) : 0.0F;
    for (unsigned s = 0; s < n_splits; s += warp_size) {
      const float max = max_of(g, s + b.lane());  // each lane has one block's factor
      const float factor = max > nothing ? std::exp(max - most) : 0.0F;
      const unsigned n = n_splits - s < warp_size ? n_splits - s : warp_size;
      for (unsigned first = 0; first < n; first += at_once) {
        float x[at_once];
        WAVEKV_UNROLL
        for (unsigned i = 0; i < at_once; ++i) {
          const unsigned split = s + or_last(first + i, n);
          x[i] = search.partials[split * step + g * floats + or_last(at, floats)];
        }
        WAVEKV_UNROLL
        for (unsigned i = 0; i < at_once; ++i) {
          const float weight = b.shuffle(factor, first + i);
          sum += weight > 0.0F ? x[i] * weight : 0.0F;
        }
      }
    }
    if (has_one) {
      *merged = sum;
    }
  }
  b.sync();  // the maxima before have been read
  for (unsigned g = b.warp(); g < group; g += b.n_warps()) {
    const float most = max_of_all(g);
    if (b.lane() == 0) {
      search.merged[g * floats] = most;
    }
  }
  b.sync();
}

/// @brief What all stages share.
template <class T, unsigned MaxDim>
struct search_stage {
  static constexpr unsigned n_threads = 256;
  static constexpr unsigned n_warps = n_threads / warp_size;

  struct scratch {
    words4* queries;  // [shared_words4]
    float* of_warps;  // [n_warps, tile_queries, 2 + value_dim]
    float* heads;
    plan_memory plan;
    unsigned* last;
  };

  WAVEKV_HOST_DEVICE static scratch take(shared_arena& arena, const model_shape& shape) {
    scratch memory;
    memory.heads = arena.take<float>(3 * std::size_t{shape.group_size});
    memory.last = arena.take<unsigned>(1);
    memory.queries = arena.take<words4>(search_warp<T, MaxDim>::shared_words4);
    // A plan begins when the warps' states are merged: they lie in the same place.
    shared_arena states = arena;
    memory.of_warps =
        states.take<float>(std::size_t{n_warps} * tile_queries * state_floats(shape.value_dim));
    memory.plan = plan_memory::take(arena, n_warps, shape.group_size);
    if (states.used() > arena.used()) {
      arena = states;
    }
    return memory;
  }

  [[nodiscard]] static std::size_t shared_bytes(const model_shape& shape) {
    shared_arena arena;
    (void)take(arena, shape);
    return arena.used();
  }

  /// *block*: does tiles [0, n_tiles) of one search together with the search's other blocks; do_tile(warp, tile). Leaves the
  /// block's partial states in the space. True in the block that comes last, which has them merged.
  template <class Block, class Tile>
  WAVEKV_DEVICE static bool run(Block& b, const search_space<T>& space,
                                const search_view<T>& search, const scratch& memory,
                                unsigned n_tiles, bool first_stage, const Tile& do_tile) {
    const unsigned floats = state_floats(space.shape.value_dim);
    for (unsigned first = 0; first < space.shape.group_size; first += tile_queries) {
      search_warp<T, MaxDim> warp(b, search, first, memory.queries);
      for (unsigned tile = b.block_x() + space.n_splits * b.warp(); tile < n_tiles;
           tile += space.n_splits * b.n_warps()) {
        do_tile(warp, tile);
      }
      warp.store(b, memory.of_warps + std::size_t{b.warp()} * tile_queries * floats);
      merge_warps(b, memory.of_warps, warp.n(), space.shape.value_dim,
                  search.partials +
                      (std::size_t{b.block_x()} * space.shape.group_size + first) * floats);
    }
    if (!arrives_last(b, search.counter, space.n_splits, memory.last)) {
      return false;
    }
    merge_splits(b, search, space.n_splits, first_stage);
    return true;
  }
};

}  // namespace wavekv::device
