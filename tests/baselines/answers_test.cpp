// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/baselines/block_mean.hpp>
#include <wavekv/baselines/low_rank.hpp>
#include <wavekv/baselines/lsh_sampling.hpp>
#include <wavekv/baselines/oracle_top_k.hpp>
#include <wavekv/baselines/oracle_top_p.hpp>
#include <wavekv/baselines/page_bounds.hpp>
#include <wavekv/baselines/product_quantised.hpp>
#include <wavekv/baselines/streaming.hpp>
#include <wavekv/wavekv.hpp>

#include "baselines/plain_rule.hpp"
#include "reference/fresh_seed.hpp"

// The answers of rules in the engine: what is read, what it costs, and attention over exactly that.

using namespace wavekv_test;
namespace baselines = wavekv::baselines;

namespace {

template <class Index>
void check_top_k(random_engine& random, std::size_t bytes_per_page, std::size_t bytes_besides = 0) {
  for (const std::size_t group : {1U, 3U}) {
    for (const float softcap : {0.0F, 30.0F}) {
      plain_rule<Index> rule(random, group, softcap);
      for (const std::size_t n_tokens : {0U, 1U, 64U, 150U, 511U, 5000U}) {
        INFO("group ", group, ", softcap ", softcap, ", ", n_tokens, " tokens");
        rule.check(baselines::top_k{n_tokens}, rule.n_pages() * bytes_per_page + bytes_besides,
                   [&](std::size_t head) { return choose_top_k(rule, head, n_tokens); });
      }
    }
  }
}

// The fewest pages that, with the steady tokens, hold p of a head's mass; of one head a group.
template <class Index>
void check_top_p(random_engine& random, std::size_t bytes_per_page) {
  for (int round = 0; round < 4; ++round) {
    plain_rule<Index> rule(random, 1);
    std::vector<std::vector<std::size_t>> order(2);  // pages of each head, heaviest first
    std::vector<std::vector<double>> missing(2);     // what is not held when so many are read
    for (std::size_t head = 0; head < 2; ++head) {
      const std::vector<double> shares = rule.shares(head);
      order[head].resize(rule.n_pages());
      std::iota(order[head].begin(), order[head].end(), std::size_t{0});
      std::ranges::sort(order[head], std::greater<>(),
                        [&](std::size_t page) { return rule.score(head, page); });
      missing[head].push_back(std::accumulate(shares.begin(), shares.end(), 0.0));
      for (const std::size_t page : order[head])
        missing[head].push_back(missing[head].back() - shares[page]);
    }
    std::size_t n_checked = 0;
    for (const std::size_t n : {std::size_t{1}, std::size_t{3}, rule.n_pages() / 2}) {
      // Between two steps of the first head, far enough that no rounding decides; the second head gets what it gets, unless it
      // is close to a step.
      if (missing[0][n - 1] - missing[0][n] < 1e-4) continue;
      ++n_checked;
      const double p = 1.0 - 0.5 * (missing[0][n - 1] + missing[0][n]);
      const auto n_of = [&](std::size_t head) {
        std::size_t k = 0;
        while (k < rule.n_pages() && missing[head][k] > 1.0 - p) ++k;
        return k;
      };
      REQUIRE(n_of(0) == n);
      const std::size_t other = n_of(1);
      if (other > 0 && std::min(std::abs(missing[1][other] - (1.0 - p)),
                                std::abs(missing[1][other - 1] - (1.0 - p))) < 1e-5)
        continue;
      INFO("p ", p);
      rule.check(baselines::top_p_budget{static_cast<float>(p)}, rule.n_pages() * bytes_per_page,
                 [&](std::size_t head) {
                   return std::vector<std::size_t>(order[head].begin(),
                                                   order[head].begin() +
                                                       static_cast<std::ptrdiff_t>(n_of(head)));
                 });
    }
    CHECK(n_checked > 0);
    rule.check(baselines::top_p_budget{0.0F}, rule.n_pages() * bytes_per_page,
               [](std::size_t) { return std::vector<std::size_t>{}; });
  }
}

}  // namespace

TEST_CASE("streaming reads sink and window and nothing else") {
  random_engine random = generator("streaming");
  for (const std::size_t group : {1U, 4U}) {
    plain_rule<baselines::streaming_index> rule(random, group);
    rule.check(baselines::streaming{}, 0, [](std::size_t) { return std::vector<std::size_t>{}; });
  }
}

TEST_CASE("page_bounds reads the pages with the largest bounds") {
  random_engine random = generator("page_bounds answers");
  check_top_k<baselines::page_bounds_index>(random, 2 * 32 * 2);
}

TEST_CASE("block_mean reads the blocks with the largest means") {
  random_engine random = generator("block_mean answers");
  check_top_k<baselines::block_mean_index>(random, 32 * 2);
}

TEST_CASE("oracle_top_k reads the tokens with the largest logits") {
  random_engine random = generator("oracle_top_k answers");
  check_top_k<baselines::oracle_top_k_index>(random, 0);
}

TEST_CASE("oracle_top_p reads the fewest tokens that hold p") {
  random_engine random = generator("oracle_top_p answers");
  check_top_p<baselines::oracle_top_p_index>(random, 0);
}

TEST_CASE("top_p_budget goes with any summary") {
  random_engine random = generator("top_p_budget answers");
  check_top_p<baselines::page_bounds_index>(random, 2 * 32 * 2);
  check_top_p<baselines::block_mean_index>(random, 32 * 2);
}

TEST_CASE("top_p_budget says what it allows") {
  CHECK_THROWS_WITH_AS((baselines::top_p_budget{1.5F}.validate()),
                       "top_p_budget: p is 1.5; allowed: 0 to 1", wavekv::config_error);
  CHECK_THROWS_AS((baselines::top_p_budget{-0.1F}.validate()), wavekv::config_error);
  CHECK_NOTHROW(baselines::top_p_budget{1.0F}.validate());
}

TEST_CASE("low_rank and product_quantised read the tokens whose codes come nearest") {
  random_engine random = generator("codes answers");
  using small_rank = baselines::low_rank_index::with_summary<baselines::low_rank<6>>;
  check_top_k<small_rank>(random, 6 * 2, 2 * 6 * 32 * 4);
  using small_codes =
      baselines::product_quantised_index::with_summary<baselines::product_quantised<2, 3>>;
  check_top_k<small_codes>(random, 2, 2 * 8 * 32 * 4);
}

TEST_CASE("lsh_sampling: attention over what was found, each weighted by how likely that was") {
  random_engine random = generator("lsh answers");
  using index = baselines::lsh_sampling_index::with_summary<baselines::lsh_tables<4, 20>>;
  for (const std::size_t group : {1U, 3U}) {
    plain_rule<index> rule(random, group);
    rule.check_weighted(baselines::lsh_sampling{});
  }
}
