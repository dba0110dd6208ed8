// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace transformer {

/// @brief Id of a token in the vocabulary.
using token_id = std::int32_t;

/// @brief How the rotation frequencies are made. `llama3` slows the low frequencies down as
/// Llama-3.1 does.
struct rope_config {
  enum class kind { plain, linear, llama3 };
  kind scaling = kind::plain;
  double theta = 10000.0;
  double factor = 1.0;             ///< linear, llama3
  double low_freq_factor = 1.0;    ///< llama3
  double high_freq_factor = 4.0;   ///< llama3
  double original_context = 8192;  ///< llama3: tokens of the context before scaling
};

/// @brief One decoder layer: what its attention sees and whether its heads are rotated.
struct layer_config {
  bool sliding = false;  ///< attends to the last `sliding_window` tokens; keeps a window, no index
  bool rope = true;      ///< false: no positions (SmolLM3's NoPE layers)
};

/// @brief What a decoder of the families llama, qwen2, qwen3 and smollm3 is made of; config.json,
/// checked.
struct model_config {
  std::size_t vocab_size = 0;
  std::size_t hidden_size = 0;
  std::size_t intermediate_size = 0;
  std::size_t n_query_heads = 0;
  std::size_t n_kv_heads = 0;
  std::size_t head_dim = 0;
  std::size_t sliding_window =
      0;  ///< tokens a sliding layer sees, the query's own included; 0: no such layer
  std::size_t max_positions = 0;
  float rms_norm_eps = 1e-6F;
  bool qkv_bias = false;
  bool output_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;  ///< qwen3: RMSNorm on every query and key head
  bool tied_embeddings = false;
  rope_config rope;
  std::vector<layer_config> layers;
  std::optional<token_id> bos_id;
  std::vector<token_id> eos_ids;
};

/// @brief Reads config.json, and generation_config.json for more end tokens where there is one.
/// Understands rope_theta + rope_scaling as well as the rope_parameters that transformers 5 writes.
/// @throw model_error when the file is wrong or asks for something that is not implemented here
model_config read_config(const std::filesystem::path& directory);

/// @brief The same from parsed JSON. @throw model_error
model_config parse_config(const nlohmann::json& json);

}  // namespace transformer
