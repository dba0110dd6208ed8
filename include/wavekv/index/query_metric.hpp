// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
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
/// Memory: key_dim·(key_dim+1)/2 floats, and a sample of the queries where it is asked for. Not safe for concurrent `add`.
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
  /// @param max_sample   queries that are kept as they are, at most: 0 or 2 and more
  explicit query_metric(std::size_t key_dim, std::size_t max_queries = default_max_queries,
                        std::size_t max_sample = 0)
      : key_dim_(key_dim),
        rows_per_period_(std::max<std::size_t>(max_queries / 2, 1)),
        lower_(key_dim * (key_dim + 1) / 2, 0.0F),
        max_sample_(max_sample) {}

  /// @brief Adds the queries of a run of consecutive tokens.
  /// Complexity: O(rows taken · key_dim²). Allocates nothing for float, four rows otherwise.
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
    std::vector<float> widened(std::is_same_v<T, float> ? 0 : max_together * key_dim_);
    for (std::size_t token = 0; token < queries.extent(0); ++token) {
      if (n_tokens_++ % period_ != 0) {
        continue;
      }
      for (std::size_t head = 0; head < queries.extent(1); head += max_together) {
        std::array<const float*, max_together> rows{};
        const std::size_t n = std::min(max_together, queries.extent(1) - head);
        for (std::size_t r = 0; r < n; ++r) {
          const T* row = &queries(token, head + r, std::size_t{0});
          if constexpr (std::is_same_v<T, float>) {
            rows[r] = row;
          } else {
            float* wide = widened.data() + r * key_dim_;
            std::transform(row, row + key_dim_, wide, [](T x) { return to_float(x); });
            rows[r] = wide;
          }
        }
        add_rows(std::span(rows).first(n), scale);
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

  /// @brief Queries as they were seen, not scaled, [n, key_dim]: every so many of the rows taken, between half of max_sample and all of
  /// it once there are as many.
  [[nodiscard]] std::span<const float> sample() const noexcept { return sample_; }

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
    // Right-looking, on the upper half: Lᵀ row by row, each taken off the rows below it, so that the inner loop runs along
    // memory and needs no sum over a vector.
    for (std::size_t k = 0; k < dim; ++k) {
      double* row = &matrix[k * dim];
      // The ridge keeps pivots near or above itself; the floor only guards against rounding.
      row[k] = std::sqrt(std::max(row[k], ridge * 1e-3));
      for (std::size_t j = k + 1; j < dim; ++j) {
        row[j] /= row[k];
      }
      for (std::size_t i = k + 1; i < dim; ++i) {
        double* rest = &matrix[i * dim];
        const double element = row[i];
        for (std::size_t j = i; j < dim; ++j) {
          rest[j] -= element * row[j];
        }
      }
    }
    for (std::size_t i = 0; i < dim; ++i) {
      for (std::size_t j = 0; j < dim; ++j) {
        lower[i * dim + j] = j <= i ? static_cast<float>(matrix[j * dim + i]) : 0.0F;
      }
    }
  }

  /// @brief Whether both have seen the same.  Complexity: O(key_dim²).
  friend bool operator==(const query_metric&, const query_metric&) = default;

  /// @brief Bytes held.
  [[nodiscard]] std::size_t bytes() const noexcept {
    return (lower_.size() + sample_.size()) * sizeof(float);
  }

  /// @brief Whether this is a state that add can have led to, up to rounding; to be asked of one that was read from
  /// elsewhere, since much is built on it: the sums are those of squares, and have a factor.
  /// Complexity: O(key_dim³). Allocates two matrices.
  [[nodiscard]] bool is_sound() const {
    if (rows_per_period_ < 1 || period_ < 1 || (period_ & (period_ - 1)) != 0 ||
        period_ > (std::size_t{1} << 40U) || lower_.size() != key_dim_ * (key_dim_ + 1) / 2 ||
        !(weight_ >= 0.0 && weight_ < 1e30) || !(squares_ >= 0.0 && squares_ < 1e36)) {
      return false;
    }
    for (const float sum : lower_) {  // no product is larger than the squares
      if (!(std::abs(static_cast<double>(sum)) <= 1.01 * squares_)) {
        return false;
      }
    }
    std::vector<double> matrix(key_dim_ * key_dim_);
    std::vector<float> lower(matrix.size());
    normalized(matrix);
    factor(lower);
    for (std::size_t i = 0; i < key_dim_; ++i) {
      double squared = 0.0;
      for (std::size_t j = 0; j <= i; ++j) {
        const auto element = static_cast<double>(lower[i * key_dim_ + j]);
        squared += element * element;
      }
      const double due = matrix[i * key_dim_ + i];
      if (!(std::abs(squared - due) <= 1e-2 * due)) {
        return false;
      }
    }
    return true;
  }

  /// @brief Calls visit for everything that was learnt, in a fixed order: what a file keeps of it.
  template <class Self, class Visit>
  static void visit_state(Self& self, Visit&& visit) {
    visit(self.rows_per_period_);
    visit(self.rows_in_period_);
    visit(self.period_);
    visit(self.n_tokens_);
    visit(self.n_rows_);
    visit(self.weight_);
    visit(self.squares_);
    visit(self.lower_);
  }

 private:
  void require_square(std::size_t size) const {
    if (size != key_dim_ * key_dim_) {
      throw shape_error(detail::message("query_metric: matrix of ", size, " elements; expected ",
                                        key_dim_ * key_dim_));
    }
  }

  // Rows taken together, so that the sums are loaded and stored once for all of them.
  static constexpr std::size_t max_together = 4;

  // Every sample_period_-th row of those that are taken; when there is no room for one more, every second one goes.
  void keep_in_sample(const float* query) {
    if (max_sample_ == 0 || n_rows_ % sample_period_ != 0) {
      return;
    }
    if (sample_.size() >= max_sample_ * key_dim_) {
      const std::size_t n_kept = (max_sample_ + 1) / 2;
      for (std::size_t i = 1; i < n_kept; ++i) {
        std::copy_n(sample_.data() + 2 * i * key_dim_, key_dim_, sample_.data() + i * key_dim_);
      }
      sample_.resize(n_kept * key_dim_);
      sample_period_ *= 2;
      if (n_rows_ % sample_period_ != 0) {
        return;
      }
    }
    sample_.insert(sample_.end(), query, query + key_dim_);
  }

  void add_rows(std::span<const float* const> queries, float scale) {
    std::array<const float*, max_together> taken{};
    std::size_t n_taken = 0;
    const auto weight = static_cast<double>(period_);
    for (const float* query : queries) {
      double square = 0;
      for (std::size_t i = 0; i < key_dim_; ++i) {
        const double element = static_cast<double>(query[i]) * static_cast<double>(scale);
        square += element * element;
      }
      ++rows_in_period_;
      if (!(square * weight < 1e30)) {
        continue;
      }  // no model's query: it would drown or overflow every other
      keep_in_sample(query);
      ++n_rows_;
      weight_ += weight;
      squares_ += weight * square;
      taken[n_taken++] = query;
    }
    const float factor = scale * scale * static_cast<float>(period_);
    if (n_taken == max_together) {
      add_products<max_together>(taken.data(), factor);
    } else {
      for (std::size_t r = 0; r < n_taken; ++r) {
        add_products<1>(taken.data() + r, factor);
      }
    }
  }

  // Adds factor·q·qᵀ of n queries, one after the other to each sum: the result is that of n calls.
  template <std::size_t n>
  void add_products(const float* const* queries, float factor) {
    float* row = lower_.data();
    for (std::size_t i = 0; i < key_dim_; ++i) {
      std::array<float, n> element;
      for (std::size_t r = 0; r < n; ++r) {
        element[r] = queries[r][i] * factor;
      }
      for (std::size_t j = 0; j <= i; ++j) {
        float sum = row[j];
        for (std::size_t r = 0; r < n; ++r) {
          sum += element[r] * queries[r][j];
        }
        row[j] = sum;
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
  std::size_t max_sample_ = 0;
  std::size_t sample_period_ = 1;
  std::vector<float> sample_;  ///< [at most max_sample_, key_dim]
};

}  // namespace wavekv
