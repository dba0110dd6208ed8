// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/frontier.hpp>
#include <wavekv/index/frontier_level.hpp>
#include <wavekv/index/node_pricing.hpp>
#include <wavekv/index/query_leaning.hpp>
#include <wavekv/index/search_limits.hpp>

/// @file zone_planner.hpp
/// @brief What a frontier's nodes weigh and how far their estimates may err; asks the bound for their zones.

namespace wavekv {

/// @brief The plan stage of one search: shares and expected errors per query head, the bound's verdict, and the books
/// of what stays unread. Reused from step to step.
class zone_planner {
 public:
  /// @brief What a search tells about the index it plans in.
  struct index_facts {
    query_place place;
    std::size_t head = 0;  ///< KV head
    std::size_t group_size = 1;
    std::size_t n_clusters = 0;       ///< of level 0
    std::size_t n_tokens = 0;         ///< sealed
    std::size_t n_steady_tokens = 0;  ///< read whatever the plan
    float value_spread = 0.0F;        ///< root mean square distance of a value from its mean
    float softcap = 0.0F;
  };

  /// @brief Makes room for any plan within the limits.  @throw std::bad_alloc
  void reserve(const search_limits& limits) {
    for (auto* array : {&log_normalizer_, &output_norm_, &relative_, &settled_float_, &dropped_}) {
      reserve_room(*array, limits.group_size);
    }
    reserve_room(settled_, limits.group_size);
    reserve_room(typical_, limits.group_size);
  }

  /// @brief Begins a search.
  void begin(const index_facts& facts) {
    facts_ = facts;
    log_normalizer_.resize(facts.group_size);
    output_norm_.resize(facts.group_size);
    relative_.resize(facts.group_size);
    settled_.assign(facts.group_size, 0.0);
    typical_.assign(facts.group_size, 0.0);
    dropped_.assign(facts.group_size, 0.0F);
  }

  /// @brief Chooses the zones of a level's frontier and books what stays at that level.
  /// @param so_far   the answer as known so far; estimates of this frontier are in it unless the bound drops
  /// @param leaning  receives the estimates' shares
  template <class T, class Bound>
  void plan(std::size_t level, frontier_level<T>& state, const partial_softmax_view& so_far,
            const Bound& bound, query_leaning& leaning) {
    measure_output<!detail::drops<Bound>()>(so_far, state);
    fill_shares<detail::bound_ranking_t<Bound>>(level, state, leaning);
    frontier nodes;
    nodes.place = facts_.place;
    nodes.head = facts_.head;
    nodes.level = level;
    nodes.n_nodes = state.n_nodes;
    nodes.group_size = facts_.group_size;
    nodes.n_clusters = facts_.n_clusters;
    nodes.n_tokens = facts_.n_tokens;
    nodes.n_steady_tokens = facts_.n_steady_tokens;
    nodes.size_data = state.size.data();
    nodes.share_data = state.share.data();
    nodes.error_data = state.error.data();
    nodes.nearness_data = state.nearness.data();
    nodes.ranked_share_data = state.ranked_share.data();
    nodes.ranked_error_data = state.ranked_error.data();
    settled_float_.assign(settled_.begin(), settled_.end());
    nodes.settled_data = settled_float_.data();
    nodes.log_normalizer_data = log_normalizer_.data();
    std::fill_n(state.zones.begin(), state.n_nodes, zone::estimation);
    bound.plan(nodes, std::span<zone>(state.zones.data(), state.n_nodes));
    settle(level, state, leaning);
  }

  /// @brief Typical relative error of the output, largest over the query heads: see typical_square.
  [[nodiscard]] float predicted_error() const noexcept {
    double largest = 0.0;
    for (std::size_t g = 0; g < facts_.group_size; ++g) {
      largest = std::max(largest, typical_[g]);
    }
    return static_cast<float>(std::sqrt(largest));
  }

  /// @brief Estimated mass of what was dropped, largest over the query heads.
  [[nodiscard]] float dropped_mass() const noexcept {
    float largest = 0.0F;
    for (std::size_t g = 0; g < facts_.group_size; ++g) {
      largest = std::max(largest, dropped_[g]);
    }
    return largest;
  }

 private:
  // The normaliser and the norm of the output as known so far, per query head.
  template <bool Accumulated, class T>
  void measure_output(const partial_softmax_view& so_far, const frontier_level<T>& state) {
    for (std::size_t g = 0; g < facts_.group_size; ++g) {
      double squared = 0.0;
      for (std::size_t i = 0; i < so_far.value_dim; ++i) {
        const double x = static_cast<double>(so_far.numerator_of(g)[i]);
        squared += x * x;
      }
      const float denominator = so_far.denominator[g];
      output_norm_[g] =
          denominator > 0.0F ? static_cast<float>(std::sqrt(squared)) / denominator : 0.0F;
      log_normalizer_[g] = log_sum_exp(so_far, g);
      if constexpr (!Accumulated) {
        log_normalizer_[g] = log_sum(log_normalizer_[g], state, g);
      }
    }
  }

  template <class T>
  static float log_sum(float start, const frontier_level<T>& state, std::size_t g) {
    const float* logits = state.logits.data() + g * state.n_nodes;
    const float largest = std::max(start, simd::reduce_max(logits, state.n_nodes));
    if (!(largest > -std::numeric_limits<float>::infinity())) {
      return 0.0F;  // nothing was found at all: every share is 0
    }
    const float others = std::exp(start - largest);
    return largest + std::log(others + simd::weighted_exp_sum(logits, state.size.data(),
                                                              state.n_nodes, largest));
  }

  template <class Ranking, class T>
  void fill_shares(std::size_t level, frontier_level<T>& state, const query_leaning& leaning) {
    const std::size_t n = state.n_nodes;
    for (std::size_t g = 0; g < facts_.group_size; ++g) {
      head_prices head;
      head.logits = state.logits.data() + g * n;
      head.variance = leaning.variances(level)[g];
      head.log_normalizer = log_normalizer_[g];
      // How long a value's deviation is beside the output it disturbs; an output of length zero is
      // measured by the values themselves.
      relative_[g] = output_norm_[g] > 1e-6F * facts_.value_spread
                         ? facts_.value_spread / output_norm_[g]
                         : 1.0F;
      head.relative = relative_[g];
      head.share = state.share.data() + g * n;
      head.error = state.error.data() + g * n;
      head.nearness = state.nearness.data() + g * n;
      price_nodes(state.size.data(), state.dispersion.data(), n, facts_.softcap, head);
      rank<Ranking>(g, head.share, n, state.ranked_share.data());
      rank<Ranking>(g, head.error, n, state.ranked_error.data());
    }
  }

  template <class Ranking>
  static void rank(std::size_t g, const float* of_head, std::size_t n, float* ranked) {
    if (g == 0) {
      std::copy_n(of_head, n, ranked);
      return;
    }
    for (std::size_t i = 0; i < n; ++i) {
      ranked[i] = Ranking::combine(ranked[i], of_head[i]);
    }
  }

  // Books what stays at this level: predicted error of the estimated, mass of the dropped.
  template <class T>
  void settle(std::size_t level, const frontier_level<T>& state, query_leaning& leaning) {
    for (std::size_t g = 0; g < facts_.group_size; ++g) {
      const settled_nodes sums = settle_nodes(state.zones.data(), state.dispersion.data(),
                                              state.n_nodes, state.share.data() + g * state.n_nodes,
                                              state.error.data() + g * state.n_nodes,
                                              leaning.most_dispersion(level, g), relative_[g]);
      typical_[g] += static_cast<double>(sums.typical_squared_error);
      settled_[g] += static_cast<double>(sums.squared_error);
      dropped_[g] += sums.dropped_share;
      leaning.book(level, g, sums.followed_dispersion, log_normalizer_[g]);
    }
  }

  index_facts facts_;
  std::vector<float> log_normalizer_;
  std::vector<float> output_norm_;
  std::vector<float> relative_;  // length of a value's deviation beside the output's
  std::vector<double>
      settled_;  // squared errors of what the levels so far left in the estimation zone
  std::vector<float> settled_float_;
  std::vector<double> typical_;  // of the same, squares of typical errors
  std::vector<float> dropped_;
};

}  // namespace wavekv
