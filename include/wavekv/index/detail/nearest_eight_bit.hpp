// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/detail/panel_product.hpp>

/// @file nearest_eight_bit.hpp
/// @brief For every point the centroid with the largest x·c + bias: eight-bit products rule out nearly all of
/// them with certainty, float products decide among the rest.
///
/// One vpdpbusd does the work of four FMAs. Points and centroids are rounded to eight bits, x = x̂ + dx and
/// c = ĉ + dc, each row with a scale of its own, and x·c = x̂·ĉ + dx·ĉ + x·dc, so that by Cauchy and Schwarz
/// |x·c − x̂·ĉ| ≤ ‖dx‖·‖ĉ‖ + ‖x‖·‖dc‖, with norms that are known. A centroid whose upper bound lies below the largest
/// lower bound cannot win. On normal data two or three candidates of 512 are left. The answer is that of
/// nearest_float, up to the rounding of float sums.

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
#define WAVEKV_DETAIL_EIGHT_BIT 1
#else
#define WAVEKV_DETAIL_EIGHT_BIT 0
#endif

#if WAVEKV_DETAIL_EIGHT_BIT

namespace wavekv::detail {

class nearest_eight_bit {
 public:
  nearest_eight_bit(const float* points, std::size_t n_points, std::size_t dim,
                    std::size_t n_clusters, clustering_scratch& scratch)
      : points_(points),
        n_points_(n_points),
        dim_(dim),
        n_quads_((dim + 3) / 4),
        n_clusters_(n_clusters),
        n_columns_(panel_shape::n_panels(n_clusters) * width),
        blocks_(scratch.quantized_blocks.take(panel_shape::n_blocks(n_points) * block_rows *
                                              n_quads_ * 4)),
        panels_(scratch.quantized_panels.take(n_columns_ * n_quads_ * 4)),
        offsets_(scratch.quantized_offsets.take(n_columns_)),
        products_(scratch.quantized_products.take(block_rows * n_columns_)),
        rows_(scratch.blocks.take(3 * (n_points + block_rows))),
        scales_(scratch.panels.take(4 * n_columns_)),
        norms_(scales_ + n_columns_),
        errors_(norms_ + n_columns_),
        padded_biases_(errors_ + n_columns_) {
    for (std::size_t p = 0; p < panel_shape::n_blocks(n_points) * block_rows; ++p) {
      std::int8_t* packed = blocks_ + (p / block_rows * n_quads_ * block_rows + p % block_rows) * 4;
      quantized row;  // zeros past the end: scored with the others, never looked at
      if (p < n_points) {
        row = quantize(points + p * dim, 128, packed, block_rows * 4);
      } else {
        clear(packed, block_rows * 4);
      }
      rows_[3 * p] = row.scale;
      rows_[3 * p + 1] = row.norm;
      rows_[3 * p + 2] = row.error;
    }
  }

  void set_centroids(const float* centroids, const float* biases) {
    centroids_ = centroids;
    biases_ = biases;
    float largest_bias = 0;
    // What float sums may be wrong by, as a share of ‖x‖·‖c‖: one rounding per element and a few more.
    const float rounding = static_cast<float>(dim_ + 16) * 0x1p-23F;
    for (std::size_t c = 0; c < n_columns_; ++c) {
      std::int8_t* packed = panels_ + (c / width * n_quads_ * width + c % width) * 4;
      if (c >=
          n_clusters_) {  // padding, whose upper bound never reaches a real centroid's lower bound
        clear(packed, width * 4);
        offsets_[c] = 0;
        scales_[c] = norms_[c] = errors_[c] = 0;
        padded_biases_[c] = std::numeric_limits<float>::lowest();
        continue;
      }
      const quantized column = quantize(centroids + c * dim_, 0, packed, width * 4);
      // The instruction multiplies unsigned by signed bytes: points are stored plus 128, taken off again here.
      offsets_[c] = -128 * column.sum;
      scales_[c] = column.scale;
      norms_[c] = column.rounded_norm;
      errors_[c] = column.error + rounding * column.norm;
      padded_biases_[c] = biases[c];
      largest_bias = std::max(largest_bias, std::abs(biases[c]));
    }
    bias_rounding_ = largest_bias * 0x1p-20F;
  }

  void assign(std::span<std::uint32_t> assignment) const {
    for (std::size_t first = 0; first < n_points_; first += block_rows) {
      for (std::size_t c = 0; c < n_columns_; c += width) {
        multiply_tile(blocks_ + first * n_quads_ * 4, panels_ + c * n_quads_ * 4, n_quads_,
                      offsets_ + c, products_ + c, n_columns_,
                      std::make_index_sequence<block_rows>());
      }
      const std::size_t n_rows = std::min(block_rows, n_points_ - first);
      for (std::size_t r = 0; r < n_rows; ++r) {
        std::int32_t* row = products_ + r * n_columns_;
        assignment[first + r] =
            decide(first + r, row, bound_scores(first + r, row) - bias_rounding_);
      }
    }
  }

 private:
  static constexpr std::size_t block_rows = panel_shape::block_rows;
  static constexpr std::size_t width = panel_shape::panel_width;
  static constexpr std::size_t lanes = panel_shape::lanes;
  using integer_tag = hn::RebindToSigned<panel_shape::tag>;

  struct quantized {
    float scale = 0;         // x̂ = scale · bytes
    float norm = 0;          // ‖x‖
    float rounded_norm = 0;  // ‖x̂‖
    float error = 0;         // ‖x − x̂‖
    std::int32_t sum = 0;    // of the bytes
  };

  // Norms are upper bounds: taken in double, then nudged up.
  static float bound_of(double square) {
    return static_cast<float>(std::sqrt(square)) * (1.0F + 0x1p-20F);
  }

  void clear(std::int8_t* packed, std::size_t stride) const {
    for (std::size_t q = 0; q < n_quads_; ++q) {
      std::memset(packed + q * stride, 0, 4);
    }
  }

  /// Rounds a row to bytes, four at every `stride` of the packed memory, with an offset added to each.
  quantized quantize(const float* row, std::int32_t offset, std::int8_t* packed,
                     std::size_t stride) const {
    quantized result;
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < dim_; ++i) {
      bits = std::max(bits, std::bit_cast<std::uint32_t>(row[i]) & 0x7FFF'FFFFU);
    }
    const auto largest = std::bit_cast<float>(bits);
    // A row too small for its inverse rounds to zero, and its error is all of it.
    const float inverse = largest > 1e-30F ? 127.0F / largest : 0.0F;
    result.scale = largest > 1e-30F ? largest / 127.0F : 0.0F;
    double square = 0;
    double rounded_square = 0;
    double error_square = 0;
    std::int32_t sum = 0;
    for (std::size_t q = 0; q < n_quads_; ++q) {
      for (std::size_t j = 0; j < 4; ++j) {
        const float element = q * 4 + j < dim_ ? row[q * 4 + j] : 0.0F;
        const std::int32_t byte = nearest_integer(element * inverse);
        const double rounded = static_cast<double>(byte) * static_cast<double>(result.scale);
        const double error = static_cast<double>(element) - rounded;
        square += static_cast<double>(element) * static_cast<double>(element);
        rounded_square += rounded * rounded;
        error_square += error * error;
        sum += byte;
        packed[q * stride + j] = static_cast<std::int8_t>(byte + offset);
      }
    }
    result.norm = bound_of(square);
    result.rounded_norm = bound_of(rounded_square);
    result.error = bound_of(error_square);
    result.sum = sum;
    return result;
  }

  static std::int32_t nearest_integer(float x) {
    return static_cast<std::int32_t>(x + (x < 0 ? -0.5F : 0.5F));
  }

  /// Integer products of a block's points with one panel of centroids, to [block_rows, n_columns].
  /// Not inlined: g++ would hoist its callers' constants into the registers that the tile needs.
  template <std::size_t... Row>
  static HWY_NOINLINE void multiply_tile(const std::int8_t* HWY_RESTRICT block,
                                         const std::int8_t* HWY_RESTRICT panel, std::size_t n_quads,
                                         const std::int32_t* offsets,
                                         std::int32_t* HWY_RESTRICT products, std::size_t n_columns,
                                         std::index_sequence<Row...>) {
    const integer_tag d;
    using vector = hn::Vec<integer_tag>;
    const vector start_left = hn::Load(d, offsets);
    const vector start_right = hn::Load(d, offsets + lanes);
    vector left[] = {((void)Row, start_left)...};
    vector right[] = {((void)Row, start_right)...};
    for (std::size_t q = 0; q < n_quads; ++q) {
      const vector column_left = hn::Load(d, reinterpret_cast<const std::int32_t*>(panel));
      const vector column_right = hn::Load(d, reinterpret_cast<const std::int32_t*>(panel) + lanes);
      (
          [&](std::size_t row) HWY_ATTR {
            std::int32_t four = 0;
            std::memcpy(&four, block + row * 4, 4);
            const vector quad = hn::Set(d, four);
            left[row].raw = _mm512_dpbusd_epi32(left[row].raw, quad.raw, column_left.raw);
            right[row].raw = _mm512_dpbusd_epi32(right[row].raw, quad.raw, column_right.raw);
          }(Row),
          ...);
      block += block_rows * 4;
      panel += width * 4;
    }
    (hn::Store(left[Row], d, products + Row * n_columns), ...);
    (hn::Store(right[Row], d, products + Row * n_columns + lanes), ...);
  }

  /// Replaces a point's products by upper bounds of its scores. Returns the largest lower bound.
  float bound_scores(std::size_t point, std::int32_t* products) const {
    const panel_shape::tag d;
    const integer_tag di;
    const auto scale = hn::Set(d, rows_[3 * point]);
    const auto norm = hn::Set(d, rows_[3 * point + 1]);
    const auto error = hn::Set(d, rows_[3 * point + 2]);
    auto largest = hn::Set(d, std::numeric_limits<float>::lowest());
    for (std::size_t c = 0; c < n_columns_; c += lanes) {
      const auto product =
          hn::Mul(hn::ConvertTo(d, hn::Load(di, products + c)), hn::Load(d, scales_ + c));
      const auto score = hn::MulAdd(product, scale, hn::Load(d, padded_biases_ + c));
      const auto spread =
          hn::MulAdd(error, hn::Load(d, norms_ + c), hn::Mul(norm, hn::Load(d, errors_ + c)));
      largest = hn::Max(largest, hn::Sub(score, spread));
      hn::Store(hn::BitCast(di, hn::Add(score, spread)), di, products + c);
    }
    return hn::GetLane(hn::MaxOfLanes(d, largest));
  }

  /// The best of the centroids whose upper bound reaches the largest lower bound.
  std::uint32_t decide(std::size_t point, const std::int32_t* uppers, float lower) const {
    const panel_shape::tag d;
    const integer_tag di;
    const auto threshold = hn::Set(d, lower);
    std::size_t winner = n_clusters_;
    float best = 0;
    bool is_scored = false;
    for (std::size_t at = 0; at < n_columns_; at += lanes) {
      const auto reaches = hn::Ge(hn::BitCast(d, hn::Load(di, uppers + at)), threshold);
      std::uint64_t bits = 0;
      hn::StoreMaskBits(d, reaches, reinterpret_cast<std::uint8_t*>(&bits));
      for (; bits != 0; bits &= bits - 1) {
        const std::size_t candidate = at + static_cast<std::size_t>(std::countr_zero(bits));
        if (candidate >= n_clusters_) {
          break;
        }
        if (winner == n_clusters_) {  // most often the only one
          winner = candidate;
          continue;
        }
        if (!is_scored) {
          best = score(point, winner);
          is_scored = true;
        }
        const float other = score(point, candidate);
        if (other > best) {
          best = other;
          winner = candidate;
        }
      }
    }
    return static_cast<std::uint32_t>(std::min(winner, n_clusters_ - 1));
  }

  float score(std::size_t point, std::size_t centroid) const {
    return dot_product(points_ + point * dim_, centroids_ + centroid * dim_, dim_) +
           biases_[centroid];
  }

  const float* points_;
  std::size_t n_points_;
  std::size_t dim_;
  std::size_t n_quads_;
  std::size_t n_clusters_;
  std::size_t n_columns_;
  std::int8_t* blocks_;
  std::int8_t* panels_;
  std::int32_t* offsets_;
  std::int32_t* products_;  // [block_rows, n_columns], then the bits of the upper bounds
  float* rows_;             // [n_points, 3]: scale, ‖x‖, ‖dx‖
  float* scales_;           // per column, as the next three
  float* norms_;            // ‖ĉ‖
  float* errors_;           // ‖dc‖, and the rounding of float sums
  float* padded_biases_;
  const float* centroids_ = nullptr;
  const float* biases_ = nullptr;
  float bias_rounding_ = 0;
};

}  // namespace wavekv::detail

#endif
