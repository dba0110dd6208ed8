// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "accuracy/tasks/record.hpp"

#include <optional>
#include <stdexcept>
#include <utility>

#include "accuracy/json_lines.hpp"

namespace wavekv_bench {
namespace {

using nlohmann::json;

case_key key_of(const json& row) {
  return {row.at("task"), row.at("tokens"), row.at("case"), row.at("rule")};
}

}  // namespace

record::record(std::filesystem::path path, const json& source) : path_(std::move(path)) {
  std::optional<json> found;
  const bool ends_line = read_json_lines(path_, [&](const json& row) {
    if (row.contains("source")) found = row["source"];
    if (row.contains("rule")) done_.insert(key_of(row));
  });
  if (found && *found != source)
    throw std::runtime_error(path_.string() + ": holds answers of " + found->dump() + ", not of " +
                             source.dump() + "; name another file or folder");
  if (!found && !done_.empty())
    throw std::runtime_error(path_.string() + ": does not say what its answers are of");
  file_ = continue_json_lines(path_, ends_line);
  if (!found) write({{"source", source}});
}

void record::plan(const std::string& task, const std::vector<std::size_t>& lengths,
                  std::size_t n_cases, const std::vector<std::string>& rules) {
  write({{"plan", task}, {"lengths", lengths}, {"cases", n_cases}, {"rules", rules}});
}

void record::add(const case_key& key, json row) {
  row["task"] = key.task;
  row["tokens"] = key.n_tokens;
  row["case"] = key.number;
  row["rule"] = key.rule;
  write(row);
  done_.insert(key);
}

void record::write(const json& line) {
  // A tokenizer may have cut a character in two.
  file_ << line.dump(-1, ' ', false, json::error_handler_t::replace) << '\n';
  file_.flush();
  if (!file_) throw std::runtime_error(path_.string() + ": cannot write");
}

}  // namespace wavekv_bench
