// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/detail/panel_product.hpp>
#include <wavekv/index/query_metric.hpp>

/// @file metric_space.hpp
/// @brief Lᵀ·x for many rows x, where L·Lᵀ is the query metric: the space in which keys are seen by queries.

namespace wavekv::detail {

/// The factor of one metric, packed for the micro-kernel; the identity without a metric that knows anything.
/// A scratch keeps the factor of the metric it saw last: one KV head asks for it several times.
class metric_space {
 public:
  metric_space(const query_metric* metric, std::size_t key_dim, clustering_scratch& scratch)
      : dim_(key_dim), is_identity_(metric == nullptr || !metric->known()) {
    if (is_identity_) {
      return;
    }
    if (metric->key_dim() != key_dim) {
      throw shape_error(
          message("query_metric has key_dim ", metric->key_dim(), "; the keys have ", key_dim));
    }
    const std::size_t n_floats =
        panel_shape::n_panels(key_dim) * panel_shape::panel_width * key_dim;
    float* panels = scratch.factor_panels.take(n_floats);
    if (!(scratch.factorized == *metric)) {
      scratch.factorized = query_metric();
      float* factor = scratch.factor.take(key_dim * key_dim);
      metric->factor(std::span<float>(factor, key_dim * key_dim));
      pack_panels_of_columns(factor, key_dim, key_dim, panels);
      scratch.factorized = *metric;
    }
    panels_ = panels;
  }

  /// Transforms one packed block and calls epilogue(row constant, first column, left, right) for every row and panel.
  /// The columns of a lower triangular factor start at their own row, so the rows above a panel are skipped.
  template <class Epilogue>
  void transform_block(const float* block, const Epilogue& epilogue) const {
    for (std::size_t p = 0; p < panel_shape::n_panels(dim_); ++p) {
      const std::size_t first = p * panel_shape::panel_width;
      tile_scores(
          block + first * panel_shape::block_rows,
          panels_ + (p * dim_ + first) * panel_shape::panel_width, dim_ - first, nullptr,
          [&](std::size_t row, auto left, auto right) { epilogue(row, first, left, right); });
    }
  }

  bool is_identity() const noexcept { return is_identity_; }

 private:
  std::size_t dim_;
  bool is_identity_;
  const float* panels_ = nullptr;
};

/// Rows minus their mean, in float, and the total variance (summed over dimensions) of what was written.
/// Writes to columns [0, dim) of a matrix with the given stride.
inline void center_rows(const float* rows, std::size_t n_rows, std::size_t dim, double* mean,
                        float* centered, std::size_t stride) {
  std::fill_n(mean, dim, 0.0);
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t i = 0; i < dim; ++i) {
      mean[i] += static_cast<double>(rows[r * dim + i]);
    }
  }
  for (std::size_t i = 0; i < dim; ++i) {
    mean[i] /= static_cast<double>(n_rows);
  }
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t i = 0; i < dim; ++i) {
      centered[r * stride + i] =
          static_cast<float>(static_cast<double>(rows[r * dim + i]) - mean[i]);
    }
  }
}

/// Scales columns [0, dim) of a strided matrix so that their total variance around zero becomes weight².
/// Columns without variance become zeros.
inline void normalize_rows(float* rows, std::size_t n_rows, std::size_t dim, std::size_t stride,
                           double weight) {
  double square = 0;
  for (std::size_t r = 0; r < n_rows; ++r) {
    square += static_cast<double>(dot_product(rows + r * stride, rows + r * stride, dim));
  }
  const double deviation = std::sqrt(square / static_cast<double>(n_rows));
  const auto scale = static_cast<float>(deviation > 0 ? weight / deviation : 0.0);
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t i = 0; i < dim; ++i) {
      rows[r * stride + i] *= scale;
    }
  }
}

}  // namespace wavekv::detail
