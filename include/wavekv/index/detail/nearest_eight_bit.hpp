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
/// One vpdpbusd does the work of four FMAs. With m the mean of the points and c̄ that of the centroids,
/// x·c = (x−m)·(c−c̄) + m·c + terms that are the same for all c; the first product, in which an offset common
/// to all keys is gone, is taken in eight bits. Each row is rounded with a scale of its own, y = ŷ + dy, and by Cauchy
/// and Schwarz |y·z − ŷ·ẑ| ≤ ‖dy‖·‖ẑ‖ + ‖y‖·‖dz‖, with norms that are known. A centroid whose upper bound lies below the
/// largest lower bound cannot win. On normal data one or two candidates of 512 are left. The answer is
/// that of nearest_float, up to the rounding of float sums.

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3 && defined(__AVX512VNNI__) && defined(__AVX512BW__)
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
        n_groups_((n_columns_ + group - 1) / group),
        padded_dim_((dim + lanes - 1) / lanes * lanes),
        blocks_(scratch.quantized_blocks.take(panel_shape::n_blocks(n_points) * block_rows *
                                              n_quads_ * 4)),
        panels_(scratch.quantized_panels.take(n_columns_ * n_quads_ * 4)),
        offsets_(scratch.quantized_offsets.take(n_columns_)),
        products_(scratch.quantized_products.take(block_rows * n_columns_)),
        rows_(scratch.blocks.take(3 * (n_points + block_rows) + 4 * padded_dim_)),
        point_mean_(rows_ + 3 * (n_points + block_rows)),
        centroid_mean_(point_mean_ + padded_dim_),
        deviation_(centroid_mean_ + padded_dim_),
        scales_(scratch.panels.take(4 * n_columns_ + block_rows * n_groups_ * lanes)),
        norms_(scales_ + n_columns_),
        errors_(norms_ + n_columns_),
        padded_biases_(errors_ + n_columns_),
        group_uppers_(padded_biases_ + n_columns_),
        sums_(scratch.mean.take(dim)) {
    point_mean_norm_ = mean_of(points, n_points, point_mean_);
    for (std::size_t p = 0; p < panel_shape::n_blocks(n_points) * block_rows; ++p) {
      std::int8_t* packed = blocks_ + (p / block_rows * n_quads_ * block_rows + p % block_rows) * 4;
      quantized row;  // zeros past the end: scored with the others, never looked at
      if (p < n_points) {
        // The instruction multiplies unsigned by signed bytes: points get 128 added, by flipping a bit.
        row = quantize(points + p * dim, point_mean_, 0x8080'8080U, packed, block_rows * 4);
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
    const float mean_norm = mean_of(centroids, n_clusters_, centroid_mean_);
    float largest_bias = 0;
    float largest_norm = 0;
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
      const quantized column = quantize(centroids + c * dim_, centroid_mean_, 0, packed, width * 4);
      offsets_[c] = -128 * column.sum;  // takes off again what the points' 128 adds
      scales_[c] = column.scale;
      norms_[c] = column.rounded_norm;
      errors_[c] = column.error;
      padded_biases_[c] = biases[c] + dot_product(point_mean_, centroids + c * dim_, dim_);
      largest_bias = std::max(largest_bias, std::abs(padded_biases_[c]) + std::abs(biases[c]));
      largest_norm = std::max(largest_norm, column.norm);
    }
    // What float sums may be wrong by, as a share of the product of norms: one rounding an element, and a few more.
    // It counts for the sums here and for those that decide, above and below.
    const float rounding =
        2.0F * static_cast<float>(dim_ + 16) * 0x1p-23F * (largest_norm + mean_norm);
    slack_per_norm_ = rounding;
    slack_ = 2.0F * rounding * point_mean_norm_ + 2.0F * 0x1p-20F * largest_bias;
  }

  void assign(std::span<std::uint32_t> assignment) const {
    for (std::size_t first = 0; first < n_points_; first += block_rows) {
      for (std::size_t c = 0; c < n_columns_; c += width) {
        multiply_tile(blocks_ + first * n_quads_ * 4, panels_ + c * n_quads_ * 4, n_quads_,
                      offsets_ + c, products_ + c, n_columns_,
                      std::make_index_sequence<block_rows>());
      }
      const std::size_t n_rows = std::min(block_rows, n_points_ - first);
      float lowers[block_rows];
      for (std::size_t r = 0; r < n_rows; r += rows_at_once) {
        bound_scores(first, r, lowers + r, std::make_index_sequence<rows_at_once>());
      }
      for (std::size_t r = 0; r < n_rows; ++r) {
        const float threshold = lowers[r] - slack_ - slack_per_norm_ * rows_[3 * (first + r) + 1];
        assignment[first + r] = decide(first + r, r, threshold);
      }
    }
  }

 private:
  static constexpr std::size_t block_rows = panel_shape::block_rows;
  static constexpr std::size_t width = panel_shape::panel_width;
  static constexpr std::size_t lanes = panel_shape::lanes;
  static constexpr std::size_t group =
      4 * lanes;  ///< columns looked at together when candidates are sought
  static constexpr std::size_t rows_at_once =
      4;  ///< that share the loads of the columns' constants
  static_assert(block_rows % rows_at_once == 0);
  static_assert(group <= 64);
  using integer_tag = hn::RebindToSigned<panel_shape::tag>;

  struct quantized {
    float scale = 0;         // ŷ = scale · bytes
    float norm = 0;          // at least ‖y‖
    float rounded_norm = 0;  // at least ‖ŷ‖
    float error = 0;         // at least ‖y − ŷ‖
    std::int32_t sum = 0;    // of the bytes
  };

  /// Mean of rows; returns a bound of its norm.
  float mean_of(const float* rows, std::size_t n_rows, float* mean) const {
    std::fill_n(sums_, dim_, 0.0);
    for (std::size_t r = 0; r < n_rows; ++r) {
      for (std::size_t i = 0; i < dim_; ++i) {
        sums_[i] += static_cast<double>(rows[r * dim_ + i]);
      }
    }
    double square = 0;
    for (std::size_t i = 0; i < dim_; ++i) {
      mean[i] = static_cast<float>(sums_[i] / static_cast<double>(n_rows));
      square += static_cast<double>(mean[i]) * static_cast<double>(mean[i]);
    }
    return static_cast<float>(std::sqrt(square)) * (1.0F + 0x1p-20F);
  }

  void clear(std::int8_t* packed, std::size_t stride) const {
    for (std::size_t q = 0; q < n_quads_; ++q) {
      std::memset(packed + q * stride, 0, 4);
    }
  }

  /// Rounds row − center to bytes, four at every `stride` of the packed memory, with some bits flipped.
  ///
  /// Errors are measured in steps of the scale, where nothing can vanish, and every norm is nudged up by
  /// more than its own rounding.
  quantized quantize(const float* row, const float* center, std::uint32_t flip, std::int8_t* packed,
                     std::size_t stride) const {
    const panel_shape::tag d;
    const hn::Rebind<std::int8_t, panel_shape::tag> db;
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < dim_; ++i) {
      deviation_[i] = row[i] - center[i];
      bits = std::max(bits, std::bit_cast<std::uint32_t>(deviation_[i]) & 0x7FFF'FFFFU);
    }
    std::fill(deviation_ + dim_, deviation_ + padded_dim_, 0.0F);
    const auto largest = std::bit_cast<float>(bits);
    quantized result;
    if (largest <
        1e-30F) {  // its inverse would overflow: rounds to zero, and the error is all of it
      for (std::size_t q = 0; q < n_quads_; ++q) {
        std::memcpy(packed + q * stride, &flip, 4);
      }
      result.norm = result.error = largest * std::sqrt(static_cast<float>(dim_)) * 1.01F;
      return result;
    }
    const auto inverse = hn::Set(d, 127.0F / largest);
    auto squares = hn::Zero(d);
    auto rounded_squares = hn::Zero(d);
    auto error_squares = hn::Zero(d);
    auto sums = hn::Zero(d);
    auto* bytes = reinterpret_cast<std::int8_t*>(deviation_ + padded_dim_);
    for (std::size_t i = 0; i < padded_dim_; i += lanes) {
      const auto exact = hn::Mul(hn::LoadU(d, deviation_ + i), inverse);
      const auto integer = hn::NearestInt(exact);
      const auto rounded = hn::ConvertTo(d, integer);
      const auto error = hn::Sub(exact, rounded);
      squares = hn::MulAdd(exact, exact, squares);
      rounded_squares = hn::MulAdd(rounded, rounded, rounded_squares);
      error_squares = hn::MulAdd(error, error, error_squares);
      sums = hn::Add(sums, rounded);
      hn::StoreU(hn::DemoteTo(db, integer), db, bytes + i);
    }
    for (std::size_t q = 0; q < n_quads_; ++q) {
      std::uint32_t four = 0;
      std::memcpy(&four, bytes + q * 4, 4);
      four ^= flip;
      std::memcpy(packed + q * stride, &four, 4);
    }
    const auto root = [&](auto sum) {
      return std::sqrt(hn::GetLane(hn::SumOfLanes(d, sum))) * (1.0F + 0x1p-12F);
    };
    const float steps_lost = 127.0F * 0x1p-20F * std::sqrt(static_cast<float>(dim_));
    result.scale = largest / 127.0F;
    result.norm = result.scale * (root(squares) + steps_lost);
    result.rounded_norm = result.scale * root(rounded_squares);
    result.error = result.scale * (root(error_squares) + steps_lost);
    result.sum = static_cast<std::int32_t>(hn::GetLane(hn::SumOfLanes(d, sums)));
    return result;
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

  /// Replaces the products of a few points of a block by upper bounds of their scores, and keeps the largest of
  /// every group and lane. Writes each point's largest lower bound.
  template <std::size_t... Row>
  void bound_scores(std::size_t first, std::size_t block_row, float* lowers,
                    std::index_sequence<Row...>) const {
    const panel_shape::tag d;
    const integer_tag di;
    using vector = hn::Vec<panel_shape::tag>;
    const float* constants = rows_ + 3 * (first + block_row);
    std::int32_t* products = products_ + block_row * n_columns_;
    float* group_uppers = group_uppers_ + block_row * n_groups_ * lanes;
    const vector scale[] = {hn::Set(d, constants[3 * Row])...};
    const vector norm[] = {hn::Set(d, constants[3 * Row + 1])...};
    const vector error[] = {hn::Set(d, constants[3 * Row + 2])...};
    const vector lowest = hn::Set(d, std::numeric_limits<float>::lowest());
    vector largest_lower[] = {((void)Row, lowest)...};
    for (std::size_t g = 0; g < n_groups_; ++g) {
      vector largest_upper[] = {((void)Row, lowest)...};
      const std::size_t end = std::min((g + 1) * group, n_columns_);
      for (std::size_t c = g * group; c < end; c += lanes) {
        const vector column_scale = hn::Load(d, scales_ + c);
        const vector column_norm = hn::Load(d, norms_ + c);
        const vector column_error = hn::Load(d, errors_ + c);
        const vector column_bias = hn::Load(d, padded_biases_ + c);
        (
            [&](std::size_t row) HWY_ATTR {
              std::int32_t* place = products + row * n_columns_ + c;
              const vector product = hn::Mul(hn::ConvertTo(d, hn::Load(di, place)), column_scale);
              const vector score = hn::MulAdd(product, scale[row], column_bias);
              const vector spread =
                  hn::MulAdd(error[row], column_norm, hn::Mul(norm[row], column_error));
              const vector upper = hn::Add(score, spread);
              largest_lower[row] = hn::Max(largest_lower[row], hn::Sub(score, spread));
              largest_upper[row] = hn::Max(largest_upper[row], upper);
              hn::Store(hn::BitCast(di, upper), di, place);
            }(Row),
            ...);
      }
      (hn::Store(largest_upper[Row], d, group_uppers + (Row * n_groups_ + g) * lanes), ...);
    }
    ((lowers[Row] = hn::GetLane(hn::MaxOfLanes(d, largest_lower[Row]))), ...);
  }

  /// The best of the centroids whose upper bound reaches the threshold; of equal ones the smallest.
  /// Where candidates lie is not predictable, so they are collected in bit masks and not by branches.
  std::uint32_t decide(std::size_t point, std::size_t block_row, float threshold) const {
    const std::int32_t* uppers = products_ + block_row * n_columns_;
    const float* group_uppers = group_uppers_ + block_row * n_groups_ * lanes;
    std::size_t winner = n_clusters_;
    float best = 0;
    bool is_scored = false;
    for (std::size_t first_group = 0; first_group < n_groups_; first_group += 64) {
      const std::size_t n = std::min<std::size_t>(n_groups_ - first_group, 64);
      std::uint64_t groups = 0;
      for (std::size_t g = 0; g < n; ++g) {
        groups |= std::uint64_t{reaching(group_uppers + (first_group + g) * lanes, threshold) != 0}
                  << g;
      }
      for (; groups != 0; groups &= groups - 1) {
        const std::size_t first =
            (first_group + static_cast<std::size_t>(std::countr_zero(groups))) * group;
        std::uint64_t columns = 0;
        for (std::size_t c = first; c < std::min(first + group, n_columns_); c += lanes) {
          columns |= reaching(uppers + c, threshold) << (c - first);
        }
        for (; columns != 0; columns &= columns - 1) {
          const std::size_t candidate = first + static_cast<std::size_t>(std::countr_zero(columns));
          if (winner == n_clusters_) {  // most often the only one, and then never scored
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
    }
    return static_cast<std::uint32_t>(winner);
  }

  /// One bit per lane of a vector of upper bounds: set where it reaches the threshold.
  template <class Bits>
  static std::uint64_t reaching(const Bits* uppers, float threshold) {
    const panel_shape::tag d;
    const hn::ScalableTag<Bits> db;
    const auto reaches = hn::Ge(hn::BitCast(d, hn::Load(db, uppers)), hn::Set(d, threshold));
    return reaches.raw;
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
  std::size_t n_groups_;
  std::size_t padded_dim_;
  std::int8_t* blocks_;
  std::int8_t* panels_;
  std::int32_t* offsets_;
  std::int32_t* products_;  // [block_rows, n_columns], then the bits of the upper bounds
  float* rows_;             // [n_points, 3]: scale, ‖y‖, ‖dy‖
  float* point_mean_;
  float* centroid_mean_;
  float* deviation_;      // one row, padded, and room for its bytes
  float* scales_;         // per column, as the next three
  float* norms_;          // ‖ẑ‖
  float* errors_;         // ‖dz‖
  float* padded_biases_;  // bias + m·c
  float* group_uppers_;   // [block_rows, n_groups, lanes]
  double* sums_;
  const float* centroids_ = nullptr;
  const float* biases_ = nullptr;
  float point_mean_norm_ = 0;
  float slack_ = 0;
  float slack_per_norm_ = 0;
};

}  // namespace wavekv::detail

#endif
