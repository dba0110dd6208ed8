// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include <wavekv/core/geometry.hpp>

#include "accuracy/tasks/rule_cache.hpp"

/// @file task_rules.hpp
/// @brief The rules that answer tasks, each at one budget.

namespace wavekv_bench {

/// @brief Name of the rule that the others are compared with; always asked.
inline constexpr const char* full_attention_rule = "full";

/// @brief Names of all rules, full attention first.
const std::vector<std::string>& task_rule_names();

/// @brief Those that are asked when nobody names any.
const std::vector<std::string>& default_task_rules();

/// @brief Full attention and these rules, with their caches.
/// @param n_tokens  of the longest context: a rule without an index has its window by it
/// @throw std::invalid_argument for a name that is none
rule_set make_task_rules(const std::vector<std::string>& names, const wavekv::geometry& sizes,
                         std::size_t n_tokens);

/// @brief A cache of one index with those of its rules that are wanted; null when none is. One function a source file.
using make_rule_cache = std::unique_ptr<rule_cache>(const std::vector<std::string>& wanted,
                                                    const wavekv::geometry& sizes,
                                                    std::size_t n_tokens);
make_rule_cache make_wave_rules;
make_rule_cache make_flat_wave_rules;
make_rule_cache make_streaming_rules;
make_rule_cache make_page_bounds_rules;
make_rule_cache make_block_mean_rules;
make_rule_cache make_low_rank_rules;
make_rule_cache make_product_quantised_rules;
make_rule_cache make_lsh_rules;
make_rule_cache make_oracle_rules;

}  // namespace wavekv_bench
