// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "accuracy/tasks/chat_template.hpp"
#include "accuracy/tasks/task.hpp"
#include "tokenizer.hpp"

/// @file ruler_tasks.hpp
/// @brief RULER's synthetic tasks, made from their published description: needles (single, multi-key, multi-value, multi-query),
/// variable tracking, common and frequent words. Of its thirteen, the two that ask about data sets of questions are not there. One prompt
/// has one question; an answer's score is the part of the expected strings in it.
/// Source: RULER, arXiv 2404.06654, section 3 and appendices A and B. Texts are this project's own.

namespace wavekv_bench {

/// @brief What RULER's tasks are made of. The tokenizer outlives the tasks.
struct ruler_material {
  transformer::tokenizer& tokenizer;
  std::vector<std::string> text;   ///< the words of an essay, in their order
  std::vector<std::string> words;  ///< for keys and for lists, all different
  chat_template chat;
  /// Numbers of five digits and keys of one word, asked for as the example model was taught; else numbers of seven digits and keys of
  /// two words, as the paper's.
  bool as_example_model = false;
};

/// @brief Names of the tasks, as the paper's configuration has them.
const std::vector<std::string>& ruler_task_names();

/// @brief A task by its name.  @throw std::invalid_argument for a name that is none
std::unique_ptr<task> make_ruler_task(const std::string& name, const ruler_material& material);

/// @brief Words of a text: what white space divides.
std::vector<std::string> split_words(const std::string& text);

/// @brief The largest n from `least` on with tokens_of(n) <= most, for a function that grows with n about evenly.
/// Complexity: O(log) calls of it.  @throw transformer::model_error where `least` is too large already
std::size_t largest_fit(std::size_t least, std::size_t most,
                        const std::function<std::size_t(std::size_t)>& tokens_of);

}  // namespace wavekv_bench
