// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <wavekv/cache/checks.hpp>
#include <wavekv/cache/statistics.hpp>
#include <wavekv/core/errors.hpp>
#include <wavekv/core/ids.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/core/tensor_view.hpp>
#include <wavekv/index/bounds/error_bound.hpp>
#include <wavekv/index/bounds/exact.hpp>
#include <wavekv/index/concepts.hpp>

/// @file calibration.hpp
/// @brief What an error_bound's predictions are to be multiplied by, learnt from questions whose exact answers are known.

namespace wavekv {

/// @brief Gathers predicted and observed errors, and says by what factor predictions fell short in the median.
///
/// Summaries cannot see what a single token hides, and sums of many clusters' errors grow with the context otherwise than
/// predicted: on the example model's layers errors are 0.9 to 5 times the predicted ones, the more so the longer the context.
/// For one layer, one length and one bound most of that is one factor (bench/README.md, "Rules side by side").
class calibration {
 public:
  /// @brief Pairs that a factor is learnt from at least; below it there is none.
  static constexpr std::size_t least_pairs = 8;
  /// @brief Observed errors below this are rounding's and say nothing of predictions.
  static constexpr float least_error = 1e-3F;

  /// @brief Takes one step's errors. Left out: an observed one below least_error, and a prediction of 0.
  /// Amortised O(1). Allocates.
  /// @param predicted  step_stats::predicted_error
  /// @param observed   largest relative error of a query head's output, see largest_error
  /// @throw value_error when one is not finite
  void add(float predicted, float observed) {
    if (!std::isfinite(predicted) || !std::isfinite(observed)) {
      throw value_error(detail::message("calibration: predicted is ", predicted, ", observed ",
                                        observed, "; allowed: finite"));
    }
    const float ratio = observed / predicted;
    if (observed >= least_error && ratio > 0.0F && std::isfinite(ratio)) {
      ratios_.push_back(ratio);
    }
  }

  /// @brief Pairs taken and not left out.
  [[nodiscard]] std::size_t n_pairs() const noexcept { return ratios_.size(); }

  /// @brief Median of observed / predicted, of an even number the upper one; 1 below least_pairs. O(n_pairs). Allocates.
  [[nodiscard]] float factor() const {
    if (ratios_.size() < least_pairs) {
      return 1.0F;
    }
    std::vector<float> ratios = ratios_;
    const auto middle = ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2);
    std::ranges::nth_element(ratios, middle);
    return *middle;
  }

 private:
  std::vector<float> ratios_;
};

/// @brief Largest relative error of a head's output over a step, ‖out - exact‖ / ‖exact‖; a head whose exact output is zero
/// does not count; NaN where an output is. O(n_queries · n_query_heads · value_dim). Allocates nothing.
/// @param out    [n_queries, n_query_heads, value_dim]
/// @param exact  the same by full attention
/// @throw shape_error when the shapes differ, or one has no memory or no rows of stride 1
template <class T, class U>
[[nodiscard]] float largest_error(tensor_view<T, 3> out, tensor_view<U, 3> exact) {
  detail::check_shape("out", out, out.extent(0), out.extent(1), out.extent(2));
  detail::check_shape("exact", exact, out.extent(0), out.extent(1), out.extent(2));
  double largest = 0.0;
  for (std::size_t query = 0; query < out.extent(0); ++query) {
    for (std::size_t head = 0; head < out.extent(1); ++head) {
      double apart = 0.0;
      double length = 0.0;
      for (std::size_t i = 0; i < out.extent(2); ++i) {
        const auto right = static_cast<double>(to_float(exact(query, head, i)));
        const double off = static_cast<double>(to_float(out(query, head, i))) - right;
        apart += off * off;
        length += right * right;
      }
      const double error = length == 0.0 ? 0.0 : apart / length;
      largest = error <= largest ? largest : error;  // a NaN is not
      if (std::isnan(largest)) {
        return static_cast<float>(largest);
      }
    }
  }
  return static_cast<float>(std::sqrt(largest));
}

/// @brief Asks each query by the bound and exactly, as if it stood at the newest token, and takes both errors down.
///
/// Cost: two attends a query, one of them exact: with a slow tier each of these reads all blocks. Blocks. Allocates. The
/// cache's answers stay what they were, its statistics count the steps. For a cache in device memory: a calibration of its
/// own steps, whose outputs are copied to the host.
/// @param queries  [n_queries, n_query_heads, key_dim], finite
/// @throw config_error when the bound's members are out of range; as kv_cache::attend does, and then the steps before it
/// are counted
template <class Cache, class T, estimation_bound Bound>
[[nodiscard]] calibration observe_errors(Cache& cache, sequence_id sequence, std::size_t layer,
                                         tensor_view<T, 3> queries, const Bound& bound) {
  detail::validate_bound(bound);
  const std::size_t n_heads = cache.geometry().n_query_heads;
  const std::size_t dim = cache.geometry().value_dim;
  std::vector<float> rows(2 * n_heads * dim);
  const auto out = nhd(rows.data(), 1, n_heads, dim);
  const auto right = nhd(rows.data() + n_heads * dim, 1, n_heads, dim);
  calibration errors;
  for (std::size_t i = 0; i < queries.extent(0); ++i) {
    const auto query = queries.slice(i, 1);
    const step_stats step = cache.attend(sequence, layer, query, out, bound);
    cache.attend(sequence, layer, query, right, exact{});
    errors.add(step.predicted_error, largest_error(out, right));
  }
  return errors;
}

/// @brief A bound whose predictions are calibrated on a sequence: error_scale times the factor that they fell short by,
/// in the median of the queries (observe_errors).
///
/// Ask queries of the prompt, spread over it, 16 to 64 of them, when it has been read and sealed: a prompt's are what later
/// ones are like. A median: half of the steps still err by more than is predicted. A factor holds for one layer, about this
/// length and what the bound reads; a bound is an argument of attend, so that each layer can have its own. Where it is epsilon
/// and not a cap that ends the reading, a scale changes what is read: calibrate the result once more. Where fewer than
/// calibration::least_pairs steps can be told from rounding, the bound comes back as it is.
/// Cost, errors: those of observe_errors.
/// @param bound  whose caps and epsilon the steps will use
template <class Cache, class T, class Ranking>
[[nodiscard]] error_bound<Ranking> calibrate(Cache& cache, sequence_id sequence, std::size_t layer,
                                             tensor_view<T, 3> queries,
                                             error_bound<Ranking> bound) {
  bound.error_scale *= observe_errors(cache, sequence, layer, queries, bound).factor();
  return bound;
}

}  // namespace wavekv
