// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <variant>

#include <wavekv/baselines/flat_wave.hpp>
#include <wavekv/wavekv.hpp>

#include "accuracy/tasks/task_rules.hpp"
#include "accuracy/tasks/wanted_rules.hpp"

namespace wavekv_bench {

std::unique_ptr<rule_cache> make_wave_rules(const std::vector<std::string>& wanted,
                                            const wavekv::geometry& sizes,
                                            std::size_t /*n_tokens*/) {
  using transformer::any_bound;
  return wanted_rules<wavekv::kv_cache<>, any_bound>(
      wanted, sizes,
      {{full_attention_rule, [](std::size_t) { return any_bound(wavekv::exact{}); }},
       {"default", [](std::size_t) { return any_bound(wavekv::kv_cache<>::bound_type{}); }},
       {"verified", [](std::size_t) { return any_bound(wavekv::verified_bound<>{}); }}});
}

std::unique_ptr<rule_cache> make_flat_wave_rules(const std::vector<std::string>& wanted,
                                                 const wavekv::geometry& sizes,
                                                 std::size_t /*n_tokens*/) {
  using paper_bound = std::variant<wavekv::fixed_budget>;
  using cache_type = wavekv::kv_cache<wavekv::bf16, wavekv::baselines::flat_wave_index>;
  return wanted_rules<cache_type, paper_bound>(
      wanted, sizes,
      {{"flat_wave", [](std::size_t) { return paper_bound(wavekv::fixed_budget{}); }}});
}

}  // namespace wavekv_bench
