// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "config.hpp"
#include "linear.hpp"
#include "safetensors.hpp"

namespace transformer {

/// @brief One decoder layer's weights; matrices lie in the checkpoint's files.
struct layer_weights {
  std::vector<float> attention_norm;
  linear query, key, value, output;
  std::vector<float> query_norm, key_norm;  ///< qwen3 only
  std::vector<float> mlp_norm;
  linear gate, up, down;
  bool rope = true;
  bool sliding = false;
  std::size_t index = 0;  ///< among the sliding or among the full layers
};

/// @brief A model directory, opened: config.json and every weight, wherever the model is to be computed.
class model_weights {
 public:
  /// @brief Every tensor's presence and shape is checked here.  @throw model_error
  explicit model_weights(const std::filesystem::path& directory);

  const model_config& config() const noexcept { return config_; }
  /// @brief The matrix of token embeddings, [vocab_size, hidden_size].
  const linear& embedding() const noexcept { return embedding_; }
  /// @brief What makes logits; the embedding where the two are tied.
  const linear& head() const noexcept { return head_; }
  const std::vector<layer_weights>& layers() const noexcept { return layers_; }
  const std::vector<float>& final_norm() const noexcept { return final_norm_; }
  /// @brief Number of layers that attend to everything: the layers of the KV cache. At least 1.
  std::size_t n_full_layers() const noexcept { return n_full_layers_; }

 private:
  layer_weights load_layer(std::size_t i) const;
  linear load_linear(const std::string& name, std::size_t n_out, std::size_t n_in, bool bias) const;

  model_config config_;
  checkpoint files_;
  linear embedding_;
  linear head_;
  std::vector<layer_weights> layers_;
  std::vector<float> final_norm_;
  std::size_t n_full_layers_ = 0;
};

/// @brief Refuses ids outside the vocabulary.  @throw model_error
void check_token(const model_config& config, token_id token);

}  // namespace transformer
