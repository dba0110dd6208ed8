// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifdef WAVEKV_HAS_HNSWLIB
#include <wavekv/baselines/graph.hpp>
#endif
#include <wavekv/baselines/low_rank.hpp>
#include <wavekv/baselines/lsh_sampling.hpp>
#include <wavekv/baselines/oracle_top_k.hpp>
#include <wavekv/baselines/oracle_top_p.hpp>
#include <wavekv/baselines/product_quantised.hpp>
#include <wavekv/wavekv.hpp>

#include "accuracy/rule.hpp"
#include "accuracy/token_share.hpp"

namespace wavekv_bench {
namespace {

// MagicPIG's budget is its tables: it has no other.
template <std::size_t... Tables>
void add_lsh(std::vector<std::unique_ptr<rule>>& rules) {
  namespace baselines = wavekv::baselines;
  (rules.push_back(
       std::make_unique<index_rule<
           baselines::lsh_sampling_index::with_summary<baselines::lsh_tables<10, Tables>>,
           baselines::lsh_sampling>>(
           "lsh_sampling", std::vector<double>{Tables},
           [](double, const attention_data&) { return baselines::lsh_sampling{}; })),
   ...);
}

}  // namespace

std::vector<std::unique_ptr<rule>> token_rules() {
  namespace baselines = wavekv::baselines;
  std::vector<std::unique_ptr<rule>> rules;
  rules.push_back(top_k_rule<baselines::oracle_top_k_index>("oracle_top_k"));
  rules.push_back(top_p_rule<baselines::oracle_top_p_index>("oracle_top_p"));
  rules.push_back(top_k_rule<baselines::low_rank_index>("low_rank"));
  rules.push_back(top_k_rule<baselines::product_quantised_index>("product_quantised"));
  add_lsh<75, 150, 300>(rules);
#ifdef WAVEKV_HAS_HNSWLIB
  rules.push_back(top_k_rule<baselines::graph_index>("graph"));
#endif
  return rules;
}

}  // namespace wavekv_bench
