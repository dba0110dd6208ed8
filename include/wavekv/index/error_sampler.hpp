// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/core/random.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/group_search.hpp>

/// @file error_sampler.hpp
/// @brief Checks an answer against tokens drawn from what was not read.

namespace wavekv {

/// @brief Names one check's draws: they are a function of these numbers alone.
struct sample_key {
  std::uint64_t seed = 0;
  query_place place;
  std::uint32_t head = 0;   ///< KV head
  std::uint32_t round = 0;  ///< how many plans this query had before
};

/// @brief Bounds the relative error of a search's output by a sample of the tokens it estimated.
///
/// A token is drawn with probability p = node's weight / its size, the weight ∝ the group's mean of
/// share·√(e^σ² - 1). With õ the output, s̃ and ṽ the node's estimate, the residual
/// (e^s (v - õ) - e^s̃ (ṽ - õ)) / (p·denominator), averaged, is an unbiased estimate of the output's
/// error r (to first order). Its squared norm is too large by the sample's own scatter, so ‖r‖² is taken
/// from products of different batches of draws (a U-statistic, unbiased), and its standard error from
/// leaving out one batch at a time (Efron and Stein, "The jackknife estimate of variance", 1981).
template <scalar T, class Buffer, class Summary = mean_summary>
class error_sampler {
 public:
  using search_type = group_search<T, Buffer, Summary>;

  /// @brief Makes room for samples of any search within the limits.  @throw std::bad_alloc
  void reserve(const search_limits& limits) {
    reserve_room(cumulative_, limits.n_all_nodes);
    reserve_room(places_, limits.n_all_nodes);
    reserve_room(output_, limits.group_size * limits.value_dim);
    reserve_room(batch_sums_, n_batches * limits.group_size * limits.value_dim);
    reserve_room(logits_, limits.group_size);
    reserve_room(log_normalizer_, limits.group_size);
    reserve_room(errors_, limits.group_size);
  }

  /// @brief Draws tokens and returns the sampled relative error of every query head: the root of the
  /// U-statistic with `deviations` of its standard errors added. When only the standard error stands in
  /// the way of acceptance, more are drawn, up to 8 times as many.
  /// Complexity: O(estimated nodes + draws · group_size · (key_dim + value_dim)).
  /// Allocates: only while the state grows.
  /// @param merged   the search's result, not yet divided
  /// @param accepts  called as accepts(relative error) -> bool
  template <class Accepts>
  std::span<const float> sample(search_type& search, const partial_softmax_view& merged,
                                std::size_t n_samples, float deviations, const sample_key& key,
                                typename search_type::reader_type& reader,
                                typename search_type::lane_type& lane, Accepts&& accepts) {
    const auto& input = search.input();
    errors_.assign(input.group_size, 0.0F);
    log_normalizer_.resize(input.group_size);
    for (std::size_t g = 0; g < input.group_size; ++g) {
      log_normalizer_[g] = log_sum_exp(merged, g);
    }
    const double total = collect(search);
    if (!(total > 0.0)) {
      return errors_;  // nothing was estimated, or nothing that could err
    }
    output_.resize(input.group_size * input.value_dim);
    logits_.resize(input.group_size);
    batch_sums_.assign(n_batches * output_.size(), 0.0F);
    finish(merged, output_.data(), input.value_dim);
    const std::size_t least = (n_samples + n_batches - 1) / n_batches * n_batches;
    std::size_t drawn = 0;
    for (std::size_t wanted = least;; wanted *= 2) {
      read_draws(search, key, drawn, wanted, total, reader, lane);
      drawn = wanted;
      bool accepted = true;
      bool may_accept = wanted < 8 * least;
      for (std::size_t g = 0; g < input.group_size; ++g) {
        const auto [error, without_deviations] =
            bound_error(g, input.group_size, input.value_dim, drawn, deviations);
        errors_[g] = error;
        accepted = accepted && accepts(error);
        may_accept = may_accept && accepts(without_deviations);
      }
      if (accepted || !may_accept) {
        break;
      }
    }
    step_stats& stats = search.own_stats();
    stats.tokens_sampled += drawn;
    stats.tokens_read += drawn;
    stats.bytes_read += drawn * (input.key_dim + input.value_dim) * sizeof(T);
    return errors_;
  }

 private:
  static constexpr std::size_t n_batches =
      16;  // 120 products: a standard error known within a fifth

  struct place {
    std::uint32_t level;
    std::uint32_t column;
    std::uint32_t segment;
  };

  // The estimated nodes of all levels and the running sum of their weights.
  double collect(const search_type& search) {
    cumulative_.clear();
    places_.clear();
    const auto& input = search.input();
    double total = 0.0;
    for (std::size_t l = 0; l < search.n_levels(); ++l) {
      const auto& state = search.level(l);
      for (std::size_t s = 0; s < input.segments.size() && s + 1 < state.offset.size(); ++s) {
        for (std::size_t i = state.offset[s]; i < state.offset[s + 1]; ++i) {
          if (state.zones[i] != zone::estimation) {
            continue;
          }
          double weight = 0.0;
          for (std::size_t g = 0; g < input.group_size; ++g) {
            const float share =
                state.size[i] * std::exp(state.logits[g * state.n_nodes + i] - log_normalizer_[g]);
            const float variance = expected_variance(search.leaning().variances(l)[g],
                                                     state.dispersion[i], input.softcap);
            weight += static_cast<double>(share * std::sqrt(std::expm1(variance)));
          }
          if (weight > 0.0) {
            total += weight;
            cumulative_.push_back(total);
            places_.push_back({static_cast<std::uint32_t>(l), static_cast<std::uint32_t>(i),
                               static_cast<std::uint32_t>(s)});
          }
        }
      }
    }
    return total;
  }

  // A token that was drawn.
  struct drawn_token {
    place where;
    double probability = 0.0;
    std::size_t row = 0;  // of its block
    std::size_t batch = 0;
  };

  // Draws [first, end): all are looked up, then read.
  void read_draws(search_type& search, const sample_key& key, std::size_t first, std::size_t end,
                  double total, typename search_type::reader_type& reader,
                  typename search_type::lane_type& lane) {
    const auto& input = search.input();
    draws_.clear();
    reader.open(lane);
    try {
      for (std::size_t number = first; number < end; ++number) {
        block which;
        draws_.push_back(draw(search, key, number, total, which));
        reader.look_up(lane, input.segments[draws_.back().where.segment]->rows(), which,
                       draws_.size() - 1);
      }
      reader.start(lane);
      for (std::size_t i = 0; i < lane.found.size(); ++i) {
        const drawn_token& one = draws_[lane.found[i].tag];
        std::size_t row = one.row;
        for (const token_run<T>& run : lane.runs_of(i)) {
          if (row < run.n) {
            add_row_residual(search, one, run.keys + row * input.key_dim,
                             run.values + row * input.value_dim);
            break;
          }
          row -= run.n;
        }
      }
      for (auto arrived = reader.next(lane); !arrived.empty(); arrived = reader.next(lane)) {
        for (const auto& [tag, tokens] : arrived) {
          const drawn_token& one = draws_[tag];
          add_row_residual(search, one, tokens.keys + one.row * input.key_dim,
                           tokens.values + one.row * input.value_dim);
        }
      }
    } catch (...) {
      reader.abandon(lane);
      throw;
    }
    search.own_stats() += search_type::counted(reader.close(lane));
  }

  // The draw of one number: a node by its weight, a token uniformly inside it; then the cluster it lies in.
  drawn_token draw(const search_type& search, const sample_key& key, std::size_t number,
                   double total, block& which) const {
    const auto bits =
        philox(key.seed, {static_cast<std::uint32_t>(number) | (key.round << 24U), key.place.step,
                          key.place.sequence.slot, (key.place.layer << 16U) ^ key.head});
    const double at = (static_cast<double>(bits[0]) + 0.5) * 0x1p-32 * total;
    const auto found = std::upper_bound(cumulative_.begin(), cumulative_.end(), at);
    const std::size_t i =
        std::min(static_cast<std::size_t>(found - cumulative_.begin()), cumulative_.size() - 1);
    drawn_token drawn;
    drawn.where = places_[i];
    drawn.probability = (cumulative_[i] - (i == 0 ? 0.0 : cumulative_[i - 1])) / total;
    drawn.batch = number % n_batches;
    const auto& input = search.input();
    const auto& segment = *input.segments[drawn.where.segment];
    const auto [first_cluster, last_cluster] = segment.clusters_under(
        input.head, drawn.where.level, search.level(drawn.where.level).node[drawn.where.column]);
    const std::uint32_t* first_token = segment.head(input.head).levels[0].first_child;
    const std::uint32_t n_tokens = first_token[last_cluster] - first_token[first_cluster];
    const auto token = first_token[first_cluster] +
                       static_cast<std::uint32_t>((std::uint64_t{bits[1]} * n_tokens) >> 32U);
    const auto cluster = static_cast<std::uint32_t>(
        std::upper_bound(first_token + first_cluster, first_token + last_cluster, token) -
        first_token - 1);
    which = segment.cluster_block(input.head, cluster);
    drawn.row = token - first_token[cluster];
    return drawn;
  }

  void add_row_residual(const search_type& search, const drawn_token& drawn, const T* key,
                        const T* value) {
    const auto& input = search.input();
    const std::size_t level = drawn.where.level;
    const std::size_t column = drawn.where.column;
    const auto& state = search.level(level);
    score_logits(query_rows{input.queries, input.group_size, input.key_dim, input.key_dim}, key, 1,
                 input.softcap, logits_.data(), 1);
    for (std::size_t g = 0; g < input.group_size; ++g) {
      const float factor = state.size[column] / static_cast<float>(drawn.probability);
      const float exact = factor * std::exp(logits_[g] - log_normalizer_[g]);
      const float estimate =
          factor * std::exp(state.logits[g * state.n_nodes + column] - log_normalizer_[g]);
      const float* output = output_.data() + g * input.value_dim;
      float* sum = batch_sums_.data() + (drawn.batch * input.group_size + g) * input.value_dim;
      const T* mean = state.value_mean[column];
      const float* tilt = search.leaning().tilt(level, g);
      const float dispersion =
          std::min(state.dispersion[column], search.leaning().most_dispersion(level, g));
      for (std::size_t i = 0; i < input.value_dim; ++i) {
        const float tilted = tilt == nullptr ? 0.0F : dispersion * tilt[i];
        sum[i] += exact * (to_float(value[i]) - output[i]) -
                  estimate * (to_float(mean[i]) + tilted - output[i]);
      }
    }
  }

  struct sampled_error {
    float with_deviations;
    float without;
  };

  // The relative error of query head g from the batches drawn so far.
  sampled_error bound_error(std::size_t g, std::size_t group_size, std::size_t value_dim,
                            std::size_t drawn, float deviations) const {
    const std::size_t tokens_per_batch = drawn / n_batches;  // drawn in rounds: no remainder
    const auto per_batch = static_cast<double>(tokens_per_batch);
    std::array<double, n_batches> row_sums{};  // products of a batch with all others
    for (std::size_t i = 0; i < n_batches; ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        const double product =
            dot(batch_sums_.data() + (i * group_size + g) * value_dim,
                batch_sums_.data() + (j * group_size + g) * value_dim, value_dim) /
            (per_batch * per_batch);
        row_sums[i] += product;
        row_sums[j] += product;
      }
    }
    constexpr auto n = static_cast<double>(n_batches);
    double sum = 0.0;
    for (const double row : row_sums) {
      sum += row;
    }
    const double squared = sum / (n * (n - 1.0));
    double variance = 0.0;
    for (const double row : row_sums) {
      const double left_out = (sum - 2.0 * row) / ((n - 1.0) * (n - 2.0));
      variance += (left_out - squared) * (left_out - squared) * (n - 1.0) / n;
    }
    const float* output = output_.data() + g * value_dim;
    const double output_squared = dot(output, output, value_dim);
    const double unit = output_squared > 0.0 ? output_squared : 1.0;
    const double upper = squared + static_cast<double>(deviations) * std::sqrt(variance);
    return {static_cast<float>(std::sqrt(std::max(upper, 0.0) / unit)),
            static_cast<float>(std::sqrt(std::max(squared, 0.0) / unit))};
  }

  static double dot(const float* a, const float* b, std::size_t n) noexcept {
    double sum = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    return sum;
  }

  std::vector<double> cumulative_;
  std::vector<place> places_;
  std::vector<drawn_token> draws_;
  std::vector<float> output_;
  std::vector<float> logits_;
  std::vector<float> log_normalizer_;
  std::vector<float> batch_sums_;
  std::vector<float> errors_;
};

}  // namespace wavekv
