// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <wavekv/attention/node_formulas.hpp>
#include <wavekv/attention/row_tile.cuh>
#include <wavekv/cache/layer_view.cuh>
#include <wavekv/cuda/block.hpp>
#include <wavekv/index/query_leaning.cuh>
#include <wavekv/index/search_space.cuh>
#include <wavekv/index/zone_planner.cuh>

/// @file group_search.cuh
/// @brief The launches of an attend after lean_kernel: score, descend once a level, read; each ends with the plan, or the
/// answer, that the last block of a search makes. The twin of group_search.hpp.
///
/// A search is shared by n_splits blocks: block (x, y) is the x-th of search y. Their warps take tiles of sixteen rows in
/// turn; a row list has eight a run, so that clusters of any size fill tiles well.

namespace wavekv::device {

/// @brief One warp's part of a search stage: scores, estimates, corrects and attends tiles.
/// @tparam T       storage scalar
/// @tparam MaxDim  most elements of a key or a value: 64, 128 or 256
template <class T, unsigned MaxDim>
class search_warp {
 public:
  /// @brief *warp*: for the query heads [first, first + tile_queries) of a search's group.
  template <class Block>
  WAVEKV_DEVICE search_warp(Block& b, const search_view<T>& search, unsigned first)
      : search_(search),
        first_(first),
        n_(search.shape.group_size - first < tile_queries ? search.shape.group_size - first
                                                          : tile_queries),
        query_(first + b.lane() / 4),
        mine_(b.lane() / 4 < n_) {
    queries_.load(b, search.queries + first * search.shape.key_dim, n_, search.shape.key_dim);
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
      add(b, runs[0], runs[1], weighted, 1.0F);
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
    state_.add(b, logits, values, search_.shape.value_dim, sign);
  }

  /// @brief *warp*: attends two runs of tokens exactly.
  template <class Block>
  WAVEKV_DEVICE void attend(Block& b, const token_run_view<T>& one, const token_run_view<T>& two) {
    const unsigned j = b.lane() % 4;
    float logits[4];
    multiply(b, one, two, logits);
    WAVEKV_UNROLL
    for (unsigned e = 0; e < 4; ++e) {
      logits[e] = 2 * j + e % 2 < (e < 2 ? one.n : two.n) ? capped(logits[e]) : minus_infinity();
    }
    add(b, one, two, logits, 1.0F);
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
    state_.add(b, logits, values, search_.shape.value_dim, sign);
  }

  /// @brief *warp*: writes what was added: [n, 2 + value_dim].
  template <class Block>
  WAVEKV_DEVICE void store(Block& b, float* to) const {
    state_.store(b, to, n_, search_.shape.value_dim);
  }

  /// @brief Query heads of this warp's tile.
  [[nodiscard]] WAVEKV_DEVICE unsigned n() const { return n_; }

 private:
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

  template <class Block, class Run>
  WAVEKV_DEVICE void add(Block& b, const Run& one, const Run& two, const float (&logits)[4],
                         float sign) {
    const unsigned j = b.lane() % 4;
    state_.add(b, logits,
               {value(one, 2 * j), value(one, 2 * j + 1), value(two, 2 * j), value(two, 2 * j + 1)},
               search_.shape.value_dim, sign);
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

/// @brief Where an attend writes.
struct answer_arrays {
  caller_rows
      out;  ///< [n_queries, n_query_heads, value_dim]; data null: a partial softmax is written
  float* lse = nullptr;  ///< [n_queries, n_query_heads] with its strides, or null
  unsigned long long lse_strides[2] = {};
  float* max = nullptr;  ///< of a partial softmax, likewise strided
  unsigned long long max_strides[2] = {};
  float* denominator = nullptr;
  unsigned long long denominator_strides[2] = {};
  caller_rows numerator;               ///< floats
  const float* sink_logits = nullptr;  ///< [n_query_heads] in device memory, or null
};

/// @brief What all stages share.
template <class T, unsigned MaxDim>
struct search_stage {
  static constexpr unsigned n_threads = 256;
  static constexpr unsigned n_warps = n_threads / warp_size;

  struct scratch {
    float* of_warps;  // [n_warps, tile_queries, 2 + value_dim]
    float* heads;
    plan_memory plan;
    unsigned* last;
  };

  WAVEKV_HOST_DEVICE static scratch take(shared_arena& arena, const model_shape& shape) {
    scratch memory;
    memory.heads = arena.take<float>(3 * std::size_t{shape.group_size});
    memory.last = arena.take<unsigned>(1);
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
      search_warp<T, MaxDim> warp(b, search, first);
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

/// @brief Attends the steady zone, scores the top level and estimates it; then plans that level.
template <class T, class Bound, unsigned MaxDim>
struct score_kernel {
  using stage = search_stage<T, MaxDim>;
  static constexpr unsigned n_threads = stage::n_threads;
  static constexpr bool overlaps = true;

  search_space<T> space;
  Bound bound;

  [[nodiscard]] std::size_t shared_bytes() const { return stage::shared_bytes(space.shape); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    const unsigned number = b.block_y();
    const search_view<T> search(space, number);
    if (search.state->done != 0) {
      return;
    }
    shared_arena arena(b.shared());
    const typename stage::scratch memory = stage::take(arena, space.shape);
    const unsigned top = space.shape.n_levels - 1;
    const frontier_columns<T> columns(space, search, number, top);
    const unsigned n_runs = search.state->n_runs[top];
    const steady_runs<T> steady(*search.place.layer, search.head, space.shape.width(),
                                search.place.visible);
    const unsigned n_node_tiles = (n_runs + 1) / 2;
    const unsigned n_tiles = n_node_tiles + (steady.n() + 1) / 2;
    const bool last = stage::run(
        b, space, search, memory, n_tiles, true, [&](search_warp<T, MaxDim>& warp, unsigned tile) {
          if (tile < n_node_tiles) {
            warp.template estimate<!detail::drops<Bound>()>(b, columns, n_runs, top, tile);
          } else {
            const unsigned run = 2 * (tile - n_node_tiles);
            warp.attend(b, steady[run], steady[run + 1]);
          }
        });
    if (last) {
      count(b, search);
      if constexpr (verifying_bound<Bound>) {
        keep(b, search);
      }
      plan_level(b, space, bound, number, top, memory.heads, memory.plan);
    }
    b.release_next();
  }

 private:
  template <class Block>
  WAVEKV_DEVICE void count(Block& b, const search_view<T>& search) const {
    const unsigned long long n = search.place.layer->facts[search.head].n_top_nodes;
    if (b.thread() == 0 && n != 0) {
      const unsigned long long row = space.shape.width() * static_cast<unsigned>(sizeof(T));
      b.atomic_add(&space.report->summaries_read, n);
      b.atomic_add(&space.report->bytes_read, n * (row + 8));
    }
  }

  // What is merged now is where further rounds start.
  template <class Block>
  WAVEKV_DEVICE void keep(Block& b, const search_view<T>& search) const {
    const unsigned n = space.shape.group_size * state_floats(space.shape.value_dim);
    for (unsigned i = b.thread(); i < n; i += b.n_threads()) {
      search.scored[i] = search.merged[i];
    }
  }
};

/// @brief Begins another round of a search whose answer was not accepted: plans the top level with a tightened bound. What the
/// first round has read and worked out so far still stands: it is neither read nor counted again.
template <class T, class Bound>
struct replan_kernel {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;

  search_space<T> space;
  Bound bound;

  [[nodiscard]] std::size_t shared_bytes() const {
    shared_arena arena;
    (void)take(arena);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    const unsigned number = b.block_y();
    const search_view<T> search(space, number);
    if (search.state->done != 0) {
      return;
    }
    shared_arena arena(b.shared());
    const scratch memory = take(arena);
    const unsigned n = space.shape.group_size * state_floats(space.shape.value_dim);
    for (unsigned i = b.thread(); i < n; i += b.n_threads()) {
      search.merged[i] = search.scored[i];
    }
    if (b.thread() == 0) {
      b.atomic_add(&space.report->rounds, 1ULL);
    }
    plan_level(b, space, bound, number, space.shape.n_levels - 1, memory.heads, memory.plan, true);
    b.release_next();
  }

 private:
  struct scratch {
    float* heads;
    plan_memory plan;
  };

  WAVEKV_HOST_DEVICE scratch take(shared_arena& arena) const {
    scratch memory;
    memory.heads = arena.take<float>(3 * std::size_t{space.shape.group_size});
    memory.plan = plan_memory::take(arena, n_threads / warp_size, space.shape.group_size);
    return memory;
  }
};

/// @brief Corrects a level's estimates, scores the children of what was opened and estimates them; then plans their level.
template <class T, class Bound, unsigned MaxDim>
struct descend_kernel {
  using stage = search_stage<T, MaxDim>;
  static constexpr unsigned n_threads = stage::n_threads;
  static constexpr bool overlaps = true;

  search_space<T> space;
  Bound bound;
  unsigned level = 1;  ///< that was planned

  [[nodiscard]] std::size_t shared_bytes() const { return stage::shared_bytes(space.shape); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    const unsigned number = b.block_y();
    const search_view<T> search(space, number);
    if (search.state->done != 0) {
      return;
    }
    shared_arena arena(b.shared());
    const typename stage::scratch memory = stage::take(arena, space.shape);
    const frontier_columns<T> above(space, search, number, level);
    const frontier_columns<T> below(space, search, number, level - 1);
    const unsigned n_runs = search.state->n_runs[level - 1];
    const unsigned n_corrected = search.state->n_corrected[level];
    const unsigned n_node_tiles = (n_runs + 1) / 2;
    const unsigned n_tiles = n_node_tiles + (n_corrected + tile_rows - 1) / tile_rows;
    constexpr bool drops = detail::drops<Bound>();
    const bool last = stage::run(
        b, space, search, memory, n_tiles, false, [&](search_warp<T, MaxDim>& warp, unsigned tile) {
          if (tile < n_node_tiles) {
            warp.template estimate<!drops>(b, below, n_runs, level - 1, tile);
          } else {
            warp.correct(b, above, n_corrected, tile - n_node_tiles, drops ? 1.0F : -1.0F);
          }
        });
    if (last) {
      plan_level(b, space, bound, number, level - 1, memory.heads, memory.plan);
    }
    b.release_next();
  }
};

/// @brief *block*: moves the merged numerators of a search by what the value means of all its estimates lack: query_leaning's
/// add_tilts. Each is moved by the thread that write_answer has write it.
template <class T, class Block>
WAVEKV_DEVICE void add_tilts(Block& b, const search_view<T>& search) {
  const model_shape& shape = search.shape;
  if (shape.softcap > 0.0F) {  // it bends the logits: see query_leaning
    return;
  }
  for (unsigned g = b.warp(); g < shape.group_size; g += b.n_warps()) {
    float* const merged = search.merged + g * state_floats(shape.value_dim);
    const float max = merged[0];
    for (unsigned level = 0; level < shape.n_levels; ++level) {
      const unsigned at = level * shape.group_size + g;
      const float followed = search.followed[at];
      if (followed > 0.0F && max > -std::numeric_limits<float>::infinity()) {
        const float factor = followed * std::exp(search.normalizers[at] - max);
        const float* const tilt = search.leanings + std::size_t{at} * shape.width() + shape.key_dim;
        for (unsigned i = b.lane(); i < shape.value_dim; i += warp_size) {
          merged[2 + i] += factor * tilt[i];
        }
      }
    }
  }
}

/// @brief *block*: writes the answer of one search: learned sinks, division.
template <class T, class Block>
WAVEKV_DEVICE void write_answer(Block& b, const search_view<T>& search, unsigned query,
                                const answer_arrays& to) {
  const model_shape& shape = search.shape;
  const unsigned floats = state_floats(shape.value_dim);
  const unsigned group = shape.group_size;
  for (unsigned g = b.warp(); g < group; g += b.n_warps()) {
    const unsigned head = search.head * group + g;
    const float* const merged = search.merged + g * floats;
    const float max = merged[0];
    const bool empty = !(max > -std::numeric_limits<float>::infinity());
    float new_max = max;
    float denominator = merged[1];
    if (to.sink_logits != nullptr && to.out.data != nullptr) {
      const float sink = to.sink_logits[head];
      new_max = sink > max ? sink : max;
      denominator =
          (empty ? 0.0F : denominator * std::exp(max - new_max)) + std::exp(sink - new_max);
    }
    const float factor = empty ? 0.0F : std::exp(max - new_max);
    for (unsigned i = b.lane(); i < shape.value_dim; i += warp_size) {
      const float x = merged[2 + i];
      if (to.out.data == nullptr) {
        to.numerator.store(query, head, i, empty ? 0.0F : x);
      } else {
        to.out.store(query, head, i, denominator > 0.0F ? x * factor / denominator : 0.0F);
      }
    }
    if (b.lane() == 0) {
      if (to.out.data == nullptr) {
        to.max[query * to.max_strides[0] + head * to.max_strides[1]] = max;
        to.denominator[query * to.denominator_strides[0] + head * to.denominator_strides[1]] =
            denominator;
      } else if (to.lse != nullptr) {
        to.lse[query * to.lse_strides[0] + head * to.lse_strides[1]] =
            denominator > 0.0F ? new_max + std::log(denominator)
                               : -std::numeric_limits<float>::infinity();
      }
    }
  }
}

/// @brief Books what an answer that stands was planned to err.
template <class T, class Block, class Bound>
WAVEKV_DEVICE void book_errors(Block& b, const search_space<T>& space, const search_view<T>& search,
                               const Bound& bound) {
  if (b.thread() != 0) {
    return;
  }
  float error = 0.0F;
  float dropped = 0.0F;
  for (unsigned g = 0; g < space.shape.group_size; ++g) {
    error = search.settled[g] > error ? search.settled[g] : error;
    dropped = search.dropped[g] > dropped ? search.dropped[g] : dropped;
  }
  error = std::sqrt(error);
  b.atomic_max(&space.report->predicted_error, std::bit_cast<unsigned>(error));
  b.atomic_max(&space.report->dropped_mass, std::bit_cast<unsigned>(dropped));
  bool meets = true;
  if constexpr (requires { bound.meets(error); }) {
    meets = bound.meets(error);
  }
  if (!meets) {
    b.atomic_add(&space.report->capped, 1ULL);
  }
}

/// @brief Reads the chosen clusters exactly and corrects their estimates; then writes the answer, unless it has to be checked.
template <class T, class Bound, unsigned MaxDim>
struct read_kernel {
  using stage = search_stage<T, MaxDim>;
  static constexpr unsigned n_threads = stage::n_threads;
  static constexpr bool overlaps = true;

  search_space<T> space;
  Bound bound;
  answer_arrays answer;

  [[nodiscard]] std::size_t shared_bytes() const { return stage::shared_bytes(space.shape); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    const unsigned number = b.block_y();
    const search_view<T> search(space, number);
    if (search.state->done != 0) {
      return;
    }
    shared_arena arena(b.shared());
    const typename stage::scratch memory = stage::take(arena, space.shape);
    const frontier_columns<T> columns(space, search, number, 0);
    const unsigned n_runs = search.state->n_token_runs;
    const unsigned n_corrected = search.state->n_corrected[0];
    const unsigned n_token_tiles = (n_runs + 1) / 2;
    const unsigned n_tiles = n_token_tiles + (n_corrected + tile_rows - 1) / tile_rows;
    const bool last = stage::run(
        b, space, search, memory, n_tiles, false, [&](search_warp<T, MaxDim>& warp, unsigned tile) {
          if (tile < n_token_tiles) {
            const bool has_second = 2 * tile + 1 < n_runs;
            warp.attend(b, search.token_runs[2 * tile],
                        has_second ? search.token_runs[2 * tile + 1] : token_run_view<T>{});
          } else {
            warp.correct(b, columns, n_corrected, tile - n_token_tiles,
                         detail::drops<Bound>() ? 1.0F : -1.0F);
          }
        });
    if (last && !verifying_bound<Bound>) {
      book_errors(b, space, search, bound);
      add_tilts(b, search);
      write_answer(b, search, number / space.shape.n_kv_heads, answer);
    }
    b.release_next();
  }
};

/// @brief Reads every token; then writes the answer. All of a search whose bound reads everything, and the last round of one
/// whose answer was never accepted.
template <class T, unsigned MaxDim>
struct read_all_kernel {
  using stage = search_stage<T, MaxDim>;
  static constexpr unsigned n_threads = stage::n_threads;
  static constexpr bool overlaps = true;

  search_space<T> space;
  answer_arrays answer;
  bool is_first = true;  ///< no round came before

  [[nodiscard]] std::size_t shared_bytes() const { return stage::shared_bytes(space.shape); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    const unsigned number = b.block_y();
    const search_view<T> search(space, number);
    if (search.state->done != 0) {
      return;
    }
    shared_arena arena(b.shared());
    const typename stage::scratch memory = stage::take(arena, space.shape);
    const layer_view<T>& layer = *search.place.layer;
    const steady_runs<T> steady(layer, search.head, space.shape.width(), search.place.visible);
    const unsigned n_steady_tiles = (steady.n() + 1) / 2;
    const unsigned n_sealed = layer.facts[search.head].n_sealed;
    // Every block takes one stretch of the sealed tokens: its warps walk through segments once.
    const unsigned n_sealed_tiles = (n_sealed + tile_rows - 1) / tile_rows + layer.n_segments;
    unsigned segment = 0;
    unsigned first_tile = 0;  // of the segment
    const bool last =
        stage::run(b, space, search, memory, n_steady_tiles + n_sealed_tiles, true,
                   [&](search_warp<T, MaxDim>& warp, unsigned tile) {
                     if (tile < n_steady_tiles) {
                       warp.attend(b, steady[2 * tile], steady[2 * tile + 1]);
                       return;
                     }
                     tile -= n_steady_tiles;
                     if (tile < first_tile) {  // the next group of query heads starts over
                       segment = first_tile = 0;
                     }
                     while (segment < layer.n_segments &&
                            tile >= first_tile + n_tiles_of(layer.segments[segment])) {
                       first_tile += n_tiles_of(layer.segments[segment++]);
                     }
                     if (segment < layer.n_segments) {
                       attend_tile(b, warp, search, layer.segments[segment], tile - first_tile);
                     }
                   });
    if (last) {
      if (b.thread() == 0) {
        count(b, search, layer, is_first ? 0U : steady.n_tokens());
      }
      write_answer(b, search, number / space.shape.n_kv_heads, answer);
    }
    b.release_next();
  }

 private:
  WAVEKV_DEVICE static unsigned n_tiles_of(const segment_view<T>& segment) {
    return (segment.n_tokens + tile_rows - 1) / tile_rows;
  }

  template <class Block>
  WAVEKV_DEVICE void attend_tile(Block& b, search_warp<T, MaxDim>& warp,
                                 const search_view<T>& search, const segment_view<T>& segment,
                                 unsigned tile) const {
    const unsigned width = space.shape.width();
    token_run_view<T> runs[2];
    WAVEKV_UNROLL
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned first = tile * tile_rows + half * run_rows;
      if (first < segment.n_tokens) {
        const unsigned left = segment.n_tokens - first;
        runs[half].rows =
            segment.rows + (std::size_t{search.head} * segment.n_tokens + first) * width;
        runs[half].n = left < run_rows ? left : run_rows;
      }
    }
    warp.attend(b, runs[0], runs[1]);
  }

  template <class Block>
  WAVEKV_DEVICE void count(Block& b, const search_view<T>& search, const layer_view<T>& layer,
                           unsigned n_steady) const {
    step_counts& report = *space.report;
    const unsigned long long row = space.shape.width() * static_cast<unsigned>(sizeof(T));
    const index_facts& facts = layer.facts[search.head];
    const unsigned long long n_read = facts.n_sealed + n_steady;
    b.atomic_add(&report.tokens_read, n_read);
    b.atomic_add(&report.bytes_read, n_read * row);
    b.atomic_add(&report.clusters_read, static_cast<unsigned long long>(facts.n_clusters));
    b.atomic_add(&report.rounds, is_first ? 0ULL : 1ULL);
  }
};

}  // namespace wavekv::device
