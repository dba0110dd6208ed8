// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <memory>

namespace transformer {

/// @brief What one full-attention layer computed for some tokens, row-major.
struct attention_input {
  std::size_t layer = 0;  ///< counted among the full-attention layers only
  std::size_t n_tokens = 0;
  const float* queries = nullptr;  ///< [n_tokens, n_query_heads, head_dim]
  const float* keys = nullptr;     ///< [n_tokens, n_kv_heads, head_dim]
  const float* values = nullptr;   ///< [n_tokens, n_kv_heads, head_dim]
};

/// @brief The seam between the model and what keeps its keys and values: one sequence's
/// full-attention layers. The model knows nothing else of the cache; wave_attention.hpp is where
/// wavekv's calls are.
class full_attention {
 public:
  virtual ~full_attention() = default;

  /// @brief A prompt chunk: appends its tokens and attends each of them to everything up to itself.
  /// @param out [n_tokens, n_query_heads, head_dim]
  virtual void prefill(const attention_input& in, float* out) = 0;

  /// @brief A prompt chunk whose attention output nobody reads (the last layer of a prompt).
  virtual void append(const attention_input& in) = 0;

  /// @brief One decode step: appends one token and attends it. @param out [1, n_query_heads,
  /// head_dim]
  virtual void decode(const attention_input& in, float* out) = 0;

  /// @brief The prompt is complete.
  virtual void end_prompt() = 0;

  /// @brief A second sequence that begins as a copy of this one.
  virtual std::unique_ptr<full_attention> fork() const = 0;
};

}  // namespace transformer
