// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <wavekv/core/host_device.hpp>
#include <wavekv/cuda/device_block.hpp>

#include "linear.cuh"
#include "norm.cuh"
#include "rope.cuh"
#include "rope.hpp"
#include "sliding_window.cuh"
#include "wave_attention.cuh"
#include "weights.hpp"

/// @file model.cuh
/// @brief The model on a device: the twin of model.hpp. The host enqueues; but for the logits it waits for nothing.

namespace transformer {

/// @brief gate = silu(gate) · up. Block (x, y): the x-th row, columns from n_columns y on.
struct swish_product_kernel {
  static constexpr unsigned n_threads = 256;
  static constexpr unsigned n_columns = 2 * n_threads;

  const float* gate_up = nullptr;  ///< [n_blocks_x, 2, n_cols]
  unsigned n_cols = 0;
  float* y = nullptr;  ///< [n_blocks_x, n_cols], written

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    const float* const gate = gate_up + std::size_t{b.block_x()} * 2 * n_cols;
    const unsigned begin = b.block_y() * n_columns;
    const unsigned end = n_columns < n_cols - begin ? begin + n_columns : n_cols;
    for (unsigned i = begin + b.thread(); i < end; i += n_threads) {
      const float g = gate[i];
      y[std::size_t{b.block_x()} * n_cols + i] = g / (1.0F + std::exp(-g)) * gate[n_cols + i];
    }
  }
};

/// @brief All that one sequence remembers on a device: the twin of session.
template <class Machine>
struct device_session {
  using runtime_type = typename Machine::runtime_type;

  std::unique_ptr<device_attention<typename Machine::cache_type>> attention;
  std::vector<device_window<runtime_type>> windows;  ///< one per sliding-window layer
  std::size_t n_tokens = 0;
  std::size_t n_steps = 0;                            ///< that were decoded
  std::optional<typename Machine::graph_type> graph;  ///< a step, ready to be launched again
};

/// @brief A decoder-only transformer with its weights in device memory. One thread calls it at a time.
///
/// From its third decode step on a session's step is captured into a graph, and launched from there.
/// @tparam Machine  what the device is
///
/// | member              | semantics                                                                              |
/// |---------------------|----------------------------------------------------------------------------------------|
/// | `runtime_type`      | models wavekv::device::device_runtime                                                  |
/// | `cache_type`        | a wavekv::kv_cache on it                                                               |
/// | `product_type`      | multiplies matrices: see apply in linear.cuh                                           |
/// | `graph_type`        | `graph_type::capture(runtime, stream, work)` makes one of what work() gives the stream; `launch(stream)` |
/// | `captures`          | whether there are graphs                                                               |
template <class Machine>
class device_model {
 public:
  using runtime_type = typename Machine::runtime_type;
  using stream_type = typename runtime_type::stream_type;
  using cache_type = typename Machine::cache_type;
  using session_type = device_session<Machine>;

  /// @brief Opens the model and copies its weights to the device.
  /// @throw model_error, also for a model whose sizes the device does not take; wavekv::cuda_error
  device_model(const std::filesystem::path& directory, runtime_type runtime,
               typename Machine::product_type& multiply, stream_type stream)
      : runtime_(std::move(runtime)), multiply_(&multiply), stream_(stream) {
    const model_weights weights(directory);
    config_ = weights.config();
    n_full_layers_ = weights.n_full_layers();
    check_sizes();
    frequencies_ = upload(rope_frequencies(config_.rope, config_.head_dim));
    final_norm_ = upload(weights.final_norm());
    embedding_ = load(weights.embedding(), "embed_tokens");
    if (!config_.tied_embeddings) own_head_ = load(weights.head(), "lm_head");
    for (const layer_weights& layer : weights.layers()) layers_.push_back(load_layer(layer));
    reserve(step_, 1);
    logits_ = {runtime_, config_.vocab_size * sizeof(float), stream_};
    step_.products.reserve(runtime_, 1, config_.hidden_size, config_.vocab_size, stream_);
    runtime_.synchronize(stream_);  // the files may be closed
  }

  const model_config& config() const noexcept { return config_; }
  std::size_t n_full_layers() const noexcept { return n_full_layers_; }

  /// @brief An empty sequence, its full-attention layers kept by the cache.
  session_type start(cache_type& cache, any_bound bound) {
    session_type session;
    session.attention =
        std::make_unique<device_attention<cache_type>>(cache, std::move(bound), stream_);
    const attention_shape shape{config_.n_query_heads, config_.n_kv_heads, config_.head_dim};
    for (std::size_t i = n_full_layers_; i < layers_.size(); ++i)
      session.windows.emplace_back(runtime_, shape, config_.sliding_window, stream_);
    return session;
  }

  /// @brief A session that begins as a copy of another and is answered by its own bound.
  /// @param probes  see device_attention
  session_type fork(const session_type& other, any_bound bound, bool probes = false) {
    session_type session;
    session.attention =
        std::make_unique<device_attention<cache_type>>(*other.attention, std::move(bound), probes);
    for (const auto& window : other.windows)
      session.windows.emplace_back(runtime_, window, stream_);
    session.n_tokens = other.n_tokens;
    return session;
  }

  /// @brief As model::prefill; returns when the device has read the chunk.
  void prefill(session_type& session, std::span<const token_id> chunk,
               const std::function<void(double)>& after_layer = {}) {
    if (chunk.empty()) return;
    reserve(chunk_, chunk.size());
    begin(chunk_, session, chunk);
    embed(chunk_, chunk.size());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      project_heads(chunk_, layers_[i], chunk.size());
      if (i + 1 ==
          layers_.size()) {  // nobody reads what comes after the last layer's keys and values
        remember(chunk_, layers_[i], session, chunk.size());
      } else {
        attend(chunk_, layers_[i], session, chunk.size(), false);
        feed_forward(chunk_, layers_[i], chunk.size());
      }
      if (after_layer)
        after_layer(static_cast<double>(i + 1) / static_cast<double>(layers_.size()));
    }
    session.n_tokens += chunk.size();
    runtime_.synchronize(stream_);  // so that progress, and Ctrl-C, are not chunks ahead
  }

  /// @brief The prompt is complete.
  void end_prompt(session_type& session) { session.attention->end_prompt(); }

  /// @brief As model::decode.
  std::span<const float> decode(session_type& session, token_id token) {
    begin(step_, session, {&token, 1});
    if (!session.attention->make_room()) session.graph.reset();
    if (Machine::captures && session.n_steps >= 2 && !session.attention->probes()) {
      replay(session);
    } else {
      step(session);
    }
    session.n_tokens += 1;
    session.n_steps += 1;
    host_logits_.resize(config_.vocab_size);
    runtime_.copy_out(host_logits_.data(), logits_.data(), logits_.bytes(), stream_);
    session.attention->end_step();
    return host_logits_;
  }

 private:
  using block = wavekv::device::device_block<runtime_type>;

  struct device_layer {
    block attention_norm, query_norm, key_norm, mlp_norm;
    device_linear<runtime_type> heads;  // query, key, value
    device_linear<runtime_type> output;
    device_linear<runtime_type> gate_up;
    device_linear<runtime_type> down;
    bool rope = true;
    bool sliding = false;
    std::size_t index = 0;  // among the sliding or among the full layers
  };

  // Activations of the tokens in flight. Those of a step stay where they are, for the sake of graphs.
  struct activations {
    growing_block<runtime_type> tokens;  // first position, then ids
    growing_block<runtime_type> residual, normed, heads, attended, gate_up, swished, cosines, sines;
    product_scratch<runtime_type> products;
  };

  std::size_t query_width() const { return config_.n_query_heads * config_.head_dim; }
  std::size_t kv_width() const { return config_.n_kv_heads * config_.head_dim; }
  std::size_t heads_width() const { return query_width() + 2 * kv_width(); }

  void check_sizes() const {
    if (config_.head_dim % 8 != 0 || config_.head_dim > 256)
      throw model_error("head_dim is " + std::to_string(config_.head_dim) +
                        "; --device cuda takes multiples of 8 up to 256");
  }

  // --- weights -----------------------------------------------------------------------------------

  block upload(const std::vector<float>& values) {
    block memory(runtime_, values.size() * sizeof(float), stream_);
    runtime_.copy_in(memory.data(), values.data(), memory.bytes(), stream_);
    return memory;
  }

  template <class... More>
  device_linear<runtime_type> load(const linear& first, const More&... more) {
    // The last argument is the name.
    return load_all({}, first, more...);
  }
  device_linear<runtime_type> load_all(std::vector<linear> layers, const char* name) {
    return {runtime_, stream_, layers, name};
  }
  template <class... More>
  device_linear<runtime_type> load_all(std::vector<linear> layers, const linear& next,
                                       const More&... more) {
    layers.push_back(next);
    return load_all(std::move(layers), more...);
  }

  device_layer load_layer(const layer_weights& from) {
    device_layer to;
    to.attention_norm = upload(from.attention_norm);
    to.query_norm = upload(from.query_norm);
    to.key_norm = upload(from.key_norm);
    to.mlp_norm = upload(from.mlp_norm);
    to.heads = load(from.query, from.key, from.value, "q_proj, k_proj, v_proj");
    to.output = load(from.output, "o_proj");
    to.gate_up = load(from.gate, from.up, "gate_proj, up_proj");
    to.down = load(from.down, "down_proj");
    to.rope = from.rope;
    to.sliding = from.sliding;
    to.index = from.index;
    return to;
  }

  void reserve(activations& of, std::size_t n_tokens) {
    const auto floats = [&](growing_block<runtime_type>& memory, std::size_t width) {
      memory.template reserve<float>(runtime_, n_tokens * width, stream_);
    };
    of.tokens.template reserve<std::uint32_t>(runtime_, 1 + n_tokens, stream_);
    floats(of.residual, config_.hidden_size);
    floats(of.normed, config_.hidden_size);
    floats(of.heads, heads_width());
    floats(of.attended, query_width());
    floats(of.gate_up, 2 * config_.intermediate_size);
    floats(of.swished, config_.intermediate_size);
    floats(of.cosines, config_.head_dim / 2);
    floats(of.sines, config_.head_dim / 2);
    of.products.reserve(
        runtime_, n_tokens,
        std::max({config_.hidden_size, query_width(), config_.intermediate_size}),
        std::max({config_.hidden_size, heads_width(), 2 * config_.intermediate_size}), stream_);
  }

  // --- the forward pass --------------------------------------------------------------------------

  const std::uint32_t* first_position(const activations& of) const {
    return of.tokens.template as<const std::uint32_t>();
  }

  // Where the tokens stand and what they are: all that changes from step to step.
  void begin(activations& of, const session_type& session, std::span<const token_id> tokens) {
    std::vector<std::uint32_t> told{static_cast<std::uint32_t>(session.n_tokens)};
    for (const token_id token : tokens) {
      check_token(config_, token);
      told.push_back(static_cast<std::uint32_t>(token));
    }
    runtime_.copy_in(of.tokens.template as<void>(), told.data(), told.size() * sizeof(told[0]),
                     stream_);
  }

  void embed(activations& of, std::size_t n_tokens) {
    const auto n = static_cast<unsigned>(n_tokens);
    visit_type(embedding_.matrix().type, [&]<class T>(T) {
      embed_kernel<T> kernel;
      kernel.rows = static_cast<const T*>(embedding_.matrix().data);
      kernel.tokens = of.tokens.template as<const std::int32_t>() + 1;
      kernel.n_cols = static_cast<unsigned>(config_.hidden_size);
      kernel.y = of.residual.template as<float>();
      runtime_.launch(stream_, {n, 1}, kernel);
    });
    rope_table_kernel table;
    table.first_position = first_position(of);
    table.frequencies = frequencies_.template as<float>();
    table.half = static_cast<unsigned>(config_.head_dim / 2);
    table.cosines = of.cosines.template as<float>();
    table.sines = of.sines.template as<float>();
    runtime_.launch(stream_, {n, 1}, table);
  }

  void norm(activations& of, const block& weights, std::size_t n_tokens) {
    rms_norm_kernel kernel;
    kernel.weights = weights.template as<float>();
    kernel.epsilon = config_.rms_norm_eps;
    kernel.dim = static_cast<unsigned>(config_.hidden_size);
    kernel.x = of.residual.template as<float>();
    kernel.y = of.normed.template as<float>();
    runtime_.launch(stream_, {static_cast<unsigned>(n_tokens), 1}, kernel);
  }

  void project(activations& of, const device_linear<runtime_type>& projection,
               const growing_block<runtime_type>& x, std::size_t n_tokens, float* y,
               bool adds = false) {
    apply(runtime_, *multiply_, projection, of.products, x.template as<const float>(), n_tokens, y,
          adds, stream_);
  }

  /// residual -> query, key and value heads, normed and rotated where the family does so.
  void project_heads(activations& of, const device_layer& layer, std::size_t n_tokens) {
    norm(of, layer.attention_norm, n_tokens);
    project(of, layer.heads, of.normed, n_tokens, of.heads.template as<float>());
    if (!config_.qk_norm && !layer.rope) return;
    heads_kernel kernel;
    kernel.heads = of.heads.template as<float>();
    kernel.stride = heads_width();
    kernel.n_query_heads = static_cast<unsigned>(config_.n_query_heads);
    kernel.head_dim = static_cast<unsigned>(config_.head_dim);
    kernel.query_norm = layer.query_norm.template as<float>();
    kernel.key_norm = layer.key_norm.template as<float>();
    kernel.epsilon = config_.rms_norm_eps;
    if (layer.rope) {
      kernel.cosines = of.cosines.template as<float>();
      kernel.sines = of.sines.template as<float>();
    }
    runtime_.launch(stream_,
                    {static_cast<unsigned>(n_tokens),
                     static_cast<unsigned>(config_.n_query_heads + config_.n_kv_heads)},
                    kernel);
  }

  head_rows heads_of(const activations& of) const {
    const float* const first = of.heads.template as<const float>();
    return {first, first + query_width(), first + query_width() + kv_width(), heads_width()};
  }

  void attend(activations& of, const device_layer& layer, session_type& session,
              std::size_t n_tokens, bool decoding) {
    float* const attended = of.attended.template as<float>();
    if (layer.sliding) {
      auto& window = session.windows[layer.index];
      window.attend(runtime_, n_tokens, heads_of(of), first_position(of), attended, stream_);
      window.append(runtime_, n_tokens, heads_of(of), first_position(of), stream_);
    } else if (decoding) {
      session.attention->decode(layer.index, heads_of(of), attended);
    } else {
      session.attention->prefill(layer.index, n_tokens, heads_of(of), attended);
    }
    project(of, layer.output, of.attended, n_tokens, of.residual.template as<float>(), true);
  }

  void remember(activations& of, const device_layer& layer, session_type& session,
                std::size_t n_tokens) {
    if (layer.sliding) {
      session.windows[layer.index].append(runtime_, n_tokens, heads_of(of), first_position(of),
                                          stream_);
    } else {
      session.attention->append(layer.index, n_tokens, heads_of(of));
    }
  }

  void feed_forward(activations& of, const device_layer& layer, std::size_t n_tokens) {
    norm(of, layer.mlp_norm, n_tokens);
    project(of, layer.gate_up, of.normed, n_tokens, of.gate_up.template as<float>());
    swish_product_kernel kernel;
    kernel.gate_up = of.gate_up.template as<float>();
    kernel.n_cols = static_cast<unsigned>(config_.intermediate_size);
    kernel.y = of.swished.template as<float>();
    runtime_.launch(stream_,
                    {static_cast<unsigned>(n_tokens),
                     n_blocks_of(config_.intermediate_size, swish_product_kernel::n_columns)},
                    kernel);
    project(of, layer.down, of.swished, n_tokens, of.residual.template as<float>(), true);
  }

  // A decode step, from the token to the logits. Reads what changes from device memory, and allocates nothing.
  void step(session_type& session) {
    embed(step_, 1);
    for (const device_layer& layer : layers_) {
      project_heads(step_, layer, 1);
      attend(step_, layer, session, 1, true);
      feed_forward(step_, layer, 1);
    }
    norm(step_, final_norm_, 1);
    project(step_, config_.tied_embeddings ? embedding_ : own_head_, step_.normed, 1,
            logits_.template as<float>());
  }

  void replay(session_type& session) {
    if (!session.graph) {
      session.attention->make_room_for_replay();
      session.graph.emplace(
          Machine::graph_type::capture(runtime_, stream_, [&] { step(session); }));
    }
    session.graph->launch(stream_);
    session.attention->replayed();
  }

  runtime_type runtime_;
  typename Machine::product_type* multiply_;
  stream_type stream_;
  model_config config_;
  std::size_t n_full_layers_ = 0;
  device_linear<runtime_type> embedding_;
  device_linear<runtime_type> own_head_;  // where it is not the embedding
  std::vector<device_layer> layers_;
  block final_norm_;
  block frequencies_;
  activations step_;
  activations chunk_;
  block logits_;
  std::vector<float> host_logits_;
};

}  // namespace transformer
