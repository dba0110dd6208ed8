// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <wavekv/baselines/top_k.hpp>
#include <wavekv/baselines/top_p_budget.hpp>

#include "accuracy/rule.hpp"

/// @file token_share.hpp
/// @brief Sweeps that many rules share: parts of all tokens, parts of the mass.

namespace wavekv_bench {

/// @brief Parts of all tokens that are read.
inline std::vector<double> token_shares() { return {0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16}; }

/// @brief A rule that reads the best so many tokens.
template <class Index>
std::unique_ptr<rule> top_k_rule(std::string name) {
  return std::make_unique<index_rule<Index, wavekv::baselines::top_k>>(
      std::move(name), token_shares(), [](double budget, const attention_data& data) {
        return wavekv::baselines::top_k{
            static_cast<std::size_t>(budget * static_cast<double>(data.n_tokens))};
      });
}

/// @brief A rule that reads what holds so much of the mass.
template <class Index>
std::unique_ptr<rule> top_p_rule(std::string name) {
  return std::make_unique<index_rule<Index, wavekv::baselines::top_p_budget>>(
      std::move(name), std::vector<double>{0.5, 0.7, 0.8, 0.9, 0.95, 0.99},
      [](double budget, const attention_data&) {
        return wavekv::baselines::top_p_budget{static_cast<float>(budget)};
      });
}

}  // namespace wavekv_bench
