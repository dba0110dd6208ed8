// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config.hpp"

/// @file task.hpp
/// @brief A task: prompts with questions whose answers are known.

namespace wavekv_bench {

/// @brief How an answer is judged.
enum class scoring {
  leading_number,  ///< 1 where the answer begins with the number that was asked for, else 0
  recall           ///< part of the expected strings that the answer holds, in upper or lower case
};

/// @brief A question and what should come.
struct question {
  std::vector<transformer::token_id> tokens;  ///< read after the prompt; the answer comes next
  std::vector<std::string> expected;
  std::size_t max_new_tokens = 0;
  scoring how = scoring::recall;
};

/// @brief Text to be read, and what is asked after it.
struct turn {
  std::vector<transformer::token_id> text;
  std::vector<question> questions;
};

/// @brief One context. Of a context of several turns, questions and answers stay in it; the questions of a context of a
/// single turn are asked of it independently of each other.
struct prompt {
  std::vector<turn> turns;
};

/// @brief Makes prompts.
class task {
 public:
  explicit task(std::string name) : name_(std::move(name)) {}
  task(const task&) = delete;
  task& operator=(const task&) = delete;
  task(task&&) = delete;
  task& operator=(task&&) = delete;
  virtual ~task() = default;

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// @brief Questions of each prompt.
  [[nodiscard]] virtual std::size_t n_questions() const = 0;
  /// @brief Whether prompts have several turns.
  [[nodiscard]] virtual bool grows() const { return false; }
  /// @brief Prompt number i of a length: the same for the same seed. With its questions and the longest answers it
  /// has at most n_tokens tokens.  @throw transformer::model_error where a prompt does not fit
  [[nodiscard]] virtual prompt make(std::size_t n_tokens, std::size_t i, std::uint64_t seed) = 0;

 private:
  std::string name_;
};

/// @brief From 0, wrong, to 1, right.
double score_answer(const question& asked, std::string_view answer);

/// @brief A seed of its own for each prompt of each task.
std::uint64_t prompt_seed(std::string_view task, std::size_t n_tokens, std::size_t i,
                          std::uint64_t seed) noexcept;

/// @brief Prompts that make at least so many cases: a case is a question.
inline std::size_t prompts_for(const task& of, std::size_t n_cases) {
  return (n_cases + of.n_questions() - 1) / of.n_questions();
}

}  // namespace wavekv_bench
