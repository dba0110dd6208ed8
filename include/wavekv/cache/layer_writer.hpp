// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
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
  using sealer_type = sealer<T, Index, segment_type>;
  using segment_size_type = typename Index::segment_size_type;
  using cluster_count_type = typename Index::cluster_count_type;
  using clusterer_type = typename Index::clusterer_type;
  static constexpr bool wants_queries = detail::uses_queries<clusterer_type>() ||
                                        detail::uses_queries<typename Index::summary_type>();

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
  ///
  /// A prompt is sealed in whole prefill segments, each in the call that fills it. A decode segment is sealed over the
  /// steps after the one that fills it, some chores in each: which are due follows from the layer's length
  /// alone, so that one token a call and several give the same. Nothing else is sealed meanwhile.
  /// @param queries  [n, n_query_heads, key_dim] or empty, checked: what the clusterer learns from
  template <class Q>
  void commit(layer_type& state, std::size_t layer, std::size_t n, bool decoding,
              const tensor_view<Q, 3>& queries) {
    const bool teaches = wants_queries && !queries.empty() && n != 0;
    seal_plan plan = plan_seal(state, layer, n, decoding);
    if (plan.is_empty()) {
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
    run_plan(state, n, plan, metrics);
    state.metrics.swap(metrics);
  }

  /// @brief Segments of whatever waits beyond the window; none when that is less than a cluster.
  std::vector<prepared_seal> prepare_rest(layer_type& state) {
    const std::size_t pending = pending_tokens(state, 0);
    std::vector<prepared_seal> prepared;
    if (pending >= cluster_count_type::tokens_at(cluster_count_type::n_levels - 1)) {
      std::vector<seal_run> runs;
      next_place place = first_place(state);
      for (std::size_t left = pending; left > 0;) {  // a segment holds at most 65,536 tokens
        runs.push_back(place.take(std::min<std::size_t>(left, segment_size_type::prefill)));
        left -= runs.back().n_tokens;
      }
      prepared.push_back(prepare(state, seal_runs(state, runs, state.metrics), place.row));
    }
    return prepared;
  }

  /// @brief Makes prepared segments, and n staged rows, part of their layer. A seal in progress is dropped: its tokens
  /// are among them, or it is made again.
  static void commit_seal(layer_type& state, std::size_t n, prepared_seal& prepared) noexcept {
    state.sealing.reset();
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
    if (cut.sealing && n_tokens < cut.sealing->due_length) {
      cut.sealing.reset();  // it would not have begun
    }
    if (n_tokens >= before_tail) {
      cut.tail.truncate(n_tokens - before_tail);
      return cut;
    }
    cut.tail.truncate(0);
    cut.used.clear();  // segments go, and others may come to lie where they were
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

  // Where the next run of the tail's tokens begins.
  struct next_place {
    std::size_t token = 0;  // position in the sequence
    std::size_t row = 0;    // in the tail

    seal_run take(std::size_t n) noexcept {
      const seal_run run{token, row, n};
      token += n;
      row += n;
      return run;
    }
  };

  next_place first_place(const layer_type& state) const noexcept {
    const std::size_t to_sink = sink_room(state);
    return {state.length() - state.tail.size() + to_sink, to_sink};
  }

  // What one commit seals.
  struct seal_plan {
    std::size_t old_chores_due = 0;  // of the seal in progress, from its first on
    bool ends_old = false;           // whether these are all of them
    std::vector<seal_run> prompt;    // segments made at once
    seal_run begun;  // a new seal in progress, when n_tokens is not 0; where it would begin
    std::size_t due_length = 0;        // of that
    std::size_t begun_chores_due = 0;  // of that

    bool is_empty() const noexcept {
      return old_chores_due == 0 && prompt.empty() && begun.n_tokens == 0;
    }
  };

  // Chores of sealing one segment.
  std::size_t n_chores() const noexcept {
    return unfinished_segment<segment_type>::n_chores(sizes_.n_kv_heads);
  }

  // Chores done by the time a layer has this length: as many a token as keep one layer's seal within its turn.
  std::size_t chores_due(std::size_t length, std::size_t due_length) const noexcept {
    const std::size_t all = n_chores();
    const std::size_t per_token =
        (all * sizes_.n_layers + segment_size_type::decode - 1) / segment_size_type::decode;
    return length < due_length ? 0 : std::min(all, (length - due_length + 1) * per_token);
  }

  seal_plan plan_seal(const layer_type& state, std::size_t layer, std::size_t n,
                      bool decoding) const {
    seal_plan plan;
    const std::size_t length = state.length() + n;
    std::size_t pending = pending_tokens(state, n);
    next_place place = first_place(state);
    if (state.sealing) {
      const auto& segment = state.sealing->segment;
      const std::size_t due = chores_due(length, state.sealing->due_length);
      plan.ends_old = due == n_chores();
      plan.old_chores_due = plan.ends_old || due > segment.n_chores_done ? due : 0;
      if (!plan.ends_old) {
        return plan;
      }
      place.take(segment.run.n_tokens);
      pending -= segment.run.n_tokens;
    }
    for (; pending >= segment_size_type::prefill; pending -= segment_size_type::prefill) {
      plan.prompt.push_back(place.take(segment_size_type::prefill));
    }
    const std::size_t size =
        decoding ? detail::decode_seal_size<segment_size_type>(place.token - sink_tokens_, pending,
                                                               layer, sizes_.n_layers)
                 : 0;
    plan.begun = place.take(size);
    if (size != 0) {
      plan.due_length = std::max(state.length() + 1, length - (pending - size));
      plan.begun_chores_due = chores_due(length, plan.due_length);
    }
    return plan;
  }

  // Seals what a plan names and makes n staged rows part of the layer. Chores of a seal in progress count only once
  // nothing can fail any more; when finishing it fails, it is dropped, and made again.
  void run_plan(layer_type& state, std::size_t n, const seal_plan& plan,
                const std::vector<query_metric>& metrics) {
    if (state.sealing && plan.old_chores_due != 0) {
      do_chores(state, state.sealing->segment, plan.old_chores_due, metrics);
    }
    std::optional<seal_in_progress<T, segment_type>> begun;
    if (plan.begun.n_tokens != 0) {
      begun.emplace(
          sealer_type::begin(plan.begun, sizes_.n_kv_heads, sizes_.key_dim, sizes_.value_dim),
          plan.due_length);
      do_chores(state, begun->segment, plan.begun_chores_due, metrics);
      begun->segment.n_chores_done = plan.begun_chores_due;
    }
    const bool ends_begun = begun && plan.begun_chores_due == n_chores();
    if (plan.ends_old || !plan.prompt.empty() || ends_begun) {
      sealed_runs<segment_type> sealed = seal_runs(state, plan.prompt, metrics);
      if (auto old = plan.ends_old ? std::exchange(state.sealing, std::nullopt) : std::nullopt) {
        finish(old->segment, sealed);
        std::ranges::rotate(sealed.segments, sealed.segments.end() - 1);  // it comes first
      }
      if (ends_begun) {
        finish(begun->segment, sealed);
      }
      prepared_seal prepared = prepare(
          state, std::move(sealed), plan.begun.first_row + (ends_begun ? plan.begun.n_tokens : 0));
      commit_seal(state, n, prepared);
      if (begun) {
        begun->segment.run.first_row = 0;
      }
    } else {
      if (!begun && state.sealing) {
        state.sealing->segment.n_chores_done = plan.old_chores_due;
      }
      state.tail.commit(n);
    }
    if (begun && !ends_begun) {
      state.sealing = std::move(begun);
    }
  }

  void do_chores(const layer_type& state, unfinished_segment<segment_type>& segment,
                 std::size_t end, const std::vector<query_metric>& metrics) {
    if (end > segment.n_chores_done) {
      sealers_.borrow()->do_chores(state.tail, segment, end, sizes_.key_dim, sizes_.value_dim,
                                   clusterer_type{}, metrics, executor_);
    }
  }

  sealed_runs<segment_type> seal_runs(const layer_type& state, std::span<const seal_run> runs,
                                      const std::vector<query_metric>& metrics) {
    return sealers_.borrow()->seal(state.tail, sizes_.n_kv_heads, sizes_.key_dim, sizes_.value_dim,
                                   runs, clusterer_type{}, metrics, executor_, keep());
  }

  void finish(unfinished_segment<segment_type>& segment, sealed_runs<segment_type>& sealed) {
    sealer_type::finish(segment, sizes_.key_dim, sizes_.value_dim, keep(), sealed);
  }

  auto keep() noexcept {
    return [this](aligned_storage<T> rows, std::span<const block> blocks) {
      return reader_.keep(std::move(rows), blocks);
    };
  }

  // Makes room in the layer for what was sealed from the first n_rows rows of its tail.
  prepared_seal prepare(layer_type& state, sealed_runs<segment_type> sealed, std::size_t n_rows) {
    prepared_seal prepared;
    prepared.sealed = std::move(sealed);
    prepared.to_sink = sink_room(state);
    prepared.n_rows = n_rows;
    state.segments.reserve(state.segments.size() + prepared.sealed.segments.size());
    state.sink.reserve(state.sink.size() + prepared.to_sink);
    if (state.covariances != nullptr) {
      add_known(*state.covariances, prepared.sealed.covariances);
    }
    prepared.covariances = std::make_shared<const std::vector<head_covariances>>(
        std::move(prepared.sealed.covariances));
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
      reader_.read(segment.rows(), blocks, lane,
                   [&](std::size_t cluster, std::span<const token_run<T>> runs) {
                     std::size_t at =
                         segment.cluster_tokens(head, static_cast<std::uint32_t>(cluster)).first;
                     for (const token_run<T>& run : runs) {
                       for (std::size_t i = 0; i < run.n; ++i) {
                         const std::size_t token = index.order[at++];
                         if (token < n) {
                           std::copy_n(run.keys + i * sizes_.key_dim, sizes_.key_dim,
                                       tail.keys(head) + token * sizes_.key_dim);
                           std::copy_n(run.values + i * sizes_.value_dim, sizes_.value_dim,
                                       tail.values(head) + token * sizes_.value_dim);
                         }
                       }
                     }
                   });
    }
    tail.commit(n);
  }

  const geometry& sizes_;
  std::size_t sink_tokens_;
  std::size_t window_tokens_;
  Executor& executor_;
  reader_type& reader_;
  scratch_pool<sealer_type> sealers_;
};

}  // namespace wavekv
