// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "accuracy/tasks/task_rules.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace wavekv_bench {

const std::vector<std::string>& task_rule_names() {
  static const std::vector<std::string> names = {
      full_attention_rule, "default",     "verified",     "flat_wave",
      "streaming",         "page_bounds", "page_top_p",   "block_mean",
      "product_quantised", "low_rank",    "lsh_sampling", "oracle_top_k"};
  return names;
}

const std::vector<std::string>& default_task_rules() {
  static const std::vector<std::string> names = {
      "default",    "verified",          "flat_wave",    "streaming",   "page_bounds",
      "block_mean", "product_quantised", "lsh_sampling", "oracle_top_k"};
  return names;
}

rule_set make_task_rules(const std::vector<std::string>& names, const wavekv::geometry& sizes,
                         std::size_t n_tokens) {
  const auto& known = task_rule_names();
  std::vector<std::string> wanted = {full_attention_rule};
  for (const std::string& name : names) {
    if (std::ranges::find(known, name) == known.end())
      throw std::invalid_argument("no rule has the name " + name);
    if (std::ranges::find(wanted, name) == wanted.end()) wanted.push_back(name);
  }
  std::vector<std::unique_ptr<rule_cache>> caches;
  for (make_rule_cache* make :
       {make_wave_rules, make_flat_wave_rules, make_streaming_rules, make_page_bounds_rules,
        make_block_mean_rules, make_product_quantised_rules, make_low_rank_rules, make_lsh_rules,
        make_oracle_rules}) {
    if (auto cache = make(wanted, sizes, n_tokens)) caches.push_back(std::move(cache));
  }
  return rules_of(std::move(caches));
}

}  // namespace wavekv_bench
