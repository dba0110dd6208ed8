// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include <wavekv/core/host_device.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/device_block.hpp>

#include "sliding_window.hpp"

/// @file sliding_window.cuh
/// @brief A sliding-window layer on a device: the twin of sliding_window.hpp.

namespace transformer {

/// @brief What a chunk of tokens brings to a layer: their query, key and value heads, one row a token.
struct head_rows {
  const float* queries = nullptr;  ///< [n_query_heads, head_dim] of the first token
  const float* keys = nullptr;     ///< [n_kv_heads, head_dim]
  const float* values = nullptr;   ///< likewise
  std::size_t stride = 0;          ///< floats from token to token
};

/// @brief The last `window` tokens of a layer, in a ring: the token at position p lies at p % window.
struct window_ring {
  float* keys = nullptr;  ///< [window, n_kv_heads, head_dim]
  float* values = nullptr;
  unsigned window = 0;
  unsigned n_kv_heads = 0;
  unsigned group_size = 0;  ///< query heads of a KV head
  unsigned head_dim = 0;
};

/// @brief Attends each token of a chunk to its window: the ring holds what came before the chunk. Block (x, y): query head
/// y of the x-th token. Online softmax, n_threads keys at a time: each thread scores one key, then sums one column of the
/// values.
struct window_attention_kernel {
  static constexpr unsigned n_threads = 128;
  static constexpr unsigned max_columns = 2;  ///< of a thread: head_dim is at most 256

  window_ring ring;
  head_rows chunk;
  const std::uint32_t* first_position =
      nullptr;           ///< of the chunk; read here, as in rope_table_kernel
  float* out = nullptr;  ///< [n_tokens, n_query_heads, head_dim], written

  [[nodiscard]] std::size_t shared_bytes() const {
    wavekv::device::shared_arena arena;
    (void)take(arena);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    wavekv::device::shared_arena arena(b.shared());
    const scratch memory = take(arena);
    const unsigned dim = ring.head_dim;
    const unsigned kv_head = b.block_y() / ring.group_size;
    const std::uint32_t chunk_begin = *first_position;
    const std::uint32_t end = chunk_begin + b.block_x() + 1;  // a token sees itself
    const std::uint32_t begin = end > ring.window ? end - ring.window : 0;
    const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
    for (unsigned i = b.thread(); i < dim; i += n_threads) {
      memory.query[i] =
          chunk.queries[b.block_x() * chunk.stride + std::size_t{b.block_y()} * dim + i] * scale;
    }
    float max = -std::numeric_limits<float>::infinity();
    float denominator = 0.0F;
    float sums[max_columns] = {};
    for (std::uint32_t at = begin; at < end; at += n_threads) {
      const unsigned n = end - at < n_threads ? end - at : n_threads;
      b.sync();  // the query is there; nobody reads the last weights any more
      float logit = -std::numeric_limits<float>::infinity();
      if (b.thread() < n) {
        const float* const key = row(ring.keys, chunk.keys, at + b.thread(), chunk_begin, kv_head);
        logit = 0.0F;
        for (unsigned i = 0; i < dim; ++i) {
          logit += memory.query[i] * key[i];
        }
      }
      const float raised = std::fmax(max, block_max(b, logit, memory.of_warps));
      const float weight = b.thread() < n ? std::exp(logit - raised) : 0.0F;
      const float by = std::exp(max - raised);  // the first time e^-inf
      max = raised;
      memory.weights[b.thread()] = weight;
      denominator =
          denominator * by + wavekv::device::block_sum(b, weight, memory.of_warps);  // syncs
      WAVEKV_UNROLL
      for (unsigned c = 0; c < max_columns; ++c) {
        const unsigned column = c * n_threads + b.thread();
        if (column < dim) {
          float sum = sums[c] * by;
          for (unsigned i = 0; i < n; ++i) {
            sum += memory.weights[i] *
                   row(ring.values, chunk.values, at + i, chunk_begin, kv_head)[column];
          }
          sums[c] = sum;
        }
      }
    }
    const std::size_t head = std::size_t{b.block_x()} * b.n_blocks_y() + b.block_y();
    WAVEKV_UNROLL
    for (unsigned c = 0; c < max_columns; ++c) {
      const unsigned column = c * n_threads + b.thread();
      if (column < dim) {
        out[head * dim + column] = sums[c] / denominator;
      }
    }
  }

 private:
  struct scratch {
    float* query;     // [head_dim], scaled
    float* weights;   // [n_threads]
    float* of_warps;  // [n_warps]
  };

  WAVEKV_HOST_DEVICE scratch take(wavekv::device::shared_arena& arena) const {
    scratch memory;
    memory.query = arena.take<float>(ring.head_dim);
    memory.weights = arena.take<float>(n_threads);
    memory.of_warps = arena.take<float>(n_threads / wavekv::device::warp_size);
    return memory;
  }

  // A token's key or value: of the chunk, or of the ring.
  WAVEKV_DEVICE const float* row(const float* of_ring, const float* of_chunk,
                                 std::uint32_t position, std::uint32_t chunk_begin,
                                 unsigned kv_head) const {
    return position >= chunk_begin
               ? of_chunk + (position - chunk_begin) * chunk.stride +
                     std::size_t{kv_head} * ring.head_dim
               : of_ring + (std::size_t{position % ring.window} * ring.n_kv_heads + kv_head) *
                               ring.head_dim;
  }

  template <class Block>
  WAVEKV_DEVICE static float block_max(Block& b, float x, float* of_warps) {
    const float of_warp = b.warp_max(x);
    if (b.lane() == 0) {
      of_warps[b.warp()] = of_warp;
    }
    b.sync();
    float max = of_warps[0];
    for (unsigned w = 1; w < b.n_warps(); ++w) {
      max = std::fmax(max, of_warps[w]);
    }
    return max;
  }
};

/// @brief Puts the last tokens of a chunk into the ring, once they were attended. Block x: the x-th of them.
struct window_append_kernel {
  static constexpr unsigned n_threads = 128;

  window_ring ring;
  head_rows chunk;
  const std::uint32_t* first_position = nullptr;
  unsigned first = 0;  ///< token of the chunk that block 0 puts

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    const unsigned token = first + b.block_x();
    const unsigned width = ring.n_kv_heads * ring.head_dim;
    const std::size_t from = token * chunk.stride;
    const std::size_t to = std::size_t{(*first_position + token) % ring.window} * width;
    for (unsigned i = b.thread(); i < width; i += n_threads) {
      ring.keys[to + i] = chunk.keys[from + i];
      ring.values[to + i] = chunk.values[from + i];
    }
  }
};

/// @brief Keys and values of one sliding-window layer in device memory, in float as on the CPU. Blocks: no.
template <class Runtime>
class device_window {
 public:
  using stream_type = typename Runtime::stream_type;

  /// @param window  at least 1
  device_window(Runtime& runtime, attention_shape shape, std::size_t window, stream_type stream)
      : shape_(shape),
        window_(window),
        memory_(runtime, 2 * window * shape.n_kv_heads * shape.head_dim * sizeof(float), stream) {}

  /// @brief A fork.
  device_window(Runtime& runtime, const device_window& other, stream_type stream)
      : device_window(runtime, other.shape_, other.window_, stream) {
    runtime.copy(memory_.data(), other.memory_.data(), memory_.bytes(), stream);
  }

  /// @brief Attends the n tokens of a chunk to their windows.
  /// @param first_position  device memory: tokens that came before
  /// @param out             [n, n_query_heads, head_dim], written
  void attend(Runtime& runtime, std::size_t n, const head_rows& chunk,
              const std::uint32_t* first_position, float* out, stream_type stream) const {
    window_attention_kernel kernel;
    kernel.ring = ring();
    kernel.chunk = chunk;
    kernel.first_position = first_position;
    kernel.out = out;
    runtime.launch(stream, {static_cast<unsigned>(n), static_cast<unsigned>(shape_.n_query_heads)},
                   kernel);
  }

  /// @brief Remembers them; after attend.
  void append(Runtime& runtime, std::size_t n, const head_rows& chunk,
              const std::uint32_t* first_position, stream_type stream) {
    window_append_kernel kernel;
    kernel.ring = ring();
    kernel.chunk = chunk;
    kernel.first_position = first_position;
    kernel.first = static_cast<unsigned>(n > window_ ? n - window_ : 0);
    runtime.launch(stream, {static_cast<unsigned>(n) - kernel.first, 1}, kernel);
  }

 private:
  [[nodiscard]] window_ring ring() const {
    window_ring ring;
    ring.window = static_cast<unsigned>(window_);
    ring.n_kv_heads = static_cast<unsigned>(shape_.n_kv_heads);
    ring.group_size = static_cast<unsigned>(shape_.n_query_heads / shape_.n_kv_heads);
    ring.head_dim = static_cast<unsigned>(shape_.head_dim);
    ring.keys = memory_.template as<float>();
    ring.values = ring.keys + window_ * shape_.n_kv_heads * shape_.head_dim;
    return ring;
  }

  attention_shape shape_;
  std::size_t window_;
  wavekv::device::device_block<Runtime> memory_;
};

}  // namespace transformer
