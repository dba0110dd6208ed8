// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "accuracy/tasks/task.hpp"
#include "tokenizer.hpp"

namespace test {

/// Sentences to hide needles among.
inline std::string plain_text() {
  std::string text;
  for (int i = 0; i < 400; ++i)
    text += "The old man walked down to the shore. He had seen nothing there!\n";
  return text;
}

/// How often a part stands in a text.
inline std::size_t count(std::string_view text, std::string_view part) {
  std::size_t n = 0;
  for (auto at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

/// What a prompt of one turn and its first question say.
inline std::string text_of(const transformer::tokenizer& tokenizer,
                           const wavekv_bench::prompt& prompt) {
  auto tokens = prompt.turns.front().text;
  const auto& asked = prompt.turns.front().questions.front().tokens;
  tokens.insert(tokens.end(), asked.begin(), asked.end());
  return tokenizer.decode(tokens);
}

}  // namespace test
