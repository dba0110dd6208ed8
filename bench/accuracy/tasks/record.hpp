// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <nlohmann/json.hpp>

/// @file record.hpp
/// @brief What was asked and answered, a line of JSON each, written as it comes.

namespace wavekv_bench {

/// @brief A case of a task by a rule.
struct case_key {
  std::string task;
  std::size_t n_tokens = 0;
  std::size_t number = 0;
  std::string rule;

  auto operator<=>(const case_key&) const = default;
};

/// @brief A file of answers, which a run that was cut short goes on with.
class record {
 public:
  /// @brief Opens a file, or begins one.
  /// @param source  what the answers depend on besides the cases: the model's name, a seed, …
  /// @throw std::runtime_error where the file is of another source or cannot be written
  record(std::filesystem::path path, const nlohmann::json& source);

  /// @brief Whether a case's answer is there.
  [[nodiscard]] bool has(const case_key& key) const { return done_.contains(key); }

  /// @brief Says which cases will be there when a task is through: what a report may expect.
  void plan(const std::string& task, const std::vector<std::size_t>& lengths, std::size_t n_cases,
            const std::vector<std::string>& rules);

  /// @brief Adds an answer.  @param row  what is known beside the key  @throw std::runtime_error
  void add(const case_key& key, nlohmann::json row);

 private:
  void write(const nlohmann::json& line);

  std::filesystem::path path_;
  std::ofstream file_;
  std::set<case_key> done_;
};

}  // namespace wavekv_bench
