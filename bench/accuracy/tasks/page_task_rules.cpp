// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <variant>

#include <wavekv/baselines/block_mean.hpp>
#include <wavekv/baselines/page_bounds.hpp>
#include <wavekv/baselines/streaming.hpp>
#include <wavekv/baselines/top_p_budget.hpp>
#include <wavekv/wavekv.hpp>

#include "accuracy/tasks/task_rules.hpp"
#include "accuracy/tasks/wanted_rules.hpp"

namespace wavekv_bench {
namespace {

namespace baselines = wavekv::baselines;

}  // namespace

std::unique_ptr<rule_cache> make_streaming_rules(const std::vector<std::string>& wanted,
                                                 const wavekv::geometry& sizes,
                                                 std::size_t n_tokens) {
  using any_streaming = std::variant<baselines::streaming>;
  using cache_type = wavekv::kv_cache<wavekv::bf16, baselines::streaming_index>;
  cache_type::options_type options;
  options.window_tokens = static_cast<std::size_t>(default_bytes_in_tokens(n_tokens));
  return wanted_rules<cache_type, any_streaming>(
      wanted, sizes,
      {{"streaming", [](std::size_t) { return any_streaming(baselines::streaming{}); }}}, options);
}

std::unique_ptr<rule_cache> make_page_bounds_rules(const std::vector<std::string>& wanted,
                                                   const wavekv::geometry& sizes,
                                                   std::size_t /*n_tokens*/) {
  using page_bound = std::variant<baselines::top_k, baselines::top_p_budget>;
  using cache_type = wavekv::kv_cache<wavekv::bf16, baselines::page_bounds_index>;
  return wanted_rules<cache_type, page_bound>(
      wanted, sizes,
      {top_rule<page_bound>("page_bounds", 1.0 / 16),
       {"page_top_p", [](std::size_t) { return page_bound(baselines::top_p_budget{}); }}});
}

std::unique_ptr<rule_cache> make_block_mean_rules(const std::vector<std::string>& wanted,
                                                  const wavekv::geometry& sizes,
                                                  std::size_t /*n_tokens*/) {
  return top_rule_cache<baselines::block_mean_index>(wanted, sizes, "block_mean", 1.0 / 256);
}

}  // namespace wavekv_bench
