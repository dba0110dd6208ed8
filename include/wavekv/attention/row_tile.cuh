// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>

/// @file row_tile.cuh
/// @brief Attention of a warp: eight queries over sixteen rows at a time, on tensor cores, with the accuracy of float.
///
/// The left operand of a tile has sixteen rows for at most eight queries: the upper eight hold what of a query (later, of a
/// softmax weight) a 16-bit number can say, the lower eight what that leaves, so that a product is good to 16 bits and more
/// at no further cost. Rows are loaded from global memory straight into the registers that the tile wants, 16 bytes a lane,
/// the columns permuted alike on both sides; no shared memory lies between.
/// Online softmax by tiles, as in FlashAttention-2 (arXiv 2307.08691).

namespace wavekv::device {

/// @brief Queries that a warp attends together.
inline constexpr unsigned tile_queries = 8;
/// @brief Rows that a warp attends together: two runs.
inline constexpr unsigned tile_rows = 16;

/// @brief How rows of T enter a tile.
template <scalar T>
struct tile_scalar {
  using operand = T;                      ///< 16-bit
  static constexpr unsigned n_terms = 1;  ///< operands that add up to one element
};
template <>
struct tile_scalar<float> {
  using operand = bf16;
  static constexpr unsigned n_terms = 3;  // 3 · 8 bits: all of a float's
};

/// @brief Softmax weights are multiplied by this before they are rounded: f16 has few exponents below 1.
template <class Operand>
inline constexpr float weight_scale = 1.0F;
template <>
inline constexpr float weight_scale<f16> = 0x1p14F;

namespace detail {

/// Eight floats as operands that add up to them: term t in words[t].
template <class Block, unsigned NTerms>
WAVEKV_DEVICE void split_eight(Block& b, const words4& low, const words4& high,
                               std::uint32_t (&words)[NTerms][4]) {
  WAVEKV_UNROLL
  for (unsigned i = 0; i < 4; ++i) {
    const words4& of = i < 2 ? low : high;
    float x = std::bit_cast<float>(of.word[i % 2 * 2]);
    float y = std::bit_cast<float>(of.word[i % 2 * 2 + 1]);
    WAVEKV_UNROLL
    for (unsigned t = 0; t < NTerms; ++t) {
      words[t][i] = b.template pack<bf16>(x, y);
      float seen_x = 0.0F;
      float seen_y = 0.0F;
      b.template unpack<bf16>(words[t][i], seen_x, seen_y);
      x -= seen_x;
      y -= seen_y;
    }
  }
}

/// Eight elements of a row as they are stored.
template <scalar T>
struct eight {
  words4 words[sizeof(T) / 2];
};

/// Loads them, or zeros where there is nothing to load. A choice, and no way around: loads that follow each other in the code
/// are then all on their way before the first is waited for.
template <scalar T, class Block>
WAVEKV_DEVICE eight<T> load_eight(Block& b, const T* row, unsigned first, unsigned dim) {
  eight<T> loaded{};
  if (row != nullptr && first < dim) {
    WAVEKV_UNROLL
    for (unsigned w = 0; w < sizeof(T) / 2; ++w) {
      loaded.words[w] = b.load16(row + first + w * (16 / sizeof(T)));
    }
  }
  return loaded;
}

/// They as operands: term t in words[t].
template <scalar T, class Block>
WAVEKV_DEVICE void as_operands(Block& b, const eight<T>& loaded,
                               std::uint32_t (&words)[tile_scalar<T>::n_terms][4]) {
  if constexpr (sizeof(T) == 2) {
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      words[0][i] = loaded.words[0].word[i];
    }
  } else {
    split_eight(b, loaded.words[0], loaded.words[1], words);
  }
}

/// Loads of 16 bytes that a lane has on their way at once: 4 KiB a warp, in 32 registers.
inline constexpr unsigned loads_at_once = 8;

/// x and y as two packed words: rounded, and what that leaves.
template <class Operand, class Block>
WAVEKV_DEVICE void split_pair(Block& b, float x, float y, std::uint32_t& upper,
                              std::uint32_t& lower) {
  upper = b.template pack<Operand>(x, y);
  float seen_x = 0.0F;
  float seen_y = 0.0F;
  b.template unpack<Operand>(upper, seen_x, seen_y);
  lower = b.template pack<Operand>(x - seen_x, y - seen_y);
}

}  // namespace detail

/// @brief Up to eight queries, ready to be multiplied with rows: in the registers of each warp, or, where those are wanted for
/// the sums of long values, in shared memory, once a block.
/// @tparam T       how rows are stored
/// @tparam MaxDim  most elements of a key, a multiple of 32
template <scalar T, unsigned MaxDim>
class query_tile {
 public:
  using operand = typename tile_scalar<T>::operand;

  static constexpr bool in_shared = MaxDim > 128;
  /// @brief Shared memory that a block's queries take.
  static constexpr unsigned shared_words4 = in_shared ? MaxDim / 16 * warp_size : 0;

  /// @brief *block*: loads queries, the same in every warp.
  /// @param queries  [n, key_dim], of magnitudes that fit the operand
  /// @param n        at most tile_queries
  /// @param key_dim  a multiple of 8
  /// @param shared   [shared_words4] in use while the tile is
  template <class Block>
  WAVEKV_DEVICE void load(Block& b, const float* queries, unsigned n, unsigned key_dim,
                          words4* shared) {
    if constexpr (in_shared) {
      words_ = shared;
      b.sync();  // another tile's may still be read
      for (unsigned step = b.warp(); step < n_steps; step += b.n_warps()) {
        shared[step * warp_size + b.lane()] = left_operand(b, queries, n, key_dim, step);
      }
      b.sync();
    } else {
      WAVEKV_UNROLL
      for (unsigned step = 0; step < n_steps; ++step) {
        words_[step] = left_operand(b, queries, n, key_dim, step);
      }
    }
  }

  /// @brief *warp*: products of the queries with the rows of a tile. With i = lane / 4 and j = lane % 4 a lane gets those of
  /// query i with rows 2j, 2j + 1, 8 + 2j, 9 + 2j.
  /// @param rows  this lane's rows i and 8 + i; null: no such row, its product is 0
  template <class Block>
  WAVEKV_DEVICE void multiply(Block& b, const T* const (&rows)[2], unsigned key_dim,
                              float (&products)[4]) const {
    constexpr unsigned n_terms = tile_scalar<T>::n_terms;
    constexpr unsigned n_chunks = MaxDim / 32;
    constexpr unsigned most = detail::loads_at_once / (sizeof(T) / 2);
    constexpr unsigned at_once = most < 2 * n_chunks ? most : 2 * n_chunks;
    const unsigned j = b.lane() % 4;
    float sums[2][4] = {};
    WAVEKV_UNROLL
    for (unsigned first = 0; first < 2 * n_chunks; first += at_once) {
      detail::eight<T> loaded[at_once];
      WAVEKV_UNROLL
      for (unsigned i = 0; i < at_once; ++i) {
        const unsigned half = (first + i) / n_chunks;
        const unsigned chunk = (first + i) % n_chunks;
        loaded[i] = detail::load_eight<T>(b, rows[half], chunk * 32 + 8 * j, key_dim);
      }
      WAVEKV_UNROLL
      for (unsigned i = 0; i < at_once; ++i) {
        const unsigned half = (first + i) / n_chunks;
        const unsigned chunk = (first + i) % n_chunks;
        const words4 left[2] = {words(b, 2 * chunk), words(b, 2 * chunk + 1)};
        std::uint32_t right[n_terms][4];
        detail::as_operands<T>(b, loaded[i], right);
        WAVEKV_UNROLL
        for (unsigned t = 0; t < n_terms; ++t) {
          b.template multiply<operand>(sums[half], left[0].word, {right[t][0], right[t][1]});
          b.template multiply<operand>(sums[half], left[1].word, {right[t][2], right[t][3]});
        }
      }
    }
    WAVEKV_UNROLL
    for (unsigned half = 0; half < 2; ++half) {
      products[2 * half] = sums[half][0] + sums[half][2];
      products[2 * half + 1] = sums[half][1] + sums[half][3];
    }
  }

 private:
  static constexpr unsigned n_steps = MaxDim / 16;

  // This lane's words of a step's left operand: two pairs of a query's elements, each as what 16 bits say and what that leaves.
  template <class Block>
  WAVEKV_DEVICE static words4 left_operand(Block& b, const float* queries, unsigned n,
                                           unsigned key_dim, unsigned step) {
    const unsigned query = b.lane() / 4;
    const unsigned dim = step / 2 * 32 + 8 * (b.lane() % 4) + step % 2 * 4;
    float x[4] = {};
    if (query < n && dim < key_dim) {
      WAVEKV_UNROLL
      for (unsigned i = 0; i < 4; ++i) {
        x[i] = queries[query * key_dim + dim + i];
      }
    }
    words4 left;
    detail::split_pair<operand>(b, x[0], x[1], left.word[0], left.word[1]);
    detail::split_pair<operand>(b, x[2], x[3], left.word[2], left.word[3]);
    return left;
  }

  template <class Block>
  WAVEKV_DEVICE words4 words(Block& b, unsigned step) const {
    if constexpr (in_shared) {
      return words_[step * warp_size + b.lane()];
    } else {
      return words_[step];
    }
  }

  std::conditional_t<in_shared, const words4*, words4[n_steps]> words_;
};

/// @brief The values of a tile's rows on their way from global memory, where registers allow: then nobody waits for them when
/// the keys' products are there.
/// @tparam T       how rows are stored
/// @tparam MaxDim  most elements of a value, a multiple of 64
template <scalar T, unsigned MaxDim>
class value_tile {
 public:
  static constexpr unsigned n_chunks = MaxDim / 64;
  static constexpr bool is_early = n_chunks * 4 * (sizeof(T) / 2) <= detail::loads_at_once;

  /// @brief *warp*: begins to load.
  /// @param values  this lane's rows 2j, 2j + 1, 8 + 2j, 9 + 2j; null where there is none
  template <class Block>
  WAVEKV_DEVICE value_tile(Block& b, const T* const (&values)[4], unsigned value_dim)
      : value_dim_(value_dim) {
    WAVEKV_UNROLL
    for (unsigned r = 0; r < 4; ++r) {
      if constexpr (is_early) {
        WAVEKV_UNROLL
        for (unsigned c = 0; c < n_chunks; ++c) {
          loaded_[c][r] = load(b, values[r], c);
        }
      } else {
        values_[r] = values[r];
      }
    }
  }

  /// @brief Eight elements of each of the four rows, in chunk c.
  template <class Block>
  WAVEKV_DEVICE void chunk(Block& b, unsigned c, detail::eight<T> (&rows)[4]) const {
    WAVEKV_UNROLL
    for (unsigned r = 0; r < 4; ++r) {
      if constexpr (is_early) {
        rows[r] = loaded_[c][r];
      } else {
        rows[r] = load(b, values_[r], c);
      }
    }
  }

 private:
  template <class Block>
  WAVEKV_DEVICE detail::eight<T> load(Block& b, const T* row, unsigned c) const {
    return detail::load_eight<T>(b, row, 64 * c + 8 * (b.lane() / 4), value_dim_);
  }

  unsigned value_dim_;
  std::conditional_t<is_early, detail::eight<T>, std::nullptr_t> loaded_[n_chunks][4];
  std::conditional_t<is_early, std::nullptr_t, const T*> values_[4];
};

/// @brief The partial softmaxes of up to eight queries in the registers of a warp. Lane (i, j) has query i's.
/// @tparam T       how rows are stored
/// @tparam MaxDim  most elements of a value, a multiple of 64
template <scalar T, unsigned MaxDim>
class softmax_tile {
 public:
  using operand = typename tile_scalar<T>::operand;

  WAVEKV_DEVICE softmax_tile() {
    WAVEKV_UNROLL
    for (unsigned c = 0; c < n_chunks; ++c) {
      WAVEKV_UNROLL
      for (unsigned m = 0; m < 8; ++m) {
        WAVEKV_UNROLL
        for (unsigned e = 0; e < 4; ++e) {
          sums_[c][m][e] = 0.0F;
        }
      }
    }
  }

  /// @brief *warp*: adds the rows of a tile, weighted by e^logit.
  /// @param logits  of query i and rows 2j, 2j + 1, 8 + 2j, 9 + 2j; -inf: no such row
  /// @param sign    1, or -1 to take them out again
  template <class Block>
  WAVEKV_DEVICE void add(Block& b, const float (&logits)[4], const value_tile<T, MaxDim>& values,
                         float sign = 1.0F) {
    constexpr unsigned n_terms = tile_scalar<T>::n_terms;
    constexpr float scale = weight_scale<operand>;
    raise_max(b, logits);
    float weights[4];
    WAVEKV_UNROLL
    for (unsigned e = 0; e < 4; ++e) {
      weights[e] = logits[e] == minus_infinity() ? 0.0F : sign * std::exp(logits[e] - max_);
      denominator_ += weights[e];
      weights[e] *= scale;
    }
    std::uint32_t left[4];
    detail::split_pair<operand>(b, weights[0], weights[1], left[0], left[1]);
    detail::split_pair<operand>(b, weights[2], weights[3], left[2], left[3]);
    WAVEKV_UNROLL
    for (unsigned c = 0; c < n_chunks; ++c) {
      detail::eight<T> rows[4];
      values.chunk(b, c, rows);
      std::uint32_t words[4][n_terms][4];
      WAVEKV_UNROLL
      for (unsigned r = 0; r < 4; ++r) {
        detail::as_operands<T>(b, rows[r], words[r]);
      }
      WAVEKV_UNROLL
      for (unsigned m = 0; m < 8; ++m) {
        WAVEKV_UNROLL
        for (unsigned t = 0; t < n_terms; ++t) {
          const std::uint32_t right[2] = {pair(words[0][t][m / 2], words[1][t][m / 2], m % 2),
                                          pair(words[2][t][m / 2], words[3][t][m / 2], m % 2)};
          b.template multiply<operand>(sums_[c][m], left, right);
        }
      }
    }
  }

  /// @brief *warp*: writes the states as floats: [n][2 + value_dim], the max, the denominator, the numerators.
  template <class Block>
  WAVEKV_DEVICE void store(Block& b, float* to, unsigned n, unsigned value_dim) const {
    const unsigned i = b.lane() / 4;
    const unsigned j = b.lane() % 4;
    float denominator = denominator_ + b.shuffle_xor(denominator_, 1U);
    denominator += b.shuffle_xor(denominator, 2U);
    if (i >= n) {
      return;
    }
    float* const state = to + i * (2 + value_dim);
    if (j == 0) {
      state[0] = max_;
      state[1] = denominator;
    }
    constexpr float scale = 1.0F / weight_scale<operand>;
    WAVEKV_UNROLL
    for (unsigned c = 0; c < n_chunks; ++c) {
      WAVEKV_UNROLL
      for (unsigned m = 0; m < 8; ++m) {
        WAVEKV_UNROLL
        for (unsigned e = 0; e < 2; ++e) {
          const unsigned dim = 64 * c + 8 * (2 * j + e) + m;
          if (dim < value_dim) {
            state[2 + dim] = (sums_[c][m][e] + sums_[c][m][2 + e]) * scale;
          }
        }
      }
    }
  }

 private:
  static constexpr unsigned n_chunks = MaxDim / 64;

  WAVEKV_DEVICE static float minus_infinity() { return -std::numeric_limits<float>::infinity(); }

  // The same half word of two words.
  WAVEKV_DEVICE static std::uint32_t pair(std::uint32_t low, std::uint32_t high, unsigned upper) {
    return upper == 0 ? (low & 0xFFFFU) | (high << 16U) : (low >> 16U) | (high & 0xFFFF'0000U);
  }

  template <class Block>
  WAVEKV_DEVICE void raise_max(Block& b, const float (&logits)[4]) {
    float most = max_;
    WAVEKV_UNROLL
    for (unsigned e = 0; e < 4; ++e) {
      most = logits[e] > most ? logits[e] : most;
    }
    for (unsigned mask = 1; mask < 4; mask *= 2) {
      const float other = b.shuffle_xor(most, mask);
      most = other > most ? other : most;
    }
    if (b.ballot(most > max_) == 0) {
      return;
    }
    const float factor = most > max_ ? std::exp(max_ - most) : 1.0F;  // e^-inf: nothing was there
    max_ = most;
    denominator_ *= factor;
    WAVEKV_UNROLL
    for (unsigned c = 0; c < n_chunks; ++c) {
      WAVEKV_UNROLL
      for (unsigned m = 0; m < 8; ++m) {
        WAVEKV_UNROLL
        for (unsigned e = 0; e < 4; ++e) {
          sums_[c][m][e] *= factor;
        }
      }
    }
  }

  float max_ = minus_infinity();
  float denominator_ = 0.0F;  // of this lane's rows; the four lanes of a query have it together
  float sums_[n_chunks][8][4];
};

/// @brief Floats of one query's state.
WAVEKV_HOST_DEVICE unsigned state_floats(unsigned value_dim) { return 2 + value_dim; }

/// @brief *block*: the states of all warps, merged in their order.
/// @param of_warps  shared memory, [n_warps, tile_queries, 2 + value_dim], written by store; overwritten
/// @param to        [n, 2 + value_dim]
template <class Block>
WAVEKV_DEVICE void merge_warps(Block& b, float* of_warps, unsigned n, unsigned value_dim,
                               float* to) {
  constexpr float nothing = -std::numeric_limits<float>::infinity();
  const unsigned floats = state_floats(value_dim);
  const auto state_of = [&](unsigned warp, unsigned query) {
    return of_warps + (warp * tile_queries + query) * floats;
  };
  b.sync();
  // Where a warp's max was, the factor of its sums. The states of a query are those of lanes of one warp, which reads all of them before it
  // writes any: n_warps divides a warp's size.
  for (unsigned first = b.warp() * warp_size; first < n * b.n_warps();
       first += b.n_warps() * warp_size) {
    const unsigned i = first + b.lane();
    const unsigned query = i / b.n_warps();
    const unsigned warp = i % b.n_warps();
    float most = nothing;
    for (unsigned w = 0; query < n && w < b.n_warps(); ++w) {
      const float max = *state_of(w, query);
      most = max > most ? max : most;
    }
    const float max = query < n ? *state_of(warp, query) : nothing;
    b.sync_warp();
    if (query < n) {
      *state_of(warp, query) = max > nothing ? std::exp(max - most) : 0.0F;
      if (warp == 0) {
        to[query * floats] = most;
      }
    }
  }
  b.sync();
  for (unsigned i = b.thread(); i < n * (floats - 1); i += b.n_threads()) {
    const unsigned query = i / (floats - 1);
    const unsigned at = 1 + i % (floats - 1);
    float sum = 0.0F;
    for (unsigned w = 0; w < b.n_warps(); ++w) {
      const float* const state = state_of(w, query);
      sum += *state > 0.0F ? state[at] * *state : 0.0F;
    }
    to[query * floats + at] = sum;
  }
  b.sync();
}

}  // namespace wavekv::device
