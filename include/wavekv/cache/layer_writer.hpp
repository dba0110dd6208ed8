// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/cache/layer_state.hpp>
#include <wavekv/cache/scratch_pool.hpp>
#include <wavekv/cache/token_rows.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/core/tensor_view.hpp>
#include <wavekv/index/cluster_covariance.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/query_metric.hpp>
#include <wavekv/index/sealer.hpp>

/// @file layer_writer.hpp
/// @brief Everything that changes a layer: staged rows become part of it, tokens are sealed, segments opened again.

namespace wavekv {

/// @brief Writes to the layers of a cache. Every function leaves its layer as it was when it throws.
/// @tparam T         storage scalar
/// @tparam Index     a wave_index
/// @tparam Buffer    a wave_buffer
/// @tparam Executor  clusters in parallel
template <scalar T, class Index, class Buffer, class Executor>
class layer_writer {
 public:
  using reader_type = block_reader<T, Buffer>;
  using segment_type = segment<T, typename reader_type::handle>;
  using layer_type = layer_state<T, segment_type>;
  using segment_size_type = typename Index::segment_size_type;
  using cluster_count_type = typename Index::cluster_count_type;
  using clusterer_type = typename Index::clusterer_type;
  static constexpr bool wants_queries = detail::uses_queries<clusterer_type>();

  /// @brief Segments that were made but are not part of their layer yet.
  struct prepared_seal {
    sealed_runs<segment_type> sealed;
    std::shared_ptr<const std::vector<head_covariances>> covariances;
    std::size_t to_sink = 0;  ///< tail rows that fill the sink
    std::size_t n_rows = 0;   ///< tail rows that leave the tail, those included
  };

  /// @brief A writer for layers of these sizes.
  /// @param sizes     outlives the writer, as executor and reader do
  layer_writer(const geometry& sizes, std::size_t sink_tokens, std::size_t window_tokens,
               Executor& executor, reader_type& reader) noexcept
      : sizes_(sizes),
        sink_tokens_(sink_tokens),
        window_tokens_(window_tokens),
        executor_(executor),
        reader_(reader) {}

  /// @brief Makes n staged rows part of the layer, and seals what is due.
  /// @param queries  [n, n_query_heads, key_dim] or empty, checked: what the clusterer learns from
  template <class Q>
  void commit(layer_type& state, std::size_t layer, std::size_t n, bool decoding,
              const tensor_view<Q, 3>& queries) {
    const std::vector<std::size_t> sizes = detail::seal_sizes<segment_size_type>(
        pending_tokens(state, n), decoding, layer, sizes_.n_layers);
    const bool teaches = wants_queries && !queries.empty() && n != 0;
    if (sizes.empty()) {
      if (teaches) {
        teach(state.metrics, queries);
      }
      state.tail.commit(n);
      return;
    }
    std::vector<query_metric> metrics = state.metrics;  // nothing is learnt when sealing fails
    if (teaches) {
      teach(metrics, queries);
    }
    prepared_seal prepared = prepare(state, sizes, metrics);
    commit_seal(state, n, prepared);
    state.metrics.swap(metrics);
  }

  /// @brief Segments of whatever waits beyond the window; none when that is less than a cluster.
  std::vector<prepared_seal> prepare_rest(layer_type& state) {
    const std::size_t pending = pending_tokens(state, 0);
    std::vector<prepared_seal> prepared;
    if (pending >= cluster_count_type::tokens_at(cluster_count_type::n_levels - 1)) {
      prepared.push_back(prepare(state, {pending}, state.metrics));
    }
    return prepared;
  }

  /// @brief Makes prepared segments, and n staged rows, part of their layer.
  static void commit_seal(layer_type& state, std::size_t n, prepared_seal& prepared) noexcept {
    token_rows<T>::copy_rows(state.tail, 0, state.sink, state.sink.size(), prepared.to_sink);
    state.sink.commit(prepared.to_sink);
    for (auto& segment : prepared.sealed.segments) {
      state.segments.push_back(std::move(segment));  // room was reserved
    }
    state.covariances = std::move(prepared.covariances);
    state.tail.commit(n);
    state.tail.drop_front(prepared.n_rows);
  }

  /// @brief A copy of a layer that holds at most n_tokens tokens.
  layer_type truncated(const layer_type& layer, std::size_t n_tokens) {
    layer_type cut = layer;
    if (n_tokens >= layer.length()) {
      return cut;
    }
    const std::size_t before_tail = layer.length() - layer.tail.size();
    if (n_tokens >= before_tail) {
      cut.tail.truncate(n_tokens - before_tail);
      return cut;
    }
    cut.tail.truncate(0);
    while (!cut.segments.empty() && cut.segments.back()->first_token() >= n_tokens) {
      cut.segments.pop_back();
    }
    if (!cut.segments.empty() &&
        cut.segments.back()->first_token() + cut.segments.back()->n_tokens() > n_tokens) {
      reopen(*cut.segments.back(), n_tokens - cut.segments.back()->first_token(), cut.tail);
      cut.segments.pop_back();
    }
    cut.sink.truncate(std::min(cut.sink.size(), n_tokens));
    return cut;
  }

 private:
  // Tokens beyond sink and window, once n staged rows are counted in.
  std::size_t pending_tokens(const layer_type& state, std::size_t n) const noexcept {
    const std::size_t held = state.tail.size() + n;
    const std::size_t kept = window_tokens_ + sink_room(state);
    return held > kept ? held - kept : 0;
  }

  std::size_t sink_room(const layer_type& state) const noexcept {
    return state.segments.empty() ? sink_tokens_ - state.sink.size() : 0;
  }

  template <class Q>
  void teach(std::vector<query_metric>& metrics, const tensor_view<Q, 3>& queries) {
    using element = std::remove_const_t<Q>;
    executor_.parallel_for(metrics.size(), [&](std::size_t head, std::size_t /*worker*/) {
      const tensor_view<const element, 3> group(
          &queries(0U, head * sizes_.group_size(), 0U),
          {queries.extent(0), sizes_.group_size(), sizes_.key_dim}, queries.strides());
      metrics[head].template add<element>(group, sizes_.logit_scale());
    });
  }

  // Makes segments of runs of the given sizes from the front of the tail (staged rows may be among them), behind
  // what the sink still takes. The layer holds the same tokens in the same places afterwards.
  prepared_seal prepare(layer_type& state, const std::vector<std::size_t>& sizes,
                        const std::vector<query_metric>& metrics) {
    const std::size_t to_sink = sink_room(state);
    std::vector<seal_run> runs;
    std::size_t row = to_sink;
    std::size_t token = state.length() - state.tail.size() + to_sink;
    for (const std::size_t size : sizes) {
      for (std::size_t left = size; left > 0;) {  // a segment holds at most 65,536 tokens
        const std::size_t part = std::min<std::size_t>(left, segment_size_type::prefill);
        runs.push_back({token, row, part});
        token += part;
        row += part;
        left -= part;
      }
    }
    state.segments.reserve(state.segments.size() + runs.size());
    state.sink.reserve(state.sink.size() + to_sink);
    prepared_seal prepared;
    prepared.sealed = sealers_.borrow()->seal(
        state.tail, sizes_.n_kv_heads, sizes_.key_dim, sizes_.value_dim, runs, clusterer_type{},
        metrics, executor_, [&](aligned_storage<T> rows) { return reader_.keep(std::move(rows)); });
    if (state.covariances != nullptr) {
      add_known(*state.covariances, prepared.sealed.covariances);
    }
    prepared.covariances = std::make_shared<const std::vector<head_covariances>>(
        std::move(prepared.sealed.covariances));
    prepared.to_sink = to_sink;
    prepared.n_rows = row;
    return prepared;
  }

  static void add_known(const std::vector<head_covariances>& known,
                        std::vector<head_covariances>& learnt) {
    for (std::size_t head = 0; head < known.size(); ++head) {
      for (std::size_t level = 0; level < max_tree_levels; ++level) {
        cluster_covariance sum = known[head][level];
        sum.add(learnt[head][level]);
        learnt[head][level] = std::move(sum);
      }
    }
  }

  // Writes the first n tokens of a segment into an empty tail, in token order.
  void reopen(const segment_type& segment, std::size_t n, token_rows<T>& tail) {
    typename reader_type::lane_type lane;
    std::vector<block> blocks;
    tail.reserve(n);
    for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
      const head_index<T>& index = segment.head(head);
      blocks.clear();
      for (std::uint32_t cluster = 0; cluster < index.levels[0].n_nodes; ++cluster) {
        blocks.push_back(segment.cluster_block(head, cluster));
      }
      reader_.read(
          segment.rows(), blocks, lane,
          [&](std::size_t cluster, const T* rows) {
            const auto [first, last] =
                segment.cluster_tokens(head, static_cast<std::uint32_t>(cluster));
            const T* values = rows + (last - first) * sizes_.key_dim;
            for (std::uint32_t i = first; i < last; ++i) {
              const std::size_t token = index.order[i];
              if (token < n) {
                std::copy_n(rows + (i - first) * sizes_.key_dim, sizes_.key_dim,
                            tail.keys(head) + token * sizes_.key_dim);
                std::copy_n(values + (i - first) * sizes_.value_dim, sizes_.value_dim,
                            tail.values(head) + token * sizes_.value_dim);
              }
            }
          },
          [] {});
    }
    tail.commit(n);
  }

  const geometry& sizes_;
  std::size_t sink_tokens_;
  std::size_t window_tokens_;
  Executor& executor_;
  reader_type& reader_;
  scratch_pool<sealer<T, Index, segment_type>> sealers_;
};

}  // namespace wavekv
