// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <wavekv/baselines/top_k.hpp>
#include <wavekv/wavekv.hpp>

#include "accuracy/tasks/rule_cache.hpp"

/// @file wanted_rules.hpp
/// @brief Caches of those rules that somebody wants.

namespace wavekv_bench {

/// @brief A cache of an index with the wanted ones of its rules; null when there are none.
template <class Cache, class AnyBound>
std::unique_ptr<rule_cache> wanted_rules(const std::vector<std::string>& wanted,
                                         const wavekv::geometry& sizes,
                                         std::vector<bound_rule<AnyBound>> rules,
                                         typename Cache::options_type options = {}) {
  std::erase_if(rules, [&](const auto& rule) {
    return std::ranges::find(wanted, rule.name) == wanted.end();
  });
  if (rules.empty()) return nullptr;
  return std::make_unique<index_rules<Cache, AnyBound>>(sizes, std::move(rules),
                                                        std::move(options));
}

/// @brief Tokens whose K and V are as many bytes as the default bound reads in a step of a context of n_tokens: measured on the
/// example model at 4,096 to 32,768 tokens (401, 720 and 1,245 of them).
inline double default_bytes_in_tokens(std::size_t n_tokens) {
  return 240.0 + 0.03 * static_cast<double>(n_tokens);
}

/// @brief A rule that reads the best so many tokens: as many as make its bytes those of the default, but 1 % of the context where
/// its index takes more than that by itself.
/// @param index_share  bytes of the index, of those of K and V
template <class AnyBound = std::variant<wavekv::baselines::top_k>>
bound_rule<AnyBound> top_rule(std::string name, double index_share) {
  return {std::move(name), [index_share](std::size_t n_tokens) {
            constexpr double steady = 68.0;  // tokens of sink and window
            const auto n = static_cast<double>(n_tokens);
            return wavekv::baselines::top_k{static_cast<std::size_t>(
                std::max(0.01 * n, default_bytes_in_tokens(n_tokens) - steady - index_share * n))};
          }};
}

/// @brief The cache of a rule that is an index and such a budget.
template <class Index>
std::unique_ptr<rule_cache> top_rule_cache(const std::vector<std::string>& wanted,
                                           const wavekv::geometry& sizes, std::string name,
                                           double index_share) {
  using any_top_k = std::variant<wavekv::baselines::top_k>;
  return wanted_rules<wavekv::kv_cache<wavekv::bf16, Index>, any_top_k>(
      wanted, sizes, {top_rule(std::move(name), index_share)});
}

}  // namespace wavekv_bench
