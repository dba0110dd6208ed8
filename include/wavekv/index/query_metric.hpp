// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/core/tensor_view.hpp>

/// @file query_metric.hpp
/// @brief The directions that the queries of one KV head look along, as one symmetric matrix.

namespace wavekv {

/// @brief Gathers M = mean of q·qᵀ over the queries of one (sequence, layer, KV head).
///
/// What an estimate gets wrong is the spread of q·k inside a cluster, and that spread is kᵀ·M·k on average:
/// M tells which differences between keys matter. Copyable, so that a fork carries it on.
///
/// Queries are thinned evenly as a prompt grows: every token is taken until half of max_queries rows
/// are in, then every second token with double weight, and so on, so that the whole prompt counts
/// alike, whatever its length, at a cost that grows with the logarithm of the length. The result does not depend on how
/// the queries are split over calls of `add`.
///
/// Memory: key_dim·(key_dim+1)/2 floats. Not safe for concurrent `add`.
class query_metric {
 public:
  static constexpr std::size_t default_max_queries =
      4096;  ///< as many as the figures in the README were measured with

  /// @brief Share of the mean eigenvalue added to every direction: as much as the queries themselves. A question may look
  /// along directions that the prompt's queries rarely used; with little weight there its answer shares clusters with
  /// everything (at 1e-3 the example model lost one needle in ten at 32K tokens, at 1 as few as with plain k-means,
  /// and errors fell as well). The Cholesky factor exists for any number of queries, too.
  static constexpr double ridge = 1.0;

  /// @brief A metric of no dimensions, to be assigned to.
  query_metric() = default;

  /// @brief A metric that has seen no query.
  /// @param key_dim      elements of a query
  /// @param max_queries  rows taken before the thinning starts to bite (see above), at least 2
  explicit query_metric(std::size_t key_dim, std::size_t max_queries = default_max_queries)
      : key_dim_(key_dim),
        rows_per_period_(std::max<std::size_t>(max_queries / 2, 1)),
        lower_(key_dim * (key_dim + 1) / 2, 0.0F) {}

  /// @brief Adds the queries of a run of consecutive tokens.
  /// Complexity: O(rows taken · key_dim²). Allocates nothing for float, one row otherwise.
  /// @param queries  [n_tokens, group_size, key_dim], finite; the query heads that share this KV head
  /// @param scale    the factor applied to logits; only the trace depends on it
  /// @throw shape_error if the last extent is not key_dim or its stride is not 1
  template <scalar T>
  void add(tensor_view<const T, 3> queries, float scale = 1.0F) {
    if (queries.extent(0) == 0) {
      return;
    }
    if (queries.extent(2) != key_dim_ || queries.stride(2) != 1) {
      throw shape_error(detail::message("query_metric: queries have last extent ",
                                        queries.extent(2), " and stride ", queries.stride(2),
                                        "; expected ", key_dim_, " and 1"));
    }
    std::vector<float> widened(std::is_same_v<T, float> ? 0 : key_dim_);
    for (std::size_t token = 0; token < queries.extent(0); ++token) {
      if (n_tokens_++ % period_ != 0) {
        continue;
      }
      for (std::size_t head = 0; head < queries.extent(1); ++head) {
        const T* row = &queries(token, head, std::size_t{0});
        if constexpr (std::is_same_v<T, float>) {
          add_row(row, scale);
        } else {
          for (std::size_t i = 0; i < key_dim_; ++i) {
            widened[i] = to_float(row[i]);
          }
          add_row(widened.data(), scale);
        }
      }
      if (rows_in_period_ >= rows_per_period_) {
        rows_in_period_ = 0;
        period_ *= 2;
      }
    }
  }

  /// @brief Elements of a query.
  [[nodiscard]] std::size_t key_dim() const noexcept { return key_dim_; }
  /// @brief Query rows taken so far, after thinning.
  [[nodiscard]] std::size_t count() const noexcept { return n_rows_; }
  /// @brief Whether any query other than zero was seen; if not, the metric is the identity.
  [[nodiscard]] bool known() const noexcept { return weight_ > 0 && squares_ > 0; }
  /// @brief trace(M) = mean of ‖scale·q‖²; 0 when nothing was seen.
  [[nodiscard]] double trace() const noexcept { return weight_ > 0 ? squares_ / weight_ : 0.0; }

  /// @brief M scaled to trace key_dim, with the ridge: what `factor` factorises. The identity if not known().
  /// @param matrix  [key_dim, key_dim], written in full
  /// @throw shape_error if the span has another size
  void normalized(std::span<double> matrix) const {
    require_square(matrix.size());
    const double mean = known() ? squares_ / static_cast<double>(key_dim_) : 0.0;
    for (std::size_t i = 0, at = 0; i < key_dim_; ++i) {
      for (std::size_t j = 0; j <= i; ++j, ++at) {
        const double unit = i == j ? 1.0 : 0.0;
        const double entry =
            mean > 0 ? (static_cast<double>(lower_[at]) / mean + ridge * unit) / (1.0 + ridge)
                     : unit;
        matrix[i * key_dim_ + j] = entry;
        matrix[j * key_dim_ + i] = entry;
      }
    }
  }

  /// @brief The lower triangular L with L·Lᵀ = normalized(); ‖Lᵀ·x‖² measures x as the queries see it.
  ///
  /// Written out here, in double: Eigen's LLT gives the same factor (a test compares them), but its header
  /// alone takes half of what the umbrella header may take to compile, and g++ 12 warns inside it with AVX-512.
  /// Complexity: O(key_dim³). Allocates one matrix of doubles.
  /// @param lower  [key_dim, key_dim], row-major, written in full; zeros above the diagonal
  /// @throw shape_error if the span has another size
  void factor(std::span<float> lower) const {
    require_square(lower.size());
    const std::size_t dim = key_dim_;
    std::vector<double> matrix(dim * dim);
    normalized(matrix);
    for (std::size_t i = 0; i < dim; ++i) {
      double* row = &matrix[i * dim];
      for (std::size_t j = 0; j <= i; ++j) {
        const double* other = &matrix[j * dim];
        double rest = row[j];
        for (std::size_t t = 0; t < j; ++t) {
          rest -= row[t] * other[t];
        }
        // The ridge keeps pivots near or above itself; the floor only guards against rounding.
        row[j] = i == j ? std::sqrt(std::max(rest, ridge * 1e-3)) : rest / other[j];
      }
    }
    for (std::size_t i = 0; i < dim; ++i) {
      for (std::size_t j = 0; j < dim; ++j) {
        lower[i * dim + j] = j <= i ? static_cast<float>(matrix[i * dim + j]) : 0.0F;
      }
    }
  }

  /// @brief Whether both have seen the same.  Complexity: O(key_dim²).
  friend bool operator==(const query_metric&, const query_metric&) = default;

  /// @brief Bytes held.
  [[nodiscard]] std::size_t bytes() const noexcept { return lower_.size() * sizeof(float); }

 private:
  void require_square(std::size_t size) const {
    if (size != key_dim_ * key_dim_) {
      throw shape_error(detail::message("query_metric: matrix of ", size, " elements; expected ",
                                        key_dim_ * key_dim_));
    }
  }

  void add_row(const float* query, float scale) {
    double square = 0;
    for (std::size_t i = 0; i < key_dim_; ++i) {
      const double element = static_cast<double>(query[i]) * static_cast<double>(scale);
      square += element * element;
    }
    const auto weight = static_cast<double>(period_);
    ++rows_in_period_;
    if (!(square * weight < 1e30)) {
      return;
    }  // no model's query: it would drown or overflow every other
    ++n_rows_;
    weight_ += weight;
    squares_ += weight * square;
    const float factor = scale * scale * static_cast<float>(period_);
    float* row = lower_.data();
    for (std::size_t i = 0; i < key_dim_; ++i) {
      const float element = query[i] * factor;
      for (std::size_t j = 0; j <= i; ++j) {
        row[j] += element * query[j];
      }
      row += i + 1;
    }
  }

  std::size_t key_dim_ = 0;
  std::size_t rows_per_period_ = 1;
  std::size_t rows_in_period_ = 0;
  std::size_t period_ = 1;
  std::size_t n_tokens_ = 0;
  std::size_t n_rows_ = 0;
  double weight_ = 0;
  double squares_ = 0;
  std::vector<float> lower_;  ///< Σ weight·q·qᵀ, lower triangle by rows
};

}  // namespace wavekv
