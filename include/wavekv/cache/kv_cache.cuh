// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <wavekv/attention/prefill.cuh>
#include <wavekv/buffer/placement.hpp>
#include <wavekv/cache/attend_arguments.hpp>
#include <wavekv/cache/attend_workspace.cuh>
#include <wavekv/cache/cache_options.cuh>
#include <wavekv/cache/checks.hpp>
#include <wavekv/cache/kv_cache.hpp>
#include <wavekv/cache/layer_transfer.cuh>
#include <wavekv/cache/layer_writer.cuh>
#include <wavekv/cache/query_run.hpp>
#include <wavekv/cache/saved_sequence.hpp>
#include <wavekv/cache/sequence_table.hpp>
#include <wavekv/cache/statistics.hpp>
#include <wavekv/cache/step_report.cuh>
#include <wavekv/core/geometry.hpp>
#include <wavekv/core/ids.hpp>
#include <wavekv/cuda/backend.hpp>
#include <wavekv/cuda/caller_rows.cuh>
#include <wavekv/cuda/device_view.hpp>
#include <wavekv/file/fingerprint.hpp>
#include <wavekv/index/bounds/error_bound.cuh>
#include <wavekv/index/bounds/fixed_budget.cuh>
#include <wavekv/index/bounds/verified_bound.cuh>
#include <wavekv/index/search_room.cuh>
#include <wavekv/index/search_runner.cuh>

/// @file kv_cache.cuh
/// @brief The KV cache on a device: the same type with another backend, the same verbs on a stream.

namespace wavekv {

/// @brief Where attend_partial writes on a device: as partial_output.
struct device_partial_output {
  device_view<float, 2> max;          ///< [n_queries, n_query_heads]
  device_view<float, 2> denominator;  ///< [n_queries, n_query_heads]
  device_view<float, 3> numerator;    ///< [n_queries, n_query_heads, value_dim]
};

/// @brief The KV cache of one model in device memory.
///
/// Verbs, bounds and promises are those of the cache on the CPU. What differs:
/// - every call that works on the device takes a stream (in any place behind its required arguments; without one, the
///   device's default stream), enqueues its work there and returns. **No function waits for the device** but `collect`,
///   `stats` and `synchronize`. Calls that use the same sequence on different streams must be ordered by the caller.
/// - views are of device memory (device_nhd, …); a host pointer does not compile.
/// - what only the device can see is told later: `collect` returns what steps did and throws value_error when a query, key
///   or value was not finite. What a step answers for such a query means nothing; such an element of a key or value is stored as 0.
/// - a captured graph of `append` and `attend` stays valid while the sequence grows: see `advance`.
///
/// Memory: through options().runtime, in stream order. When there is none left a call throws cuda_error and the cache is as
/// before it. Before the cache goes, what streams still do with it has to be over (synchronize): it cannot know them.
/// Threads: as on the CPU.
/// @tparam Scalar   how K and V are stored: bf16, f16 or float
/// @tparam Index    a wave_index whose clusterer and bound have a device form
/// @tparam Buffer   a wave_buffer that keeps everything in the fast tier
/// @tparam Runtime  see basic_cuda
template <class Scalar, class Index, class Buffer, class Runtime>
class kv_cache<Scalar, Index, Buffer, basic_cuda<Runtime>> {
  static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, bf16> ||
                    std::is_same_v<Scalar, f16>,
                "kv_cache: on a device Scalar is float, wavekv::bf16 or wavekv::f16");
  static_assert(!detail::scores_clusters<typename Index::summary_type>,
                "kv_cache: on a device the index's Summary is mean_summary");
  static_assert(std::is_same_v<typename Buffer::placement_type, placement::resident>,
                "kv_cache: on a device the wave_buffer's placement is placement::resident");

 public:
  using scalar_type = Scalar;
  using index_type = Index;
  using buffer_type = Buffer;
  using backend_type = basic_cuda<Runtime>;
  using bound_type = typename Index::bound_type;
  using runtime_type = Runtime;
  using stream_type = typename Runtime::stream_type;
  using options_type = device_cache_options<bound_type, Runtime>;
  using workspace_type = attend_workspace<Scalar, Runtime>;

  /// @brief An empty cache.
  /// @throw config_error, also when key_dim or value_dim is no multiple of 8 or above 256; cuda_error
  explicit kv_cache(wavekv::geometry sizes, options_type options = {})
      : geometry_(validated(std::move(sizes))),
        options_(validated(std::move(options))),
        runtime_(options_.runtime),
        shape_(shape_of(geometry_)),
        writer_(runtime_, shape_, geometry_.n_layers, options_.sink_tokens, options_.window_tokens),
        report_(runtime_, {}) {
    if (!geometry_.sink_logits.empty()) {
      const std::size_t bytes = geometry_.sink_logits.size() * sizeof(float);
      sink_logits_ = device::device_block<Runtime>(runtime_, bytes, {});
      runtime_.copy_in(sink_logits_.data(), geometry_.sink_logits.data(), bytes, {});
    }
    runtime_.record(made_, {});
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

  /// @brief A new sequence of length 0. Complexity: O(n_layers) launches.  @throw capacity_error, cuda_error
  sequence_id create(stream_type stream = {}) {
    runtime_.wait(stream, made_);
    auto state = std::make_unique<sequence_state>();
    state->layers.reserve(geometry_.n_layers);
    for (std::size_t layer = 0; layer < geometry_.n_layers; ++layer) {
      state->layers.push_back(writer_.make(stream));
    }
    return sequences_.enter(std::move(state), options_.max_sequences);
  }

  /// @brief A second sequence with the same tokens. Sealed segments are shared, sink and tail copied.
  /// @throw sequence_error, capacity_error, cuda_error
  sequence_id fork(sequence_id sequence, stream_type stream = {}) {
    const sequence_state& from = sequences_.find(sequence);
    auto state = std::make_unique<sequence_state>();
    state->layers.reserve(from.layers.size());
    for (const layer_type& layer : from.layers) {
      state->layers.push_back(writer_.forked(layer, stream));
    }
    return sequences_.enter(std::move(state), options_.max_sequences);
  }

  /// @brief Forgets a sequence; its id stays invalid for good. Its memory is given back once the stream has come here: the
  /// last use of the sequence has to lie before.
  /// @throw sequence_error
  void release(sequence_id sequence, stream_type stream = {}) {
    const std::unique_ptr<sequence_state> state = sequences_.take(sequence);
    for (layer_type& layer : state->layers) {
      writer_.release(layer, stream);
    }
  }

  /// @brief Keeps the first n_tokens tokens of every layer. A segment that is cut is opened again: its tokens go back to the
  /// tail.  @throw sequence_error, cuda_error
  void truncate(sequence_id sequence, std::size_t n_tokens, stream_type stream = {}) {
    sequence_state& state = sequences_.find(sequence);
    for (layer_type& layer : state.layers) {
      writer_.reserve_cut(layer, n_tokens, stream);
    }
    for (layer_type& layer : state.layers) {
      writer_.truncate(layer, n_tokens, stream);
    }
  }

  /// @brief Writes a sequence to a file, as the cache on the CPU does: either backend loads what the other saved.
  /// Blocks: until it is on the disk. Allocates: the whole sequence on the host.
  /// @param model   the caller's name of the model's weights; load asks for the same
  /// @param engine  what the caller keeps of the sequence himself, for load to give back
  /// @throw sequence_error, io_error, cuda_error
  void save(sequence_id sequence, const std::filesystem::path& path, std::string_view model = {},
            std::span<const std::byte> engine = {}, stream_type stream = {}) {
    const sequence_state& state = sequences_.find(sequence);
    reader_type reader({}, geometry_.key_dim, geometry_.value_dim);
    transfer_type transfer(geometry_, writer_, reader, options_.sink_tokens);
    std::vector<typename transfer_type::host_layer> layers;
    layers.reserve(state.layers.size());
    for (const layer_type& layer : state.layers) {
      layers.push_back(transfer.download(layer, stream));
    }
    saved_type::save(path, fingerprint_of(model), engine,
                     std::span<const typename transfer_type::host_layer>(layers), geometry_,
                     reader);
  }

  /// @brief A new sequence with what save wrote, here or on the CPU; nothing is clustered again.
  /// Blocks: until read. Allocates: the whole sequence on the host.
  /// @throw mismatch_error, format_error, io_error, capacity_error, cuda_error; there is no new sequence then
  sequence_id load(const std::filesystem::path& path, std::string_view model = {},
                   std::vector<std::byte>* engine = nullptr, stream_type stream = {}) {
    reader_type reader({}, geometry_.key_dim, geometry_.value_dim);
    transfer_type transfer(geometry_, writer_, reader, options_.sink_tokens);
    std::vector<typename transfer_type::host_layer> layers(geometry_.n_layers, transfer.empty());
    openmp_executor threads;
    std::vector<std::byte> kept = saved_type::load(
        path, fingerprint_of(model), std::span<typename transfer_type::host_layer>(layers),
        geometry_, Index::cluster_count_type::n_levels, options_.sink_tokens, options_.max_tokens,
        reader, threads);
    auto state = std::make_unique<sequence_state>();
    state->layers.reserve(layers.size());
    for (const auto& layer : layers) {
      state->layers.push_back(transfer.upload(layer, stream));
    }
    const sequence_id loaded = sequences_.enter(std::move(state), options_.max_sequences);
    if (engine != nullptr) {
      engine->swap(kept);
    }
    return loaded;
  }

  /// @brief Tokens that every layer holds, once the streams have come here.  @throw sequence_error
  [[nodiscard]] std::size_t length(sequence_id sequence) const {
    std::size_t shortest = SIZE_MAX;
    for (const layer_type& layer : sequences_.find(sequence).layers) {
      shortest = std::min(shortest, layer.length());
    }
    return shortest;
  }

  /// @brief Tokens that one layer holds, likewise.  @throw sequence_error, shape_error
  [[nodiscard]] std::size_t length(sequence_id sequence, std::size_t layer) const {
    return find_layer(sequence, layer).length();
  }

  /// @brief What a sequence holds; of steps nothing: see collect.  Blocks: until the stream has come here.  @throw sequence_error
  [[nodiscard]] statistics stats(sequence_id sequence, stream_type stream = {}) const {
    const sequence_state& state = sequences_.find(sequence);
    statistics sum;
    sum.tokens = length(sequence);
    std::vector<device::index_facts> facts(geometry_.n_kv_heads);
    for (const layer_type& layer : state.layers) {
      sum.segments += layer.segments.size();
      for (const auto& segment : layer.segments) {
        const std::size_t rows =
            segment->view.n_tokens * geometry_.n_kv_heads * shape_.width() * sizeof(Scalar);
        sum.kv_bytes += rows;
        sum.index_bytes += segment->memory.bytes() - rows;
      }
      sum.index_bytes += layer.segment_table.bytes() + layer.top_runs.bytes();
      sum.learnt_bytes += layer.learnt.bytes() + layer.metric.bytes();
      sum.steady_bytes += layer.fixed.bytes() + layer.tail.bytes();
      runtime_.copy_out(facts.data(), layer.view.facts, facts.size() * sizeof(facts[0]), stream);
      for (const device::index_facts& head : facts) {
        sum.clusters += head.n_clusters;
      }
    }
    return sum;
  }

  /// @brief What all steps did since the last collect, whatever their stream.
  /// Blocks: until the stream has come here; steps in other streams may count later.
  /// @throw value_error when a query, key or value was not finite; capacity_error when a sequence had outgrown the workspace
  ///        of a captured step. What steps did is then forgotten, too.
  step_stats collect(stream_type stream = {}) {
    runtime_.wait(stream, made_);
    return report_.template take<Scalar>(stream);
  }

  /// @brief Blocks until the stream, and what is sealed beside it, is done.
  void synchronize(stream_type stream = {}) {
    runtime_.synchronize(stream);
    runtime_.synchronize(runtime_.side_stream());
  }

  /// @}
  /// @name Writing
  /// @{

  /// @brief Appends tokens to one layer; a prefill chunk and a decode token are the same call. A prompt's segments are sealed
  /// in the stream as they fill; a decode segment is sealed beside it while the next tokens are decoded, and becomes part of the index a fixed
  /// number of tokens later, so that answers do not depend on time.
  /// While the stream is captured into a graph only the launch is made: see advance.
  /// @param keys     [n, n_kv_heads, key_dim]; any strides with contiguous rows
  /// @param values   [n, n_kv_heads, value_dim], likewise
  /// @param queries  [n, n_query_heads, key_dim] or empty: teaches a clusterer that asks for it what queries look for
  /// @throw shape_error, sequence_error, capacity_error, cuda_error
  template <class K, class V, class Q = const K>
  void append(sequence_id sequence, std::size_t layer, device_view<K, 3> keys,
              device_view<V, 3> values, device_view<Q, 3> queries, stream_type stream = {}) {
    const query_run run{sequence, keys.extent(0)};
    append(std::span<const query_run>(&run, 1), layer, keys, values, queries, stream);
  }
  template <class K, class V>
  void append(sequence_id sequence, std::size_t layer, device_view<K, 3> keys,
              device_view<V, 3> values, stream_type stream = {}) {
    append(sequence, layer, keys, values, device_view<const float, 3>{}, stream);
  }

  /// @brief The same for a batch, in one launch for decoded tokens: rows of the first sequence first; n_queries of a run counts
  /// its tokens.
  template <class K, class V, class Q = const float>
  void append(std::span<const query_run> batch, std::size_t layer, device_view<K, 3> keys,
              device_view<V, 3> values, device_view<Q, 3> queries = {}, stream_type stream = {}) {
    const std::size_t n = check_append(batch, layer, keys, values);
    if (!queries.empty()) {
      detail::check_shape("queries", queries, n, geometry_.n_query_heads, geometry_.key_dim);
    }
    const bool capturing = is_capturing(stream);
    const bool decodes = std::ranges::all_of(batch, [](const query_run& run) {
      return run.n_queries < Index::segment_size_type::decode;
    });
    if (capturing || decodes) {
      append_together(batch, layer, keys, values, queries, capturing, stream);
      return;
    }
    or_as_before(batch, layer, stream, [&] {
      std::size_t first = 0;
      for (const query_run& run : batch) {
        layer_type& state = find_layer(run.sequence, layer);
        if (run.n_queries < Index::segment_size_type::decode) {
          append_together(std::span(&run, 1), layer, keys.slice(first, run.n_queries),
                          values.slice(first, run.n_queries),
                          queries.empty() ? queries : queries.slice(first, run.n_queries), false,
                          stream);
          first += run.n_queries;
          continue;
        }
        for (std::size_t done = 0; done < run.n_queries;) {
          const std::size_t piece = writer_.piece(state, run.n_queries - done);
          const query_run part{run.sequence, piece};
          writer_.reserve(state, piece, stream);
          writer_.book(state, piece);
          stage(std::span(&part, 1), layer, keys.slice(first + done, piece),
                values.slice(first + done, piece), stream);
          teach(state, queries, first + done, piece, stream);
          writer_.settle(state, layer, false, stream);
          done += piece;
        }
        first += run.n_queries;
      }
    });
  }

  /// @brief Books what a replay of a captured graph has appended: n_queries tokens to every layer of each sequence, and seals
  /// what is due. To be called once after every launch of a graph in which `append` was captured, in the stream it was launched in.
  ///
  /// The captured launches read lengths, segments and pointers from device memory; what changes here, changes there in the order of
  /// the stream. So one graph serves until the workspace that its `attend` was captured with is too small.
  /// @throw sequence_error, capacity_error, cuda_error; on the last, the tokens are booked, and the graph may be launched again
  /// once advance by 0 tokens has found memory
  void advance(std::span<const query_run> batch, stream_type stream = {}) {
    for (const query_run& run : batch) {
      for (const layer_type& layer : sequences_.find(run.sequence).layers) {
        detail::check_room(run.n_queries, layer.length(), options_.max_tokens);
      }
    }
    for (const query_run& run : batch) {  // whatever fails below: the device has them
      for (layer_type& layer : sequences_.find(run.sequence).layers) {
        writer_.book(layer, run.n_queries);
      }
    }
    for (const query_run& run : batch) {
      std::size_t index = 0;
      for (layer_type& layer : sequences_.find(run.sequence).layers) {
        writer_.settle(layer, index++, true, stream);
        writer_.reserve(layer, run.n_queries, stream);  // for the next replay
      }
    }
  }

  /// @brief Seals what waits in the tail beyond the window; call it when a prompt has been read. Optional, as on the CPU.
  /// @throw sequence_error, cuda_error
  void seal(sequence_id sequence, stream_type stream = {}) {
    for (layer_type& layer : sequences_.find(sequence).layers) {
      writer_.seal_rest(layer, stream);
    }
  }

  /// @}
  /// @name Reading
  /// @{

  /// @brief Bytes of a workspace for attends of up to n_queries query tokens over sequences of up to n_tokens tokens.
  [[nodiscard]] std::size_t workspace_bytes(std::size_t n_queries, std::size_t n_tokens) const {
    return workspace_type::bytes(shape_, room(n_queries, n_tokens));
  }

  /// @brief A workspace in memory of the cache's.  @throw cuda_error
  [[nodiscard]] workspace_type make_workspace(std::size_t n_queries, std::size_t n_tokens,
                                              stream_type stream = {}) const {
    return workspace_type(runtime_, shape_, room(n_queries, n_tokens), n_tokens, stream);
  }

  /// @brief A workspace in the caller's device memory, of at least workspace_bytes, aligned to 256 bytes.
  /// @throw capacity_error when it is less
  [[nodiscard]] workspace_type make_workspace(std::size_t n_queries, std::size_t n_tokens,
                                              void* memory, std::size_t bytes,
                                              stream_type stream = {}) const {
    return workspace_type(runtime_, shape_, room(n_queries, n_tokens), n_tokens, memory, bytes,
                          stream);
  }

  /// @brief One decode step of a ragged batch: attention of each query over its sequence, by the cache's bound. Queries and
  /// their places are as on the CPU. Two launches more than the index's tree has levels.
  /// Blocks: no. Allocates: a workspace for the step, unless it is given one.
  /// @param batch    sequences with the number of their queries
  /// @param queries  [sum of n_queries, n_query_heads, key_dim] in float, bf16 or f16
  /// @param out      [sum of n_queries, n_query_heads, value_dim], likewise; written
  /// @param more     in any order, each optional: `device_view<float, 2>` [sum of n_queries, n_query_heads], written: natural
  ///                 log-sum-exp of the scaled logits; a bound, of any type; a workspace, which the step uses until the
  ///                 stream has come past it (a capture needs one); the stream
  /// @throw shape_error, sequence_error, config_error, capacity_error, cuda_error
  template <class Q, class U, class... More>
  void attend(std::span<const query_run> batch, std::size_t layer, device_view<Q, 3> queries,
              device_view<U, 3> out, More&&... more) {
    const auto arguments = given(more...);
    const std::size_t n = detail::count_queries(batch);
    detail::check_shape("out", out, n, geometry_.n_query_heads, geometry_.value_dim);
    detail::check_optional_shape("lse", arguments.lse, n, geometry_.n_query_heads);
    search(batch, layer, n, queries, answer_to(layer, out, arguments.lse), arguments);
  }

  /// @brief attend for one sequence; its number of queries is that of the view.
  template <class Q, class U, class... More>
  void attend(sequence_id sequence, std::size_t layer, device_view<Q, 3> queries,
              device_view<U, 3> out, More&&... more) {
    const query_run run{sequence, queries.extent(0)};
    attend(std::span<const query_run>(&run, 1), layer, queries, out, std::forward<More>(more)...);
  }

  /// @brief As attend, but leaves the partial softmax undivided and without learned sinks.
  /// @param more  a bound, a workspace, the stream; in any order, each optional
  template <class Q, class... More>
  void attend_partial(std::span<const query_run> batch, std::size_t layer,
                      device_view<Q, 3> queries, const device_partial_output& out, More&&... more) {
    const std::size_t n = detail::count_queries(batch);
    detail::check_partial_output(out, n, geometry_);
    device::answer_arrays answer;
    answer.max = out.max.data();
    answer.denominator = out.denominator.data();
    for (std::size_t i = 0; i < 2; ++i) {
      answer.max_strides[i] = out.max.stride(i);
      answer.denominator_strides[i] = out.denominator.stride(i);
    }
    answer.numerator = device::rows_of(out.numerator);
    search(batch, layer, n, queries, answer, given(more...));
  }

  /// @brief Exact causal attention of a chunk over the cache and itself, then append of the chunk. The queries also teach a
  /// clusterer that asks for them.
  /// @param queries  [n, n_query_heads, key_dim]
  /// @param keys     [n, n_kv_heads, key_dim]
  /// @param values   [n, n_kv_heads, value_dim]
  /// @param out      [n, n_query_heads, value_dim], written
  /// @param more     lse, the stream; in any order, each optional
  /// @throw shape_error, sequence_error, capacity_error, cuda_error
  template <class Q, class K, class V, class U, class... More>
  void prefill(sequence_id sequence, std::size_t layer, device_view<Q, 3> queries,
               device_view<K, 3> keys, device_view<V, 3> values, device_view<U, 3> out,
               More&&... more) {
    const auto arguments = given(more...);
    const stream_type stream = arguments.stream;
    const device_view<float, 2>& lse = arguments.lse;
    const query_run whole{sequence, keys.extent(0)};
    const std::size_t n = check_append(std::span(&whole, 1), layer, keys, values);
    detail::check_shape("queries", queries, n, geometry_.n_query_heads, geometry_.key_dim);
    detail::check_shape("out", out, n, geometry_.n_query_heads, geometry_.value_dim);
    detail::check_optional_shape("lse", lse, n, geometry_.n_query_heads);
    layer_type& state = find_layer(sequence, layer);
    or_as_before(std::span(&whole, 1), layer, stream, [&] {
      for (std::size_t done = 0; done < n;) {
        const std::size_t piece = writer_.piece(state, n - done);
        const query_run part{sequence, piece};
        writer_.reserve(state, piece, stream);
        writer_.book(state, piece);
        stage(std::span(&part, 1), layer, keys.slice(done, piece), values.slice(done, piece),
              stream);
        const device::answer_arrays answer =
            answer_to(layer, out.slice(done, piece), lse.slice(done, piece));
        device::launch_prefill<Scalar>(
            runtime_, shape_, state.on_device, static_cast<std::uint32_t>(piece),
            device::rows_of(queries.slice(done, piece)), geometry_.logit_scale(), answer,
            report_.on_device(), stream);
        teach(state, queries, done, piece, stream);
        writer_.settle(state, layer, false, stream);
        done += piece;
      }
    });
  }

  /// @}

 private:
  using writer_type = device::layer_writer<Scalar, Index, Runtime>;
  using layer_type = typename writer_type::layer_type;
  using transfer_type = device::layer_transfer<Scalar, Index, Buffer, Runtime>;
  using reader_type = typename transfer_type::reader_type;
  using saved_type = saved_sequence<Scalar, Buffer, typename transfer_type::host_layer>;

  struct sequence_state {
    std::vector<layer_type> layers;
  };

  [[nodiscard]] std::string fingerprint_of(std::string_view model) const {
    return make_fingerprint<Scalar, Index>(geometry_, options_.sink_tokens, model);
  }

  static wavekv::geometry validated(wavekv::geometry sizes) {
    sizes.validate();
    for (const auto& [name, dim] :
         {std::pair{"key_dim", sizes.key_dim}, std::pair{"value_dim", sizes.value_dim}}) {
      if (dim % 8 != 0 || dim > 256) {
        throw config_error(detail::message("geometry: ", name, " is ", dim,
                                           "; allowed on a device: multiples of 8 up to 256"));
      }
    }
    return sizes;
  }
  static options_type validated(options_type options) {
    options.validate();
    return options;
  }

  static device::model_shape shape_of(const wavekv::geometry& sizes) {
    device::model_shape shape;
    shape.n_kv_heads = static_cast<unsigned>(sizes.n_kv_heads);
    shape.group_size = static_cast<unsigned>(sizes.group_size());
    shape.key_dim = static_cast<unsigned>(sizes.key_dim);
    shape.value_dim = static_cast<unsigned>(sizes.value_dim);
    shape.n_levels = Index::cluster_count_type::n_levels;
    shape.softcap = sizes.logit_softcap;
    return shape;
  }

  // Where a layer's outputs, and the lse where it is wanted, are written.
  template <class U>
  [[nodiscard]] device::answer_arrays answer_to(std::size_t layer, const device_view<U, 3>& out,
                                                const device_view<float, 2>& lse) const {
    device::answer_arrays answer;
    answer.out = device::rows_of(out);
    answer.lse = lse.data();
    answer.lse_strides[0] = lse.stride(0);
    answer.lse_strides[1] = lse.stride(1);
    if (!geometry_.sink_logits.empty()) {
      answer.sink_logits =
          sink_logits_.template as<const float>() + layer * geometry_.n_query_heads;
    }
    return answer;
  }

  [[nodiscard]] bool is_capturing(stream_type stream) const {
    if constexpr (requires { runtime_.is_capturing(stream); }) {
      return runtime_.is_capturing(stream);
    }
    return false;
  }

  layer_type& find_layer(sequence_id sequence, std::size_t layer) const {
    detail::check_layer(layer, geometry_.n_layers);
    return sequences_.find(sequence).layers[layer];
  }

  template <class K, class V>
  std::size_t check_append(std::span<const query_run> batch, std::size_t layer,
                           const device_view<K, 3>& keys, const device_view<V, 3>& values) const {
    const std::size_t n = detail::count_queries(batch);
    detail::check_shape("keys", keys, n, geometry_.n_kv_heads, geometry_.key_dim);
    detail::check_shape("values", values, n, geometry_.n_kv_heads, geometry_.value_dim);
    for (const query_run& run : batch) {
      detail::check_room(run.n_queries, find_layer(run.sequence, layer).length(),
                         options_.max_tokens);
    }
    detail::check_each_once(batch);
    return n;
  }

  // Work that makes layers of a batch longer; when it fails, they are cut to what they were. That needs no memory: what was
  // sealed since still fits into the tail.
  template <class Work>
  void or_as_before(std::span<const query_run> batch, std::size_t layer, stream_type stream,
                    Work&& work) {
    std::vector<std::size_t> lengths;
    lengths.reserve(batch.size());
    for (const query_run& run : batch) {
      lengths.push_back(find_layer(run.sequence, layer).length());
    }
    try {
      std::forward<Work>(work)();
    } catch (...) {
      for (std::size_t i = 0; i < batch.size(); ++i) {
        writer_.truncate(find_layer(batch[i].sequence, layer), lengths[i], stream);
      }
      throw;
    }
  }

  // Launches that write rows behind the newest tokens of the batch's layers, as the device knows them.
  template <class K, class V>
  void stage(std::span<const query_run> batch, std::size_t layer, const device_view<K, 3>& keys,
             const device_view<V, 3>& values, stream_type stream) {
    using kernel_type = device::append_kernel<Scalar>;
    std::size_t first = 0;
    for (std::size_t begin = 0; begin < batch.size(); begin += kernel_type::most_runs) {
      kernel_type kernel;
      kernel.shape = shape_;
      kernel.report = report_.on_device();
      std::size_t n = 0;
      for (const query_run& run : batch.subspan(
               begin, std::min<std::size_t>(kernel_type::most_runs, batch.size() - begin))) {
        if (run.n_queries == 0) {
          continue;
        }
        kernel.runs[kernel.n_runs++] = {find_layer(run.sequence, layer).on_device,
                                        static_cast<std::uint32_t>(run.n_queries)};
        n += run.n_queries;
      }
      if (n != 0) {
        kernel.keys = device::rows_of(keys.slice(first, n));
        kernel.values = device::rows_of(values.slice(first, n));
        runtime_.launch(stream, device::grid{static_cast<unsigned>(n), 1}, kernel);
      }
      first += n;
    }
  }

  template <class K, class V, class Q>
  void append_together(std::span<const query_run> batch, std::size_t layer,
                       const device_view<K, 3>& keys, const device_view<V, 3>& values,
                       const device_view<Q, 3>& queries, bool capturing, stream_type stream) {
    if (capturing) {
      for (const query_run& run : batch) {
        const layer_type& state = find_layer(run.sequence, layer);
        if (state.n_tail() + run.n_queries > state.view.tail.capacity) {
          throw capacity_error(detail::message(
              "append: no room for ", run.n_queries, " tokens in the tail of sequence ",
              run.sequence, " while the stream is captured; allowed: ",
              state.view.tail.capacity - state.n_tail(), " (advance by 0 tokens makes room)"));
        }
      }
      stage(batch, layer, keys, values, stream);
      return;
    }
    // What is due of the tokens that are there is sealed first: as when a captured step is followed by advance.
    for (const query_run& run : batch) {
      layer_type& state = find_layer(run.sequence, layer);
      writer_.settle(state, layer, true, stream);
      writer_.reserve(state, run.n_queries, stream);
    }
    stage(batch, layer, keys, values, stream);
    std::size_t first = 0;
    for (const query_run& run : batch) {
      layer_type& state = find_layer(run.sequence, layer);
      writer_.book(state, run.n_queries);
      teach(state, queries, first, run.n_queries, stream);
      first += run.n_queries;
    }
  }

  template <class Q>
  void teach(layer_type& state, const device_view<Q, 3>& queries, std::size_t first, std::size_t n,
             stream_type stream) {
    if (!queries.empty() && n != 0) {
      using element = std::remove_const_t<Q>;
      const device_view<Q, 3> part = queries.slice(first, n);
      writer_.teach(state, device::query_rows<element>{part.data(), part.stride(0), part.stride(1)},
                    n, geometry_.logit_scale(), stream);
    }
  }

  [[nodiscard]] device::search_room room(std::size_t n_queries, std::size_t n_tokens) const {
    const unsigned n_splits = options_.n_splits != 0
                                  ? options_.n_splits
                                  : device::splits_for(n_queries * geometry_.n_kv_heads, n_tokens,
                                                       runtime_.n_multiprocessors());
    return device::room_for<Index>(n_queries, n_tokens, n_splits);
  }

  // What stands behind an attend's required arguments.
  template <class... More>
  auto given(More&... more) const {
    return detail::attend_arguments_of<stream_type, workspace_type>(options_.bound, more...);
  }

  template <class Q, class Arguments>
  void search(std::span<const query_run> batch, std::size_t layer, std::size_t n,
              const device_view<Q, 3>& queries, const device::answer_arrays& answer,
              const Arguments& arguments) {
    detail::check_shape("queries", queries, n, geometry_.n_query_heads, geometry_.key_dim);
    std::size_t longest = 0;
    for (const query_run& run : batch) {
      const layer_type& state = find_layer(run.sequence, layer);
      detail::check_query_places(run, state.length(), state.n_tail(), !state.segments.empty(),
                                 options_.window_tokens);
      longest = std::max(longest, state.length());
    }
    if (n == 0) {
      return;
    }
    detail::validate_bound(arguments.bound);
    workspace_type* workspace = arguments.workspace;
    std::optional<workspace_type> own;
    if (workspace == nullptr) {
      if (is_capturing(arguments.stream)) {
        throw config_error(
            "attend: no workspace while the stream is captured; allowed: one that outlives "
            "the graph (make_workspace)");
      }
      workspace = &own.emplace(make_workspace(n, longest, arguments.stream));
    }
    workspace->check(n, longest);
    launch(batch, layer, queries, answer, arguments.bound, *workspace, arguments.stream);
  }

  template <class Q, class Bound>
  void launch(std::span<const query_run> batch, std::size_t layer, const device_view<Q, 3>& queries,
              const device::answer_arrays& answer, const Bound& bound, workspace_type& workspace,
              stream_type stream) {
    constexpr std::size_t most = device::lean_kernel<Scalar>::most_runs;
    std::array<device::query_run_view<Scalar>, most> runs;
    std::size_t first = 0;
    for (std::size_t begin = 0; begin < batch.size(); begin += most) {
      std::size_t n_runs = 0;
      std::size_t n = 0;
      for (const query_run& run : batch.subspan(begin, std::min(most, batch.size() - begin))) {
        if (run.n_queries != 0) {
          runs[n_runs++] = {find_layer(run.sequence, layer).on_device,
                            static_cast<std::uint32_t>(run.n_queries), run.sequence.slot};
          n += run.n_queries;
        }
      }
      if (n == 0) {
        continue;
      }
      device::search_batch<Scalar> part;
      part.runs = std::span(runs).first(n_runs);
      part.queries = device::rows_of(queries.slice(first, n));
      part.scale = geometry_.logit_scale();
      part.answer = answer.from(first);
      part.seed = options_.seed;
      part.layer = static_cast<std::uint32_t>(layer);
      device::launch_searches(runtime_, workspace.space(n, report_.on_device()), part, bound,
                              stream);
      first += n;
    }
  }

  wavekv::geometry geometry_;
  options_type options_;
  mutable Runtime runtime_;
  device::model_shape shape_;
  writer_type writer_;
  device::step_report<Runtime> report_;
  device::device_block<Runtime> sink_logits_;
  typename Runtime::event_type made_;  // report and sink logits are there
  sequence_table<sequence_state> sequences_;
};

}  // namespace wavekv
