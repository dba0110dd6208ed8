// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>

/// @file chunked_rows.cuh
/// @brief Rows in pieces of eight elements, and products of rows on tensor cores.
///
/// In shared memory rows lie by *chunks* of 32 elements, in one of two ways, so that what a lane wants is 16 bytes, a warp's
/// load one run without bank conflicts, and the registers those that `multiply` takes, in their order:
/// - *right* rows, the tile's columns: a chunk of all rows, 64 bytes each, as in memory;
/// - *left* rows: sixteen rows of a chunk are 64 pieces of 16 bytes; word r of lane 4·i + j in half s of them is element pair
///   8·j + 4·s + 2·(r / 2) of row 2·i + r % 2.
/// The order of columns inside a chunk is the same for both, so that it need not be the one of the PTX manual.

namespace wavekv::device::detail {

/// Elements of a chunk; widths of points are multiples of it.
inline constexpr unsigned chunk_dim = 32;
/// 16-byte words of a row of a chunk.
inline constexpr unsigned chunk_words = 4;

/// x rounded up to a multiple of `to`.
template <class N>
WAVEKV_HOST_DEVICE constexpr N round_up(N x, N to) {
  return (x + to - 1) / to * to;
}

/// The middle of the i-th of `of` equal runs of n points, as seeds.hpp has it.
WAVEKV_HOST_DEVICE constexpr std::uint32_t middle_of_run(std::uint64_t i, std::uint64_t of,
                                                         std::uint64_t n) {
  return static_cast<std::uint32_t>((2 * i + 1) * n / (2 * of));
}

/// Eight elements of a row of floats or 16-bit scalars, 16-byte aligned.
template <scalar T, class Block>
WAVEKV_DEVICE void read_eight(Block& b, const T* from, float (&x)[8]) {
  if constexpr (sizeof(T) == 2) {
    const words4 loaded = b.load16(from);
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      b.template unpack<T>(loaded.word[i], x[2 * i], x[2 * i + 1]);
    }
  } else {
    const words4 loaded[2] = {b.load16(from), b.load16(from + 4)};
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 8; ++i) {
      x[i] = std::bit_cast<float>(loaded[i / 4].word[i % 4]);
    }
  }
}

/// Sixteen bytes of global memory at once.
WAVEKV_DEVICE void store16(void* to, const words4& words) {
  __builtin_memcpy(__builtin_assume_aligned(to, 16), &words, 16);
}

/// Eight floats to a row of T, rounded.
template <scalar T, class Block>
WAVEKV_DEVICE void write_eight(Block& b, T* to, const float (&x)[8]) {
  words4 words;
  if constexpr (sizeof(T) == 2) {
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      words.word[i] = b.template pack<T>(x[2 * i], x[2 * i + 1]);
    }
    store16(to, words);
  } else {
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      words.word[i] = std::bit_cast<std::uint32_t>(x[i]);
    }
    store16(to, words);
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      words.word[i] = std::bit_cast<std::uint32_t>(x[4 + i]);
    }
    store16(to + 4, words);
  }
}

/// The float nearest to x that T can store.
template <scalar T>
WAVEKV_DEVICE float rounded_to(float x) {
  return to_float(from_float<T>(x));
}

/// Eight floats as bf16.
template <class Block>
WAVEKV_DEVICE words4 pack_eight(Block& b, const float (&x)[8]) {
  words4 packed;
  WAVEKV_UNROLL
  for (unsigned i = 0; i < 4; ++i) {
    packed.word[i] = b.template pack<bf16>(x[2 * i], x[2 * i + 1]);
  }
  return packed;
}

/// Eight floats as bf16, and what that leaves of them, likewise: 16 bits of each together.
template <class Block>
WAVEKV_DEVICE void split_eight(Block& b, const float (&x)[8], words4& high, words4& low) {
  WAVEKV_UNROLL
  for (unsigned i = 0; i < 4; ++i) {
    high.word[i] = b.template pack<bf16>(x[2 * i], x[2 * i + 1]);
    float seen[2];
    b.template unpack<bf16>(high.word[i], seen[0], seen[1]);
    low.word[i] = b.template pack<bf16>(x[2 * i] - seen[0], x[2 * i + 1] - seen[1]);
  }
}

/// Words of a chunk's left rows that a piece of eight elements is spread over.
struct left_place {
  unsigned
      first;  // of the 16-byte words: those of the piece's first half; the second half's is 32 further
  unsigned word;  // in each of them: that of the first pair; the second pair's is 2 further

  /// @param row    among a chunk's rows
  /// @param piece  of the chunk, 0 to 3
  WAVEKV_DEVICE left_place(unsigned row, unsigned piece)
      : first(row / 16 * 64 + row % 16 / 2 * 4 + piece), word(row % 2) {}
};

/// Puts a piece of a left row in its place; `chunk` is where the chunk's rows begin.
WAVEKV_DEVICE void put_left(words4* chunk, const left_place& place, const words4& piece) {
  WAVEKV_UNROLL
  for (unsigned half = 0; half < 2; ++half) {
    words4& to = chunk[place.first + 32 * half];
    to.word[place.word] = piece.word[2 * half];
    to.word[place.word + 2] = piece.word[2 * half + 1];
  }
}

/// *warp*: adds the products of 16 · LeftTiles left rows with 8 · RightTiles right ones over one chunk of 32 elements. With
/// lane 4·i + j, sums[l][r][2·h + p] is that of left row 16·l + 2·i + h and right row 8·r + 2·j + p.
/// @param left, right  a chunk's rows in shared memory, from the first that the warp multiplies
template <unsigned LeftTiles, unsigned RightTiles, class Block>
WAVEKV_DEVICE void multiply_chunk(Block& b, const words4* left, const words4* right,
                                  float (&sums)[LeftTiles][RightTiles][4]) {
  words4 rows[RightTiles];
  WAVEKV_UNROLL
  for (unsigned r = 0; r < RightTiles; ++r) {
    rows[r] = right[32 * r + b.lane()];
  }
  WAVEKV_UNROLL
  for (unsigned l = 0; l < LeftTiles; ++l) {
    const words4 halves[2] = {left[64 * l + b.lane()], left[64 * l + 32 + b.lane()]};
    WAVEKV_UNROLL
    for (unsigned half = 0; half < 2; ++half) {
      WAVEKV_UNROLL
      for (unsigned r = 0; r < RightTiles; ++r) {
        const std::uint32_t column[2] = {rows[r].word[2 * half], rows[r].word[2 * half + 1]};
        b.template multiply<bf16>(sums[l][r], halves[half].word, column);
      }
    }
  }
}

/// *warp*: the same of rows that are sums of two, each split into bf16 and what that leaves: three of the four products.
/// @param left_low, right_low  how far behind `left` and `right` what is left lies
template <unsigned LeftTiles, unsigned RightTiles, class Block>
WAVEKV_DEVICE void multiply_split_chunk(Block& b, const words4* left, unsigned left_low,
                                        const words4* right, unsigned right_low,
                                        float (&sums)[LeftTiles][RightTiles][4]) {
  words4 high[RightTiles];
  words4 low[RightTiles];
  WAVEKV_UNROLL
  for (unsigned r = 0; r < RightTiles; ++r) {
    high[r] = right[32 * r + b.lane()];
    low[r] = right[right_low + 32 * r + b.lane()];
  }
  WAVEKV_UNROLL
  for (unsigned l = 0; l < LeftTiles; ++l) {
    WAVEKV_UNROLL
    for (unsigned half = 0; half < 2; ++half) {
      const words4 row = left[64 * l + 32 * half + b.lane()];
      const words4 rest = left[left_low + 64 * l + 32 * half + b.lane()];
      WAVEKV_UNROLL
      for (unsigned r = 0; r < RightTiles; ++r) {
        const std::uint32_t column[2] = {high[r].word[2 * half], high[r].word[2 * half + 1]};
        const std::uint32_t column_rest[2] = {low[r].word[2 * half], low[r].word[2 * half + 1]};
        b.template multiply<bf16>(sums[l][r], row.word, column);
        b.template multiply<bf16>(sums[l][r], row.word, column_rest);
        b.template multiply<bf16>(sums[l][r], rest.word, column);
      }
    }
  }
}

/// *block*: adds rows up, each warp every n-th of them, then what the warps have, in their order: a fixed order, whatever the
/// schedule. Calls finish(piece, sum) once for each eight columns, from one thread each; all threads then go on together.
/// @tparam Sum      float or double
/// @tparam Pieces   most pieces of eight columns that a lane holds: rows are at most 256 · Pieces wide
/// @param n_pieces  eighths of a row
/// @param shared    [n_warps, 8 · n_pieces]
/// @param add       add(row, piece, sum): adds eight columns of a row to sum[8]
template <class Sum, unsigned Pieces, class Block, class Add, class Finish>
WAVEKV_DEVICE void add_rows_up(Block& b, unsigned n_rows, unsigned n_pieces, Sum* shared,
                               const Add& add, const Finish& finish) {
  Sum sums[Pieces][8] = {};
  for (unsigned row = b.warp(); row < n_rows; row += b.n_warps()) {
    WAVEKV_UNROLL
    for (unsigned p = 0; p < Pieces; ++p) {
      const unsigned piece = b.lane() + p * warp_size;
      if (piece < n_pieces) {
        add(row, piece, sums[p]);
      }
    }
  }
  b.sync();  // shared may still be read
  WAVEKV_UNROLL
  for (unsigned p = 0; p < Pieces; ++p) {
    const unsigned piece = b.lane() + p * warp_size;
    if (piece < n_pieces) {
      WAVEKV_UNROLL
      for (unsigned i = 0; i < 8; ++i) {
        shared[(b.warp() * n_pieces + piece) * 8 + i] = sums[p][i];
      }
    }
  }
  b.sync();
  for (unsigned piece = b.thread(); piece < n_pieces; piece += b.n_threads()) {
    Sum sum[8] = {};
    for (unsigned w = 0; w < b.n_warps(); ++w) {
      WAVEKV_UNROLL
      for (unsigned i = 0; i < 8; ++i) {
        sum[i] += shared[(w * n_pieces + piece) * 8 + i];
      }
    }
    finish(piece, sum);
  }
}

/// *warp*: the sum of a double over all lanes, in a fixed order.
template <class Block>
WAVEKV_DEVICE double warp_sum_of(Block& b, double x) {
  WAVEKV_UNROLL
  for (unsigned mask = warp_size / 2; mask > 0; mask /= 2) {
    x += b.shuffle_xor(x, mask);
  }
  return x;
}

/// *block*: the sum of a double over all threads, in a fixed order, known to all. Needs n_warps doubles of shared memory.
template <class Block>
WAVEKV_DEVICE double block_sum_of(Block& b, double x, double* shared) {
  const double of_warp = warp_sum_of(b, x);
  b.sync();  // shared may still be read
  if (b.lane() == 0) {
    shared[b.warp()] = of_warp;
  }
  b.sync();
  double sum = 0.0;
  for (unsigned w = 0; w < b.n_warps(); ++w) {
    sum += shared[w];
  }
  return sum;
}

}  // namespace wavekv::device::detail
