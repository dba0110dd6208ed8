// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <vector>

#include <wavekv/file/byte_stream.hpp>

namespace transformer {

/// @brief Shape of one layer's attention.
struct attention_shape {
  std::size_t n_query_heads = 0;
  std::size_t n_kv_heads = 0;
  std::size_t head_dim = 0;
};

/// @brief Keys and values of one sliding-window layer: the last `window` tokens, attended exactly.
/// Such a layer needs no index: what it may see is small. A token at position p sees the keys at
/// positions > p - window. A value type: a copy is a fork of the sequence.
class sliding_window {
 public:
  sliding_window(attention_shape shape, std::size_t window);

  /// @brief Appends n tokens and attends each of them to its window.
  /// @param queries [n, n_query_heads, head_dim]  @param keys, values [n, n_kv_heads, head_dim]
  /// @param out [n, n_query_heads, head_dim], overwritten
  void append_and_attend(std::size_t n, const float* queries, const float* keys,
                         const float* values, float* out);

  /// @brief Appends n tokens whose attention nobody asks for.
  void append(std::size_t n, const float* keys, const float* values);

  /// @brief Writes what is held, and reads it back into a layer of the same shape.
  /// @throw wavekv::format_error for bytes that save did not write
  void save(wavekv::byte_writer& to) const;
  void load(wavekv::byte_reader& from);

 private:
  void attend_block(std::size_t head, std::size_t first_query, std::size_t n_queries,
                    std::size_t n_tokens, const float* queries, float* out) const;

  attention_shape shape_;
  std::size_t window_;
  std::size_t n_held_ = 0;   // tokens in keys_ and values_; older ones were dropped
  std::vector<float> keys_;  // [n_held, n_kv_heads, head_dim]
  std::vector<float> values_;
};

}  // namespace transformer
