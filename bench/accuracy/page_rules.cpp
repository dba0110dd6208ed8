// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <memory>

#include <wavekv/baselines/block_mean.hpp>
#include <wavekv/baselines/head_budgets.hpp>
#include <wavekv/baselines/page_bounds.hpp>
#include <wavekv/baselines/streaming.hpp>
#include <wavekv/baselines/top_p_budget.hpp>
#include <wavekv/wavekv.hpp>

#include "accuracy/rule.hpp"
#include "accuracy/token_share.hpp"

namespace wavekv_bench {

std::vector<std::unique_ptr<rule>> page_rules() {
  namespace baselines = wavekv::baselines;
  std::vector<std::unique_ptr<rule>> rules;
  auto streaming = std::make_unique<index_rule<baselines::streaming_index, baselines::streaming>>(
      "streaming", token_shares(),
      [](double, const attention_data&) { return baselines::streaming{}; });
  streaming->in_windows();
  rules.push_back(std::move(streaming));
  rules.push_back(top_k_rule<baselines::page_bounds_index>("page_bounds"));
  rules.push_back(top_k_rule<baselines::block_mean_index>("block_mean"));
  rules.push_back(top_p_rule<baselines::page_bounds_index>("page_bounds, top_p_budget"));
  // A budget is unsteady's; steady heads have half of it. Questions are asked as if each were the next step of one sequence.
  using head_rule =
      index_rule<baselines::page_bounds_index, baselines::head_budgets<baselines::top_k>>;
  rules.push_back(std::make_unique<head_rule>(
      "page_bounds, head_budgets", token_shares(), [](double budget, const attention_data& data) {
        const auto n = static_cast<std::size_t>(budget * static_cast<double>(data.n_tokens));
        return baselines::head_budgets<baselines::top_k>{
            baselines::top_k{n / 2}, baselines::top_k{n},
            std::make_shared<baselines::head_steadiness>(
                geometry_of(data),
                baselines::head_steadiness::settings{.max_clusters = data.n_tokens})};
      }));
  return rules;
}

}  // namespace wavekv_bench
