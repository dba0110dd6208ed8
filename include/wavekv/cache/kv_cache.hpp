// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/cache/cache_options.hpp>
#include <wavekv/cache/checks.hpp>
#include <wavekv/cache/layer_state.hpp>
#include <wavekv/cache/prefill_pass.hpp>
#include <wavekv/cache/sequence_table.hpp>
#include <wavekv/cache/statistics.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/core/ids.hpp>
#include <wavekv/core/tensor_view.hpp>
#include <wavekv/cpu/backend.hpp>
#include <wavekv/index/bounds/exact.hpp>
#include <wavekv/index/sealer.hpp>
#include <wavekv/index/search_runner.hpp>
#include <wavekv/index/wave_index.hpp>

/// @file kv_cache.hpp
/// @brief The type a user composes: a KV cache that is a vector index.

namespace wavekv {

/// @brief One sequence's part of an attend: how many query tokens it has in the call.
struct query_run {
  sequence_id sequence;
  std::size_t n_queries =
      1;  ///< the last one sits at the sequence's newest token, the others before it
};

/// @brief Where attend_partial writes: the partial softmax of every query head, for engines that merge
/// on their own. Learned sinks are not in it.
struct partial_output {
  tensor_view<float, 2> max;          ///< [n_queries, n_query_heads]
  tensor_view<float, 2> denominator;  ///< [n_queries, n_query_heads]
  tensor_view<float, 3> numerator;    ///< [n_queries, n_query_heads, value_dim]
};

/// @brief The KV cache of one model for any number of sequences.
///
/// Complexity, memory and threads: see each function. Layers are independent: different layers may be
/// used from different threads at once, one (sequence, layer) by one thread at a time; create, fork,
/// truncate and release of a sequence exclude every other use of that sequence.
/// Errors: typed (wavekv::error), naming the value seen and the values allowed; the cache is then as it
/// was before the call.
///
/// @tparam Scalar   how K and V are stored: bf16, f16, float, or a type with scalar_traits
/// @tparam Index    a wave_index: segment size, cluster count, clusterer, estimation bound
/// @tparam Buffer   a wave_buffer: placement, eviction, transfer
/// @tparam Backend  where it computes: cpu<Executor>
/// Source: RetroInfer, arXiv 2505.02922.
template <class Scalar = bf16, class Index = wave_index<>, class Buffer = wave_buffer<>,
          class Backend = cpu<>>
class kv_cache {
  static_assert(scalar<Scalar>, "kv_cache: Scalar must model wavekv::scalar (trivially copyable, "
                                "with a scalar_traits of to_float, "
                                "from_float, name and epsilon); see <wavekv/core/scalar.hpp>");
  static_assert(
      requires {
        typename Index::segment_size_type;
        typename Index::cluster_count_type;
        typename Index::clusterer_type;
        typename Index::bound_type;
      }, "kv_cache: Index must be a wavekv::wave_index (segment size, cluster count, clusterer, "
         "estimation "
         "bound); see <wavekv/index/wave_index.hpp>");
  static_assert(
      requires {
        typename Buffer::placement_type;
        typename Buffer::eviction_type;
        typename Buffer::transfer_type;
      }, "kv_cache: Buffer must be a wavekv::wave_buffer (placement, eviction, transfer); see "
         "<wavekv/buffer/wave_buffer.hpp>");
  static_assert(
      requires { typename Backend::executor_type; },
      "kv_cache: Backend must be wavekv::cpu<Executor>; see <wavekv/cpu/backend.hpp>");

 public:
  using scalar_type = Scalar;
  using index_type = Index;
  using buffer_type = Buffer;
  using backend_type = Backend;
  using bound_type = typename Index::bound_type;
  using executor_type = typename Backend::executor_type;
  using options_type = cache_options<bound_type, executor_type>;

  /// @brief An empty cache.  @throw config_error
  explicit kv_cache(wavekv::geometry sizes, options_type options = {})
      : geometry_(std::move(sizes)), options_(std::move(options)) {
    geometry_.validate();
    options_.validate();
  }

  kv_cache(const kv_cache&) = delete;
  kv_cache& operator=(const kv_cache&) = delete;
  kv_cache(kv_cache&&) = delete;
  kv_cache& operator=(kv_cache&&) = delete;
  ~kv_cache() = default;

  [[nodiscard]] const wavekv::geometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] const options_type& options() const noexcept { return options_; }

  /// @name Sequences
  /// @{

  /// @brief A new sequence of length 0. Complexity: O(n_layers).
  /// @throw capacity_error when options().max_sequences are alive
  sequence_id create() {
    auto state = std::make_unique<sequence_state>();
    state->layers.resize(geometry_.n_layers);
    for (layer_type& layer : state->layers) {
      layer.sink = layer.tail =
          token_rows<Scalar>(geometry_.n_kv_heads, geometry_.key_dim, geometry_.value_dim);
      if constexpr (wants_queries) {
        layer.metrics.assign(geometry_.n_kv_heads, query_metric(geometry_.key_dim));
      }
    }
    return sequences_.enter(std::move(state), options_.max_sequences);
  }

  /// @brief A second sequence with the same tokens. Sealed segments are shared, sink and tail copied.
  /// Complexity: O(number of segments + tail).
  /// @throw sequence_error, capacity_error
  sequence_id fork(sequence_id sequence) {
    return sequences_.enter(std::make_unique<sequence_state>(sequences_.find(sequence)),
                            options_.max_sequences);
  }

  /// @brief Forgets a sequence; its id stays invalid for good. Segments that no fork shares are freed.
  /// @throw sequence_error
  void release(sequence_id sequence) { (void)sequences_.take(sequence); }

  /// @brief Keeps the first n_tokens tokens of every layer (a layer that holds fewer stays as it is). A
  /// segment that is cut is opened again: its tokens go back to the tail. What the query metric has
  /// learnt stays.
  /// Complexity: O(tokens of the segment that is cut).  @throw sequence_error, std::bad_alloc
  void truncate(sequence_id sequence, std::size_t n_tokens) {
    sequence_state& state = sequences_.find(sequence);
    std::vector<layer_type> cut;
    cut.reserve(state.layers.size());
    for (const layer_type& layer : state.layers) {
      cut.push_back(truncated(layer, n_tokens));
    }
    state.layers.swap(cut);
  }

  /// @brief Tokens that every layer holds.  @throw sequence_error
  [[nodiscard]] std::size_t length(sequence_id sequence) const {
    const sequence_state& state = sequences_.find(sequence);
    std::size_t shortest = SIZE_MAX;
    for (const layer_type& layer : state.layers) {
      shortest = std::min(shortest, layer.length());
    }
    return shortest;
  }

  /// @brief Tokens that one layer holds.  @throw sequence_error, shape_error
  [[nodiscard]] std::size_t length(sequence_id sequence, std::size_t layer) const {
    return find_layer(sequence, layer).length();
  }

  /// @brief What a sequence holds and what its steps did.  @throw sequence_error
  [[nodiscard]] statistics stats(sequence_id sequence) const {
    const sequence_state& state = sequences_.find(sequence);
    statistics sum;
    sum.tokens = length(sequence);
    for (const layer_type& layer : state.layers) {
      sum.segments += layer.segments.size();
      for (const auto& segment : layer.segments) {
        sum.kv_bytes += segment->kv_bytes();
        sum.index_bytes += segment->index_bytes();
        for (std::size_t head = 0; head < geometry_.n_kv_heads; ++head) {
          sum.clusters += segment->head(head).levels[0].n_nodes;
        }
      }
      sum.steady_bytes += layer.sink.bytes() + layer.tail.bytes();
      sum.steps += layer.steps;
      sum.last += layer.last;
      sum.total += layer.total;
    }
    return sum;
  }

  /// @}
  /// @name Writing
  /// @{

  /// @brief Appends tokens to one layer. A prefill chunk and a decode token are the same call; tokens beyond
  /// the window are sealed into segments as they fill.
  /// Blocks: until sealed, when this append fills a segment. Allocates: while the tail grows, and the new segment.
  /// @param keys     [n, n_kv_heads, key_dim], finite, any strides with contiguous rows
  /// @param values   [n, n_kv_heads, value_dim], likewise
  /// @param queries  [n, n_query_heads, key_dim] or empty: teaches a clusterer that asks for it what queries look for
  /// @throw shape_error, value_error, sequence_error, capacity_error, std::bad_alloc
  template <class K, class V, class Q = const K>
  void append(sequence_id sequence, std::size_t layer, tensor_view<K, 3> keys,
              tensor_view<V, 3> values, tensor_view<Q, 3> queries = {}) {
    layer_type& state = find_layer(sequence, layer);
    const std::size_t n = check_rows(state, keys, values);
    if (!queries.empty()) {
      check_queries(queries, n);
    }
    detail::stage_rows(state.tail, keys, values);
    commit(state, layer, n, n < Index::segment_size_type::decode, queries);
  }

  /// @brief Seals what waits in the tail beyond the window, as one segment a layer; call it when a prompt has been
  /// read. Optional: the first decode steps would seal most of it. A few tokens less than a cluster stay in the tail.
  /// Blocks: until sealed.  @throw sequence_error, std::bad_alloc
  void seal(sequence_id sequence) {
    sequence_state& state = sequences_.find(sequence);
    std::vector<std::pair<layer_type*, prepared_seal>> prepared;
    prepared.reserve(state.layers.size());
    for (layer_type& layer : state.layers) {
      const std::size_t pending = pending_tokens(layer, 0);
      if (pending >=
          Index::cluster_count_type::tokens_at(Index::cluster_count_type::n_levels - 1)) {
        prepared.emplace_back(&layer, prepare_seal(layer, {pending}, layer.metrics));
      }
    }
    for (auto& [layer, seal] : prepared) {  // nothing throws any more: all layers or none
      commit_seal(*layer, 0, seal);
    }
  }

  /// @}
  /// @name Reading
  /// @{

  /// @brief One decode step of a ragged batch: attention of each query over its sequence, by the cache's bound.
  ///
  /// The last query of a sequence sits at its newest token and sees all tokens; the ones before it see one
  /// less each (speculative verification). They must lie in the window: n_queries <= window_tokens, and behind what
  /// is sealed, which after a truncation may reach up to the newest token.
  /// Blocks: yes. Allocates: nothing after warm-up. Deterministic: for the same cache, whatever the executor and the batch.
  /// @param batch    sequences with the number of their queries; a sequence may stand in it twice
  /// @param queries  [sum of n_queries, n_query_heads, key_dim], finite
  /// @param out      [sum of n_queries, n_query_heads, value_dim], written; zeros for an empty sequence
  /// @param lse      [sum of n_queries, n_query_heads] or empty: natural log-sum-exp of the scaled logits,
  ///                 learned sink included; -infinity for an empty sequence
  /// @throw shape_error, value_error, sequence_error; io_error by a store
  template <class T, class U>
  step_stats attend(std::span<const query_run> batch, std::size_t layer, tensor_view<T, 3> queries,
                    tensor_view<U, 3> out, tensor_view<float, 2> lse = {}) {
    return attend(batch, layer, queries, out, lse, options_.bound);
  }

  /// @brief The same by another bound, of any type: one request may ask for more accuracy than another.
  /// @throw config_error when the bound's members are out of range
  template <class T, class U, estimation_bound Bound>
  step_stats attend(std::span<const query_run> batch, std::size_t layer, tensor_view<T, 3> queries,
                    tensor_view<U, 3> out, tensor_view<float, 2> lse, const Bound& bound) {
    const std::size_t n = count_queries(batch);
    detail::check_shape("out", out, n, geometry_.n_query_heads, geometry_.value_dim);
    detail::check_optional_shape("lse", lse, n, geometry_.n_query_heads);
    return search(
        batch, layer, n, queries, bound,
        [&](std::size_t query, std::size_t head, const partial_softmax_view& merged) {
          for (std::size_t g = 0; g < merged.n_queries; ++g) {
            const std::size_t query_head = head * geometry_.group_size() + g;
            if (!geometry_.sink_logits.empty()) {
              add_sink_logit(merged, g,
                             geometry_.sink_logits[layer * geometry_.n_query_heads + query_head]);
            }
            if (!lse.empty()) {
              lse(query, query_head) = log_sum_exp(merged, g);
            }
            const partial_softmax_view one = merged.part(g, 1);
            finish(one, one.numerator, one.numerator_stride);
            detail::convert_row(&out(query, query_head, 0U), one.numerator, geometry_.value_dim);
          }
        });
  }

  /// @brief attend for one sequence; its number of queries is that of the view.
  template <class T, class U, class... More>
  step_stats attend(sequence_id sequence, std::size_t layer, tensor_view<T, 3> queries,
                    tensor_view<U, 3> out, const More&... more) {
    const query_run run{sequence, queries.extent(0)};
    return attend(std::span<const query_run>(&run, 1), layer, queries, out, more...);
  }

  /// @brief As attend, but leaves the partial softmax undivided and without learned sinks, for engines that merge
  /// zones, shards or ranks on their own (wavekv::merge, then finish).
  template <class T, estimation_bound Bound = bound_type>
  step_stats attend_partial(std::span<const query_run> batch, std::size_t layer,
                            tensor_view<T, 3> queries, const partial_output& out,
                            const Bound* bound = nullptr) {
    const std::size_t n = count_queries(batch);
    detail::check_shape("numerator", out.numerator, n, geometry_.n_query_heads,
                        geometry_.value_dim);
    if (out.max.empty() || out.denominator.empty()) {
      throw shape_error(
          "max or denominator has no memory; allowed: [n_queries, n_query_heads] each");
    }
    detail::check_optional_shape("max", out.max, n, geometry_.n_query_heads);
    detail::check_optional_shape("denominator", out.denominator, n, geometry_.n_query_heads);
    const auto write = [&](std::size_t query, std::size_t head,
                           const partial_softmax_view& merged) {
      for (std::size_t g = 0; g < merged.n_queries; ++g) {
        const std::size_t query_head = head * geometry_.group_size() + g;
        out.max(query, query_head) = merged.max[g];
        out.denominator(query, query_head) = merged.denominator[g];
        std::copy_n(merged.numerator_of(g), geometry_.value_dim,
                    &out.numerator(query, query_head, 0U));
      }
    };
    if constexpr (std::is_same_v<Bound, bound_type>) {
      return search(batch, layer, n, queries, bound != nullptr ? *bound : options_.bound, write);
    } else {
      return search(batch, layer, n, queries, *bound, write);
    }
  }

  /// @brief Exact causal attention of a chunk over the cache and itself, then append of the chunk. The queries also
  /// teach a clusterer that asks for them.
  /// Complexity: n · length exact attention. Blocks: yes. Allocates: yes.
  /// @param queries  [n, n_query_heads, key_dim], finite
  /// @param keys     [n, n_kv_heads, key_dim], finite
  /// @param values   [n, n_kv_heads, value_dim], finite
  /// @param out      [n, n_query_heads, value_dim], written
  /// @param lse      [n, n_query_heads] or empty
  /// @throw shape_error, value_error, sequence_error, capacity_error, std::bad_alloc; then nothing was appended, but
  ///        out may have been written
  template <class Q, class K, class V, class U>
  step_stats prefill(sequence_id sequence, std::size_t layer, tensor_view<Q, 3> queries,
                     tensor_view<K, 3> keys, tensor_view<V, 3> values, tensor_view<U, 3> out,
                     tensor_view<float, 2> lse = {}) {
    layer_type& state = find_layer(sequence, layer);
    const std::size_t n = check_rows(state, keys, values);
    check_queries(queries, n);
    detail::check_shape("out", out, n, geometry_.n_query_heads, geometry_.value_dim);
    detail::check_optional_shape("lse", lse, n, geometry_.n_query_heads);
    detail::stage_rows(state.tail, keys, values);
    const borrowed_scratch scratch(*this);
    const step_stats done = scratch->prefill.run(geometry_, layer, state, reader_,
                                                 options_.executor, queries, out, lse);
    commit(state, layer, n, false, queries);
    return done;
  }

  /// @}

 private:
  using reader_type = block_reader<Scalar, Buffer>;
  using segment_type = segment<Scalar, typename reader_type::handle>;
  using layer_type = layer_state<Scalar, segment_type>;
  using runner_type = search_runner<Scalar, Buffer>;
  static constexpr bool wants_queries = detail::uses_queries<typename Index::clusterer_type>();

  struct sequence_state {
    std::vector<layer_type> layers;
  };

  // What one attend, prefill or seal works with; kept from call to call.
  struct scratch_type {
    runner_type runner;
    std::vector<typename runner_type::request> requests;
    std::vector<std::pair<std::size_t, std::size_t>> places;  // (query, KV head) of each request
    std::vector<float> queries;  // [n_queries, n_query_heads, key_dim], scaled
    sealer<Scalar, Index, segment_type> segments;
    prefill_pass<Scalar, Buffer, segment_type> prefill;
  };

  // A scratch for the length of a call; calls for different layers at once get one each.
  class borrowed_scratch {
   public:
    explicit borrowed_scratch(kv_cache& owner) : owner_(owner) {
      const std::lock_guard lock(owner.scratch_mutex_);
      if (owner.idle_scratch_.empty()) {
        owner.idle_scratch_.reserve(++owner.n_scratch_);  // so that giving back need not allocate
        scratch_ = std::make_unique<scratch_type>();
      } else {
        scratch_ = std::move(owner.idle_scratch_.back());
        owner.idle_scratch_.pop_back();
      }
    }
    borrowed_scratch(const borrowed_scratch&) = delete;
    borrowed_scratch& operator=(const borrowed_scratch&) = delete;
    ~borrowed_scratch() {
      const std::lock_guard lock(owner_.scratch_mutex_);
      owner_.idle_scratch_.push_back(std::move(scratch_));
    }
    scratch_type& operator*() const noexcept { return *scratch_; }
    scratch_type* operator->() const noexcept { return scratch_.get(); }

   private:
    kv_cache& owner_;
    std::unique_ptr<scratch_type> scratch_;
  };

  layer_type& find_layer(sequence_id sequence, std::size_t layer) const {
    if (layer >= geometry_.n_layers) {
      throw shape_error(
          detail::message("layer is ", layer, "; allowed: 0 to ", geometry_.n_layers - 1));
    }
    return sequences_.find(sequence).layers[layer];
  }

  // Checks keys and values of an append; returns the number of tokens.
  template <class K, class V>
  std::size_t check_rows(const layer_type& state, const tensor_view<K, 3>& keys,
                         const tensor_view<V, 3>& values) const {
    const std::size_t n = keys.extent(0);
    detail::check_shape("keys", keys, n, geometry_.n_kv_heads, geometry_.key_dim);
    detail::check_shape("values", values, n, geometry_.n_kv_heads, geometry_.value_dim);
    if (n > options_.max_tokens - state.length()) {
      throw capacity_error(detail::message("append of ", n, " tokens to ", state.length(),
                                           "; allowed: ", options_.max_tokens,
                                           " in all (cache_options::max_tokens)"));
    }
    return n;
  }

  template <class Q>
  void check_queries(const tensor_view<Q, 3>& queries, std::size_t n) const {
    detail::check_shape("queries", queries, n, geometry_.n_query_heads, geometry_.key_dim);
    detail::check_finite("queries", queries);
  }

  // Tokens beyond sink and window, once n staged rows are counted in.
  std::size_t pending_tokens(const layer_type& state, std::size_t n) const noexcept {
    const std::size_t held = state.tail.size() + n;
    const std::size_t kept = options_.window_tokens + sink_room(state);
    return held > kept ? held - kept : 0;
  }

  std::size_t sink_room(const layer_type& state) const noexcept {
    return state.segments.empty() ? options_.sink_tokens - state.sink.size() : 0;
  }

  // Makes n staged rows part of the layer, and seals what is due.
  template <class Q>
  void commit(layer_type& state, std::size_t layer, std::size_t n, bool decoding,
              const tensor_view<Q, 3>& queries) {
    std::vector<query_metric> metrics;  // a copy, so that nothing is learnt when sealing fails
    if constexpr (wants_queries) {
      if (!queries.empty() && n != 0) {
        metrics = state.metrics;
        options_.executor.parallel_for(metrics.size(), [&](std::size_t head,
                                                           std::size_t /*worker*/) {
          using element = std::remove_const_t<Q>;
          const tensor_view<const element, 3> group(&queries(0U, head * geometry_.group_size(), 0U),
                                                    {n, geometry_.group_size(), geometry_.key_dim},
                                                    queries.strides());
          metrics[head].template add<element>(group, geometry_.logit_scale());
        });
      }
    }
    const std::vector<std::size_t> sizes = detail::seal_sizes<typename Index::segment_size_type>(
        pending_tokens(state, n), decoding, layer, geometry_.n_layers);
    if (!sizes.empty()) {
      prepared_seal prepared =
          prepare_seal(state, sizes, metrics.empty() ? state.metrics : metrics);
      commit_seal(state, n, prepared);
    } else {
      state.tail.commit(n);
    }
    if (!metrics.empty()) {
      state.metrics.swap(metrics);
    }
  }

  // Segments that were made but are not part of their layer yet.
  struct prepared_seal {
    sealed_runs<segment_type> sealed;
    std::shared_ptr<const std::vector<head_tilts>> tilts;
    std::size_t to_sink = 0;  // tail rows that fill the sink
    std::size_t n_rows = 0;   // tail rows that leave the tail, those included
  };

  // Makes segments of runs of the given sizes from the front of the tail (staged rows may be among them), behind
  // what the sink still takes. The layer holds the same tokens in the same places afterwards.
  prepared_seal prepare_seal(layer_type& state, const std::vector<std::size_t>& sizes,
                             const std::vector<query_metric>& metrics) {
    const std::size_t to_sink = sink_room(state);
    std::vector<seal_run> runs;
    std::size_t row = to_sink;
    std::size_t token = state.length() - state.tail.size() + to_sink;
    for (const std::size_t size : sizes) {
      for (std::size_t left = size; left > 0;) {  // a segment holds at most 65,536 tokens
        const std::size_t part = std::min<std::size_t>(left, Index::segment_size_type::prefill);
        runs.push_back({token, row, part});
        token += part;
        row += part;
        left -= part;
      }
    }
    state.segments.reserve(state.segments.size() + runs.size());
    state.sink.reserve(state.sink.size() + to_sink);
    const borrowed_scratch scratch(*this);
    prepared_seal prepared;
    sealed_runs<segment_type>& sealed = prepared.sealed;
    sealed = scratch->segments.seal(
        state.tail, geometry_.n_kv_heads, geometry_.key_dim, geometry_.value_dim, runs,
        typename Index::clusterer_type{}, metrics, options_.executor,
        [&](aligned_storage<Scalar> rows) { return reader_.keep(std::move(rows)); });
    if (state.tilts != nullptr) {
      for (std::size_t head = 0; head < geometry_.n_kv_heads; ++head) {
        for (std::size_t level = 0; level < max_tree_levels; ++level) {
          value_tilt tilt = (*state.tilts)[head][level];
          tilt.add(sealed.tilts[head][level]);
          sealed.tilts[head][level] = std::move(tilt);
        }
      }
    }
    prepared.tilts = std::make_shared<const std::vector<head_tilts>>(std::move(sealed.tilts));
    prepared.to_sink = to_sink;
    prepared.n_rows = row;
    return prepared;
  }

  // Makes prepared segments, and n staged rows, part of their layer.
  static void commit_seal(layer_type& state, std::size_t n, prepared_seal& prepared) noexcept {
    token_rows<Scalar>::copy_rows(state.tail, 0, state.sink, state.sink.size(), prepared.to_sink);
    state.sink.commit(prepared.to_sink);
    for (auto& segment : prepared.sealed.segments) {
      state.segments.push_back(std::move(segment));  // room was reserved
    }
    state.tilts = std::move(prepared.tilts);
    state.tail.commit(n);
    state.tail.drop_front(prepared.n_rows);
  }

  // A copy of a layer that holds at most n tokens.
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

  // Writes the first n tokens of a segment into an empty tail, in token order.
  void reopen(const segment_type& segment, std::size_t n, token_rows<Scalar>& tail) {
    typename reader_type::lane_type lane;
    std::vector<block> blocks;
    tail.reserve(n);
    for (std::size_t head = 0; head < geometry_.n_kv_heads; ++head) {
      const head_index<Scalar>& index = segment.head(head);
      blocks.clear();
      for (std::uint32_t cluster = 0; cluster < index.levels[0].n_nodes; ++cluster) {
        blocks.push_back(segment.cluster_block(head, cluster));
      }
      reader_.read(
          segment.rows(), blocks, lane,
          [&](std::size_t cluster, const Scalar* rows) {
            const auto [first, last] =
                segment.cluster_tokens(head, static_cast<std::uint32_t>(cluster));
            const Scalar* values = rows + (last - first) * geometry_.key_dim;
            for (std::uint32_t i = first; i < last; ++i) {
              const std::size_t token = index.order[i];
              if (token < n) {
                std::copy_n(rows + (i - first) * geometry_.key_dim, geometry_.key_dim,
                            tail.keys(head) + token * geometry_.key_dim);
                std::copy_n(values + (i - first) * geometry_.value_dim, geometry_.value_dim,
                            tail.values(head) + token * geometry_.value_dim);
              }
            }
          },
          [] {});
    }
    tail.commit(n);
  }

  static std::size_t count_queries(std::span<const query_run> batch) noexcept {
    std::size_t n = 0;
    for (const query_run& run : batch) {
      n += run.n_queries;
    }
    return n;
  }

  // The queries of a batch as floats, times the logit scale.
  template <class Q>
  void scale_queries(const tensor_view<Q, 3>& queries, std::vector<float>& scaled) const {
    scaled.resize(queries.extent(0) * geometry_.n_query_heads * geometry_.key_dim);
    float* to = scaled.data();
    for (std::size_t query = 0; query < queries.extent(0); ++query) {
      for (std::size_t head = 0; head < geometry_.n_query_heads; ++head, to += geometry_.key_dim) {
        simd::to_float_scaled(to, &queries(query, head, 0U), geometry_.key_dim,
                              geometry_.logit_scale());
      }
    }
  }

  // Runs the searches of a batch; write(query, KV head, merged) is called for each, on any worker.
  template <class T, class Bound, class Write>
  step_stats search(std::span<const query_run> batch, std::size_t layer, std::size_t n,
                    const tensor_view<T, 3>& queries, const Bound& bound, Write&& write) {
    detail::validate_bound(bound);
    check_queries(queries, n);
    const borrowed_scratch scratch(*this);
    scale_queries(queries, scratch->queries);
    scratch->requests.clear();
    scratch->places.clear();
    std::size_t query = 0;
    for (const query_run& run : batch) {
      const layer_type& state = find_layer(run.sequence, layer);
      for (std::size_t i = 0; i < run.n_queries; ++i, ++query) {
        add_requests(run, layer, state, i, query, *scratch);
      }
    }
    const step_stats done = scratch->runner.run(
        std::span<const typename runner_type::request>(scratch->requests), bound, reader_,
        options_.executor, [&](std::size_t request, const partial_softmax_view& merged) {
          write(scratch->places[request].first, scratch->places[request].second, merged);
        });
    std::size_t request = 0;
    for (const query_run& run : batch) {
      step_stats own;
      for (std::size_t i = 0; i < run.n_queries * geometry_.n_kv_heads; ++i) {
        own += scratch->runner.stats_of(request++);
      }
      layer_type& state = find_layer(run.sequence, layer);
      state.last = own;
      state.total += own;
      ++state.steps;
    }
    return done;
  }

  // The requests of one query token: one per KV head.
  void add_requests(const query_run& run, std::size_t layer, const layer_type& state, std::size_t i,
                    std::size_t query, scratch_type& scratch) const {
    const std::size_t behind = run.n_queries - 1 - i;  // tokens that came after this query's own
    const std::size_t length = state.length();
    // A sealed segment shows all of its tokens or none, so that what a query must not see has to lie in the tail
    // (after a truncation it may hold less than the window).
    if (behind != 0 &&
        (behind >= length || (!state.segments.empty() &&
                              (behind >= options_.window_tokens || behind > state.tail.size())))) {
      throw shape_error(detail::message(
          "attend: ", run.n_queries, " queries for sequence ", run.sequence, " of ", length,
          " tokens, ", state.tail.size(),
          " of them not sealed; allowed: at most window_tokens, which is ", options_.window_tokens,
          ", at most one per token, and one more than is not sealed"));
    }
    const std::size_t visible = length - behind;
    const std::size_t before_tail = length - state.tail.size();
    typename runner_type::request request;
    request.input.segments = state.segments;
    request.input.sink = &state.sink;
    request.input.tail = &state.tail;
    request.input.n_visible_sink = std::min(visible, state.sink.size());
    request.input.n_visible_tail = visible - std::min(visible, before_tail);
    request.input.group_size = geometry_.group_size();
    request.input.key_dim = geometry_.key_dim;
    request.input.value_dim = geometry_.value_dim;
    request.input.softcap = geometry_.logit_softcap;
    request.key.seed = options_.seed;
    request.key.sequence = run.sequence.slot;
    request.key.layer = static_cast<std::uint32_t>(layer);
    request.key.step = static_cast<std::uint32_t>(visible);
    for (std::size_t head = 0; head < geometry_.n_kv_heads; ++head) {
      request.input.head = head;
      request.input.tilts = state.tilts == nullptr ? nullptr : &(*state.tilts)[head];
      request.input.queries =
          scratch.queries.data() +
          (query * geometry_.n_query_heads + head * geometry_.group_size()) * geometry_.key_dim;
      request.key.head = static_cast<std::uint32_t>(head);
      scratch.requests.push_back(request);
      scratch.places.emplace_back(query, head);
    }
  }

  wavekv::geometry geometry_;
  options_type options_;
  reader_type reader_;
  sequence_table<sequence_state> sequences_;
  std::mutex scratch_mutex_;
  std::vector<std::unique_ptr<scratch_type>> idle_scratch_;
  std::size_t n_scratch_ = 0;
};

}  // namespace wavekv
