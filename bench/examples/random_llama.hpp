// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

/// @file random_llama.hpp
/// @brief A Llama checkpoint of random weights in Hugging Face form: what speed needs, and nobody downloads.

namespace wavekv_bench {

/// @brief Sizes of a Llama with tied embeddings; by default those of Llama-3.2-1B (1.24e9 parameters).
struct llama_shape {
  std::size_t vocab_size = 128256;
  std::size_t hidden_size = 2048;
  std::size_t intermediate_size = 8192;
  std::size_t n_layers = 16;
  std::size_t n_query_heads = 32;
  std::size_t n_kv_heads = 8;
  std::size_t head_dim = 64;

  /// @brief Weights of one layer's projections.
  [[nodiscard]] std::size_t layer_elements() const noexcept {
    return hidden_size * head_dim * 2 * (n_query_heads + n_kv_heads) +
           3 * hidden_size * intermediate_size;
  }
  /// @brief Weights of all matrices. A decode step reads each once: the embedding is the head, too.
  [[nodiscard]] std::size_t matrix_elements() const noexcept {
    return n_layers * layer_elements() + vocab_size * hidden_size;
  }
  /// @brief All weights, norms included.
  [[nodiscard]] std::size_t n_parameters() const noexcept {
    return matrix_elements() + (2 * n_layers + 1) * hidden_size;
  }
};

/// @brief Writes config.json, tokenizer.json and model.safetensors (bf16) into a directory that exists.
///
/// Matrices are uniform with the standard deviation 0.02 that such models are initialised with, norms are one. The
/// tokenizer knows the 256 bytes and no merges; the other rows of the vocabulary stand for no text, as padding
/// rows of published checkpoints do. The weights are on the disk, and out of
/// the page cache, when it returns.
/// Complexity: one write of every byte. Blocks: for the disk.
/// @throw std::runtime_error when a file cannot be written
void write_random_llama(const std::filesystem::path& directory, const llama_shape& shape,
                        std::uint64_t seed);

}  // namespace wavekv_bench
