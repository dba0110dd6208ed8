// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/cache/checks.hpp>
#include <wavekv/cache/layer_state.hpp>
#include <wavekv/cache/query_run.hpp>
#include <wavekv/cache/statistics.hpp>
#include <wavekv/core/errors.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/core/ids.hpp>
#include <wavekv/core/tensor_view.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/search_runner.hpp>

/// @file attend_pass.hpp
/// @brief One attend of a ragged batch: queries become searches, and their answers go to whom they belong.

namespace wavekv {

/// @brief Lists the searches of a batch, one per (query token, KV head), and runs them; kept from step to step for its
/// memory.
/// @tparam T        storage scalar
/// @tparam Buffer   a wave_buffer
/// @tparam Segment  the layers' segments
/// @tparam Summary  what clusters are scored by
template <scalar T, class Buffer, class Segment, class Summary = mean_summary>
class attend_pass {
 public:
  using runner_type = search_runner<T, Buffer, Summary>;
  using reader_type = typename runner_type::reader_type;
  using layer_type = layer_state<T, Segment>;

  /// @brief What does not change from query to query.
  struct settings {
    const geometry& sizes;
    std::size_t layer = 0;
    std::size_t window_tokens = 0;  ///< most queries of one sequence
    std::uint64_t seed = 0;         ///< of what is sampled
  };

  /// @brief Takes a batch's queries, as floats and times the logit scale.
  /// @param queries  [n, n_query_heads, key_dim], checked
  template <class Q>
  void begin(const settings& fixed, const tensor_view<Q, 3>& queries) {
    const geometry& sizes = fixed.sizes;
    requests_.clear();
    places_.clear();
    n_queries_ = 0;
    queries_.resize(queries.extent(0) * sizes.n_query_heads * sizes.key_dim);
    float* to = queries_.data();
    for (std::size_t query = 0; query < queries.extent(0); ++query) {
      for (std::size_t head = 0; head < sizes.n_query_heads; ++head, to += sizes.key_dim) {
        simd::to_float_scaled(to, &queries(query, head, 0U), sizes.key_dim, sizes.logit_scale());
      }
    }
  }

  /// @brief Adds the searches of the next run of queries.
  /// @throw shape_error when a query lies before what is sealed; std::bad_alloc
  void add(const settings& fixed, const query_run& run, const layer_type& state) {
    detail::check_query_places(run, state.length(), state.tail.size(), !state.segments.empty(),
                               fixed.window_tokens);
    for (std::size_t i = 0; i < run.n_queries; ++i) {
      add_query(fixed, run, state, i);
    }
  }

  /// @brief Runs all searches; write(query, KV head, merged partial softmax) is called for each, on any worker.
  template <class Bound, class Executor, class Write>
  step_stats run(const Bound& bound, reader_type& reader, Executor& executor, Write&& write) {
    return runner_.run(std::span<const typename runner_type::request>(requests_), bound, reader,
                       executor, [&](std::size_t request, const partial_softmax_view& merged) {
                         write(places_[request].first, places_[request].second, merged);
                       });
  }

  /// @brief Books what the searches [first, first + n) did in the layer they belong to.
  /// @param n_heads  searches of one query token; the last one's clusters are remembered
  void book(layer_type& state, std::size_t first, std::size_t n,
            std::size_t n_heads) const noexcept {
    step_stats own;
    for (std::size_t i = first; i < first + n; ++i) {
      own += runner_.stats_of(i);
    }
    state.last = own;
    state.total += own;
    ++state.steps;
    if constexpr (!reader_type::always_fast) {
      if (own.prefetched != 0) {
        state.prefetch_pays = 2 * own.prefetched_in_vain <= own.prefetched;
      }
      try {
        state.used.resize(n_heads);
        for (std::size_t head = 0; n != 0 && head < n_heads; ++head) {
          state.used[head] = runner_.used_by(first + n - n_heads + head);
        }
      } catch (...) {
        state.used.clear();  // they only save time
      }
    }
  }

 private:
  // The requests of query token i of a run: one per KV head.
  void add_query(const settings& fixed, const query_run& run, const layer_type& state,
                 std::size_t i) {
    const geometry& sizes = fixed.sizes;
    const std::size_t behind = run.n_queries - 1 - i;  // tokens that came after this query's own
    const std::size_t length = state.length();
    const std::size_t visible = length - behind;
    const std::size_t before_tail = length - state.tail.size();
    typename runner_type::request request;
    request.input.segments = state.segments;
    request.input.sink = &state.sink;
    request.input.tail = &state.tail;
    request.input.n_visible_sink = std::min(visible, state.sink.size());
    request.input.n_visible_tail = visible - std::min(visible, before_tail);
    request.input.group_size = sizes.group_size();
    request.input.key_dim = sizes.key_dim;
    request.input.value_dim = sizes.value_dim;
    request.input.softcap = sizes.logit_softcap;
    request.input.place = {run.sequence, static_cast<std::uint32_t>(fixed.layer),
                           static_cast<std::uint32_t>(visible)};
    request.seed = fixed.seed;
    for (std::size_t head = 0; head < sizes.n_kv_heads; ++head) {
      request.input.head = head;
      request.input.covariances =
          state.covariances == nullptr ? nullptr : &(*state.covariances)[head];
      request.input.queries =
          queries_.data() +
          (n_queries_ * sizes.n_query_heads + head * sizes.group_size()) * sizes.key_dim;
      request.input.used = state.to_prefetch(head);
      requests_.push_back(request);
      places_.emplace_back(n_queries_, head);
    }
    ++n_queries_;
  }

  runner_type runner_;
  std::vector<typename runner_type::request> requests_;
  std::vector<std::pair<std::size_t, std::size_t>> places_;  // (query, KV head) of each request
  std::vector<float> queries_;                               // [n, n_query_heads, key_dim], scaled
  std::size_t n_queries_ = 0;                                // of those, how many have requests
};

}  // namespace wavekv
