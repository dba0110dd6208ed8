// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <filesystem>
#include <string>
#include <vector>

/// @file chat_template.hpp
/// @brief What an instruction-tuned model wants round a question.

namespace wavekv_bench {

/// @brief Text before and after what the user says; the answer comes next.
struct chat_template {
  std::string before;
  std::string after;
};

/// @brief Names that choose_template knows.
const std::vector<std::string>& template_names();

/// @brief A template by name: plain (nothing), llama3, chatml (Qwen's), or auto: the one of these two that the model directory's own
/// template is written with (tokenizer_config.json or chat_template.jinja), else plain.
/// @throw transformer::model_error for a tokenizer_config.json that cannot be read
chat_template choose_template(const std::string& name, const std::filesystem::path& model);

}  // namespace wavekv_bench
