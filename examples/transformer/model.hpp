// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "config.hpp"
#include "linear.hpp"
#include "rope.hpp"
#include "session.hpp"
#include "weights.hpp"

namespace transformer {

/// @brief A decoder-only transformer over a memory-mapped checkpoint. One thread calls it at a
/// time; inside it uses all.
class model {
 public:
  /// @brief Opens config.json and the weights; every tensor's presence and shape is checked here.
  /// @throw model_error
  explicit model(const std::filesystem::path& directory);

  const model_config& config() const noexcept { return weights_.config(); }

  /// @brief Number of layers that attend to everything: the layers of the KV cache.
  std::size_t n_full_layers() const noexcept { return weights_.n_full_layers(); }

  /// @brief An empty sequence whose full-attention layers are kept by `attention`.
  session start(std::unique_ptr<full_attention> attention) const;

  /// @brief Reads a chunk of the prompt. Computes no logits: the prompt's last token is the first
  /// decode step.
  /// @param after_layer called after each layer with the share of the chunk that is done; may throw
  /// to stop
  /// @throw model_error for an id outside the vocabulary
  void prefill(session& session, std::span<const token_id> chunk,
               const std::function<void(double)>& after_layer = {});

  /// @brief The prompt is complete.
  void end_prompt(session& session) { session.attention->end_prompt(); }

  /// @brief Reads one token and returns the logits of its successor, [vocab_size], valid until the
  /// next call.
  std::span<const float> decode(session& session, token_id token);

 private:
  /// Activations of the tokens in flight; [n_tokens, …], grown on demand.
  struct activations {
    std::vector<float> residual, normed, query, key, value, attended, gate, up, projected;
    void resize(const model_config& config, std::size_t n_tokens);
  };

  void embed(std::span<const token_id> tokens);
  void project_heads(const layer_weights& layer, const rope_table& table, std::size_t n_tokens);
  void attend(const layer_weights& layer, session& session, std::size_t n_tokens, bool decoding);
  void remember(const layer_weights& layer, session& session, std::size_t n_tokens);
  void feed_forward(const layer_weights& layer, std::size_t n_tokens);
  void add_projection(const linear& projection, const std::vector<float>& in, std::size_t n_tokens);

  model_weights weights_;
  std::vector<float> frequencies_;
  activations now_;
  std::vector<float> logits_;
};

}  // namespace transformer
