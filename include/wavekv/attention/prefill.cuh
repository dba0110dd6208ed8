// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <wavekv/attention/prefill_tile.cuh>
#include <wavekv/attention/prefill_warp.cuh>
#include <wavekv/attention/row_tile.cuh>
#include <wavekv/cache/layer_view.cuh>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/caller_rows.cuh>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/search_runner.cuh>

/// @file prefill.cuh
/// @brief Exact causal attention of a chunk of query tokens over everything that a layer holds, the chunk included. The twin of
/// prefill.hpp.
///
/// A block takes a tile of query rows, a row being one query head at one token, so that the heads of a group share the
/// rows they read. Tiles of keys and values come to shared memory by asynchronous copies, the next while one is worked
/// on; online softmax by tiles, as in FlashAttention-2 (arXiv 2307.08691). Running maxima are raised only when the weights
/// would otherwise grow past what the operand can say, as in FlashAttention-4: hardly ever after the first tile.
///
/// Accuracy. Sums are floats. Queries of the operand's own kind are exact, others enter as two halves, good to 2^-16 of
/// a query's largest element. With SplitWeights so do softmax weights: an output is off by about 2^-16 of a typical value.
/// Without, each weight is rounded once (bf16: by up to 2^-8 of it, f16: 2^-11), as FlashAttention does: an output is off
/// by about as much as its own rounding to that kind may leave, and tensor cores do a third less. Keys and values that
/// are stored as floats enter as three bf16 each.

namespace wavekv::device {

/// @brief Attends a chunk. Block (x, y): the x-th tile of query rows, from the last, of KV head y.
/// @tparam T             storage scalar
/// @tparam MaxDim        most elements of a key or a value: 64, 128 or 256
/// @tparam SplitWeights  whether softmax weights enter as two halves: see the file's accuracy
template <scalar T, unsigned MaxDim, bool SplitWeights>
struct prefill_kernel {
  using tiling = prefill_tiling<T, MaxDim>;
  static constexpr unsigned n_threads = tiling::n_warps * warp_size;
  static constexpr bool overlaps = true;

  model_shape shape;
  const layer_view<T>* layer = nullptr;
  std::uint32_t n_tokens = 0;
  caller_rows queries;  ///< [n_tokens, n_query_heads, key_dim]
  float scale = 1.0F;
  unsigned n_halves = 2;  ///< of the queries: 1 where they are of the operand's kind
  answer_arrays answer;
  step_counts* report = nullptr;

  /// @brief Blocks of a KV head.
  [[nodiscard]] unsigned n_blocks() const {
    return (n_tokens * shape.group_size + tiling::block_rows - 1) / tiling::block_rows;
  }

  [[nodiscard]] std::size_t shared_bytes() const {
    return (2 * std::size_t{tiling::tile_chunks} +
            std::size_t{tiling::n_warps} * tiling::warp_chunks(n_halves)) *
           sizeof(words4);
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    auto* const tiles = reinterpret_cast<words4*>(b.shared());
    // The last rows see most: they go first.
    const std::uint32_t first = (b.n_blocks_x() - 1 - b.block_x()) * tiling::block_rows;
    prefill_rows rows{first, n_tokens * shape.group_size, shape.group_size, b.block_y(),
                      layer->length - n_tokens};
    const std::uint32_t n_seen = rows.n_seen(tiling::block_rows - 1);
    prefill_walk<T> walk(*layer, b.block_y(), shape.width(), n_seen);
    prefill_run<T> run = walk.next(tiling::n_keys);
    clear_padding(b, tiles);
    start(b, tiles, run);
    if (b.thread() == 0) {
      count(b, n_seen);
    }
    rows.first += b.warp() * tiling::warp_rows;
    prefill_warp<T, MaxDim, SplitWeights> warp(
        shape, rows, tiles + 2 * tiling::tile_chunks + b.warp() * tiling::warp_chunks(n_halves),
        n_halves);
    if (!warp.load(b, queries, scale)) {
      b.atomic_or(&report->faults, static_cast<unsigned>(fault::query_not_finite));
    }
    for (unsigned turn = 0; run.n > 0; turn ^= 1U) {
      const prefill_run<T> next = walk.next(tiling::n_keys);
      b.template wait_copies<0>();
      b.sync();  // the tile is there, and nobody reads the other one any more
      start(b, tiles + (turn ^ 1U) * tiling::tile_chunks, next);
      warp.add(b, tiles + turn * tiling::tile_chunks, run);
      run = next;
    }
    warp.write(b, answer);
    b.release_next();
  }

 private:
  static constexpr unsigned elements = 16 / sizeof(T);  // of a chunk

  // Elements of keys past key_dim: they meet queries' zeros.
  template <class Block>
  WAVEKV_DEVICE void clear_padding(Block& b, words4* tiles) const {
    const unsigned n_used = shape.key_dim / elements;
    for (unsigned at = b.thread();
         n_used < tiling::part_chunks && at < 2 * tiling::n_keys * tiling::part_chunks;
         at += n_threads) {
      const unsigned row = at / tiling::part_chunks;
      const unsigned chunk = at % tiling::part_chunks;
      if (chunk >= n_used) {
        tiles[row * tiling::row_chunks + tiling::place(row, chunk)] = {};
      }
    }
  }

  // Starts to copy a tile's rows; rows that are no token's are zeros.
  template <class Block>
  WAVEKV_DEVICE void start(Block& b, words4* tile, const prefill_run<T>& run) const {
    constexpr unsigned n_rows = n_threads / tiling::row_chunks;  // that are copied at once
    static_assert(n_threads % tiling::row_chunks == 0);
    const unsigned first = b.thread() / tiling::row_chunks;
    const unsigned chunk = b.thread() % tiling::row_chunks;
    const bool is_value = chunk >= tiling::part_chunks;
    const unsigned element = chunk % tiling::part_chunks * elements;
    const unsigned width = shape.width();
    const unsigned offset = (is_value ? shape.key_dim : 0U) + element;
    tile += first * tiling::row_chunks;
    if (element >= (is_value ? shape.value_dim : shape.key_dim)) {
      // nothing: the row is shorter
    } else if (run.n == tiling::n_keys && run.slot + tiling::n_keys <= run.capacity) {
      const T* from = run.row(first, width) + offset;
      const unsigned at = tiling::place(first, chunk);
      WAVEKV_UNROLL
      for (unsigned row = 0; row < tiling::n_keys; row += n_rows) {
        b.copy_async16(tile + row * tiling::row_chunks + (at ^ tiling::turned(row)), from);
        from += std::size_t{n_rows} * width;
      }
    } else if (run.n > 0) {
      for (unsigned row = 0; row < tiling::n_keys; row += n_rows) {
        words4* const to = tile + row * tiling::row_chunks + tiling::place(first + row, chunk);
        if (first + row < run.n) {
          b.copy_async16(to, run.row(first + row, width) + offset);
        } else {
          *to = {};
        }
      }
    }
    b.commit_copies();
  }

  template <class Block>
  WAVEKV_DEVICE void count(Block& b, std::uint32_t n_seen) const {
    b.atomic_add(&report->bytes_read,
                 static_cast<unsigned long long>(n_seen) * (shape.width() * sizeof(T)));
    if (b.block_x() == 0) {
      const unsigned long long n = n_tokens;
      const unsigned long long held = n * (layer->length - n) + n * (n + 1) / 2;
      b.atomic_add(&report->groups, n);
      b.atomic_add(&report->rounds, n);
      b.atomic_add(&report->tokens_held, held);
      b.atomic_add(&report->tokens_read, held);
    }
  }
};

/// @brief Attends a chunk exactly: query i sees the tokens of the layer up to the chunk's i-th, which lies there already, the
/// newest n_tokens being the chunk. Softmax weights are split in halves where the answer's kind can say more than their
/// rounding would leave: floats, and f16 of rows in bf16. One launch. Blocks: no. Allocates: nothing. Shared memory: 48 to
/// 97 KiB a block, up to 129 KiB for rows of floats.
/// @param layer    in device memory, of at least n_tokens tokens
/// @param queries  [n_tokens, n_query_heads, key_dim]; one that is not finite is reported
/// @param scale    factor on q·k, positive
/// @param answer   out, and if wanted lse and sink_logits; its strides are those of [n_tokens, n_query_heads]
template <scalar T, device_runtime Runtime>
void launch_prefill(Runtime& runtime, const model_shape& shape, const layer_view<T>* layer,
                    std::uint32_t n_tokens, const caller_rows& queries, float scale,
                    const answer_arrays& answer, step_counts* report,
                    typename Runtime::stream_type stream) {
  using operand = typename tile_scalar<T>::operand;
  const auto launch = [&]<unsigned MaxDim, bool SplitWeights>() {
    prefill_kernel<T, MaxDim, SplitWeights> kernel;
    kernel.shape = shape;
    kernel.layer = layer;
    kernel.n_tokens = n_tokens;
    kernel.queries = queries;
    kernel.scale = scale;
    kernel.n_halves = queries.kind == kind_of<operand> ? 1 : 2;
    kernel.answer = answer;
    kernel.report = report;
    runtime.launch(stream, grid{kernel.n_blocks(), shape.n_kv_heads}, kernel);
  };
  with_max_dim(std::max(shape.key_dim, shape.value_dim), [&](auto dim) {
    constexpr unsigned max_dim = decltype(dim)::value;
    if constexpr (sizeof(T) == 2) {
      if (answer.out.kind == kind_of<T> || answer.out.kind == element_kind::bf16) {
        launch.template operator()<max_dim, false>();
        return;
      }
    }
    launch.template operator()<max_dim, true>();
  });
}

}  // namespace wavekv::device
