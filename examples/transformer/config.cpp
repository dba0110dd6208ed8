// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "config.hpp"

#include <cmath>
#include <string>

#include "error.hpp"
#include "json_file.hpp"

namespace transformer {
namespace {

using nlohmann::json;

constexpr std::size_t max_extent =
    0x7FFF'FFFF;  // fits a token_id, and keeps products of two extents from overflow

[[noreturn]] void unsupported(const std::string& what) {
  throw model_error(what + " is not supported");
}

std::size_t to_size(const json& value, const char* key) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > max_extent)
    throw model_error(std::string(key) + " is " + value.dump() +
                      ", expected an integer below 2^31");
  return value.get<std::size_t>();
}

std::size_t size_at(const json& object, const char* key) {
  const std::size_t value = to_size(object.at(key), key);
  if (value == 0) throw model_error(std::string(key) + " is 0");
  return value;
}

std::size_t size_or(const json& object, const char* key, std::size_t fallback) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? fallback : size_at(object, key);
}

double positive_or(const json& object, const char* key, double fallback) {
  const auto value = value_or(object, key, fallback);
  if (!std::isfinite(value) || value <= 0)
    throw model_error(std::string(key) + " is not a positive number");
  return value;
}

rope_config parse_rope(const json& config, double default_theta) {
  rope_config rope;
  rope.theta = positive_or(config, "rope_theta", default_theta);
  // transformers 5 calls it rope_parameters and moves rope_theta inside
  const char* key = config.contains("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return rope;
  const json& parameters = *found;
  if (!parameters.is_object()) throw model_error(std::string(key) + " is not an object");
  for (const auto& [name, value] : parameters.items())
    if (value.is_object()) unsupported(std::string(key) + " per layer type");
  rope.theta = positive_or(parameters, "rope_theta", rope.theta);
  const auto type = value_or<std::string>(parameters, "rope_type",
                                          value_or<std::string>(parameters, "type", "default"));
  if (type == "default") return rope;
  if (type != "linear" && type != "llama3") unsupported("rope type \"" + type + "\"");
  rope.scaling = type == "linear" ? rope_config::kind::linear : rope_config::kind::llama3;
  rope.factor = positive_or(parameters, "factor", 0.0);
  if (type == "linear") return rope;
  rope.low_freq_factor = positive_or(parameters, "low_freq_factor", 0.0);
  rope.high_freq_factor = positive_or(parameters, "high_freq_factor", 0.0);
  rope.original_context = positive_or(parameters, "original_max_position_embeddings", 0.0);
  if (rope.high_freq_factor <= rope.low_freq_factor)
    throw model_error("high_freq_factor is not above low_freq_factor");
  return rope;
}

/// SmolLM3: 1 in no_rope_layers means *with* RoPE; every fourth layer is without by default.
void parse_nope_layers(const json& config, std::vector<layer_config>& layers) {
  const auto found = config.find("no_rope_layers");
  if (found != config.end() && found->is_array()) {
    if (found->size() != layers.size())
      throw model_error("no_rope_layers does not have one entry per layer");
    for (std::size_t i = 0; i < layers.size(); ++i) layers[i].rope = (*found)[i].get<int>() != 0;
    return;
  }
  const std::size_t interval = size_or(config, "no_rope_layer_interval", 4);
  for (std::size_t i = 0; i < layers.size(); ++i) layers[i].rope = (i + 1) % interval != 0;
}

/// Which layers slide: layer_types where it is written, else the rule of the family.
void parse_sliding_layers(const json& config, const std::string& family, model_config& model) {
  const bool in_use = family != "llama" && value_or(config, "use_sliding_window", false);
  if (!in_use || value_or<json>(config, "sliding_window", nullptr).is_null()) return;
  model.sliding_window = size_at(config, "sliding_window");
  const auto types = config.find("layer_types");
  if (types != config.end() && types->is_array()) {
    if (types->size() != model.layers.size())
      throw model_error("layer_types does not have one entry per layer");
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
      const auto type = (*types)[i].get<std::string>();
      if (type != "full_attention" && type != "sliding_attention")
        unsupported("layer type \"" + type + "\"");
      model.layers[i].sliding = type == "sliding_attention";
    }
    return;
  }
  const std::size_t first =
      family == "smollm3"
          ? 0
          : to_size(value_or<json>(config, "max_window_layers", 28), "max_window_layers");
  for (std::size_t i = first; i < model.layers.size(); ++i)
    model.layers[i].sliding = family != "smollm3" || !model.layers[i].rope;
}

/// One id, a list of ids, or null.
std::vector<token_id> parse_ids(const json& config, const char* key) {
  const auto value = value_or<json>(config, key, nullptr);
  if (value.is_null()) return {};
  std::vector<token_id> ids;
  for (const auto& id : value.is_array() ? value : json::array({value}))
    ids.push_back(static_cast<token_id>(to_size(id, key)));
  return ids;
}

std::string parse_family(const json& config) {
  const auto family = config.at("model_type").get<std::string>();
  if (family != "llama" && family != "qwen2" && family != "qwen3" && family != "smollm3")
    unsupported("model_type \"" + family + "\" (llama, qwen2, qwen3 and smollm3 are)");
  return family;
}

void check_unimplemented(const json& config) {
  if (const auto act = value_or<std::string>(config, "hidden_act", "silu"); act != "silu")
    unsupported("hidden_act \"" + act + "\"");
  if (value_or<json>(config, "quantization_config", nullptr).is_object())
    unsupported("a quantized checkpoint");
  if (value_or(config, "partial_rotary_factor", 1.0) != 1.0) unsupported("partial_rotary_factor");
}

model_config parse_checked(const json& config) {
  const auto family = parse_family(config);
  check_unimplemented(config);
  model_config model;
  model.vocab_size = size_at(config, "vocab_size");
  model.hidden_size = size_at(config, "hidden_size");
  model.intermediate_size = size_at(config, "intermediate_size");
  model.n_query_heads = size_at(config, "num_attention_heads");
  model.n_kv_heads = size_or(config, "num_key_value_heads", model.n_query_heads);
  if (model.n_query_heads % model.n_kv_heads != 0)
    throw model_error("num_attention_heads " + std::to_string(model.n_query_heads) +
                      " is not a multiple of num_key_value_heads " +
                      std::to_string(model.n_kv_heads));
  model.head_dim = size_or(config, "head_dim",
                           family == "qwen3" ? 128 : model.hidden_size / model.n_query_heads);
  if (model.head_dim == 0 || model.head_dim % 2 != 0)
    throw model_error("head_dim " + std::to_string(model.head_dim) + " is not even");
  model.max_positions = size_or(config, "max_position_embeddings", 2048);
  model.rms_norm_eps = static_cast<float>(positive_or(config, "rms_norm_eps", 1e-6));
  const bool attention_bias = value_or(config, "attention_bias", false);
  model.qkv_bias = family == "qwen2" || attention_bias;
  model.output_bias = family != "qwen2" && attention_bias;
  model.mlp_bias =
      (family == "llama" || family == "smollm3") && value_or(config, "mlp_bias", false);
  model.qk_norm = family == "qwen3";
  model.tied_embeddings = value_or(config, "tie_word_embeddings", family == "smollm3");
  model.rope = parse_rope(config, family == "smollm3" ? 2'000'000.0 : 10'000.0);
  const std::size_t n_layers = size_at(config, "num_hidden_layers");
  if (n_layers > 4096)
    throw model_error("num_hidden_layers " + std::to_string(n_layers) + " is more than 4096");
  model.layers.resize(n_layers);
  if (family == "smollm3") parse_nope_layers(config, model.layers);
  parse_sliding_layers(config, family, model);
  if (const auto bos = parse_ids(config, "bos_token_id"); !bos.empty()) model.bos_id = bos.front();
  model.eos_ids = parse_ids(config, "eos_token_id");
  return model;
}

}  // namespace

model_config parse_config(const json& config) {
  try {
    return parse_checked(config);
  } catch (const json::exception& e) {
    throw model_error(e.what());
  }
}

model_config read_config(const std::filesystem::path& directory) {
  const auto path = directory / "config.json";
  const auto json = read_json(path);
  try {
    auto config = parse_config(json);
    const auto generation = directory / "generation_config.json";
    if (std::filesystem::exists(generation))
      for (const token_id id : parse_ids(read_json(generation), "eos_token_id"))
        config.eos_ids.push_back(id);
    return config;
  } catch (const model_error& e) {
    throw model_error(path.string() + ": " + e.what());
  }
}

}  // namespace transformer
