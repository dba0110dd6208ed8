// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/index/segment.cuh>

/// @file layer_view.cuh
/// @brief What one layer of one sequence holds, as kernels see it: the twin of layer_state.
///
/// It lies in device memory, at an address that does not change while the sequence is alive, and all that grows is read
/// from it by every kernel: a captured graph stays valid however long the sequence becomes.

namespace wavekv::device {

/// @brief Nodes of a run; half of the rows that a warp works on together.
inline constexpr unsigned run_rows = 8;

/// @brief Up to run_rows nodes that lie behind each other.
template <class T>
struct node_run {
  const T* rows = nullptr;             ///< [n, width]
  const float* sizes = nullptr;        ///< [n]
  const float* dispersions = nullptr;  ///< [n]
  std::uint32_t n = 0;
  std::uint32_t segment = 0;     ///< place among the layer's
  std::uint32_t first_node = 0;  ///< number of the first in its segment and level
  std::uint32_t pad = 0;
};

/// @brief What is known of one KV head's index as a whole.
struct index_facts {
  std::uint32_t n_clusters = 0;  ///< of level 0
  std::uint32_t n_top_nodes = 0;
  std::uint32_t n_top_runs = 0;
  std::uint32_t n_sealed = 0;   ///< tokens
  float squared_spread = 0.0F;  ///< sum over segments of tokens · value_spread²

  /// @brief Takes in a segment behind the others.
  template <class T>
  WAVEKV_DEVICE void add(const segment_view<T>& segment, unsigned n_levels, unsigned head) {
    const std::uint32_t n_nodes = segment.levels[n_levels - 1].n_nodes[head];
    n_clusters += segment.levels[0].n_nodes[head];
    n_top_nodes += n_nodes;
    n_top_runs += (n_nodes + run_rows - 1) / run_rows;
    n_sealed += segment.n_tokens;
    const float spread = segment.value_spread[head];
    squared_spread += spread * spread * static_cast<float>(segment.n_tokens);
  }
};

/// @brief One (sequence, layer). Tokens in order: the sink's, the segments', the tail's.
template <class T>
struct layer_view {
  std::uint32_t length = 0;         ///< tokens held
  std::uint32_t sink_capacity = 0;  ///< the sink holds the first of them, as many as this
  std::uint32_t tail_begin =
      0;  ///< position of the first token that is neither in the sink nor in a segment
  std::uint32_t n_segments = 0;
  T* sink = nullptr;                    ///< [n_kv_heads, sink_capacity, width]
  token_ring<T> tail;                   ///< of the tokens [tail_begin, length)
  segment_view<T>* segments = nullptr;  ///< [n_segments], room for more
  node_run<T>* top_runs =
      nullptr;  ///< [n_kv_heads, top_capacity] the top levels' nodes, in segment order
  std::uint32_t top_capacity = 0;  ///< runs a head has room for
  index_facts* facts = nullptr;    ///< [n_kv_heads]
  learnt_view learnt;              ///< from all segments; products null: nothing is learnt
  metric_view metric;              ///< products null: the clusterer does not ask for queries
  unsigned* counter = nullptr;     ///< zero between launches: for arrives_last

  [[nodiscard]] WAVEKV_HOST_DEVICE std::uint32_t n_sink() const {
    return length < sink_capacity ? length : sink_capacity;
  }
};

/// @brief A run of up to run_rows token rows that lie behind each other.
template <class T>
struct token_run_view {
  const T* rows = nullptr;  ///< [n, width]
  std::uint32_t n = 0;
};

/// @brief Runs of the steady zone that a query sees. They end at multiples of run_rows positions in the tail, so that none wraps
/// around the ring's end.
template <class T>
class steady_runs {
 public:
  /// @param visible  tokens up to and including the query's own
  WAVEKV_DEVICE steady_runs(const layer_view<T>& layer, unsigned head, unsigned width,
                            std::uint32_t visible)
      : layer_(layer), head_(head), width_(width) {
    n_sink_ = layer.n_sink() < visible ? layer.n_sink() : visible;
    end_ = visible > layer.tail_begin ? visible : layer.tail_begin;
    first_block_ = layer.tail_begin / run_rows;
    n_sink_runs_ = (n_sink_ + run_rows - 1) / run_rows;
    n_ = n_sink_runs_ +
         (end_ > layer.tail_begin ? (end_ + run_rows - 1) / run_rows - first_block_ : 0);
  }

  [[nodiscard]] WAVEKV_DEVICE std::uint32_t n() const { return n_; }
  /// @brief Tokens in all of them.
  [[nodiscard]] WAVEKV_DEVICE std::uint32_t n_tokens() const {
    return n_sink_ + end_ - layer_.tail_begin;
  }
  /// @brief Run i; empty behind the last.
  [[nodiscard]] WAVEKV_DEVICE token_run_view<T> operator[](std::uint32_t i) const {
    if (i >= n_) {
      return {};
    }
    if (i < n_sink_runs_) {
      const std::uint32_t first = i * run_rows;
      const std::uint32_t left = n_sink_ - first;
      return {layer_.sink + (std::size_t{head_} * layer_.sink_capacity + first) * width_,
              left < run_rows ? left : run_rows};
    }
    const std::uint32_t block = first_block_ + (i - n_sink_runs_);
    const std::uint32_t first =
        block * run_rows > layer_.tail_begin ? block * run_rows : layer_.tail_begin;
    const std::uint32_t last = (block + 1) * run_rows < end_ ? (block + 1) * run_rows : end_;
    return {layer_.tail.row(head_, first, width_), last - first};
  }

 private:
  const layer_view<T>& layer_;
  unsigned head_;
  unsigned width_;
  std::uint32_t n_sink_;
  std::uint32_t end_;
  std::uint32_t first_block_;
  std::uint32_t n_sink_runs_;
  std::uint32_t n_;
};

}  // namespace wavekv::device
