// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "accuracy/tasks/record.hpp"
#include "accuracy/tasks/rule_cache.hpp"
#include "accuracy/tasks/task.hpp"
#include "model.hpp"
#include "tokenizer.hpp"

/// @file ask.hpp
/// @brief Lets a model answer the questions of tasks, by each rule.

namespace wavekv_bench {

/// @brief Who answers.
struct task_run {
  transformer::model& model;
  transformer::tokenizer& tokenizer;
  rule_set& rules;
  record& answers;
  std::size_t chunk = 2048;  ///< tokens read at once, at most; see even_chunks
  std::uint64_t seed = 1;
};

/// @brief Tokens in chunks of at most `most`, as even as can be. From 2,048 on no chunk of a longer text has less than 1,024 tokens: a
/// cache takes fewer for decoding, and would seal them otherwise than a prompt.
inline std::vector<std::span<const transformer::token_id>> even_chunks(
    std::span<const transformer::token_id> tokens, std::size_t most) {
  const std::size_t n = (tokens.size() + most - 1) / most;
  std::vector<std::span<const transformer::token_id>> chunks;
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t first = i * tokens.size() / n;
    chunks.push_back(tokens.subspan(first, (i + 1) * tokens.size() / n - first));
  }
  return chunks;
}

/// @brief Says on standard error where a run is, not too often.
class run_progress {
 public:
  /// @brief A task at a length.
  void begin(std::string label, std::size_t n_prompts);
  /// @brief Prompt i is being read: so many tokens by now, of so many.
  void update(std::size_t i, double n_read, std::size_t n_tokens);
  /// @brief Prompt i is through.
  void finish(std::size_t i);

 private:
  using clock = std::chrono::steady_clock;
  std::string label_;
  std::size_t n_prompts_ = 0;
  clock::time_point start_;
  clock::time_point last_;
};

/// @brief Asks every rule for what is not on record of one task at one length. Each prompt is read once, and not at all when its
/// answers are there; a context that grows is read once a rule, whose own answers stay in it.
/// @return prompts that were read  @throw transformer::interrupted_error on Ctrl-C; model_error, wavekv::error, std::runtime_error
std::size_t ask_task(task_run& run, task& task, std::size_t n_tokens, std::size_t n_cases,
                     run_progress& progress);

}  // namespace wavekv_bench
