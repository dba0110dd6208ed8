// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <wavekv/cache/calibration.hpp>
#include <wavekv/cache/kv_cache.hpp>
#include <wavekv/cpu/executor.hpp>
#include <wavekv/index/bounds/error_bound.hpp>

#include "data/asked_layer.hpp"

/// @file rule.hpp
/// @brief A rule that chooses what is read, as a cache type and a sweep of its budget.

namespace wavekv_bench {

/// @brief How often predictions were worth something.
struct prediction_count {
  std::size_t n_erring = 0;  ///< steps whose worst head errs by calibration::least_error or more
  std::size_t n_predicted =
      0;  ///< of those: predictions within a factor of two of that head's error

  void add(float predicted, float observed) {
    if (observed >= wavekv::calibration::least_error) {
      ++n_erring;
      n_predicted += predicted >= 0.5F * observed && predicted <= 2.0F * observed ? 1 : 0;
    }
  }
};

/// @brief What one rule did at one budget.
struct measured_point {
  double budget = 0.0;           ///< as the rule counts it
  double bytes_share = 0.0;      ///< read, of the bytes of all K and V
  double read_share = 0.0;       ///< tokens read exactly, of all
  double time_us = 0.0;          ///< of a step on one thread, median
  double predicted_error = 0.0;  ///< median; 0: the rule predicts none
  prediction_count as_is;        ///< predictions as summaries make them
  prediction_count calibrated;   ///< of a second run over the questions, by calibrate()'s bound
  double error_scale = 0.0;      ///< that calibrate() learnt; 0: there was no second run
  std::vector<std::vector<float>>
      errors;  ///< [n_query_heads][n_questions] relative errors of the output
};

/// @brief Asks a cache that holds a layer all of its questions, one at a time.
template <class Cache, class Bound>
measured_point ask_all(Cache& cache, wavekv::sequence_id sequence, const asked_layer& layer,
                       const Bound& bound) {
  const attention_data& data = *layer.data;
  measured_point point;
  point.errors.resize(data.n_query_heads);
  std::vector<double> times;
  std::vector<float> predicted;
  const auto take = [&](const asked_step& step) {
    times.push_back(step.time_us);
    const float said = step.stats.predicted_error;
    predicted.push_back(said);
    for (std::size_t head = 0; head < data.n_query_heads; ++head) {
      point.errors[head].push_back(step.errors[head]);
    }
    point.as_is.add(said, step.worst);
  };
  const wavekv::step_stats total = ask_each(cache, sequence, layer, bound, take);
  point.read_share = read_share(total);
  point.bytes_share = bytes_share(total, data);
  point.time_us = quantile(times, 0.5);
  point.predicted_error = static_cast<double>(quantile(predicted, 0.5));
  return point;
}

/// @brief Queries of the prompt that predictions are calibrated with.
inline constexpr std::size_t n_calibrating = 48;

/// @brief Calibrates an error_bound with queries of the prompt and asks the questions again.
template <class Cache, class Ranking>
void add_calibrated(Cache& cache, wavekv::sequence_id sequence, const asked_layer& layer,
                    const wavekv::error_bound<Ranking>& bound, measured_point& point) {
  const attention_data& data = *layer.data;
  const std::vector<float> queries = prompt_queries(data, n_calibrating);
  const auto calibrated = wavekv::calibrate(
      cache, sequence, 0, wavekv::nhd(queries.data(), n_calibrating, data.n_query_heads, data.dim),
      bound);
  point.error_scale = static_cast<double>(calibrated.error_scale);
  ask_each(cache, sequence, layer, calibrated, [&](const asked_step& step) {
    point.calibrated.add(step.stats.predicted_error, step.worst);
  });
}

/// @brief Any other rule has nothing to calibrate.
template <class Cache, class Bound>
void add_calibrated(Cache& /*cache*/, wavekv::sequence_id /*sequence*/,
                    const asked_layer& /*layer*/, const Bound& /*bound*/,
                    measured_point& /*point*/) {}

/// @brief One rule.
class rule {
 public:
  explicit rule(std::string name) : name_(std::move(name)) {}
  rule(const rule&) = delete;
  rule& operator=(const rule&) = delete;
  rule(rule&&) = delete;
  rule& operator=(rule&&) = delete;
  virtual ~rule() = default;

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// @brief Whether is_done(budget) holds for each of its budgets.
  [[nodiscard]] virtual bool is_done(const std::function<bool(double)>& is_done) const = 0;
  /// @brief Builds what the rule needs, asks all questions at each of its budgets.
  [[nodiscard]] virtual std::vector<measured_point> sweep(const asked_layer& layer) const = 0;

 private:
  std::string name_;
};

/// @brief A rule of a wave_index.
/// @tparam Index  a wave_index
/// @tparam Bound  its bound
template <class Index, class Bound>
class index_rule final : public rule {
 public:
  using cache_type = wavekv::kv_cache<wavekv::bf16, Index, wavekv::wave_buffer<>,
                                      wavekv::cpu<wavekv::serial_executor>>;
  using bound_of = std::function<Bound(double budget, const attention_data& data)>;

  index_rule(std::string name, std::vector<double> budgets, bound_of bound)
      : rule(std::move(name)), budgets_(std::move(budgets)), bound_(std::move(bound)) {}

  /// @brief A rule whose budget is the window's length in tokens, not its bound's.
  index_rule& in_windows() {
    in_windows_ = true;
    return *this;
  }

  [[nodiscard]] bool is_done(const std::function<bool(double)>& is_done) const override {
    return std::ranges::all_of(budgets_, is_done);
  }

  [[nodiscard]] std::vector<measured_point> sweep(const asked_layer& layer) const override {
    std::vector<measured_point> points;
    std::unique_ptr<cache_type> cache;
    wavekv::sequence_id sequence;
    for (const double budget : budgets_) {
      if (cache == nullptr || in_windows_) {
        cache.reset();  // one at a time
        typename cache_type::options_type options;
        if (in_windows_)
          options.window_tokens =
              static_cast<std::size_t>(budget * static_cast<double>(layer.data->n_tokens));
        cache = std::make_unique<cache_type>(geometry_of(*layer.data), options);
        sequence = append_taught(*cache, *layer.data);
      }
      const Bound bound = bound_(budget, *layer.data);
      points.push_back(ask_all(*cache, sequence, layer, bound));
      points.back().budget = budget;
      add_calibrated(*cache, sequence, layer, bound, points.back());
    }
    return points;
  }

 private:
  std::vector<double> budgets_;
  bound_of bound_;
  bool in_windows_ = false;
};

/// @brief Full attention's answers to n questions.
asked_layer ask_exactly(const attention_data& data, std::size_t n_questions);

/// @brief The rules of one file each; together all that are measured.
std::vector<std::unique_ptr<rule>> wave_rules();
std::vector<std::unique_ptr<rule>> page_rules();
std::vector<std::unique_ptr<rule>> token_rules();

}  // namespace wavekv_bench
