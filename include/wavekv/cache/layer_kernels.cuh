// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <wavekv/cache/layer_view.cuh>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/caller_rows.cuh>
#include <wavekv/index/search_space.cuh>

/// @file layer_kernels.cuh
/// @brief Kernels that change what a layer holds: append, publish, truncate.

namespace wavekv::device {

/// @brief Tokens that a batch appends to one layer of one sequence.
template <class T>
struct append_run {
  layer_view<T>* layer = nullptr;
  std::uint32_t n_tokens = 0;
};

/// @brief Writes new tokens behind a layer's newest, and makes them part of it. One block a token.
///
/// An element that is not finite, or does not fit the scalar, is reported and stored as 0: the sequence stays usable.
template <class T>
struct append_kernel {
  static constexpr unsigned n_threads = 256;
  static constexpr unsigned most_runs = 128;  ///< sequences of one launch
  static constexpr bool overlaps = true;

  model_shape shape;
  caller_rows keys;    ///< [sum of n_tokens, n_kv_heads, key_dim]
  caller_rows values;  ///< [sum of n_tokens, n_kv_heads, value_dim]
  step_counts* report = nullptr;
  unsigned n_runs = 0;
  append_run<T> runs[most_runs];

  [[nodiscard]] std::size_t shared_bytes() const { return sizeof(unsigned); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned row = b.block_x();
    unsigned first = 0;
    unsigned run = 0;
    while (run + 1 < n_runs && first + runs[run].n_tokens <= row) {
      first += runs[run++].n_tokens;
    }
    layer_view<T>& layer = *runs[run].layer;
    const std::uint32_t position = layer.length + (row - first);
    const unsigned width = shape.width();
    bool finite = true;
    for (unsigned i = b.thread(); i < shape.n_kv_heads * width; i += n_threads) {
      const unsigned head = i / width;
      const unsigned column = i % width;
      const float x = column < shape.key_dim ? keys.load(row, head, column)
                                             : values.load(row, head, column - shape.key_dim);
      T stored = from_float<T>(x);
      if (!std::isfinite(to_float(stored))) {
        finite = false;
        stored = from_float<T>(0.0F);
      }
      T* const to = position < layer.sink_capacity
                        ? layer.sink + (std::size_t{head} * layer.sink_capacity + position) * width
                        : layer.tail.row(head, position, width);
      to[column] = stored;
    }
    if (!finite) {
      b.atomic_or(&report->faults, static_cast<unsigned>(fault::key_not_finite));
    }
    if (arrives_last(b, layer.counter, runs[run].n_tokens,
                     reinterpret_cast<unsigned*>(b.shared())) &&
        b.thread() == 0) {
      layer.length += runs[run].n_tokens;
    }
  }
};

/// @brief Writes what the host knows of a layer: new pointers, another length.
template <class T>
struct set_layer_kernel {
  static constexpr unsigned n_threads = warp_size;

  layer_view<T>* layer = nullptr;
  layer_view<T> value;

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    if (b.thread() == 0) {
      *layer = value;
    }
  }
};

/// @brief Copies the rows of tokens [first, first + n) from one ring to another. One block a token.
template <class T>
struct copy_ring_kernel {
  static constexpr unsigned n_threads = 256;

  token_ring<T> from;
  token_ring<T> to;
  std::uint32_t first = 0;
  unsigned n_heads = 1;
  unsigned width = 0;

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    const std::uint32_t position = first + b.block_x();
    for (unsigned i = b.thread(); i < n_heads * width; i += n_threads) {
      to.row(i / width, position, width)[i % width] =
          from.row(i / width, position, width)[i % width];
    }
  }
};

/// @brief Makes a sealed segment part of its layer: its tokens leave the tail. One block a KV head.
template <class T>
struct publish_kernel {
  static constexpr unsigned n_threads = 256;

  model_shape shape;
  layer_view<T>* layer = nullptr;
  segment_view<T> segment;
  learnt_view learnt;  ///< from this segment; products null: nothing

  [[nodiscard]] std::size_t shared_bytes() const { return sizeof(unsigned); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    const unsigned head = b.block_x();
    index_facts facts = layer->facts[head];
    const unsigned top = shape.n_levels - 1;
    const level_view<T>& level = segment.levels[top];
    const unsigned n_nodes = level.n_nodes[head];
    const unsigned n_runs = (n_nodes + run_rows - 1) / run_rows;
    node_run<T>* const runs =
        layer->top_runs + std::size_t{head} * layer->top_capacity + facts.n_top_runs;
    for (unsigned i = b.thread(); i < n_runs; i += n_threads) {
      const unsigned first = i * run_rows;
      const std::size_t node = std::size_t{head} * level.capacity + first;
      node_run<T> run;
      run.rows = level.rows + node * shape.width();
      run.sizes = level.sizes + node;
      run.dispersions = level.dispersions + node;
      run.n = n_nodes - first < run_rows ? n_nodes - first : run_rows;
      run.segment = layer->n_segments;
      run.first_node = first;
      runs[i] = run;
    }
    const std::size_t n_products = std::size_t{shape.n_levels} * shape.key_dim * shape.width();
    const bool teaches = learnt.products != nullptr;
    constexpr unsigned at_once = 8;  // sums that a thread loads together
    float* const sums = teaches ? layer->learnt.products + head * n_products : nullptr;
    const float* const lesson = teaches ? learnt.products + head * n_products : nullptr;
    for (std::size_t first = b.thread(); teaches && first < n_products;
         first += at_once * n_threads) {
      float x[at_once];
      WAVEKV_UNROLL
      for (unsigned k = 0; k < at_once; ++k) {
        const std::size_t i = first + k * n_threads;
        x[k] = i < n_products ? sums[i] + lesson[i] : 0.0F;
      }
      WAVEKV_UNROLL
      for (unsigned k = 0; k < at_once; ++k) {
        const std::size_t i = first + k * n_threads;
        if (i < n_products) {
          sums[i] = x[k];
        }
      }
    }
    for (unsigned i = b.thread(); teaches && i < shape.n_levels; i += n_threads) {
      layer->learnt.weights[head * shape.n_levels + i] += learnt.weights[head * shape.n_levels + i];
    }
    b.sync();  // all have read the facts
    if (b.thread() == 0) {
      facts.add(segment, shape.n_levels, head);
      layer->facts[head] = facts;
    }
    if (arrives_last(b, layer->counter, b.n_blocks_x(), reinterpret_cast<unsigned*>(b.shared())) &&
        b.thread() == 0) {
      layer->segments[layer->n_segments++] = segment;
      layer->tail_begin = segment.first_token + segment.n_tokens;
    }
  }
};

/// @brief Works out a layer's facts again, once segments have been cut off. One block a KV head.
template <class T>
struct refit_kernel {
  static constexpr unsigned n_threads = warp_size;

  model_shape shape;
  layer_view<T>* layer = nullptr;

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    if (b.thread() != 0) {
      return;
    }
    const unsigned head = b.block_x();
    index_facts facts;
    for (unsigned s = 0; s < layer->n_segments; ++s) {
      facts.add(layer->segments[s], shape.n_levels, head);
    }
    layer->facts[head] = facts;
  }
};

/// @brief Writes the first n tokens of a segment back into a ring. Block (x, y): rows of tree positions, KV head.
template <class T>
struct reopen_kernel {
  static constexpr unsigned n_threads = 256;
  static constexpr unsigned rows_per_block = n_threads / warp_size;

  segment_view<T> segment;
  token_ring<T> ring;
  std::uint32_t n = 0;
  unsigned width = 0;

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    const unsigned head = b.block_y();
    const unsigned place = b.block_x() * rows_per_block + b.warp();
    if (place >= segment.n_tokens) {
      return;
    }
    const std::size_t row = std::size_t{head} * segment.n_tokens + place;
    const std::uint32_t token = segment.order[row];
    if (token >= n) {
      return;
    }
    T* const to = ring.row(head, segment.first_token + token, width);
    for (unsigned i = b.lane(); i < width; i += warp_size) {
      to[i] = segment.rows[row * width + i];
    }
  }
};

}  // namespace wavekv::device
