// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <memory>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/baselines/head_budgets.hpp>
#include <wavekv/baselines/top_k.hpp>

#include "conformance/index_law.hpp"
#include "reference/fresh_seed.hpp"
#include "support/counting_new.hpp"

// The memory of head_budgets is made once: no plan allocates, whatever the index's size does and whatever a head is found to be.

using namespace wavekv_test;
namespace baselines = wavekv::baselines;

TEST_CASE("a plan allocates nothing") {
  random_engine random = generator("head_budgets allocations");
  std::vector<frontier_data> steps;
  for (const std::size_t n : {200U, 200U, 300U, 300U, 300U, 300U, 150U, 400U, 400U, 450U}) {
    steps.push_back(
        frontier_data::random<wavekv::rank_by_turns>(random, 0, n, 2, key_family::outlier));
    steps.back().view.place.sequence = {0, 0};
  }
  std::vector<wavekv::zone> zones(450);
  for (const float threshold : {0.0F, 1.0F}) {
    const baselines::head_budgets<baselines::top_k> bound{
        baselines::top_k{500}, baselines::top_k{1000},
        std::make_shared<baselines::head_steadiness>(
            wavekv::geometry{},
            baselines::head_steadiness::settings{
                .max_clusters = 400, .n_observed = 4, .check_every = 1, .threshold = threshold})};
    const std::size_t before = n_allocations;
    for (int round = 0; round < 3; ++round) {
      for (const frontier_data& nodes : steps) {
        bound.plan(nodes.view, std::span(zones).first(nodes.view.n_nodes));
      }
    }
    const std::size_t made = n_allocations - before;
    CHECK(made == 0);
    CHECK(bound.memory->of(steps[0].view.place, 0).found ==
          (threshold > 0.0F ? baselines::head_class::unsteady : baselines::head_class::steady));
  }
}
