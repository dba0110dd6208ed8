// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/cache/attend_pass.hpp>
#include <wavekv/cache/cache_options.hpp>
#include <wavekv/cache/checks.hpp>
#include <wavekv/cache/layer_writer.hpp>
#include <wavekv/cache/prefetched_blocks.hpp>
#include <wavekv/cache/prefill_pass.hpp>
#include <wavekv/cache/query_run.hpp>
#include <wavekv/cache/saved_sequence.hpp>
#include <wavekv/cache/scratch_pool.hpp>
#include <wavekv/cache/sequence_table.hpp>
#include <wavekv/cache/statistics.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/core/ids.hpp>
#include <wavekv/core/tensor_view.hpp>
#include <wavekv/cpu/backend.hpp>
#include <wavekv/file/fingerprint.hpp>
#include <wavekv/index/bounds/exact.hpp>
#include <wavekv/index/wave_index.hpp>

/// @file kv_cache.hpp
/// @brief The type a user composes: a KV cache that is a vector index.

namespace wavekv {

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
        typename Index::summary_type;
      }, "kv_cache: Index must be a wavekv::wave_index (segment size, cluster count, clusterer, "
         "estimation bound, summary); see <wavekv/index/wave_index.hpp>");
  static_assert(!detail::scores_clusters<typename Index::summary_type> ||
                    Index::cluster_count_type::n_levels == 1,
                "kv_cache: an index whose Summary scores clusters has one level "
                "(with_cluster_count<tokens_per_cluster<16>>)");
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

 private:
  using writer_type = layer_writer<Scalar, Index, Buffer, typename Backend::executor_type>;
  using reader_type = typename writer_type::reader_type;
  using segment_type = typename writer_type::segment_type;
  using layer_type = typename writer_type::layer_type;
  using attend_type = attend_pass<Scalar, Buffer, segment_type, typename Index::summary_type>;
  using saved_type = saved_sequence<Scalar, Buffer, layer_type>;

 public:
  using scalar_type = Scalar;
  using index_type = Index;
  using buffer_type = Buffer;
  using backend_type = Backend;
  using bound_type = typename Index::bound_type;
  using executor_type = typename Backend::executor_type;
  using placement_type = typename Buffer::placement_type;
  using options_type = cache_options<bound_type, executor_type, placement_type>;

  /// @brief An empty cache.  @throw config_error; io_error when a slow tier cannot be made
  explicit kv_cache(wavekv::geometry sizes, options_type options = {})
      : geometry_(validated(std::move(sizes))),
        options_(validated(std::move(options))),
        reader_(options_.placement, geometry_.key_dim, geometry_.value_dim),
        writer_(geometry_, options_.sink_tokens, options_.window_tokens, options_.executor,
                reader_) {}

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
  sequence_id create() { return sequences_.enter(empty_sequence(), options_.max_sequences); }

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
      cut.push_back(writer_.truncated(layer, n_tokens));
    }
    for (auto& ahead : state.ahead) {
      ahead.abandon();  // it reads from segments that may go now
    }
    state.layers.swap(cut);
  }

  /// @brief Writes a sequence to a file, which replaces an older one once it is whole: whenever the process ends, there is
  /// the old file or the new one. Its format: docs/file_format.md.
  /// Blocks: until it is on the disk. Complexity: O(bytes of K, V and index). Allocates: some MB.
  /// @param model   the caller's name of the model's weights; load asks for the same
  /// @param engine  what the caller keeps of the sequence himself (its tokens, layers with a short window, …), for load to
  ///                give back
  /// @throw sequence_error; io_error when it cannot be written (a full disk, say): an older file is as it was;
  ///        format_error when rows in the slow tier have changed
  void save(sequence_id sequence, const std::filesystem::path& path, std::string_view model = {},
            std::span<const std::byte> engine = {}) const {
    check_savable();
    const sequence_state& state = sequences_.find(sequence);
    saved_type::save(path, fingerprint_of(model), engine, std::span<const layer_type>(state.layers),
                     geometry_, reader_);
  }

  /// @brief A new sequence with what save wrote; nothing is clustered again. Where the slow tier is a file, K and V of
  /// sealed segments stay in that file and are read from there as they are needed (it must not be changed in place
  /// while the sequence or a fork of it is alive; saving over it and removing it are safe); otherwise all is read now.
  /// Everything read is compared with its checksum, what stays in the file whenever a block of it arrives.
  /// Blocks: until read. Complexity: O(bytes of the index), or of all. Allocates.
  /// @param model   as it was saved
  /// @param engine  null, or written: what the caller had saved with it
  /// @throw mismatch_error when the file is of another model, geometry, scalar or index; format_error when it is no such
  ///        file, of another version, cut short or changed; io_error; capacity_error. There is no new sequence then.
  sequence_id load(const std::filesystem::path& path, std::string_view model = {},
                   std::vector<std::byte>* engine = nullptr) {
    check_savable();
    auto state = empty_sequence();
    std::vector<std::byte> kept =
        saved_type::load(path, fingerprint_of(model), std::span<layer_type>(state->layers),
                         geometry_, Index::cluster_count_type::n_levels, options_.sink_tokens,
                         options_.max_tokens, reader_, options_.executor);
    const sequence_id loaded = sequences_.enter(std::move(state), options_.max_sequences);
    if (engine != nullptr) {
      engine->swap(kept);
    }
    return loaded;
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
      sum.learnt_bytes += layer.learnt_bytes();
      sum.steady_bytes += layer.sink.bytes() + layer.tail.bytes();
      if (layer.sealing) {
        sum.steady_bytes += layer.sealing->bytes();
        sum.chores_in_making += layer.sealing->segment.n_chores_done;
      }
      sum.steps += layer.steps;
      sum.last += layer.last;
      sum.total += layer.total;
    }
    return sum;
  }

  /// @brief What the whole cache did, and what its tiers hold. As text for a server: <wavekv/cache/prometheus.hpp>.
  [[nodiscard]] cache_statistics stats() const {
    cache_statistics sum;
    sum.sequences = sequences_.size();
    {
      const std::lock_guard lock(total_mutex_);
      sum.steps = steps_;
      sum.total = total_;
    }
    if constexpr (requires { reader_.tiers().stats(); }) {
      sum.tiers = reader_.tiers().stats();
    }
    return sum;
  }

  /// @brief Blocks until all sealed rows are in the slow tier; only where there is one.
  /// @throw io_error when rows could not be written; they stay in memory, and nothing is lost
  void flush()
    requires(!reader_type::always_fast)
  {
    reader_.tiers().flush();
  }

  /// @}
  /// @name Writing
  /// @{

  /// @brief Appends tokens to one layer. A prefill chunk and a decode token are the same call; tokens beyond
  /// the window are sealed into segments as they fill: a prompt's at once, a decode step's over the steps that follow,
  /// half a KV head or so in each, while their tokens stay in the tail.
  /// Blocks: until sealed, when this append fills a prompt's segment; for half a KV head while a decode segment is sealed.
  /// Allocates: while the tail grows, and in the calls that seal.
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
    writer_.commit(state, layer, n, n < Index::segment_size_type::decode, queries);
  }

  /// @brief Seals what waits in the tail beyond the window, as one segment a layer; call it when a prompt has been
  /// read. Optional: the first decode steps would seal most of it. A few tokens less than a cluster stay in the tail.
  /// Blocks: until sealed.  @throw sequence_error, std::bad_alloc
  void seal(sequence_id sequence) {
    sequence_state& state = sequences_.find(sequence);
    std::vector<std::vector<typename writer_type::prepared_seal>> prepared;
    prepared.reserve(state.layers.size());
    for (layer_type& layer : state.layers) {
      prepared.push_back(writer_.prepare_rest(layer));
    }
    for (std::size_t i = 0; i < prepared.size();
         ++i) {  // nothing throws any more: all layers or none
      for (auto& seal : prepared[i]) {
        writer_type::commit_seal(state.layers[i], 0, seal);
      }
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
  /// Blocks: yes. Allocates: nothing after warm-up; with a slow tier now and then, when more blocks are missing
  /// than ever before. Deterministic: for the same cache, whatever the executor and the batch; with a slow tier to the
  /// rounding of sums, since blocks are added as they arrive.
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
    const std::size_t n = detail::count_queries(batch);
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

  /// @brief The same without lse.
  template <class T, class U, estimation_bound Bound>
  step_stats attend(std::span<const query_run> batch, std::size_t layer, tensor_view<T, 3> queries,
                    tensor_view<U, 3> out, const Bound& bound) {
    return attend(batch, layer, queries, out, tensor_view<float, 2>{}, bound);
  }

  /// @brief attend for one sequence; its number of queries is that of the view.
  /// @param more  lse, a bound, or both, as above
  template <class T, class U, class... More>
  step_stats attend(sequence_id sequence, std::size_t layer, tensor_view<T, 3> queries,
                    tensor_view<U, 3> out, const More&... more) {
    const query_run run{sequence, queries.extent(0)};
    return attend(std::span<const query_run>(&run, 1), layer, queries, out, more...);
  }

  /// @brief Starts to read the blocks that the last step of this layer used and that are not in the fast tier, and returns;
  /// the layer's next attend finds them. For the layer that comes next, while this one computes. A use of (sequence,
  /// layer), as any other; nothing where all is in the fast tier.
  /// Blocks: no. Allocates: once.  @throw sequence_error, shape_error, std::bad_alloc
  void prefetch(sequence_id sequence, std::size_t layer) {
    const layer_type& state = find_layer(sequence, layer);
    if constexpr (!reader_type::always_fast) {
      sequences_.find(sequence).ahead[layer].start(
          reader_, state.segments, std::span<const std::vector<used_cluster>>(state.used));
    }
  }

  /// @brief As attend, but leaves the partial softmax undivided and without learned sinks, for engines that merge
  /// zones, shards or ranks on their own (wavekv::merge, then finish).
  template <class T>
  step_stats attend_partial(std::span<const query_run> batch, std::size_t layer,
                            tensor_view<T, 3> queries, const partial_output& out) {
    return attend_partial(batch, layer, queries, out, options_.bound);
  }

  /// @brief The same by another bound, of any type.
  template <class T, estimation_bound Bound>
  step_stats attend_partial(std::span<const query_run> batch, std::size_t layer,
                            tensor_view<T, 3> queries, const partial_output& out,
                            const Bound& bound) {
    const std::size_t n = detail::count_queries(batch);
    detail::check_partial_output(out, n, geometry_);
    return search(batch, layer, n, queries, bound,
                  [&](std::size_t query, std::size_t head, const partial_softmax_view& merged) {
                    for (std::size_t g = 0; g < merged.n_queries; ++g) {
                      const std::size_t query_head = head * geometry_.group_size() + g;
                      out.max(query, query_head) = merged.max[g];
                      out.denominator(query, query_head) = merged.denominator[g];
                      std::copy_n(merged.numerator_of(g), geometry_.value_dim,
                                  &out.numerator(query, query_head, 0U));
                    }
                  });
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
    const step_stats done = prefills_.borrow()->run(geometry_, layer, state, reader_,
                                                    options_.executor, queries, out, lse);
    writer_.commit(state, layer, n, false, queries);
    return done;
  }

  /// @}

 private:
  struct sequence_state {
    std::vector<layer_type> layers;
    std::vector<prefetched_blocks<reader_type>>
        ahead;  // [n_layers], reads from the segments of layers
  };

  [[nodiscard]] std::unique_ptr<sequence_state> empty_sequence() const {
    auto state = std::make_unique<sequence_state>();
    state->layers.resize(geometry_.n_layers);
    if constexpr (!reader_type::always_fast) {
      state->ahead = std::vector<prefetched_blocks<reader_type>>(geometry_.n_layers);
    }
    for (layer_type& layer : state->layers) {
      layer.sink = layer.tail =
          token_rows<Scalar>(geometry_.n_kv_heads, geometry_.key_dim, geometry_.value_dim);
      if constexpr (writer_type::wants_queries) {
        layer.metrics.assign(
            geometry_.n_kv_heads,
            query_metric(geometry_.key_dim, query_metric::default_max_queries,
                         detail::n_sample_queries<typename Index::summary_type>()));
      }
    }
    return state;
  }

  [[nodiscard]] std::string fingerprint_of(std::string_view model) const {
    return make_fingerprint<Scalar, Index>(geometry_, options_.sink_tokens, model);
  }

  template <class Checked>
  static Checked validated(Checked checked) {
    checked.validate();
    return checked;
  }

  static constexpr void check_savable() {
    static_assert(!detail::scores_clusters<typename Index::summary_type>,
                  "kv_cache: save and load need an index of mean_summary: what other summaries "
                  "keep has no form in a file");
  }

  layer_type& find_layer(sequence_id sequence, std::size_t layer) const {
    detail::check_layer(layer, geometry_.n_layers);
    return sequences_.find(sequence).layers[layer];
  }

  // Checks keys and values of an append; returns the number of tokens.
  template <class K, class V>
  std::size_t check_rows(const layer_type& state, const tensor_view<K, 3>& keys,
                         const tensor_view<V, 3>& values) const {
    const std::size_t n = keys.extent(0);
    detail::check_shape("keys", keys, n, geometry_.n_kv_heads, geometry_.key_dim);
    detail::check_shape("values", values, n, geometry_.n_kv_heads, geometry_.value_dim);
    detail::check_room(n, state.length(), options_.max_tokens);
    return n;
  }

  template <class Q>
  void check_queries(const tensor_view<Q, 3>& queries, std::size_t n) const {
    detail::check_shape("queries", queries, n, geometry_.n_query_heads, geometry_.key_dim);
    detail::check_finite("queries", queries);
  }

  // Runs the searches of a batch; write(query, KV head, merged) is called for each, on any worker.
  template <class T, class Bound, class Write>
  step_stats search(std::span<const query_run> batch, std::size_t layer, std::size_t n,
                    const tensor_view<T, 3>& queries, const Bound& bound, Write&& write) {
    detail::validate_bound(bound);
    check_queries(queries, n);
    const auto pass = attends_.borrow();
    const typename attend_type::settings fixed{geometry_, layer, options_.window_tokens,
                                               options_.seed};
    pass->begin(fixed, queries);
    for (const query_run& run : batch) {
      pass->add(fixed, run, find_layer(run.sequence, layer));
      if constexpr (!reader_type::always_fast) {
        sequences_.find(run.sequence).ahead[layer].collect();
      }
    }
    const step_stats done =
        pass->run(bound, reader_, options_.executor, std::forward<Write>(write));
    std::size_t first = 0;
    for (const query_run& run : batch) {
      const std::size_t n_searches = run.n_queries * geometry_.n_kv_heads;
      pass->book(find_layer(run.sequence, layer), first, n_searches, geometry_.n_kv_heads);
      first += n_searches;
    }
    const std::lock_guard lock(total_mutex_);
    total_ += done;
    ++steps_;
    return done;
  }

  wavekv::geometry geometry_;
  options_type options_;
  mutable reader_type reader_;  // outlives the sequences, whose segments' rows it keeps
  sequence_table<sequence_state> sequences_;
  writer_type writer_;
  mutable std::mutex total_mutex_;
  step_stats total_;  // guarded, as the next
  std::uint64_t steps_ = 0;
  scratch_pool<attend_type> attends_;
  scratch_pool<prefill_pass<Scalar, Buffer, segment_type>> prefills_;
};

}  // namespace wavekv
