// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "accuracy/tasks/task.hpp"
#include "needle.hpp"
#include "tokenizer.hpp"

/// @file needle_tasks.hpp
/// @brief Tasks in the phrasing that the example model knows: "The magic number of <word> is <number>."

namespace wavekv_bench {

/// @brief How alike two words are to a model that reads tokens.
struct spelling {
  std::string word;
  transformer::token_id first = 0;  ///< tokens of the word behind a space
  transformer::token_id last = 0;
  bool is_whole = false;  ///< a single token
};

/// @brief Whether words are taken for each other easily: other words that share their first or last token, or half of their
/// letters, at least three, at the beginning or the end.
bool is_near_miss(const spelling& a, const spelling& b) noexcept;

/// @brief Families of near misses: disjoint, of so many words, each a near miss of its family's first one.
/// @param words  in order of preference for the first of a family
std::vector<std::vector<std::string>> near_miss_families(transformer::tokenizer& tokenizer,
                                                         const std::vector<std::string>& words,
                                                         std::size_t family_size);

/// @brief What needle tasks are made of. Both outlive the tasks.
struct needle_material {
  transformer::tokenizer& tokenizer;
  transformer::needle_maker& maker;
  std::vector<std::string> words;
};

/// @brief One needle in a text, and the question about it.
std::unique_ptr<task> single_needle(const needle_material& material);

/// @brief Twenty needles in a text, each of them asked for.
std::unique_ptr<task> many_needles(const needle_material& material);

/// @brief Five families of four words that are near misses of each other, a needle each; all are asked.
std::unique_ptr<task> near_miss_needles(const needle_material& material);

/// @brief A context that grows by 25 turns: text with three needles, a question about one of them and one about a needle of an
/// earlier turn. Questions and answers stay in the context.
std::unique_ptr<task> growing_context(const needle_material& material);

/// @brief Ten words of which a text says two to four numbers, one sentence each ("The second magic number of <word> is
/// <number>."): every list is asked for. The score is the part of its numbers that came.
std::unique_ptr<task> number_lists(const needle_material& material);

/// @brief Ten words whose number is that of another word ("The magic number of <word> is <word>."), and of five of these that
/// of a third; two or three sentences have to be found to answer, and are told on the way.
std::unique_ptr<task> traced_words(const needle_material& material);

}  // namespace wavekv_bench
