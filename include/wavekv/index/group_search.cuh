// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

#include <wavekv/attention/row_tile.cuh>
#include <wavekv/cache/layer_view.cuh>
#include <wavekv/cuda/block.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/search_answer.cuh>
#include <wavekv/index/search_space.cuh>
#include <wavekv/index/search_stage.cuh>
#include <wavekv/index/zone_planner.cuh>

/// @file group_search.cuh
/// @brief The launches of an attend after lean_kernel: score, descend once a level, read; each ends with the plan, or the
/// answer, that the last block of a search makes. The twin of group_search.hpp.
///
/// A search is shared by n_splits blocks: block (x, y) is the x-th of search y. Their warps take tiles of sixteen rows in
/// turn; a row list has eight a run, so that clusters of any size fill tiles well.
///
/// Each releases the next as soon as the one before is done: blocks of the next then wait where those of this have ended.

namespace wavekv::device {

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
    b.release_next();
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
    b.release_next();
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
    b.release_next();
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
  }
};

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
    b.release_next();
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
    b.release_next();
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
