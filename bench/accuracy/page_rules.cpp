// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <wavekv/baselines/block_mean.hpp>
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
  return rules;
}

}  // namespace wavekv_bench
