// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "model.hpp"

#include <utility>

#include <Eigen/Core>

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

model::model(const std::filesystem::path& directory)
    : weights_(directory), frequencies_(rope_frequencies(config().rope, config().head_dim)) {}

session model::start(std::unique_ptr<full_attention> attention) const {
  session session;
  session.attention = std::move(attention);
  const attention_shape shape{config().n_query_heads, config().n_kv_heads, config().head_dim};
  session.windows.assign(weights_.layers().size() - n_full_layers(),
                         sliding_window(shape, config().sliding_window));
  return session;
}

void model::prefill(session& session, std::span<const token_id> chunk,
                    const std::function<void(double)>& after_layer) {
  if (chunk.empty()) return;
  embed(chunk);
  const rope_table table(frequencies_, session.n_tokens, chunk.size());
  const auto& layers = weights_.layers();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    project_heads(layers[i], table, chunk.size());
    if (i + 1 == layers.size()) {  // nobody reads what comes after the last layer's keys and values
      remember(layers[i], session, chunk.size());
    } else {
      attend(layers[i], session, chunk.size(), false);
      feed_forward(layers[i], chunk.size());
    }
    if (after_layer) after_layer(static_cast<double>(i + 1) / static_cast<double>(layers.size()));
  }
  session.n_tokens += chunk.size();
}

std::span<const float> model::decode(session& session, token_id token) {
  embed({&token, 1});
  const rope_table table(frequencies_, session.n_tokens, 1);
  for (const layer_weights& layer : weights_.layers()) {
    project_heads(layer, table, 1);
    attend(layer, session, 1, true);
    feed_forward(layer, 1);
  }
  session.n_tokens += 1;
  rms_norm(weights_.final_norm(), config().rms_norm_eps, now_.residual.data(), 1,
           now_.normed.data());
  logits_.resize(config().vocab_size);
  apply(weights_.head(), now_.normed.data(), 1, logits_.data());
  return logits_;
}

void model::embed(std::span<const token_id> tokens) {
  now_.resize(config(), tokens.size());
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    check_token(config(), tokens[t]);
    copy_row(weights_.embedding().weight, static_cast<std::size_t>(tokens[t]),
             now_.residual.data() + t * config().hidden_size);
  }
}

/// residual -> query, key and value heads, normed and rotated where the family does so.
void model::project_heads(const layer_weights& layer, const rope_table& table,
                          std::size_t n_tokens) {
  rms_norm(layer.attention_norm, config().rms_norm_eps, now_.residual.data(), n_tokens,
           now_.normed.data());
  apply(layer.query, now_.normed.data(), n_tokens, now_.query.data());
  apply(layer.key, now_.normed.data(), n_tokens, now_.key.data());
  apply(layer.value, now_.normed.data(), n_tokens, now_.value.data());
  if (config().qk_norm) {
    const float epsilon = config().rms_norm_eps;
    rms_norm(layer.query_norm, epsilon, now_.query.data(), n_tokens * config().n_query_heads,
             now_.query.data());
    rms_norm(layer.key_norm, epsilon, now_.key.data(), n_tokens * config().n_kv_heads,
             now_.key.data());
  }
  if (layer.rope) {
    table.rotate(now_.query.data(), config().n_query_heads);
    table.rotate(now_.key.data(), config().n_kv_heads);
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
  rms_norm(layer.mlp_norm, config().rms_norm_eps, now_.residual.data(), n_tokens,
           now_.normed.data());
  apply(layer.gate, now_.normed.data(), n_tokens, now_.gate.data());
  apply(layer.up, now_.normed.data(), n_tokens, now_.up.data());
  swish_product(now_.gate, now_.up, n_tokens * config().intermediate_size);
  add_projection(layer.down, now_.gate, n_tokens);
}

/// residual += projection(in)
void model::add_projection(const linear& projection, const std::vector<float>& in,
                           std::size_t n_tokens) {
  apply(projection, in.data(), n_tokens, now_.projected.data());
  const std::size_t n = n_tokens * config().hidden_size;
  array(now_.residual, n) += array(now_.projected, n);
}

}  // namespace transformer
