// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "model.hpp"

#include <string>
#include <utility>

#include <Eigen/Core>

#include "error.hpp"
#include "norm.hpp"

namespace transformer {
namespace {

Eigen::Map<Eigen::ArrayXf> array(std::vector<float>& values, std::size_t n) {
  return {values.data(), static_cast<Eigen::Index>(n)};
}

/// gate = silu(gate) * up
void swish_product(std::vector<float>& gate, std::vector<float>& up, std::size_t n) {
  constexpr std::size_t block = 1 << 14;
#pragma omp parallel for schedule(static) if (n > block)
  for (std::size_t first = 0; first < n; first += block) {
    const auto size = static_cast<Eigen::Index>(std::min(block, n - first));
    auto g = array(gate, n).segment(static_cast<Eigen::Index>(first), size);
    g = g / (1.0F + (-g).exp()) * array(up, n).segment(static_cast<Eigen::Index>(first), size);
  }
}

}  // namespace

void model::activations::resize(const model_config& config, std::size_t n_tokens) {
  const auto grow = [n_tokens](std::vector<float>& values, std::size_t width) {
    if (values.size() < n_tokens * width) values.resize(n_tokens * width);
  };
  grow(residual, config.hidden_size);
  grow(normed, config.hidden_size);
  grow(projected, config.hidden_size);
  grow(query, config.n_query_heads * config.head_dim);
  grow(attended, config.n_query_heads * config.head_dim);
  grow(key, config.n_kv_heads * config.head_dim);
  grow(value, config.n_kv_heads * config.head_dim);
  grow(gate, config.intermediate_size);
  grow(up, config.intermediate_size);
}

// --- weights -------------------------------------------------------------------------------------

model::model(const std::filesystem::path& directory)
    : config_(read_config(directory)),
      weights_(directory),
      frequencies_(rope_frequencies(config_.rope, config_.head_dim)) {
  embedding_ = load_linear("model.embed_tokens", config_.vocab_size, config_.hidden_size, false);
  head_ = config_.tied_embeddings
              ? embedding_
              : load_linear("lm_head", config_.vocab_size, config_.hidden_size, false);
  final_norm_ = weights_.vector("model.norm.weight", config_.hidden_size);
  std::size_t n_sliding_layers = 0;
  for (std::size_t i = 0; i < config_.layers.size(); ++i) {
    layers_.push_back(load_layer(i));
    layers_.back().index = config_.layers[i].sliding ? n_sliding_layers++ : n_full_layers_++;
  }
  if (n_full_layers_ == 0)
    throw model_error(directory.string() +
                      ": no layer has full attention; there is nothing to index");
}

linear model::load_linear(const std::string& name, std::size_t n_out, std::size_t n_in,
                          bool bias) const {
  return {weights_.matrix(name + ".weight", n_out, n_in),
          bias ? weights_.vector(name + ".bias", n_out) : std::vector<float>()};
}

model::layer_weights model::load_layer(std::size_t i) const {
  const std::string name = "model.layers." + std::to_string(i) + ".";
  const std::size_t hidden = config_.hidden_size;
  const std::size_t query_width = config_.n_query_heads * config_.head_dim;
  const std::size_t kv_width = config_.n_kv_heads * config_.head_dim;
  layer_weights layer;
  layer.attention_norm = weights_.vector(name + "input_layernorm.weight", hidden);
  layer.query = load_linear(name + "self_attn.q_proj", query_width, hidden, config_.qkv_bias);
  layer.key = load_linear(name + "self_attn.k_proj", kv_width, hidden, config_.qkv_bias);
  layer.value = load_linear(name + "self_attn.v_proj", kv_width, hidden, config_.qkv_bias);
  layer.output = load_linear(name + "self_attn.o_proj", hidden, query_width, config_.output_bias);
  if (config_.qk_norm) {
    layer.query_norm = weights_.vector(name + "self_attn.q_norm.weight", config_.head_dim);
    layer.key_norm = weights_.vector(name + "self_attn.k_norm.weight", config_.head_dim);
  }
  layer.mlp_norm = weights_.vector(name + "post_attention_layernorm.weight", hidden);
  layer.gate =
      load_linear(name + "mlp.gate_proj", config_.intermediate_size, hidden, config_.mlp_bias);
  layer.up = load_linear(name + "mlp.up_proj", config_.intermediate_size, hidden, config_.mlp_bias);
  layer.down =
      load_linear(name + "mlp.down_proj", hidden, config_.intermediate_size, config_.mlp_bias);
  layer.rope = config_.layers[i].rope;
  layer.sliding = config_.layers[i].sliding;
  return layer;
}

// --- the forward pass ----------------------------------------------------------------------------

session model::start(std::unique_ptr<full_attention> attention) const {
  session session;
  session.attention = std::move(attention);
  const attention_shape shape{config_.n_query_heads, config_.n_kv_heads, config_.head_dim};
  session.windows.assign(layers_.size() - n_full_layers_,
                         sliding_window(shape, config_.sliding_window));
  return session;
}

void model::prefill(session& session, std::span<const token_id> chunk,
                    const std::function<void(double)>& after_layer) {
  if (chunk.empty()) return;
  embed(chunk);
  const rope_table table(frequencies_, session.n_tokens, chunk.size());
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    project_heads(layers_[i], table, chunk.size());
    if (i + 1 ==
        layers_.size()) {  // nobody reads what comes after the last layer's keys and values
      remember(layers_[i], session, chunk.size());
    } else {
      attend(layers_[i], session, chunk.size(), false);
      feed_forward(layers_[i], chunk.size());
    }
    if (after_layer) after_layer(static_cast<double>(i + 1) / static_cast<double>(layers_.size()));
  }
  session.n_tokens += chunk.size();
}

std::span<const float> model::decode(session& session, token_id token) {
  embed({&token, 1});
  const rope_table table(frequencies_, session.n_tokens, 1);
  for (const layer_weights& layer : layers_) {
    project_heads(layer, table, 1);
    attend(layer, session, 1, true);
    feed_forward(layer, 1);
  }
  session.n_tokens += 1;
  rms_norm(final_norm_, config_.rms_norm_eps, now_.residual.data(), 1, now_.normed.data());
  logits_.resize(config_.vocab_size);
  apply(head_, now_.normed.data(), 1, logits_.data());
  return logits_;
}

void model::embed(std::span<const token_id> tokens) {
  now_.resize(config_, tokens.size());
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    if (tokens[t] < 0 || static_cast<std::size_t>(tokens[t]) >= config_.vocab_size)
      throw model_error("token id " + std::to_string(tokens[t]) + " is outside the vocabulary of " +
                        std::to_string(config_.vocab_size));
    copy_row(embedding_.weight, static_cast<std::size_t>(tokens[t]),
             now_.residual.data() + t * config_.hidden_size);
  }
}

/// residual -> query, key and value heads, normed and rotated where the family does so.
void model::project_heads(const layer_weights& layer, const rope_table& table,
                          std::size_t n_tokens) {
  rms_norm(layer.attention_norm, config_.rms_norm_eps, now_.residual.data(), n_tokens,
           now_.normed.data());
  apply(layer.query, now_.normed.data(), n_tokens, now_.query.data());
  apply(layer.key, now_.normed.data(), n_tokens, now_.key.data());
  apply(layer.value, now_.normed.data(), n_tokens, now_.value.data());
  if (config_.qk_norm) {
    const float epsilon = config_.rms_norm_eps;
    rms_norm(layer.query_norm, epsilon, now_.query.data(), n_tokens * config_.n_query_heads,
             now_.query.data());
    rms_norm(layer.key_norm, epsilon, now_.key.data(), n_tokens * config_.n_kv_heads,
             now_.key.data());
  }
  if (layer.rope) {
    table.rotate(now_.query.data(), config_.n_query_heads);
    table.rotate(now_.key.data(), config_.n_kv_heads);
  }
}

void model::attend(const layer_weights& layer, session& session, std::size_t n_tokens,
                   bool decoding) {
  const attention_input in{layer.index, n_tokens, now_.query.data(), now_.key.data(),
                           now_.value.data()};
  if (layer.sliding) {
    session.windows[layer.index].append_and_attend(n_tokens, in.queries, in.keys, in.values,
                                                   now_.attended.data());
  } else if (decoding) {
    session.attention->decode(in, now_.attended.data());
  } else {
    session.attention->prefill(in, now_.attended.data());
  }
  add_projection(layer.output, now_.attended, n_tokens);
}

void model::remember(const layer_weights& layer, session& session, std::size_t n_tokens) {
  if (layer.sliding) {
    session.windows[layer.index].append(n_tokens, now_.key.data(), now_.value.data());
  } else {
    session.attention->append(
        {layer.index, n_tokens, now_.query.data(), now_.key.data(), now_.value.data()});
  }
}

void model::feed_forward(const layer_weights& layer, std::size_t n_tokens) {
  rms_norm(layer.mlp_norm, config_.rms_norm_eps, now_.residual.data(), n_tokens,
           now_.normed.data());
  apply(layer.gate, now_.normed.data(), n_tokens, now_.gate.data());
  apply(layer.up, now_.normed.data(), n_tokens, now_.up.data());
  swish_product(now_.gate, now_.up, n_tokens * config_.intermediate_size);
  add_projection(layer.down, now_.gate, n_tokens);
}

/// residual += projection(in)
void model::add_projection(const linear& projection, const std::vector<float>& in,
                           std::size_t n_tokens) {
  apply(projection, in.data(), n_tokens, now_.projected.data());
  const std::size_t n = n_tokens * config_.hidden_size;
  array(now_.residual, n) += array(now_.projected, n);
}

}  // namespace transformer
