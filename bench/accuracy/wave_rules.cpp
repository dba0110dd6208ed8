// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>

#include <wavekv/baselines/flat_wave.hpp>
#include <wavekv/wavekv.hpp>

#include "accuracy/rule.hpp"

namespace wavekv_bench {

asked_layer ask_exactly(const attention_data& data, std::size_t n_questions) {
  using cache_type =
      wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>::with_clusterer<wavekv::consecutive>>;
  cache_type cache(geometry_of(data));
  const wavekv::sequence_id sequence = append_taught(cache, data);
  return ask_exactly(cache, sequence, data, n_questions);
}

std::vector<std::unique_ptr<rule>> wave_rules() {
  std::vector<std::unique_ptr<rule>> rules;
  // The default bound with all that it may read times a factor; ε shrinks alike, so that it is the caps that bind.
  using error_rule = index_rule<wavekv::wave_index<>, wavekv::error_bound<>>;
  rules.push_back(std::make_unique<error_rule>(
      "error_bound", std::vector<double>{0.125, 0.25, 0.5, 1, 2, 4, 8, 16},
      [](double budget, const attention_data&) {
        const auto factor = static_cast<float>(budget);
        wavekv::error_bound<> bound;
        bound.epsilon /= factor;
        bound.max_open = std::min(1.0F, bound.max_open * factor);
        bound.max_read = std::min(1.0F, bound.max_read * factor);
        bound.floor_open = std::min(1.0F, bound.floor_open * factor);
        bound.floor_read = std::min(1.0F, bound.floor_read * factor);
        bound.hidden_share /= factor;
        for (std::size_t* n : {&bound.least_open, &bound.free_tokens})
          *n = static_cast<std::size_t>(static_cast<double>(*n) * budget);
        return bound;
      }));
  using paper_rule = index_rule<wavekv::baselines::flat_wave_index, wavekv::fixed_budget>;
  rules.push_back(std::make_unique<paper_rule>(
      "flat_wave", std::vector<double>{0.25, 0.5, 1, 2, 4, 8, 16},
      [](double budget, const attention_data&) {
        wavekv::fixed_budget bound;  // three quarters are dropped at every budget
        bound.retrieve *= static_cast<float>(budget);
        return bound;
      }));
  return rules;
}

}  // namespace wavekv_bench
