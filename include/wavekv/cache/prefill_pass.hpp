// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <wavekv/attention/prefill.hpp>
#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/cache/layer_state.hpp>
#include <wavekv/cache/statistics.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/core/tensor_view.hpp>

/// @file prefill_pass.hpp
/// @brief Exact causal attention of a chunk over one layer: what the cache holds, then the chunk itself.

namespace wavekv {

/// @brief Runs the chunk as tasks of (KV head, tile of query tokens); kept from chunk to chunk for its memory.
/// @tparam T        storage scalar
/// @tparam Buffer   a wave_buffer
/// @tparam Segment  the layer's segments
template <scalar T, class Buffer, class Segment>
class prefill_pass {
 public:
  using reader_type = block_reader<T, Buffer>;

  /// @brief Attends the chunk, whose rows are staged behind the tail's end.
  /// Blocks: yes. Allocates: while the pass grows.
  /// @param queries  [n, n_query_heads, key_dim], checked
  /// @param out      [n, n_query_heads, value_dim]
  /// @param lse      [n, n_query_heads] or empty
  template <class Executor, class Q, class U>
  step_stats run(const geometry& sizes, std::size_t layer, const layer_state<T, Segment>& state,
                 reader_type& reader, Executor& executor, const tensor_view<Q, 3>& queries,
                 const tensor_view<U, 3>& out, const tensor_view<float, 2>& lse) {
    const std::size_t n = queries.extent(0);
    const std::size_t tile_tokens = prefill_tile::preferred_tokens(sizes.group_size());
    const std::size_t n_tiles = (n + tile_tokens - 1) / tile_tokens;
    const std::size_t n_tasks = (n_tiles + tiles_per_task - 1) / tiles_per_task;
    if (workers_.size() < executor.concurrency()) {
      workers_.resize(executor.concurrency());
    }
    // Later tiles see more keys: they go first, so that the last tasks to finish are small ones.
    executor.parallel_for(n_tasks * sizes.n_kv_heads, [&](std::size_t task, std::size_t worker) {
      const std::size_t first =
          (n_tasks - 1 - task / sizes.n_kv_heads) * tiles_per_task * tile_tokens;
      attend_tiles(sizes, layer, state, reader, workers_[worker], task % sizes.n_kv_heads, first,
                   std::min(tiles_per_task * tile_tokens, n - first), queries, out, lse);
    });
    step_stats done;
    done.groups = n * sizes.n_kv_heads;
    done.rounds = done.groups;
    done.tokens_held = (n * state.length() + n * (n + 1) / 2) * sizes.n_kv_heads;
    done.tokens_read = done.tokens_held;
    done.bytes_read = n_tasks * (state.length() + n) * sizes.n_kv_heads *
                      (sizes.key_dim + sizes.value_dim) * sizeof(T);
    return done;
  }

 private:
  static constexpr std::size_t gathered_tokens = 256;
  // Tiles that share one pass over the segments: more than one where rows may have to be brought from the slow tier.
  static constexpr std::size_t tiles_per_task = reader_type::always_fast ? 1 : 16;

  struct worker_state {
    std::array<prefill_tile, tiles_per_task> tiles;
    typename reader_type::lane_type lane;
    std::vector<block> blocks;
    std::vector<T> keys;  // clusters gathered into runs long enough for the tile's kernels
    std::vector<T> values;
    std::size_t n_gathered = 0;
  };

  template <class Q, class U>
  void attend_tiles(const geometry& sizes, std::size_t layer, const layer_state<T, Segment>& state,
                    reader_type& reader, worker_state& worker, std::size_t head, std::size_t first,
                    std::size_t n_tokens, const tensor_view<Q, 3>& queries,
                    const tensor_view<U, 3>& out, const tensor_view<float, 2>& lse) {
    const std::size_t tile_tokens = prefill_tile::preferred_tokens(sizes.group_size());
    const std::size_t n_tiles = (n_tokens + tile_tokens - 1) / tile_tokens;
    const std::span<prefill_tile> tiles(worker.tiles.data(), n_tiles);
    make_room(sizes, worker, tiles);
    for (std::size_t i = 0; i < n_tiles; ++i) {
      const std::size_t at = first + i * tile_tokens;
      begin_tile(sizes, state, tiles[i], head, at, std::min(tile_tokens, first + n_tokens - at),
                 queries);
    }
    for (const auto& segment : state.segments) {
      add_segment(sizes, *segment, reader, worker, tiles, head);
    }
    for (std::size_t i = 0; i < n_tiles; ++i) {
      const std::size_t at = first + i * tile_tokens;
      end_tile(sizes, layer, state, tiles[i], head, at,
               std::min(tile_tokens, first + n_tokens - at), out, lse);
    }
  }

  static void make_room(const geometry& sizes, worker_state& worker,
                        std::span<prefill_tile> tiles) {
    const std::size_t group = sizes.group_size();
    worker.keys.resize(gathered_tokens * sizes.key_dim);
    worker.values.resize(gathered_tokens * sizes.value_dim);
    worker.lane.admits = false;
    for (prefill_tile& tile : tiles) {
      if (tile.max_rows() == 0) {
        tile = prefill_tile(prefill_tile::preferred_tokens(group) * group, sizes.key_dim,
                            sizes.value_dim);
      }
    }
  }

  template <class Q>
  static void begin_tile(const geometry& sizes, const layer_state<T, Segment>& state,
                         prefill_tile& tile, std::size_t head, std::size_t first,
                         std::size_t n_tokens, const tensor_view<Q, 3>& queries) {
    const std::size_t group = sizes.group_size();
    tile.begin(n_tokens * group, group, state.tail.size() + first, sizes.logit_softcap);
    for (std::size_t row = 0; row < n_tokens * group; ++row) {
      tile.set_query(row, &queries(first + row / group, head * group + row % group, 0U),
                     sizes.logit_scale());
    }
    tile.add_run(state.sink.keys(head), sizes.key_dim, state.sink.values(head), sizes.value_dim,
                 state.sink.size());
  }

  template <class U>
  static void end_tile(const geometry& sizes, std::size_t layer,
                       const layer_state<T, Segment>& state, prefill_tile& tile, std::size_t head,
                       std::size_t first, std::size_t n_tokens, const tensor_view<U, 3>& out,
                       const tensor_view<float, 2>& lse) {
    const std::size_t group = sizes.group_size();
    // The tail and, behind it, the chunk: positions count from the tail's first token.
    tile.add_causal_run(state.tail.keys(head), sizes.key_dim, state.tail.values(head),
                        sizes.value_dim, state.tail.size() + first + n_tokens, 0);
    for (std::size_t row = 0; row < n_tokens * group; ++row) {
      const std::size_t token = first + row / group;
      const std::size_t query_head = head * group + row % group;
      if (!sizes.sink_logits.empty()) {
        tile.add_sink_logit(row, sizes.sink_logits[layer * sizes.n_query_heads + query_head]);
      }
      tile.finish_row(row, &out(token, query_head, 0U));
      if (!lse.empty()) {
        lse(token, query_head) = tile.log_sum_exp(row);
      }
    }
  }

  static void add_segment(const geometry& sizes, const Segment& segment, reader_type& reader,
                          worker_state& worker, std::span<prefill_tile> tiles, std::size_t head) {
    worker.n_gathered = 0;  // a fetch that failed may have left some
    worker.blocks.clear();
    for (std::uint32_t cluster = 0; cluster < segment.head(head).levels[0].n_nodes; ++cluster) {
      worker.blocks.push_back(segment.cluster_block(head, cluster));
    }
    const auto flush = [&] {
      for (prefill_tile& tile : tiles) {
        tile.add_run(worker.keys.data(), sizes.key_dim, worker.values.data(), sizes.value_dim,
                     worker.n_gathered);
      }
      worker.n_gathered = 0;
    };
    reader.read(segment.rows(), worker.blocks, worker.lane,
                [&](std::size_t /*i*/, std::span<const token_run<T>> runs) {
                  for (const token_run<T>& run : runs) {
                    for (std::size_t at = 0; at < run.n;) {
                      const std::size_t taken =
                          std::min(run.n - at, gathered_tokens - worker.n_gathered);
                      std::copy_n(run.keys + at * sizes.key_dim, taken * sizes.key_dim,
                                  worker.keys.data() + worker.n_gathered * sizes.key_dim);
                      std::copy_n(run.values + at * sizes.value_dim, taken * sizes.value_dim,
                                  worker.values.data() + worker.n_gathered * sizes.value_dim);
                      worker.n_gathered += taken;
                      at += taken;
                      if (worker.n_gathered == gathered_tokens) {
                        flush();
                      }
                    }
                  }
                });
    flush();
  }

  std::vector<worker_state> workers_;
};

}  // namespace wavekv
