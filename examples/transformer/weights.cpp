// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "weights.hpp"

#include <string>

#include "error.hpp"

namespace transformer {

model_weights::model_weights(const std::filesystem::path& directory)
    : config_(read_config(directory)), files_(directory) {
  embedding_ = load_linear("model.embed_tokens", config_.vocab_size, config_.hidden_size, false);
  head_ = config_.tied_embeddings
              ? embedding_
              : load_linear("lm_head", config_.vocab_size, config_.hidden_size, false);
  final_norm_ = files_.vector("model.norm.weight", config_.hidden_size);
  std::size_t n_sliding_layers = 0;
  for (std::size_t i = 0; i < config_.layers.size(); ++i) {
    layers_.push_back(load_layer(i));
    layers_.back().index = config_.layers[i].sliding ? n_sliding_layers++ : n_full_layers_++;
  }
  if (n_full_layers_ == 0)
    throw model_error(directory.string() +
                      ": no layer has full attention; there is nothing to index");
}

linear model_weights::load_linear(const std::string& name, std::size_t n_out, std::size_t n_in,
                                  bool bias) const {
  return {files_.matrix(name + ".weight", n_out, n_in),
          bias ? files_.vector(name + ".bias", n_out) : std::vector<float>()};
}

layer_weights model_weights::load_layer(std::size_t i) const {
  const std::string name = "model.layers." + std::to_string(i) + ".";
  const std::size_t hidden = config_.hidden_size;
  const std::size_t query_width = config_.n_query_heads * config_.head_dim;
  const std::size_t kv_width = config_.n_kv_heads * config_.head_dim;
  layer_weights layer;
  layer.attention_norm = files_.vector(name + "input_layernorm.weight", hidden);
  layer.query = load_linear(name + "self_attn.q_proj", query_width, hidden, config_.qkv_bias);
  layer.key = load_linear(name + "self_attn.k_proj", kv_width, hidden, config_.qkv_bias);
  layer.value = load_linear(name + "self_attn.v_proj", kv_width, hidden, config_.qkv_bias);
  layer.output = load_linear(name + "self_attn.o_proj", hidden, query_width, config_.output_bias);
  if (config_.qk_norm) {
    layer.query_norm = files_.vector(name + "self_attn.q_norm.weight", config_.head_dim);
    layer.key_norm = files_.vector(name + "self_attn.k_norm.weight", config_.head_dim);
  }
  layer.mlp_norm = files_.vector(name + "post_attention_layernorm.weight", hidden);
  layer.gate =
      load_linear(name + "mlp.gate_proj", config_.intermediate_size, hidden, config_.mlp_bias);
  layer.up = load_linear(name + "mlp.up_proj", config_.intermediate_size, hidden, config_.mlp_bias);
  layer.down =
      load_linear(name + "mlp.down_proj", hidden, config_.intermediate_size, config_.mlp_bias);
  layer.rope = config_.layers[i].rope;
  layer.sliding = config_.layers[i].sliding;
  return layer;
}

void check_token(const model_config& config, token_id token) {
  if (token < 0 || static_cast<std::size_t>(token) >= config.vocab_size)
    throw model_error("token id " + std::to_string(token) + " is outside the vocabulary of " +
                      std::to_string(config.vocab_size));
}

}  // namespace transformer
