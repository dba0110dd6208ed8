// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <variant>

#include <wavekv/baselines/low_rank.hpp>
#include <wavekv/baselines/lsh_sampling.hpp>
#include <wavekv/baselines/oracle_top_k.hpp>
#include <wavekv/baselines/product_quantised.hpp>
#include <wavekv/wavekv.hpp>

#include "accuracy/tasks/task_rules.hpp"
#include "accuracy/tasks/wanted_rules.hpp"

namespace wavekv_bench {
namespace {

namespace baselines = wavekv::baselines;

}  // namespace

std::unique_ptr<rule_cache> make_low_rank_rules(const std::vector<std::string>& wanted,
                                                const wavekv::geometry& sizes,
                                                std::size_t /*n_tokens*/) {
  return top_rule_cache<baselines::low_rank_index>(
      wanted, sizes, "low_rank", 32.0 / static_cast<double>(sizes.key_dim + sizes.value_dim));
}

std::unique_ptr<rule_cache> make_product_quantised_rules(const std::vector<std::string>& wanted,
                                                         const wavekv::geometry& sizes,
                                                         std::size_t /*n_tokens*/) {
  return top_rule_cache<baselines::product_quantised_index>(
      wanted, sizes, "product_quantised",
      2.0 / static_cast<double>(2 * (sizes.key_dim + sizes.value_dim)));
}

std::unique_ptr<rule_cache> make_lsh_rules(const std::vector<std::string>& wanted,
                                           const wavekv::geometry& sizes,
                                           std::size_t /*n_tokens*/) {
  using any_lsh = std::variant<baselines::lsh_sampling>;
  using cache_type = wavekv::kv_cache<wavekv::bf16, baselines::lsh_sampling_index>;
  return wanted_rules<cache_type, any_lsh>(
      wanted, sizes,
      {{"lsh_sampling", [](std::size_t) { return any_lsh(baselines::lsh_sampling{}); }}});
}

std::unique_ptr<rule_cache> make_oracle_rules(const std::vector<std::string>& wanted,
                                              const wavekv::geometry& sizes,
                                              std::size_t /*n_tokens*/) {
  return top_rule_cache<baselines::oracle_top_k_index>(wanted, sizes, "oracle_top_k", 0.0);
}

}  // namespace wavekv_bench
