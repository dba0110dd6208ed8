// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "accuracy/tasks/chat_template.hpp"

#include <fstream>
#include <sstream>

#include <nlohmann/json.hpp>

#include "json_file.hpp"

namespace wavekv_bench {
namespace {

/// What the directory has of a template, as text; empty where it has none.
std::string own_template(const std::filesystem::path& model) {
  std::ifstream file(model / "chat_template.jinja");
  if (file) return (std::ostringstream() << file.rdbuf()).str();
  const auto config = model / "tokenizer_config.json";
  if (!std::filesystem::exists(config)) return {};
  const auto json = transformer::read_json(config);
  const auto found = json.find("chat_template");
  return found == json.end() ? std::string() : found->dump();
}

}  // namespace

const std::vector<std::string>& template_names() {
  static const std::vector<std::string> names = {"auto", "plain", "llama3", "chatml"};
  return names;
}

chat_template choose_template(const std::string& name, const std::filesystem::path& model) {
  const chat_template llama3 = {"<|start_header_id|>user<|end_header_id|>\n\n",
                                "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"};
  const chat_template chatml = {"<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"};
  if (name == "llama3") return llama3;
  if (name == "chatml") return chatml;
  if (name != "auto") return {};
  const std::string own = own_template(model);
  if (own.find("<|start_header_id|>") != std::string::npos) return llama3;
  if (own.find("<|im_start|>") != std::string::npos) return chatml;
  return {};
}

}  // namespace wavekv_bench
