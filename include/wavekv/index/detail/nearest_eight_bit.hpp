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
#include <wavekv/index/detail/eight_bit_product.hpp>
#include <wavekv/index/detail/panel_product.hpp>

/// @file nearest_eight_bit.hpp
/// @brief For every point the centroid with the largest x·c + bias: eight-bit products rule out nearly all of
/// them with certainty, float products decide among the rest.
///
/// One vpdpbusd does the work of four FMAs; where there is none, two vpmaddubsw, their sum and a vpmaddwd do that of
/// eight, if a byte of a point has 7 bits and one of a centroid 64 steps each way: then four products fit 16 bits.
/// With m the mean of the points and c̄ that of the centroids,
/// x·c = (x−m)·(c−c̄) + m·c + terms that are the same for all c; the first product, in which an offset common
/// to all keys is gone, is taken in eight bits. Each row is rounded with a scale of its own, y = ŷ + dy, and by Cauchy
/// and Schwarz |y·z − ŷ·ẑ| ≤ ‖dy‖·‖ẑ‖ + ‖y‖·‖dz‖, with norms that are known. A centroid whose upper bound lies below the
/// largest lower bound cannot win. On normal data one or two candidates of 512 are left. The answer is
/// that of nearest_float, up to the rounding of float sums.

#if WAVEKV_DETAIL_EIGHT_BIT

namespace wavekv::detail {

class nearest_eight_bit {
 public:
  nearest_eight_bit(const float* points, std::size_t n_points, std::size_t dim,
                    std::size_t n_clusters, clustering_scratch& scratch)
      : points_(points),
        n_points_(n_points),
        dim_(dim),
        n_quads_((dim + 4 * shape::quads_at_once - 1) / (4 * shape::quads_at_once) *
                 shape::quads_at_once),
        n_clusters_(n_clusters),
        padded_dim_((4 * n_quads_ + lanes - 1) / lanes * lanes),
        n_padded_((n_points + block_rows - 1) / block_rows * block_rows),
        blocks_(scratch.quantized_blocks.take((n_padded_ + block_rows) * n_quads_ * 4)),
        products_(scratch.quantized_products.take(block_rows * n_columns(n_clusters))),
        rows_(scratch.blocks.take(3 * (n_padded_ + block_rows) + 4 * padded_dim_)),
        point_mean_(rows_ + 3 * (n_padded_ + block_rows)),
        centroid_mean_(point_mean_ + padded_dim_),
        deviation_(centroid_mean_ + padded_dim_),
        sums_(scratch.mean.take(dim)),
        lowers_(scratch.scores.take(3 * n_points)),
        own_uppers_(lowers_ + n_points),
        other_uppers_(own_uppers_ + n_points),
        open_points_(scratch.candidates.take(n_points)) {
    const std::size_t most = n_columns(n_clusters);
    float* numbers = scratch.panels.take(8 * most + block_rows * n_groups(most) * lanes);
    group_uppers_ = numbers + 8 * most;
    std::int8_t* panels = scratch.quantized_panels.take(2 * most * n_quads_ * 4);
    std::int32_t* offsets = scratch.quantized_offsets.take(2 * most);
    for (column_set* set : {&all_, &changed_}) {
      *set = {panels, offsets, numbers, numbers + most, numbers + 2 * most, numbers + 3 * most};
      panels += most * n_quads_ * 4;
      offsets += most;
      numbers += 4 * most;
    }
    point_mean_norm_ = mean_of(points, n_points, point_mean_);
    for (std::size_t p = 0; p < n_padded_; ++p) {
      quantized_row row;  // zeros past the end: scored with the others, never looked at
      if (p < n_points) {
        row = quantize<true>(points + p * dim, point_mean_, dim, n_quads_, deviation_,
                             packed_point(p), block_rows * 4);
      } else {
        clear(packed_point(p), block_rows * 4);
      }
      rows_[3 * p] = row.scale;
      rows_[3 * p + 1] = row.norm;
      rows_[3 * p + 2] = row.error;
    }
  }

  void set_centroids(const float* centroids, const float* biases) {
    centroids_ = centroids;
    biases_ = biases;
    mean_norm_ = mean_of(centroids, n_clusters_, centroid_mean_);
    largest_bias_ = largest_norm_ = 0;
    all_.resize(n_clusters_);
    for (std::size_t c = 0; c < all_.n_columns; ++c) {
      if (c < n_clusters_) {
        set_column(c);
      } else {
        clear_column(all_, c);
      }
    }
    set_slack();
  }

  void assign(std::span<std::uint32_t> assignment) {
    for (std::size_t first = 0; first < n_points_; first += block_rows) {
      float lowers[block_rows];
      bound_block(first, all_, lowers);
      for (std::size_t r = 0; r < std::min(block_rows, n_points_ - first); ++r) {
        assignment[first + r] = choose(first + r, r, lowers[r]);
      }
    }
  }

  /// Bounds that a point keeps are in the terms of the old centroids' mean, which therefore stays.
  void update_centroids(const float* centroids, const float* biases,
                        std::span<const std::uint32_t> changed) {
    centroids_ = centroids;
    biases_ = biases;
    changed_ids_ = changed;
    changed_.resize(changed.size());
    for (std::size_t i = 0; i < changed_.n_columns; ++i) {
      if (i >= changed.size()) {
        clear_column(changed_, i);
        continue;
      }
      const std::size_t c = changed[i];
      set_column(c);
      const std::int8_t* from = packed_column(all_, c);
      std::int8_t* to = packed_column(changed_, i);
      for (std::size_t q = 0; q < n_quads_; ++q) {
        std::memcpy(to + q * width * 4, from + q * width * 4, 4);
      }
      changed_.offsets[i] = all_.offsets[c];
      changed_.scales[i] = all_.scales[c];
      changed_.norms[i] = all_.norms[c];
      changed_.errors[i] = all_.errors[c];
      changed_.biases[i] = all_.biases[c];
    }
    set_slack();
  }

  void reassign(std::span<std::uint32_t> assignment, const std::uint8_t* is_changed) {
    std::size_t n_open = 0;
    for (std::size_t first = 0; first < n_points_; first += block_rows) {
      float lowers[block_rows];
      bound_block(first, changed_, lowers);
      for (std::size_t r = 0; r < std::min(block_rows, n_points_ - first); ++r) {
        if (!choose_changed(first + r, r, lowers[r], assignment[first + r], is_changed)) {
          open_points_[n_open++] = static_cast<std::uint32_t>(first + r);
        }
      }
    }
    for (std::size_t first = 0; first < n_open; first += block_rows) {
      const std::size_t n_rows = std::min(block_rows, n_open - first);
      for (std::size_t r = 0; r < block_rows; ++r) {  // gathered behind all other blocks
        const std::size_t point = open_points_[first + std::min(r, n_rows - 1)];
        const std::int8_t* from = packed_point(point);
        std::int8_t* to = packed_point(n_padded_ + r);
        for (std::size_t q = 0; q < n_quads_; ++q) {
          std::memcpy(to + q * block_rows * 4, from + q * block_rows * 4, 4);
        }
        std::copy_n(rows_ + 3 * point, 3, rows_ + 3 * (n_padded_ + r));
      }
      float lowers[block_rows];
      bound_block(n_padded_, all_, lowers);
      for (std::size_t r = 0; r < n_rows; ++r) {
        const std::size_t point = open_points_[first + r];
        assignment[point] = choose(point, r, lowers[r]);
      }
    }
  }

  void forget(std::size_t point) { other_uppers_[point] = std::numeric_limits<float>::infinity(); }

 private:
  using shape = eight_bit_shape;
  static constexpr std::size_t block_rows = shape::block_rows;
  static constexpr std::size_t width = panel_shape::panel_width;
  static constexpr std::size_t lanes = panel_shape::lanes;
  static constexpr std::size_t group =
      4 * lanes;  ///< columns looked at together when candidates are sought
  static_assert(group <= 64);
  using integer_tag = hn::RebindToSigned<panel_shape::tag>;

  static constexpr std::size_t n_columns(std::size_t n) { return panel_shape::n_panels(n) * width; }
  static constexpr std::size_t n_groups(std::size_t n) { return (n + group - 1) / group; }

  /// Centroids as the products see them.
  struct column_set {
    std::int8_t* panels = nullptr;
    std::int32_t* offsets = nullptr;  // takes off again what the points' offset adds
    float* scales = nullptr;
    float* norms = nullptr;   // ‖ẑ‖
    float* errors = nullptr;  // ‖dz‖
    float* biases = nullptr;  // bias + m·c
    std::size_t n_columns = 0;
    std::size_t n_groups = 0;

    void resize(std::size_t n) {
      n_columns = nearest_eight_bit::n_columns(n);
      n_groups = nearest_eight_bit::n_groups(n_columns);
    }
  };

  std::int8_t* packed_point(std::size_t p) const {
    return blocks_ + (p / block_rows * n_quads_ * block_rows + p % block_rows) * 4;
  }
  std::int8_t* packed_column(const column_set& set, std::size_t c) const {
    return set.panels + (c / width * n_quads_ * width + c % width) * 4;
  }

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

  /// A column whose upper bound never reaches a real centroid's lower bound.
  void clear_column(const column_set& set, std::size_t c) const {
    clear(packed_column(set, c), width * 4);
    set.offsets[c] = 0;
    set.scales[c] = set.norms[c] = set.errors[c] = 0;
    set.biases[c] = std::numeric_limits<float>::lowest();
  }

  void set_column(std::size_t c) {
    const float* centroid = centroids_ + c * dim_;
    const quantized_row column = quantize<false>(centroid, centroid_mean_, dim_, n_quads_,
                                                 deviation_, packed_column(all_, c), width * 4);
    all_.offsets[c] = -shape::point_offset * column.sum;
    all_.scales[c] = column.scale;
    all_.norms[c] = column.rounded_norm;
    all_.errors[c] = column.error;
    all_.biases[c] = biases_[c] + dot_product(point_mean_, centroid, dim_);
    largest_bias_ = std::max(largest_bias_, std::abs(all_.biases[c]) + std::abs(biases_[c]));
    largest_norm_ = std::max(largest_norm_, column.norm);
  }

  /// What float sums may be wrong by, as a share of the product of norms: one rounding an element, and a few more.
  /// It counts for the sums here and for those that decide, above and below.
  void set_slack() {
    const float rounding =
        2.0F * static_cast<float>(dim_ + 16) * 0x1p-23F * (largest_norm_ + mean_norm_);
    slack_per_norm_ = rounding;
    slack_ = 2.0F * rounding * point_mean_norm_ + 2.0F * 0x1p-20F * largest_bias_;
  }

  /// Upper bounds of the scores of a block's points with a set of centroids, and each point's largest lower bound.
  void bound_block(std::size_t first, const column_set& set, float* lowers) const {
    for (std::size_t c = 0; c < set.n_columns; c += width) {
      for (std::size_t r = 0; r < block_rows; r += shape::tile_rows) {
        multiply_tile(packed_point(first) + r * 4, set.panels + c * n_quads_ * 4, n_quads_,
                      set.offsets + c, products_ + r * set.n_columns + c, set.n_columns,
                      std::make_index_sequence<shape::tile_rows>());
      }
    }
    for (std::size_t r = 0; r < block_rows; r += shape::rows_at_once) {
      bound_scores(rows_ + 3 * (first + r), set, r, lowers + r,
                   std::make_index_sequence<shape::rows_at_once>());
    }
  }

  /// Replaces the products of a few points of a block by upper bounds of their scores, and keeps the largest of
  /// every group and lane. Writes each point's largest lower bound.
  template <std::size_t... Row>
  void bound_scores(const float* constants, const column_set& set, std::size_t block_row,
                    float* lowers, std::index_sequence<Row...>) const {
    const panel_shape::tag d;
    const integer_tag di;
    using vector = hn::Vec<panel_shape::tag>;
    std::int32_t* products = products_ + block_row * set.n_columns;
    float* group_uppers = group_uppers_ + block_row * set.n_groups * lanes;
    const vector scale[] = {hn::Set(d, constants[3 * Row])...};
    const vector norm[] = {hn::Set(d, constants[3 * Row + 1])...};
    const vector error[] = {hn::Set(d, constants[3 * Row + 2])...};
    const vector lowest = hn::Set(d, std::numeric_limits<float>::lowest());
    vector largest_lower[] = {((void)Row, lowest)...};
    for (std::size_t g = 0; g < set.n_groups; ++g) {
      vector largest_upper[] = {((void)Row, lowest)...};
      const std::size_t end = std::min((g + 1) * group, set.n_columns);
      for (std::size_t c = g * group; c < end; c += lanes) {
        const vector column_scale = hn::Load(d, set.scales + c);
        const vector column_norm = hn::Load(d, set.norms + c);
        const vector column_error = hn::Load(d, set.errors + c);
        const vector column_bias = hn::Load(d, set.biases + c);
        (
            [&](std::size_t row) HWY_ATTR {
              std::int32_t* place = products + row * set.n_columns + c;
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
      (hn::Store(largest_upper[Row], d, group_uppers + (Row * set.n_groups + g) * lanes), ...);
    }
    ((lowers[Row] = hn::GetLane(hn::MaxOfLanes(d, largest_lower[Row]))), ...);
  }

  float slack_of(std::size_t point) const {
    return slack_ + slack_per_norm_ * rows_[3 * point + 1];
  }

  /// The nearest of all centroids, when a block was bounded against all.
  std::uint32_t choose(std::size_t point, std::size_t block_row, float lower) {
    const std::size_t winner =
        decide(point, block_row, all_, lower - slack_of(point), n_clusters_, {});
    lowers_[point] = lower;
    own_uppers_[point] = take_upper(block_row, all_, winner);
    other_uppers_[point] = largest_upper(block_row, all_);
    return static_cast<std::uint32_t>(winner);
  }

  /// Decides by the changed centroids and what is known of the others; false where that is not enough.
  bool choose_changed(std::size_t point, std::size_t block_row, float lower, std::uint32_t& held,
                      const std::uint8_t* is_changed) {
    const float others = other_uppers_[point];
    if (others == std::numeric_limits<float>::infinity()) {
      return false;
    }
    const bool is_held = is_changed[held] == 0;  // the point's centroid is what it was
    if (is_held) {
      lower = std::max(lower, lowers_[point]);
    } else if (!(lower - slack_of(point) > others)) {
      return false;
    }
    const float threshold = lower - slack_of(point);
    lowers_[point] = lower;
    if (is_held && largest_upper(block_row, changed_) < threshold) {
      other_uppers_[point] = std::max(others, largest_upper(block_row, changed_));
      return true;
    }
    const std::size_t winner =
        decide(point, block_row, changed_, threshold, is_held ? held : n_clusters_, changed_ids_);
    float beaten = others;
    if (winner != held || !is_held) {
      if (is_held) {
        beaten = std::max(beaten, own_uppers_[point]);
      }
      const auto place = std::lower_bound(changed_ids_.begin(), changed_ids_.end(), winner);
      own_uppers_[point] =
          take_upper(block_row, changed_, static_cast<std::size_t>(place - changed_ids_.begin()));
    }
    other_uppers_[point] = std::max(beaten, largest_upper(block_row, changed_));
    held = static_cast<std::uint32_t>(winner);
    return true;
  }

  /// The upper bound of a column, which then counts as lowest.
  float take_upper(std::size_t block_row, const column_set& set, std::size_t column) {
    const panel_shape::tag d;
    std::int32_t* uppers = products_ + block_row * set.n_columns;
    const auto upper = std::bit_cast<float>(uppers[column]);
    uppers[column] = std::bit_cast<std::int32_t>(std::numeric_limits<float>::lowest());
    const std::size_t g = column / group;
    auto largest = hn::Set(d, std::numeric_limits<float>::lowest());
    for (std::size_t c = g * group; c < std::min((g + 1) * group, set.n_columns); c += lanes) {
      largest = hn::Max(largest, hn::BitCast(d, hn::Load(integer_tag(), uppers + c)));
    }
    hn::Store(largest, d, group_uppers_ + (block_row * set.n_groups + g) * lanes);
    return upper;
  }

  float largest_upper(std::size_t block_row, const column_set& set) const {
    const panel_shape::tag d;
    const float* group_uppers = group_uppers_ + block_row * set.n_groups * lanes;
    auto largest = hn::Load(d, group_uppers);
    for (std::size_t g = 1; g < set.n_groups; ++g) {
      largest = hn::Max(largest, hn::Load(d, group_uppers + g * lanes));
    }
    return hn::GetLane(hn::MaxOfLanes(d, largest));
  }

  /// The best of the centroids whose upper bound reaches the threshold, and of `winner` when that is one; of equal
  /// ones the smallest. Where candidates lie is not predictable, so they are collected in bit masks, not by branches.
  /// @param ids  of the set's columns, in order; empty: their own numbers
  std::size_t decide(std::size_t point, std::size_t block_row, const column_set& set,
                     float threshold, std::size_t winner,
                     std::span<const std::uint32_t> ids) const {
    const std::int32_t* uppers = products_ + block_row * set.n_columns;
    const float* group_uppers = group_uppers_ + block_row * set.n_groups * lanes;
    float best = 0;
    bool is_scored = false;
    for (std::size_t first_group = 0; first_group < set.n_groups; first_group += 64) {
      const std::size_t n = std::min<std::size_t>(set.n_groups - first_group, 64);
      std::uint64_t groups = 0;
      for (std::size_t g = 0; g < n; ++g) {
        groups |= std::uint64_t{reaching(group_uppers + (first_group + g) * lanes, threshold) != 0}
                  << g;
      }
      for (; groups != 0; groups &= groups - 1) {
        const std::size_t first =
            (first_group + static_cast<std::size_t>(std::countr_zero(groups))) * group;
        std::uint64_t columns = 0;
        for (std::size_t c = first; c < std::min(first + group, set.n_columns); c += lanes) {
          columns |= reaching(uppers + c, threshold) << (c - first);
        }
        for (; columns != 0; columns &= columns - 1) {
          const std::size_t column = first + static_cast<std::size_t>(std::countr_zero(columns));
          const std::size_t candidate = ids.empty() ? column : ids[column];
          if (winner == n_clusters_) {  // most often the only one, and then never scored
            winner = candidate;
            continue;
          }
          if (!is_scored) {
            best = score(point, winner);
            is_scored = true;
          }
          const float other = score(point, candidate);
          if (other > best || (other == best && candidate < winner)) {
            best = other;
            winner = candidate;
          }
        }
      }
    }
    return winner;
  }

  /// One bit per lane of a vector of upper bounds: set where it reaches the threshold.
  template <class Bits>
  static std::uint64_t reaching(const Bits* uppers, float threshold) {
    const panel_shape::tag d;
    const hn::ScalableTag<Bits> db;
    const auto reaches = hn::Ge(hn::BitCast(d, hn::Load(db, uppers)), hn::Set(d, threshold));
#if HWY_TARGET <= HWY_AVX3
    return reaches.raw;
#else
    return static_cast<std::uint64_t>(_mm256_movemask_ps(reaches.raw));
#endif
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
  std::size_t padded_dim_;
  std::size_t n_padded_;    // points in whole blocks
  std::int8_t* blocks_;     // one more than those
  std::int32_t* products_;  // [block_rows, n_columns], then the bits of the upper bounds
  float* rows_;             // [n_padded + block_rows, 3]: scale, ‖y‖, ‖dy‖
  float* point_mean_;
  float* centroid_mean_;
  float* deviation_;  // one row, padded, and room for its bytes
  double* sums_;
  // Of each point, in the terms of the products: a lower bound of its centroid's score, an upper bound of it, and one
  // of all other scores.
  float* lowers_;
  float* own_uppers_;
  float* other_uppers_;
  std::uint32_t* open_points_;
  float* group_uppers_ = nullptr;  // [block_rows, n_groups, lanes]
  column_set all_;
  column_set changed_;
  std::span<const std::uint32_t> changed_ids_;
  const float* centroids_ = nullptr;
  const float* biases_ = nullptr;
  float point_mean_norm_ = 0;
  float mean_norm_ = 0;
  float largest_bias_ = 0;
  float largest_norm_ = 0;
  float slack_ = 0;
  float slack_per_norm_ = 0;
};

}  // namespace wavekv::detail

#endif
