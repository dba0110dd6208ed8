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

/// @brief A rule that reads the best so many tokens: a part of the context.
template <class AnyBound = std::variant<wavekv::baselines::top_k>>
bound_rule<AnyBound> top_share(std::string name, double share) {
  return {std::move(name), [share](std::size_t n_tokens) {
            return wavekv::baselines::top_k{
                static_cast<std::size_t>(share * static_cast<double>(n_tokens))};
          }};
}

/// @brief The cache of a rule that is an index and such a budget.
template <class Index>
std::unique_ptr<rule_cache> top_share_rule(const std::vector<std::string>& wanted,
                                           const wavekv::geometry& sizes, std::string name,
                                           double share) {
  using any_top_k = std::variant<wavekv::baselines::top_k>;
  return wanted_rules<wavekv::kv_cache<wavekv::bf16, Index>, any_top_k>(
      wanted, sizes, {top_share(std::move(name), share)});
}

}  // namespace wavekv_bench
