// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>

#include <wavekv/attention/prefill_tile.cuh>
#include <wavekv/attention/row_tile.cuh>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/caller_rows.cuh>
#include <wavekv/index/group_search.cuh>

/// @file prefill_warp.cuh
/// @brief What a warp does of a prefill: online softmax over tiles in shared memory, on tensor cores.

namespace wavekv::device {

/// @brief How large softmax weights may be: a row's running maximum stands for 2^shift, and is raised by a logit that lies more
/// than slack, to base 2, above it. f16 has few exponents, so that its weights begin above 1 to end far below.
struct weight_headroom {
  float shift;
  float slack;
};
template <class Operand>
inline constexpr weight_headroom headroom = {0.0F, 8.0F};
template <>
inline constexpr weight_headroom headroom<f16> = {8.0F, 7.0F};

/// @brief One warp's query rows while tiles of tokens pass by. Lane (i, j) has, of row tile m, rows 16m + i (h = 0) and
/// 16m + 8 + i (h = 1).
template <scalar T, unsigned MaxDim, bool SplitWeights>
class prefill_warp {
 public:
  using tiling = prefill_tiling<T, MaxDim>;
  using operand = typename tile_scalar<T>::operand;

  /// @param memory    the warp's own shared memory, tiling::warp_chunks(n_halves)
  /// @param n_halves  of the queries: 1 or 2
  WAVEKV_DEVICE prefill_warp(const model_shape& shape, const prefill_rows& rows, words4* memory,
                             unsigned n_halves)
      : shape_(shape),
        rows_(rows),
        factors_(reinterpret_cast<float*>(memory)),
        queries_(memory + tiling::factor_chunks),
        n_halves_(n_halves) {
    first_sees_ = rows.n_seen(0);
    last_sees_ = rows.exists(0) ? rows.n_seen(tiling::warp_rows - 1) : 0;
    WAVEKV_UNROLL
    for (unsigned at = 0; at < tiling::row_tiles * 2; ++at) {
      max_[at / 2][at % 2] = minus_infinity();
    }
  }

  /// @brief *warp*: takes the queries; the warp meets before it adds. False in a lane that has seen one that is not finite.
  /// @param scale  factor on the products, positive
  template <class Block>
  WAVEKV_DEVICE bool load(Block& b, const caller_rows& from, float scale) {
    bool finite = true;
    const unsigned i = b.lane() / 4;
    const unsigned j = b.lane() % 4;
    // Products become logits to base 2, or what a softcap bends.
    scale *= shape_.softcap > 0.0F ? 1.0F / shape_.softcap : std::numbers::log2e_v<float>;
    for (unsigned m = 0; m < tiling::row_tiles; ++m) {
      float down[2] = {1.0F, 1.0F};
      WAVEKV_UNROLL
      for (unsigned h = 0; h < 2; ++h) {
        float up = 1.0F;
        if (n_halves_ > 1) {
          find_unit(b, from, 16 * m + 8 * h + i, down[h], up);
        }
        if (j == 0) {
          factors_[16 * m + 8 * h + i] = scale * up;
        }
      }
      for (unsigned c = 0; c * 32 < shape_.key_dim; ++c) {
        float x[2][8] = {};
        WAVEKV_UNROLL
        for (unsigned h = 0; h < 2; ++h) {
          const unsigned r = 16 * m + 8 * h + i;
          if (rows_.exists(r) && 32 * c + 8 * j < shape_.key_dim) {
            detail::load_row_part(b, from, rows_.token(r), rows_.query_head(r), 32 * c + 8 * j,
                                  x[h]);
          }
          WAVEKV_UNROLL
          for (unsigned k = 0; k < 8; ++k) {
            finite = finite && std::isfinite(x[h][k]);
            x[h][k] *= down[h];
          }
        }
        WAVEKV_UNROLL
        for (unsigned step = 0; step < 2; ++step) {
          words4 upper;
          words4 lower;
          WAVEKV_UNROLL
          for (unsigned part = 0; part < 4; ++part) {
            const unsigned at = 4 * step + part / 2 * 2;
            detail::split_pair<operand>(b, x[part % 2][at], x[part % 2][at + 1], upper.word[part],
                                        lower.word[part]);
          }
          words4* const to = queries_ + (m * n_steps + 2 * c + step) * warp_size + b.lane();
          *to = upper;
          if (n_halves_ > 1) {
            to[tiling::query_chunks] = lower;
          }
        }
      }
    }
    return finite;
  }

  /// @brief *warp*: attends a tile of tokens.
  /// @param tile  in shared memory, [n_keys, row_chunks]; rows that are no token's are zeros
  template <class Block>
  WAVEKV_DEVICE void add(Block& b, const words4* tile, const prefill_run<T>& run) {
    if (run.first_position >= last_sees_) {
      return;
    }
    float logits[tiling::row_tiles][n_columns][4] = {};
    if (n_terms == 1 && shape_.key_dim == MaxDim) {
      multiply<true>(b, tile, queries_, logits);
    } else {
      multiply<false>(b, tile, queries_, logits);
    }
    if (n_halves_ > 1) {
      multiply<false>(b, tile, queries_ + tiling::query_chunks, logits);
    }
    float factors[tiling::row_tiles][2];  // to logits to base 2
    WAVEKV_UNROLL
    for (unsigned m = 0; m < tiling::row_tiles; ++m) {
      WAVEKV_UNROLL
      for (unsigned h = 0; h < 2; ++h) {
        factors[m][h] = factors_[16 * m + 8 * h + b.lane() / 4];
      }
    }
    if (shape_.softcap > 0.0F) {
      bend(logits, factors);
    }
    if (run.n < tiling::n_keys || run.first_position + run.n > first_sees_) {
      mask(b, run, logits);
    }
    raise_max(b, logits, factors);
    std::uint32_t upper[tiling::row_tiles][n_columns / 2][4];
    std::uint32_t lower[tiling::row_tiles][n_columns / 2][4];
    WAVEKV_UNROLL
    for (unsigned m = 0; m < tiling::row_tiles; ++m) {
      weigh(b, logits[m], factors[m], m, upper[m], lower[m]);
    }
    if (n_terms == 1 && shape_.value_dim == MaxDim) {
      add_values<true>(b, tile, upper, lower);
    } else {
      add_values<false>(b, tile, upper, lower);
    }
  }

  /// @brief *warp*: writes the rows' answers.
  template <class Block>
  WAVEKV_DEVICE void write(Block& b, const answer_arrays& to) {
    const unsigned j = b.lane() % 4;
    WAVEKV_UNROLL
    for (unsigned m = 0; m < tiling::row_tiles; ++m) {
      WAVEKV_UNROLL
      for (unsigned h = 0; h < 2; ++h) {
        float denominator = denominator_[m][h] + b.shuffle_xor(denominator_[m][h], 1U);
        denominator += b.shuffle_xor(denominator, 2U);
        const unsigned r = 16 * m + 8 * h + b.lane() / 4;
        if (!rows_.exists(r)) {
          continue;
        }
        const std::uint32_t token = rows_.token(r);
        const unsigned head = rows_.query_head(r);
        float max = max_[m][h] - headroom<operand>.shift;
        float factor = 1.0F;
        if (to.sink_logits != nullptr) {
          const float sink = to.sink_logits[head] * std::numbers::log2e_v<float>;
          const float raised = sink > max ? sink : max;
          factor = std::exp2(max - raised);
          denominator = denominator * factor + std::exp2(sink - raised);
          max = raised;
        }
        if (to.lse != nullptr && j == 0) {
          to.lse[token * to.lse_strides[0] + head * to.lse_strides[1]] =
              denominator > 0.0F ? max * std::numbers::ln2_v<float> + std::log(denominator)
                                 : minus_infinity();
        }
        factor = denominator > 0.0F ? factor / denominator : 0.0F;
        WAVEKV_UNROLL
        for (unsigned part = 0; part < MaxDim / 32; ++part) {
          const unsigned first = part / 2 * 64 + 16 * j + part % 2 * 8;
          if (first < shape_.value_dim) {
            float x[8];
            WAVEKV_UNROLL
            for (unsigned k = 0; k < 8; ++k) {
              x[k] = sums_[m][part / 2 * 8 + k][2 * h + part % 2] * factor;
            }
            detail::store_row_part(b, to.out, token, head, first, x);
          }
        }
      }
    }
  }

 private:
  static constexpr unsigned n_terms = tile_scalar<T>::n_terms;
  static constexpr unsigned n_steps = MaxDim / 16;
  static constexpr unsigned n_columns = tiling::n_keys / 8;  // groups of eight tokens

  WAVEKV_DEVICE static float minus_infinity() { return -std::numeric_limits<float>::infinity(); }

  // A row's largest magnitude is brought near 1 by a power of two: what a half can say ends at 65504 and 2^-24.
  template <class Block>
  WAVEKV_DEVICE void find_unit(Block& b, const caller_rows& from, unsigned r, float& down,
                               float& up) const {
    float most = 0.0F;
    for (unsigned first = 8 * (b.lane() % 4); rows_.exists(r) && first < shape_.key_dim;
         first += 32) {
      float x[8];
      detail::load_row_part(b, from, rows_.token(r), rows_.query_head(r), first, x);
      WAVEKV_UNROLL
      for (unsigned k = 0; k < 8; ++k) {
        most = std::fabs(x[k]) > most ? std::fabs(x[k]) : most;
      }
    }
    for (unsigned mask = 1; mask < 4; mask *= 2) {
      const float other = b.shuffle_xor(most, mask);
      most = other > most ? other : most;
    }
    std::uint32_t exponent = std::bit_cast<std::uint32_t>(most) >> 23U;
    exponent = exponent < 1 ? 1 : exponent > 252 ? 252 : exponent;
    down = std::bit_cast<float>((253U - exponent) << 23U);
    up = std::bit_cast<float>((exponent + 1U) << 23U);
  }

  // Adds the products of one half of all rows with a tile's keys. Lane (i, j) has those of keys 8n + 2j and the next.
  // Whole: no step of the loop may be the last, so that loads overtake products.
  template <bool Whole, class Block>
  WAVEKV_DEVICE void multiply(Block& b, const words4* tile, const words4* queries,
                              float (&products)[tiling::row_tiles][n_columns][4]) const {
    const unsigned i = b.lane() / 4;
    const unsigned j = b.lane() % 4;
    queries += b.lane();
    WAVEKV_UNROLL
    for (unsigned c = 0; c < MaxDim / 32; ++c) {
      if (!Whole && c * 32 >= shape_.key_dim) {
        break;
      }
      words4 left[tiling::row_tiles][2];
      WAVEKV_UNROLL
      for (unsigned m = 0; m < tiling::row_tiles; ++m) {
        WAVEKV_UNROLL
        for (unsigned step = 0; step < 2; ++step) {
          left[m][step] = queries[(m * n_steps + 2 * c + step) * warp_size];
        }
      }
      WAVEKV_UNROLL
      for (unsigned n = 0; n < n_columns; ++n) {
        std::uint32_t words[n_terms][4];
        detail::read_eight<T>(b, chunk(tile, 8 * n + i, i, 32 * c + 8 * j), words);
        WAVEKV_UNROLL
        for (unsigned t = 0; t < n_terms; ++t) {
          WAVEKV_UNROLL
          for (unsigned step = 0; step < 2; ++step) {
            WAVEKV_UNROLL
            for (unsigned m = 0; m < tiling::row_tiles; ++m) {
              b.template multiply<operand>(products[m][n], left[m][step].word,
                                           {words[t][2 * step], words[t][2 * step + 1]});
            }
          }
        }
      }
    }
  }

  // Where an element of a tile's row begins; place: the row's, modulo 8.
  WAVEKV_DEVICE static const words4* chunk(const words4* tile, unsigned row, unsigned place,
                                           unsigned element) {
    constexpr unsigned elements = 16 / sizeof(T);
    const unsigned at = element / elements;
    return tile + row * tiling::row_chunks + at / 8 * 8 + tiling::place(place, at % 8);
  }

  WAVEKV_DEVICE void bend(float (&logits)[tiling::row_tiles][n_columns][4],
                          float (&factors)[tiling::row_tiles][2]) const {
    const float cap = shape_.softcap * std::numbers::log2e_v<float>;
    WAVEKV_UNROLL
    for (unsigned m = 0; m < tiling::row_tiles; ++m) {
      WAVEKV_UNROLL
      for (unsigned n = 0; n < n_columns; ++n) {
        WAVEKV_UNROLL
        for (unsigned e = 0; e < 4; ++e) {
          logits[m][n][e] = cap * std::tanh(logits[m][n][e] * factors[m][e / 2]);
        }
      }
      factors[m][0] = 1.0F;
      factors[m][1] = 1.0F;
    }
  }

  template <class Block>
  WAVEKV_DEVICE void mask(Block& b, const prefill_run<T>& run,
                          float (&logits)[tiling::row_tiles][n_columns][4]) const {
    WAVEKV_UNROLL
    for (unsigned m = 0; m < tiling::row_tiles; ++m) {
      WAVEKV_UNROLL
      for (unsigned h = 0; h < 2; ++h) {
        const std::uint32_t n_seen = rows_.n_seen(16 * m + 8 * h + b.lane() / 4);
        std::uint32_t end = n_seen > run.first_position ? n_seen - run.first_position : 0;
        end = end < run.n ? end : run.n;
        WAVEKV_UNROLL
        for (unsigned n = 0; n < n_columns; ++n) {
          WAVEKV_UNROLL
          for (unsigned e = 0; e < 2; ++e) {
            float& logit = logits[m][n][2 * h + e];
            logit = 8 * n + b.lane() % 4 * 2 + e < end ? logit : minus_infinity();
          }
        }
      }
    }
  }

  // Where weights would leave what an operand can say, brings the sums under a new maximum.
  template <class Block>
  WAVEKV_DEVICE void raise_max(Block& b, const float (&logits)[tiling::row_tiles][n_columns][4],
                               const float (&factors)[tiling::row_tiles][2]) {
    float most[tiling::row_tiles][2];
    bool any = false;
    WAVEKV_UNROLL
    for (unsigned m = 0; m < tiling::row_tiles; ++m) {
      WAVEKV_UNROLL
      for (unsigned h = 0; h < 2; ++h) {
        most[m][h] = std::fmax(logits[m][0][2 * h], logits[m][0][2 * h + 1]);
        WAVEKV_UNROLL
        for (unsigned n = 1; n < n_columns; ++n) {
          most[m][h] =
              std::fmax(most[m][h], std::fmax(logits[m][n][2 * h], logits[m][n][2 * h + 1]));
        }
        most[m][h] *= factors[m][h];
        any = any || most[m][h] > max_[m][h] + headroom<operand>.slack;
      }
    }
    if (b.ballot(any) == 0) {
      return;
    }
    WAVEKV_UNROLL
    for (unsigned m = 0; m < tiling::row_tiles; ++m) {
      WAVEKV_UNROLL
      for (unsigned h = 0; h < 2; ++h) {
        float raised = std::fmax(most[m][h], b.shuffle_xor(most[m][h], 1U));
        raised = std::fmax(raised, b.shuffle_xor(raised, 2U));
        if (!(raised > max_[m][h] + headroom<operand>.slack)) {
          raised = max_[m][h];
        }
        const float by = raised > max_[m][h] ? std::exp2(max_[m][h] - raised) : 1.0F;
        max_[m][h] = raised;
        denominator_[m][h] *= by;
        WAVEKV_UNROLL
        for (unsigned n = 0; n < MaxDim / 8; ++n) {
          sums_[m][n][2 * h] *= by;
          sums_[m][n][2 * h + 1] *= by;
        }
      }
    }
  }

  // Logits to weights, as left operands: what d of the products holds is what a of the next wants.
  template <class Block>
  WAVEKV_DEVICE void weigh(Block& b, const float (&logits)[n_columns][4], const float (&factors)[2],
                           unsigned m, std::uint32_t (&upper)[n_columns / 2][4],
                           std::uint32_t (&lower)[n_columns / 2][4]) {
    WAVEKV_UNROLL
    for (unsigned h = 0; h < 2; ++h) {
      const float base =
          max_[m][h] > minus_infinity() ? max_[m][h] - headroom<operand>.shift : 0.0F;
      WAVEKV_UNROLL
      for (unsigned n = 0; n < n_columns; ++n) {
        const float x = std::exp2(logits[n][2 * h] * factors[h] - base);
        const float y = std::exp2(logits[n][2 * h + 1] * factors[h] - base);
        denominator_[m][h] += x + y;
        const unsigned part = n % 2 * 2 + h;
        if constexpr (SplitWeights) {
          detail::split_pair<operand>(b, x, y, upper[n / 2][part], lower[n / 2][part]);
        } else {
          upper[n / 2][part] = b.template pack<operand>(x, y);
        }
      }
    }
  }

  // Lane (i, j) reads elements 8i to 8i + 7 of the values of tokens 2j, 2j + 1, 8 + 2j, 9 + 2j: column i of the m-th of
  // eight products is element 8i + m.
  template <bool Whole, class Block>
  WAVEKV_DEVICE void add_values(Block& b, const words4* tile,
                                const std::uint32_t (&upper)[tiling::row_tiles][n_columns / 2][4],
                                const std::uint32_t (&lower)[tiling::row_tiles][n_columns / 2][4]) {
    const unsigned i = b.lane() / 4;
    const unsigned j = b.lane() % 4;
    WAVEKV_UNROLL
    for (unsigned c = 0; c < MaxDim / 64; ++c) {
      if (!Whole && c * 64 >= shape_.value_dim) {
        break;
      }
      WAVEKV_UNROLL
      for (unsigned step = 0; step < n_columns / 2; ++step) {
        std::uint32_t words[4][n_terms][4];
        WAVEKV_UNROLL
        for (unsigned r = 0; r < 4; ++r) {
          const unsigned of_eight = 2 * j + r % 2;
          detail::read_eight<T>(
              b, chunk(tile, 16 * step + r / 2 * 8 + of_eight, of_eight, MaxDim + 64 * c + 8 * i),
              words[r]);
        }
        WAVEKV_UNROLL
        for (unsigned n = 0; n < 8; ++n) {
          WAVEKV_UNROLL
          for (unsigned t = 0; t < n_terms; ++t) {
            const std::uint32_t right[2] = {pair(words[0][t][n / 2], words[1][t][n / 2], n % 2),
                                            pair(words[2][t][n / 2], words[3][t][n / 2], n % 2)};
            WAVEKV_UNROLL
            for (unsigned m = 0; m < tiling::row_tiles; ++m) {
              b.template multiply<operand>(sums_[m][8 * c + n], upper[m][step], right);
            }
            if constexpr (SplitWeights) {
              WAVEKV_UNROLL
              for (unsigned m = 0; m < tiling::row_tiles; ++m) {
                b.template multiply<operand>(sums_[m][8 * c + n], lower[m][step], right);
              }
            }
          }
        }
      }
    }
  }

  struct half_words {
    std::uint16_t half[2];
  };
  // The same half word of two words. So written, it is one instruction.
  WAVEKV_DEVICE static std::uint32_t pair(std::uint32_t low, std::uint32_t high, unsigned upper) {
    return std::bit_cast<std::uint32_t>(half_words{
        {std::bit_cast<half_words>(low).half[upper], std::bit_cast<half_words>(high).half[upper]}});
  }

  const model_shape& shape_;
  prefill_rows rows_;
  float* factors_;   // [warp_rows] of products: what is left of scale and units
  words4* queries_;  // [n_halves, query_chunks] as left operands
  unsigned n_halves_;
  std::uint32_t first_sees_;  // tokens that the warp's first row sees
  std::uint32_t last_sees_;
  float max_[tiling::row_tiles][2];               // of logits to base 2, about
  float denominator_[tiling::row_tiles][2] = {};  // of this lane's tokens; four lanes have a row's
  float sums_[tiling::row_tiles][MaxDim / 8][4] = {};
};

}  // namespace wavekv::device
