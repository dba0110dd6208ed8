// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/attention_data.hpp"

/// @file captured.hpp
/// @brief Data of real attention layers: those of the example transformer, reading a needle haystack.

namespace wavekv_bench {

/// @brief Lets a model read a haystack of n_tokens tokens that ends in questions about its needles, and returns
/// what each of its full-attention layers computed. Complexity: that of an exact prefill.
/// @param model     model directory in Hugging Face form
/// @param haystack  text file, or directory of such
/// @throw std::runtime_error when something cannot be read
std::vector<attention_data> capture_model(const std::filesystem::path& model,
                                          const std::filesystem::path& haystack,
                                          std::size_t n_tokens, std::uint64_t seed);

/// @brief What the layers are called that capture_model captures, without reading more than the model's configuration.
/// @throw std::runtime_error when it cannot be read
std::vector<std::string> captured_names(const std::filesystem::path& model);

/// @brief Writes layers to prefix.json (their sizes) and prefix.<layer>.{q,k,v} (raw floats, this machine's order).
/// @throw std::runtime_error
void write_captured(const std::string& prefix, const std::vector<attention_data>& layers);

/// @brief Reads what write_captured wrote.  @throw std::runtime_error
std::vector<attention_data> read_captured(const std::string& prefix);

}  // namespace wavekv_bench
