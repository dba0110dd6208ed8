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

#include <wavekv/cache/kv_cache.hpp>
#include <wavekv/cpu/executor.hpp>

#include "data/asked_layer.hpp"

/// @file rule.hpp
/// @brief A rule that chooses what is read, as a cache type and a sweep of its budget.

namespace wavekv_bench {

/// @brief What one rule did at one budget.
struct measured_point {
  double budget = 0.0;           ///< as the rule counts it
  double bytes_share = 0.0;      ///< read, of the bytes of all K and V
  double read_share = 0.0;       ///< tokens read exactly, of all
  double time_us = 0.0;          ///< of a step on one thread, median
  double predicted_error = 0.0;  ///< median; 0: the rule predicts none
  std::size_t n_erring = 0;      ///< steps whose worst head errs by least_error or more
  std::size_t n_predicted =
      0;  ///< of those: the ones whose prediction is within a factor of two of that head's error
  std::vector<std::vector<float>>
      errors;  ///< [n_query_heads][n_questions] relative errors of the output
};

/// @brief Errors below this are rounding's: K and V are stored in bf16.
inline constexpr float least_error = 1e-3F;

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
    if (step.worst >= least_error) {
      ++point.n_erring;
      point.n_predicted += said >= 0.5F * step.worst && said <= 2.0F * step.worst ? 1 : 0;
    }
  };
  const wavekv::step_stats total = ask_each(cache, sequence, layer, bound, take);
  point.read_share = read_share(total);
  point.bytes_share = bytes_share(total, data);
  point.time_us = quantile(times, 0.5);
  point.predicted_error = static_cast<double>(quantile(predicted, 0.5));
  return point;
}

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
      points.push_back(ask_all(*cache, sequence, layer, bound_(budget, *layer.data)));
      points.back().budget = budget;
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
