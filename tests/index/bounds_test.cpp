// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/index/bounds/error_bound.hpp>
#include <wavekv/index/bounds/exact.hpp>
#include <wavekv/index/bounds/fixed_budget.hpp>
#include <wavekv/index/bounds/verified_bound.hpp>
#include <wavekv/index/detail/select.hpp>
#include <wavekv/index/zone_planner.hpp>

#include "conformance/index_law.hpp"

// Selection and plans of the shipped bounds on frontiers made up here, against plain sorting.

using namespace wavekv_test;
using wavekv::zone;

namespace {

std::vector<zone> plan(const auto& bound, const frontier_data& data) {
  std::vector<zone> zones(data.view.n_nodes, zone::estimation);
  bound.plan(data.view, std::span(zones));
  return zones;
}

/// Indices by falling value; ties: the smaller index first.
std::vector<std::size_t> ranked(const auto& value, std::size_t n) {
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, [&](std::size_t x, std::size_t y) {
    return value(x) != value(y) ? value(x) > value(y) : x < y;
  });
  return order;
}

}  // namespace

namespace {

/// Numbers of one kind: few or many ties, many magnitudes, denormals, both signs.
std::vector<float> numbers(random_engine& random, std::size_t n, int kind) {
  std::vector<float> values(n);
  for (float& x : values) {
    const auto pick = [&](std::uint32_t range) { return static_cast<float>(random() % range); };
    x = kind == 0   ? pick(1000)
        : kind == 1 ? pick(3)
        : kind == 2 ? std::exp(pick(100) - 50.0F)
        : kind == 3 ? 1e-42F * pick(5)
                    : (pick(2000) - 1000.0F) * 0.01F * (random() % 9 == 0 ? -0.0F : 1.0F);
  }
  return values;
}
constexpr int n_kinds = 5;

}  // namespace

TEST_CASE("order keys order as floats do") {
  const std::vector<float> rising{-HUGE_VALF, -3e38F, -1.0F, -1e-45F, 0.0F,
                                  1e-45F,     1e-38F, 1.0F,  3e38F,   HUGE_VALF};
  for (std::size_t i = 0; i < rising.size(); ++i) {
    const std::uint32_t key = wavekv::detail::order_key(rising[i]);
    CHECK(wavekv::detail::from_order_key(key) == rising[i]);
    if (i > 0) CHECK(key > wavekv::detail::order_key(rising[i - 1]));
  }
}

TEST_CASE("for_largest equals a stable sort") {
  random_engine random(1);
  for (const std::size_t n : {0U, 1U, 2U, 33U, 500U, 5000U, 20000U}) {
    for (int kind = 0; kind < n_kinds; ++kind) {
      const std::vector<float> values = numbers(random, n, kind);
      const std::vector<std::size_t> order = ranked([&](std::size_t i) { return values[i]; }, n);
      for (const std::size_t k :
           {std::size_t{0}, std::size_t{1}, n / 100, n / 3, n / 2, n, n + 5}) {
        std::vector<std::size_t> chosen;
        wavekv::detail::for_largest(values, k, [&](std::size_t i) { chosen.push_back(i); });
        std::vector<std::size_t> expected = order;
        expected.resize(std::min(k, n));
        std::ranges::sort(expected);
        CHECK(chosen == expected);
      }
    }
  }
}

TEST_CASE(
    "for_largest_within takes the largest that fit, ties from the front, nothing of no value") {
  random_engine random(15);
  for (const std::size_t n : {0U, 1U, 2U, 33U, 500U, 5000U}) {
    for (int kind = 0; kind < n_kinds; ++kind) {
      const std::vector<float> values = numbers(random, n, kind);
      std::vector<float> costs(n);
      for (float& cost : costs) cost = static_cast<float>(1 + random() % 30);
      const std::vector<std::size_t> order = ranked([&](std::size_t i) { return values[i]; }, n);
      for (const bool counted : {false, true}) {
        for (const float budget : {0.0F, 1.0F, 40.0F, 0.25F * static_cast<float>(n), 1e9F}) {
          std::vector<std::size_t> chosen;
          const float threshold =
              wavekv::detail::for_largest_within(values, counted ? nullptr : costs.data(), budget,
                                                 [&](std::size_t i) { chosen.push_back(i); });
          std::vector<std::size_t> expected;
          float used = 0.0F;
          for (const std::size_t i : order) {
            used += counted ? 1.0F : costs[i];
            if (!(values[i] > 0.0F) || used > budget) break;
            expected.push_back(i);
          }
          std::ranges::sort(expected);
          CHECK(chosen == expected);
          for (std::size_t i = 0; i < n; ++i) {
            const bool was_chosen = std::ranges::binary_search(chosen, i);
            if (values[i] > threshold && values[i] > 0.0F) CHECK(was_chosen);
            if (values[i] < threshold) CHECK_FALSE(was_chosen);
          }
        }
      }
    }
  }
}

TEST_CASE("fixed_budget takes the nearest clusters, by share per token") {
  random_engine random(2);
  for (const std::size_t n : {1U, 10U, 777U}) {
    const frontier_data data =
        frontier_data::random<wavekv::rank_by_sum>(random, 0, n, 4, key_family::uniform);
    for (const auto& [retrieve, estimate] :
         {std::pair{0.018F, 0.232F}, {0.5F, 0.5F}, {0.0F, 0.1F}, {0.3F, 0.0F}, {0.0F, 0.0F}}) {
      const std::vector<zone> zones =
          plan(wavekv::basic_fixed_budget<wavekv::rank_by_sum>{retrieve, estimate}, data);
      const auto nearness = [&](std::size_t i) {
        return data.view.share()[i] / data.view.size()[i];
      };
      const std::vector<std::size_t> order = ranked(nearness, n);
      const auto count = [&](float fraction) {
        return static_cast<std::size_t>(std::ceil(fraction * static_cast<float>(n)));
      };
      for (std::size_t rank = 0; rank < n; ++rank) {
        const zone expected = rank < count(retrieve)              ? zone::retrieval
                              : rank < count(retrieve + estimate) ? zone::estimation
                                                                  : zone::dropped;
        CHECK(zones[order[rank]] == expected);
      }
    }
  }
}

TEST_CASE("fixed_budget lets the heads of a group take turns, within its budget") {
  random_engine random(12);
  for (const std::size_t n : {4U, 10U, 777U}) {
    const frontier_data data =
        frontier_data::random<wavekv::rank_by_turns>(random, 0, n, 4, key_family::uniform);
    for (const auto& [retrieve, estimate] :
         {std::pair{0.018F, 0.232F}, {0.5F, 0.5F}, {0.0F, 0.1F}, {0.3F, 0.0F}, {0.0F, 0.0F}}) {
      const std::vector<zone> zones = plan(wavekv::fixed_budget{retrieve, estimate, 0}, data);
      const auto count = [&](float fraction) {
        return static_cast<std::size_t>(std::ceil(fraction * static_cast<float>(n)));
      };
      CHECK(static_cast<std::size_t>(std::ranges::count(zones, zone::retrieval)) ==
            count(retrieve));
      CHECK(static_cast<std::size_t>(std::ranges::count(zones, zone::dropped)) ==
            n - count(retrieve + estimate));
      // A full turn of all heads fits into the budget: then each head's own best are among the read.
      const std::size_t n_each = count(retrieve) / 4;
      for (std::size_t g = 0; g < 4; ++g) {
        const std::vector<std::size_t> order =
            ranked([&](std::size_t i) { return data.view.nearness(g)[i]; }, n);
        for (std::size_t rank = 0; rank < n_each; ++rank) {
          if (count(retrieve) % 4 == 0) CHECK(zones[order[rank]] == zone::retrieval);
        }
      }
    }
  }
}

TEST_CASE("error_bound opens and reads each head's nearest, whatever it predicts") {
  random_engine random(13);
  wavekv::error_bound<> bound;
  bound.epsilon = 1e6F;
  bound.hidden_share = 0.0F;
  bound.floor_read = 0.02F;
  // Nodes of a level that each head names: 2 % of the clusters; 9 % of the coarse nodes, but 24 where that is more.
  const auto check = [&](std::size_t level, std::size_t n_nodes, std::size_t n_each) {
    const frontier_data data =
        frontier_data::random<wavekv::rank_by_max>(random, level, n_nodes, 4, key_family::uniform);
    const std::vector<zone> zones = plan(bound, data);
    std::vector<zone> expected(n_nodes, zone::estimation);
    for (std::size_t g = 0; g < 4; ++g) {
      const std::vector<std::size_t> order =
          ranked([&](std::size_t i) { return data.view.nearness(g)[i]; }, n_nodes);
      for (std::size_t rank = 0; rank < n_each; ++rank) expected[order[rank]] = zone::retrieval;
    }
    CHECK(zones == expected);
  };
  check(0, 600, 12);
  check(0, 60, 4);
  check(1, 600, 54);
  check(1, 100, 24);
  check(1, 24, 24);
  check(1, 7, 7);
  bound.least_open = 0;
  check(1, 100, 9);
  bound.floor_open = 0.0F;
  bound.least_open = 24;
  check(1, 100, 0);
}

TEST_CASE("error_bound leaves no more error than epsilon to any head, and opens little more than "
          "it must") {
  random_engine random(3);
  for (const key_family family :
       {key_family::uniform, key_family::outlier, key_family::needle, key_family::equal}) {
    for (const std::size_t level : {0U, 1U}) {
      for (const float epsilon : {0.5F, 0.05F, 0.04F, 0.01F}) {
        const frontier_data data =
            frontier_data::random<wavekv::rank_by_max>(random, level, 600, 4, family);
        wavekv::error_bound<> bound;
        bound.epsilon = epsilon;
        bound.max_open = bound.max_read = 1.0F;
        bound.floor_open = bound.floor_read = bound.hidden_share = 0.0F;  // by expected error alone
        const std::vector<zone> zones = plan(bound, data);
        float smallest_opened = HUGE_VALF;
        float largest_kept = 0.0F;
        for (std::size_t i = 0; i < 600; ++i) {
          const float ranked_error = data.view.error()[i];
          if (zones[i] == zone::retrieval) {
            smallest_opened = std::min(smallest_opened, ranked_error);
          } else {
            largest_kept = std::max(largest_kept, ranked_error);
          }
        }
        CHECK(largest_kept <= smallest_opened);  // in order of expected error
        bool may_open_less = true;
        for (std::size_t g = 0; g < 4; ++g) {
          double left = 0.0;
          double with_smallest = 0.0;  // if the eighth of an octave opened last had stayed
          for (std::size_t i = 0; i < 600; ++i) {
            const double squared = std::pow(static_cast<double>(data.view.error(g)[i]), 2.0);
            left += zones[i] == zone::estimation ? squared : 0.0;
            with_smallest += data.view.error()[i] < smallest_opened * 1.13F ? squared : 0.0;
          }
          // settled² is the share of epsilon² that coarser levels used; a coarse level leaves half to those below.
          const double allowed = (static_cast<double>(epsilon) * static_cast<double>(epsilon) -
                                  static_cast<double>(data.view.settled_squared_error()[g])) *
                                 (level > 0 ? 0.5 : 1.0);
          if (allowed > 0.0) CHECK(left <= allowed * 1.0001);
          may_open_less = may_open_less && with_smallest <= allowed;
        }
        if (smallest_opened < HUGE_VALF) CHECK_FALSE(may_open_less);
      }
    }
  }
}

TEST_CASE("error_bound: an error_scale of s asks as much as an epsilon s times smaller, and "
          "reports s times the error") {
  int n_changed = 0;
  random_engine random(4);
  for (const key_family family : {key_family::uniform, key_family::outlier, key_family::needle}) {
    for (const std::size_t level : {0U, 1U}) {
      frontier_data data =
          frontier_data::random<wavekv::rank_by_max>(random, level, 600, 4, family);
      for (const float scale : {0.25F, 4.0F}) {  // powers of two: the quotient is exact
        wavekv::error_bound<> bound;
        bound.epsilon = 0.05F;
        bound.max_open = bound.max_read = 1.0F;
        bound.floor_open = bound.floor_read = bound.hidden_share = 0.0F;
        const std::vector<zone> unscaled = plan(bound, data);
        wavekv::error_bound<> stricter = bound;
        stricter.epsilon /= scale;
        bound.error_scale = scale;
        CHECK(plan(bound, data) == plan(stricter, data));
        n_changed += plan(bound, data) == unscaled ? 0 : 1;
        CHECK(bound.scaled_error(0.01F) == scale * 0.01F);
        CHECK(wavekv::verified_bound<>{.rule = bound}.scaled_error(0.01F) == scale * 0.01F);
      }
    }
  }
  CHECK(
      n_changed >=
      6);  // of 12: the rest has no error to speak of, or too much of it; or the checks say nothing
}

TEST_CASE("error_bound's caps") {
  random_engine random(4);
  const frontier_data clusters =
      frontier_data::random<wavekv::rank_by_max>(random, 0, 1000, 2, key_family::uniform);
  for (const float max_read : {0.0F, 0.02F, 0.3F}) {
    for (const std::size_t free_tokens : {0U, 100U, 5000U}) {
      wavekv::error_bound<> bound;
      bound.epsilon = 1e-9F;
      bound.floor_open = bound.floor_read = bound.hidden_share = 0.0F;  // on top of the caps
      bound.max_read = max_read;
      bound.free_tokens = free_tokens;
      const std::vector<zone> zones = plan(bound, clusters);
      float read = 0.0F;
      float next = HUGE_VALF;  // size of the largest error that was left
      float largest_left = -1.0F;
      for (std::size_t i = 0; i < 1000; ++i) {
        if (zones[i] == zone::retrieval) {
          read += clusters.view.size()[i];
        } else if (clusters.view.error()[i] > largest_left) {
          largest_left = clusters.view.error()[i];
          next = clusters.view.size()[i];
        }
      }
      const float budget = std::max(static_cast<float>(free_tokens),
                                    max_read * static_cast<float>(clusters.view.n_tokens));
      CHECK(read <= budget);
      CHECK(read + next > budget);  // and the next one would not have fitted
    }
  }
  const frontier_data nodes =
      frontier_data::random<wavekv::rank_by_max>(random, 1, 1000, 2, key_family::uniform);
  for (const float max_open : {0.0F, 0.1F, 1.0F}) {
    wavekv::error_bound<> bound;
    bound.epsilon = 1e-9F;
    bound.floor_open = bound.floor_read = bound.hidden_share = 0.0F;  // on top of the caps
    bound.max_open = max_open;
    const auto opened = std::ranges::count(plan(bound, nodes), zone::retrieval);
    const auto wanted = static_cast<std::ptrdiff_t>(std::max(1.0F, max_open * 1000.0F));
    CHECK(opened <= wanted);
    CHECK(opened >= wanted - 20);  // nodes without any error need not be opened
  }
}

TEST_CASE(
    "error_bound: beyond full_tokens what the fractions allow grows as a power of the tokens") {
  random_engine random(16);
  for (const std::size_t level : {0U, 1U}) {
    frontier_data data =
        frontier_data::random<wavekv::rank_by_max>(random, level, 1000, 1, key_family::uniform);
    wavekv::error_bound<> bound;
    bound.epsilon = 1e-9F;
    bound.floor_open = bound.floor_read = bound.hidden_share = 0.0F;
    bound.max_open = bound.max_read = 0.4F;
    bound.free_tokens = 0;
    const auto allowed = [&](float growth, std::size_t full_tokens) {
      bound.growth = growth;
      bound.full_tokens = full_tokens;
      const std::vector<zone> zones = plan(bound, data);
      double cost = 0.0;
      for (std::size_t i = 0; i < zones.size(); ++i) {
        if (zones[i] == zone::retrieval)
          cost += level > 0 ? 1.0 : static_cast<double>(data.view.size()[i]);
      }
      return cost / (level > 0 ? 1000.0 : static_cast<double>(data.view.n_tokens));
    };
    const std::size_t n = data.view.n_tokens;
    CHECK(allowed(0.5F, n) == doctest::Approx(0.4).epsilon(0.01));       // not longer yet
    CHECK(allowed(1.0F, n / 16) == doctest::Approx(0.4).epsilon(0.01));  // grows with the context
    CHECK(allowed(0.5F, n / 16) == doctest::Approx(0.1).epsilon(0.01));  // a quarter of that
    CHECK(allowed(0.0F, n / 16) == doctest::Approx(0.025).epsilon(0.05));
  }
  // Floors likewise: 16 times full_tokens, and each head's nearest are a quarter of what they were.
  const frontier_data data =
      frontier_data::random<wavekv::rank_by_max>(random, 0, 1600, 1, key_family::uniform);
  wavekv::error_bound<> bound;
  bound.epsilon = 1e6F;
  bound.floor_read = 0.04F;
  bound.hidden_share = 0.0F;
  bound.full_tokens = data.view.n_tokens;
  CHECK(std::ranges::count(plan(bound, data), zone::retrieval) == 64);
  bound.full_tokens = data.view.n_tokens / 16;
  const auto fewer = std::ranges::count(plan(bound, data), zone::retrieval);
  CHECK(fewer >= 15);
  CHECK(fewer <= 16);
}

TEST_CASE("exact reads everything") {
  random_engine random(5);
  const frontier_data data =
      frontier_data::random<wavekv::rank_by_max>(random, 0, 50, 1, key_family::uniform);
  CHECK(std::ranges::count(plan(wavekv::exact{}, data), zone::retrieval) == 50);
}

TEST_CASE("the largest of n normal logits lies a little below what is expected of it") {
  random_engine random(14);
  for (const std::size_t n : {16U, 128U, 2048U}) {
    for (const float variance : {0.1F, 1.0F, 20.0F}) {
      constexpr std::size_t n_nodes = 400;
      double mean_of_largest = 0.0;
      for (std::size_t node = 0; node < n_nodes; ++node) {
        const std::vector<float> logits = normal_rows(random, n, std::sqrt(variance));
        mean_of_largest += static_cast<double>(*std::ranges::max_element(logits)) / n_nodes;
      }
      // As an estimate gives it: the mean, 3, plus half the variance, which it follows up to 8.
      const float estimate = 3.0F + 0.5F * std::min(variance, 8.0F);
      const auto expected = static_cast<double>(
          wavekv::expected_largest_logit(estimate, variance, static_cast<float>(n)));
      // sqrt(2·ln n) is an upper bound and the leading term: 25 % above at 16, less later.
      CHECK(mean_of_largest + 3.0 < expected);
      CHECK(mean_of_largest > 0.7 * (expected - 3.0));
    }
  }
  CHECK(wavekv::expected_largest_logit(2.5F, 1.0F, 1.0F) == doctest::Approx(2.0));
}

TEST_CASE("rankings") {
  CHECK(wavekv::rank_by_max::combine(1.0F, 2.0F) == 2.0F);
  CHECK(wavekv::rank_by_max::combine(2.0F, 1.0F) == 2.0F);
  CHECK(wavekv::rank_by_sum::combine(1.0F, 2.0F) == 3.0F);
}

TEST_CASE("error_bound: a node that may hide a token is read whatever is predicted") {
  random_engine random(11);
  std::size_t n_hidden = 0;
  std::size_t n_left = 0;
  for (const std::size_t level : {0U, 1U}) {
    for (const std::size_t group : {1U, 3U}) {
      const frontier_data data = frontier_data::random<wavekv::rank_by_max>(
          random, level, 1000, group, key_family::uniform);
      wavekv::error_bound<> bound;
      bound.hidden_share = 0.0F;
      const auto by_error = plan(bound, data);
      for (const float share : {1e-5F, 1e-4F, 1e-3F, 0.1F}) {
        bound.hidden_share = share;
        const auto planned = plan(bound, data);
        for (std::size_t i = 0; i < data.view.n_nodes; ++i) {
          bool hides = false;
          bool near_the_edge = false;
          for (std::size_t g = 0; g < group; ++g) {
            const double held = std::exp(static_cast<double>(data.view.nearness(g)[i]) -
                                         static_cast<double>(data.log_normalizer[g]));
            const auto least = static_cast<double>(share);
            hides = hides || held >= least;
            near_the_edge = near_the_edge || std::abs(held - least) <= 1e-4 * least;
          }
          if (near_the_edge) continue;
          CHECK(planned[i] == (hides ? zone::retrieval : by_error[i]));
          n_hidden += hides && by_error[i] != zone::retrieval ? 1 : 0;
          n_left += planned[i] == zone::estimation ? 1 : 0;
        }
      }
    }
  }
  CHECK(n_hidden > 0);  // else the test shows nothing
  CHECK(n_left > 0);
}

TEST_CASE("verified_bound: what may hide follows from the promise, where its rule asks for less") {
  wavekv::verified_bound<> bound;
  for (const float epsilon : {0.01F, 0.1F}) {
    // In proportion to δ down to 5 %, from there to its square: 1 % is 25 times as strict as 5 %.
    for (const auto& [delta, part] : {std::pair{0.01F, 0.0004F}, {0.05F, 0.01F}, {0.4F, 0.08F}}) {
      bound.epsilon = epsilon;
      bound.delta = delta;
      const float asked = 0.225F * bound.margin * epsilon * part;
      for (const float own : {0.0F, 1e-7F, 0.5F}) {
        bound.rule.hidden_share = own;
        CHECK(bound.planning_rule().hidden_share == doctest::Approx(std::min(asked, own)));
        CHECK(bound.planning_rule().epsilon == bound.rule.epsilon);
      }
    }
  }
  random_engine random(12);
  const frontier_data data =
      frontier_data::random<wavekv::rank_by_max>(random, 0, 1000, 2, key_family::uniform);
  wavekv::verified_bound<> strict;
  strict.delta = 0.01F;
  const auto planned = plan(strict, data);
  CHECK(planned == plan(strict.planning_rule(), data));
  CHECK(planned != plan(strict.rule, data));  // else the test shows nothing
}

TEST_CASE("verified_bound: more confidence asks for more deviations; rounds tighten") {
  wavekv::verified_bound<> bound;
  float before = 0.0F;
  for (const float delta : {0.49F, 0.3F, 0.1F, 0.05F, 0.01F, 0.001F}) {
    bound.delta = delta;
    CHECK(bound.confidence_deviations() > before);
    before = bound.confidence_deviations();
  }
  bound.delta = 0.05F;
  CHECK(bound.confidence_deviations() >=
        1.644F);  // at least the normal distribution's one-sided quantile
  const wavekv::verified_bound<> next = bound.tightened();
  CHECK(next.epsilon == bound.epsilon);  // the promise stays, the plan gets stricter
  CHECK(next.rule.epsilon < bound.rule.epsilon);
  CHECK(next.rule.max_read >= bound.rule.max_read);
  CHECK(next.rule.max_open >= bound.rule.max_open);
}
