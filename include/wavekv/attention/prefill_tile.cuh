// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include <wavekv/attention/row_tile.cuh>
#include <wavekv/cache/layer_view.cuh>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/caller_rows.cuh>

/// @file prefill_tile.cuh
/// @brief How a prefill is cut into tiles: of query rows, and of the tokens that they see.

namespace wavekv::device {

/// @brief How a prefill is cut into tiles.
template <scalar T, unsigned MaxDim>
struct prefill_tiling {
  static constexpr unsigned n_warps = 4;
  /// @brief Tiles of sixteen rows that a warp has: two make one load of a key serve twice, where registers allow it.
  static constexpr unsigned row_tiles = sizeof(T) == 2 && MaxDim <= 128 ? 2 : 1;
  static constexpr unsigned warp_rows = 16 * row_tiles;
  static constexpr unsigned block_rows = n_warps * warp_rows;
  /// @brief Tokens of a tile.
  static constexpr unsigned n_keys = sizeof(T) == 2 && MaxDim <= 64 ? 64 : MaxDim <= 128 ? 32 : 16;
  /// @brief Sixteen-byte chunks of a tile's row: a key's, then a value's.
  static constexpr unsigned part_chunks = MaxDim * sizeof(T) / 16;
  static constexpr unsigned row_chunks = 2 * part_chunks;
  static constexpr unsigned tile_chunks = n_keys * row_chunks;
  /// @brief Chunks of one half of a warp's queries.
  static constexpr unsigned query_chunks = row_tiles * MaxDim / 16 * warp_size;
  static constexpr unsigned factor_chunks = warp_rows * sizeof(float) / 16;
  /// @brief Chunks of shared memory that a warp has to itself.
  WAVEKV_HOST_DEVICE static constexpr unsigned warp_chunks(unsigned n_halves) {
    return factor_chunks + n_halves * query_chunks;
  }

  /// @brief Where a chunk lies in its row: so that neither the loads of keys, four chunks of eight rows, nor those of values,
  /// eight chunks of four rows, meet in a bank.
  WAVEKV_DEVICE static unsigned place(unsigned row, unsigned chunk) { return chunk ^ turned(row); }
  /// @brief What a chunk's number is combined with; of two rows without a bit in common, the two combined.
  WAVEKV_DEVICE static constexpr unsigned turned(unsigned row) {
    return (row % 2 * 4) ^ (row / 2 % 4 * 2);
  }
};

/// @brief Tokens that lie behind each other, but for a ring's end. A query at position p sees token i if first_position + i is
/// at most p. Tokens of a segment, which are in no order of time, count from 0: they lie before the chunk, and are all seen.
template <class T>
struct prefill_run {
  const T* rows = nullptr;       ///< of the array that they are part of
  std::uint32_t slot = 0;        ///< the first's place in it
  std::uint32_t capacity = ~0U;  ///< places there are: the ring's
  std::uint32_t n = 0;           ///< tokens
  std::uint32_t first_position = 0;

  [[nodiscard]] WAVEKV_DEVICE const T* row(std::uint32_t i, unsigned width) const {
    const std::uint32_t at = slot + i;
    return rows + std::size_t{at < capacity ? at : at - capacity} * width;
  }
};

/// @brief Walks through the tokens [0, n_seen) of a layer tile by tile: sink, segments in tree order, tail.
template <class T>
class prefill_walk {
 public:
  WAVEKV_DEVICE prefill_walk(const layer_view<T>& layer, unsigned head, unsigned width,
                             std::uint32_t n_seen)
      : layer_(layer), head_(head), width_(width), n_seen_(n_seen) {
    left_.rows = layer.sink + std::size_t{head} * layer.sink_capacity * width;
    left_.n = layer.n_sink() < n_seen ? layer.n_sink() : n_seen;
  }

  /// @brief The next tokens, at most n of them; none when all were given.
  WAVEKV_DEVICE prefill_run<T> next(std::uint32_t n) {
    while (left_.n == 0 && source_ <= layer_.n_segments) {
      enter_next_source();
    }
    prefill_run<T> taken = left_;
    taken.n = taken.n < n ? taken.n : n;
    left_.n -= taken.n;
    left_.slot += taken.n;
    left_.slot -= left_.slot >= left_.capacity ? left_.capacity : 0;
    left_.first_position += taken.n;
    return taken;
  }

 private:
  WAVEKV_DEVICE void enter_next_source() {
    left_ = {};
    if (source_ < layer_.n_segments) {
      const segment_view<T>& segment = layer_.segments[source_];
      left_.rows = segment.rows + std::size_t{head_} * segment.n_tokens * width_;
      left_.n = segment.n_tokens;
    } else {
      left_.rows = layer_.tail.rows + std::size_t{head_} * layer_.tail.capacity * width_;
      left_.capacity = layer_.tail.capacity;
      left_.first_position = layer_.tail_begin;
      left_.n = n_seen_ > layer_.tail_begin ? n_seen_ - layer_.tail_begin : 0;
      left_.slot = left_.n > 0 ? layer_.tail_begin % layer_.tail.capacity : 0;
    }
    ++source_;
  }

  const layer_view<T>& layer_;
  unsigned head_;
  unsigned width_;
  std::uint32_t n_seen_;
  std::uint32_t source_ = 0;  // 0: the sink, i: segment i - 1, behind them the tail
  prefill_run<T> left_;       // of the source
};

/// @brief Rows of one warp: row r of a chunk is query head r % group_size of the group at token r / group_size.
struct prefill_rows {
  std::uint32_t first = 0;  ///< the warp's first
  std::uint32_t n = 0;      ///< of the chunk
  unsigned group_size = 1;
  unsigned head = 0;                 ///< KV head
  std::uint32_t first_position = 0;  ///< of the chunk's first token

  [[nodiscard]] WAVEKV_DEVICE bool exists(unsigned r) const { return first + r < n; }
  [[nodiscard]] WAVEKV_DEVICE std::uint32_t token(unsigned r) const {
    return (first + r) / group_size;
  }
  [[nodiscard]] WAVEKV_DEVICE unsigned query_head(unsigned r) const {
    return head * group_size + (first + r) % group_size;
  }
  /// @brief Tokens that a row sees; a row past the last sees as much as that.
  [[nodiscard]] WAVEKV_DEVICE std::uint32_t n_seen(unsigned r) const {
    return first_position + (exists(r) ? first + r : n - 1) / group_size + 1;
  }
};

namespace detail {

/// Where an element of a caller's array lies.
WAVEKV_DEVICE std::byte* element_of(const caller_rows& rows, std::uint32_t row, unsigned head,
                                    unsigned i) {
  const unsigned long long at = row * rows.row_stride + head * rows.head_stride + i;
  return static_cast<std::byte*>(rows.data) + at * (rows.kind == element_kind::float32 ? 4 : 2);
}

/// Eight elements of a caller's row as floats: by 16 bytes where they are aligned to that.
template <class Block>
WAVEKV_DEVICE void load_row_part(Block& b, const caller_rows& rows, std::uint32_t row,
                                 unsigned head, unsigned first, float (&x)[8]) {
  const std::byte* const from = element_of(rows, row, head, first);
  const bool is_aligned = reinterpret_cast<std::uintptr_t>(from) % 16 == 0;
  if (rows.kind == element_kind::float32) {
    WAVEKV_UNROLL
    for (unsigned k = 0; k < 8; ++k) {
      x[k] = reinterpret_cast<const float*>(from)[k];
    }
    return;
  }
  words4 words;
  if (is_aligned) {
    words = b.load16(from);
  } else {
    WAVEKV_UNROLL
    for (unsigned k = 0; k < 4; ++k) {
      const auto* const two = reinterpret_cast<const std::uint16_t*>(from) + 2 * k;
      words.word[k] = two[0] | std::uint32_t{two[1]} << 16U;
    }
  }
  WAVEKV_UNROLL
  for (unsigned k = 0; k < 4; ++k) {
    if (rows.kind == element_kind::bf16) {
      b.template unpack<bf16>(words.word[k], x[2 * k], x[2 * k + 1]);
    } else {
      b.template unpack<f16>(words.word[k], x[2 * k], x[2 * k + 1]);
    }
  }
}

/// Writes eight elements, rounded to the array's kind.
template <class Block>
WAVEKV_DEVICE void store_row_part(Block& b, const caller_rows& rows, std::uint32_t row,
                                  unsigned head, unsigned first, const float (&x)[8]) {
  std::byte* const to = element_of(rows, row, head, first);
  const bool is_aligned = reinterpret_cast<std::uintptr_t>(to) % 16 == 0;
  if (rows.kind == element_kind::float32) {
    WAVEKV_UNROLL
    for (unsigned k = 0; k < 8; ++k) {
      reinterpret_cast<float*>(to)[k] = x[k];
    }
    return;
  }
  words4 words;
  WAVEKV_UNROLL
  for (unsigned k = 0; k < 4; ++k) {
    words.word[k] = rows.kind == element_kind::bf16 ? b.template pack<bf16>(x[2 * k], x[2 * k + 1])
                                                    : b.template pack<f16>(x[2 * k], x[2 * k + 1]);
  }
  if (is_aligned) {
    *reinterpret_cast<words4*>(to) = words;
    return;
  }
  WAVEKV_UNROLL
  for (unsigned k = 0; k < 8; ++k) {
    reinterpret_cast<std::uint16_t*>(to)[k] =
        static_cast<std::uint16_t>(words.word[k / 2] >> k % 2 * 16U);
  }
}

/// Eight elements of a row in shared memory as operands: term t in words[t].
template <scalar T, class Block>
WAVEKV_DEVICE void read_eight(Block& b, const words4* from,
                              std::uint32_t (&words)[tile_scalar<T>::n_terms][4]) {
  const words4 low = from[0];
  if constexpr (sizeof(T) == 2) {
    (void)b;
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      words[0][i] = low.word[i];
    }
  } else {
    split_eight(b, low, from[1], words);
  }
}

}  // namespace detail

}  // namespace wavekv::device
