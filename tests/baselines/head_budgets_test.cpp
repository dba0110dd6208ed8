// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/baselines/head_budgets.hpp>
#include <wavekv/baselines/oracle_top_k.hpp>
#include <wavekv/baselines/top_k.hpp>
#include <wavekv/wavekv.hpp>

#include "baselines/plain_rule.hpp"
#include "reference/fresh_seed.hpp"

// Budgets by class of head: the classes and refreshes are those of the paper's formula, in plain sets and doubles; in the engine,
// what is attended is what the rule chose.

using namespace wavekv_test;
namespace baselines = wavekv::baselines;
using baselines::head_budgets;
using baselines::head_class;
using baselines::head_steadiness;
using baselines::top_k;
using choice = std::set<std::size_t>;

namespace {

/// Clusters of one token each, of one query head, and who asks.
struct one_frontier {
  std::vector<float> nearness;
  std::vector<float> ones;
  std::vector<float> zeros;
  wavekv::frontier view;

  one_frontier(std::vector<float> near, std::uint32_t slot, std::uint32_t generation = 0,
               std::size_t head = 0)
      : nearness(std::move(near)), ones(nearness.size(), 1.0F), zeros(nearness.size(), 0.0F) {
    view.place.sequence = {slot, generation};
    view.head = head;
    view.n_nodes = view.n_clusters = view.n_tokens = nearness.size();
    view.size_data = ones.data();
    view.nearness_data = nearness.data();
    view.share_data = view.error_data = view.ranked_share_data = view.ranked_error_data =
        zeros.data();
    view.settled_data = zeros.data();
  }
};

template <class Bound>
choice plan(const Bound& bound, const one_frontier& nodes) {
  std::vector<wavekv::zone> zones(nodes.nearness.size(), wavekv::zone::estimation);
  bound.plan(nodes.view, zones);
  choice read;
  for (std::size_t i = 0; i < zones.size(); ++i) {
    if (zones[i] == wavekv::zone::retrieval) read.insert(i);
  }
  return read;
}

choice largest(const std::vector<float>& x, std::size_t n) {
  std::vector<std::size_t> order(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) order[i] = i;
  std::ranges::sort(
      order, [&](std::size_t a, std::size_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); });
  order.resize(std::min(n, order.size()));
  return {order.begin(), order.end()};
}

double overlap_of(const choice& a, const choice& b) {
  if (a.empty() || b.empty()) return a.empty() && b.empty() ? 1.0 : 0.0;
  double n = 0.0;
  for (const std::size_t i : a) n += b.contains(i) ? 1.0 : 0.0;
  return n / static_cast<double>(std::min(a.size(), b.size()));
}

double median_of(std::vector<double> x) {
  std::ranges::sort(x);
  return x.size() % 2 == 1 ? x[x.size() / 2] : (x[x.size() / 2 - 1] + x[x.size() / 2]) / 2.0;
}

/// One head by the paper's formula.
struct plain_head {
  head_steadiness::settings given;
  head_class found = head_class::observed;
  double steadiness = 0.0;
  std::size_t n_refreshed = 0;
  std::size_t n_nodes = 0;  // when `kept` was chosen
  bool keeps = false;
  choice kept;
  std::vector<double> overlaps;

  explicit plain_head(const head_steadiness::settings& settings) : given(settings) {}

  choice take(const choice& fresh, std::size_t n) {
    kept = fresh;
    n_nodes = n;
    keeps = true;
    overlaps.clear();
    return fresh;
  }

  choice ask(const std::vector<float>& nearness, std::size_t n_steady, std::size_t n_unsteady) {
    const std::size_t n = nearness.size();
    const choice few = largest(nearness, n_steady);
    const choice many = largest(nearness, n_unsteady);
    if (found == head_class::unsteady) return many;
    if (found == head_class::observed) {
      if (!keeps || n < n_nodes) return take(many, n);
      overlaps.push_back(overlap_of(many, kept));
      if (overlaps.size() == given.n_observed) {
        steadiness = median_of(overlaps);
        found = steadiness < static_cast<double>(given.threshold) ? head_class::unsteady
                                                                  : head_class::steady;
        keeps = false;
      }
      return many;
    }
    if (!keeps) return take(few, n);
    if (n != n_nodes) {
      ++n_refreshed;
      return take(few, n);
    }
    overlaps.push_back(overlap_of(few, kept));
    if (overlaps.size() < given.check_every) return kept;
    const double median = median_of(overlaps);
    overlaps.clear();
    if (median >= static_cast<double>(given.threshold)) return kept;
    ++n_refreshed;
    return take(few, n);
  }
};

head_budgets<top_k> with_memory(std::size_t n_steady, std::size_t n_unsteady,
                                const wavekv::geometry& sizes,
                                const head_steadiness::settings& given) {
  return {top_k{n_steady}, top_k{n_unsteady}, std::make_shared<head_steadiness>(sizes, given)};
}

/// Asks for the first n of a ranking that begins with `first`.
one_frontier ask_for(const std::vector<std::size_t>& first, std::uint32_t slot = 0,
                     std::uint32_t generation = 0, std::size_t n = 20) {
  std::vector<float> nearness(n, -1.0F);
  for (std::size_t i = 0; i < first.size(); ++i) {
    nearness[first[i]] = static_cast<float>(first.size() - i);
  }
  return {nearness, slot, generation};
}

}  // namespace

TEST_CASE("steadiness is the median overlap with the first choice") {
  for (const auto& [threshold, found] :
       {std::pair{0.5F, head_class::steady}, {0.51F, head_class::unsteady}}) {
    const auto bound =
        with_memory(2, 4, {}, {.n_observed = 3, .check_every = 2, .threshold = threshold});
    const wavekv::query_place place{{0, 0}, 0, 0};
    plan(bound, ask_for({0, 1, 2, 3}));
    plan(bound, ask_for({0, 1, 2, 3}));  // 1
    plan(bound, ask_for({0, 5, 6, 7}));  // 0.25
    CHECK(bound.memory->of(place, 0).found == head_class::observed);
    CHECK(plan(bound, ask_for({8, 1, 9, 3})) == choice{1, 3, 8, 9});  // 0.5, by unsteady's budget
    CHECK(bound.memory->of(place, 0).found == found);
    CHECK(bound.memory->of(place, 0).steadiness == 0.5F);
    CHECK(plan(bound, ask_for({0, 1, 2, 3})).size() == (found == head_class::steady ? 2 : 4));
  }
  // Of an even number, halfway.
  const auto bound = with_memory(2, 4, {}, {.n_observed = 2});
  plan(bound, ask_for({0, 1, 2, 3}));
  plan(bound, ask_for({0, 1, 2, 3}));
  plan(bound, ask_for({0, 5, 6, 7}));
  CHECK(bound.memory->of({{0, 0}, 0, 0}, 0).steadiness == 0.625F);
}

TEST_CASE("a steady head keeps its selection until it drifts") {
  const auto bound = with_memory(2, 4, {}, {.n_observed = 1, .check_every = 3});
  const auto refreshed = [&] { return bound.memory->of({{0, 0}, 0, 0}, 0).n_refreshed; };
  plan(bound, ask_for({0, 1, 2, 3}));
  plan(bound, ask_for({0, 1, 2, 3}));
  for (int i = 0; i < 20; ++i) CHECK(plan(bound, ask_for({0, 1})) == choice{0, 1});
  CHECK(refreshed() == 0);  // 19 steps behind the first: 6 checks, and one step since
  CHECK(plan(bound, ask_for({5, 6})) == choice{0, 1});
  CHECK(plan(bound, ask_for({0, 1})) == choice{0, 1});  // median 1
  CHECK(plan(bound, ask_for({5, 6})) == choice{0, 1});
  CHECK(plan(bound, ask_for({0, 1})) == choice{0, 1});
  CHECK(refreshed() == 0);
  CHECK(plan(bound, ask_for({5, 7})) == choice{5, 7});  // median 0
  CHECK(refreshed() == 1);
  CHECK(plan(bound, ask_for({0, 1})) == choice{5, 7});
  // Grown, shrunk.
  CHECK(plan(bound, ask_for({0, 1}, 0, 0, 21)) == choice{0, 1});
  CHECK(plan(bound, ask_for({8, 9}, 0, 0, 21)) == choice{0, 1});
  CHECK(plan(bound, ask_for({8, 9}, 0, 0, 20)) == choice{8, 9});
  CHECK(refreshed() == 3);
}

TEST_CASE("streams of queries: the paper's formula in plain sets") {
  random_engine random = generator("head_budgets streams");
  const auto number = [&] { return static_cast<float>(random() % 1000003) / 1000003.0F; };
  std::size_t n_of[3] = {};
  std::size_t n_refreshed = 0;
  for (int stream = 0; stream < 200; ++stream) {
    head_steadiness::settings given;
    given.n_sequences = 3;
    given.max_clusters = 80;
    given.n_observed = 1 + random() % 6;
    given.check_every = 1 + random() % 5;
    // Far from every quotient of small numbers but for those that floats hold exactly.
    given.threshold = std::vector{0.0F, 0.31F, 0.5F, 0.71F, 1.0F}[random() % 5];
    const std::size_t n_steady = random() % 6;
    const std::size_t n_unsteady = n_steady + random() % 8;
    wavekv::geometry sizes;
    sizes.n_kv_heads = sizes.n_query_heads = 2;
    const auto bound = with_memory(n_steady, n_unsteady, sizes, given);
    const std::size_t head = random() % 2;
    const auto slot = static_cast<std::uint32_t>(random() % 3);
    const float drift = std::vector{0.0F, 0.1F, 0.4F, 1.0F}[random() % 4];
    plain_head plain(given);
    std::uint32_t generation = 0;
    std::vector<float> topic(40);
    for (float& x : topic) x = number();
    for (int step = 0; step < 60; ++step) {
      if (random() % 25 == 0) topic.push_back(number());
      if (random() % 40 == 0) topic.pop_back();
      if (random() % 20 == 0) {
        for (float& x : topic) x = number();
      }
      if (random() % 50 == 0) {
        ++generation;
        n_refreshed += plain.n_refreshed;
        plain = plain_head(given);
      }
      std::vector<float> nearness = topic;
      for (float& x : nearness) x += drift * number();
      const one_frontier nodes(nearness, slot, generation, head);
      INFO("stream ", stream, ", step ", step);
      REQUIRE(plan(bound, nodes) == plain.ask(nearness, n_steady, n_unsteady));
      const baselines::head_report report = bound.memory->of(nodes.view.place, head);
      CHECK(report.found == plain.found);
      CHECK(static_cast<double>(report.steadiness) == doctest::Approx(plain.steadiness));
      CHECK(report.n_refreshed == plain.n_refreshed);
      CHECK(bound.memory->of(nodes.view.place, 1 - head).found == head_class::observed);
    }
    ++n_of[static_cast<int>(plain.found)];
    n_refreshed += plain.n_refreshed;
  }
  MESSAGE(n_of[1], " steady, ", n_of[2], " unsteady, ", n_refreshed, " refreshes");
  CHECK(n_of[1] > 20);
  CHECK(n_of[2] > 10);
  CHECK(n_refreshed > 100);
}

TEST_CASE("what is not remembered goes by unsteady's budget") {
  wavekv::geometry sizes;
  sizes.n_layers = 2;
  const auto bound = with_memory(2, 4, sizes, {.max_clusters = 20, .n_observed = 1});
  const auto asked = [&](one_frontier nodes) {
    choice last;
    for (int i = 0; i < 5; ++i) last = plan(bound, nodes);
    return last.size();
  };
  CHECK(asked(ask_for({0, 1, 2, 3})) == 2);
  CHECK(asked(ask_for({0, 1, 2, 3}, 1)) == 4);           // another sequence's slot
  CHECK(asked(ask_for({0, 1, 2, 3}, UINT32_MAX)) == 4);  // nobody's
  CHECK(asked(ask_for({0, 1, 2, 3}, 0, 0, 21)) == 4);    // too large
  one_frontier other = ask_for({0, 1, 2, 3});
  other.view.place.layer = 2;
  CHECK(asked(std::move(other)) == 4);
  one_frontier part = ask_for({0, 1, 2, 3});
  part.view.n_clusters = 30;  // of a tree, what was opened
  CHECK(asked(std::move(part)) == 4);
  one_frontier coarse = ask_for({0, 1, 2, 3});
  coarse.view.level = 1;
  CHECK(asked(std::move(coarse)) == 4);
}

TEST_CASE("head_budgets says what it allows") {
  const auto message_of = [](const head_steadiness::settings& given) -> std::string {
    try {
      const head_steadiness memory({}, given);
    } catch (const wavekv::config_error& e) {
      return e.what();
    }
    return "";
  };
  CHECK(message_of({}) == "");
  CHECK(message_of({.n_sequences = 0}) == "head_steadiness: n_sequences is 0; allowed: 1 or more");
  CHECK(message_of({.max_clusters = 0}) ==
        "head_steadiness: max_clusters is 0; allowed: 1 or more");
  CHECK(message_of({.n_observed = 0}) == "head_steadiness: n_observed is 0; allowed: 1 or more");
  CHECK(message_of({.check_every = 0}) == "head_steadiness: check_every is 0; allowed: 1 or more");
  CHECK(message_of({.threshold = 1.5F}) == "head_steadiness: threshold is 1.5; allowed: 0 to 1");
  CHECK(message_of({.threshold = -0.5F}) == "head_steadiness: threshold is -0.5; allowed: 0 to 1");
  CHECK(message_of({.threshold = std::nanf("")}) != "");
  CHECK_THROWS_WITH_AS((head_budgets<top_k>{}.validate()),
                       "head_budgets: memory is null; allowed: a head_steadiness",
                       wavekv::config_error);
  const auto memory =
      std::make_shared<head_steadiness>(wavekv::geometry{}, head_steadiness::settings{});
  const head_budgets<wavekv::error_bound<>> wrong{wavekv::error_bound<>{},
                                                  wavekv::error_bound<>{.epsilon = -1.0F}, memory};
  CHECK_THROWS_WITH_AS(wrong.validate(), "error_bound: epsilon is -1; allowed: finite and above 0",
                       wavekv::config_error);
  const head_budgets<wavekv::error_bound<>> both{wavekv::error_bound<>{.epsilon = 0.1F},
                                                 wavekv::error_bound<>{.epsilon = 0.02F}, memory};
  CHECK(both.meets(0.01F));
  CHECK(!both.meets(0.05F));
  const head_budgets<wavekv::error_bound<>> scaled{wavekv::error_bound<>{.error_scale = 2.0F},
                                                   wavekv::error_bound<>{.error_scale = 0.5F},
                                                   memory};
  CHECK(scaled.scaled_error(0.25F) == 0.5F);
}

TEST_CASE("in the engine: what is attended is what the rule chose, of each head by its class") {
  random_engine random = generator("head_budgets answers");
  for (const std::size_t group : {1U, 3U}) {
    plain_rule<baselines::oracle_top_k_index> rule(random, group);
    const auto bound =
        with_memory(24, 64, rule.sizes(), {.n_observed = 3, .check_every = 2, .threshold = 0.9F});
    const wavekv::query_place place{rule.sequence(), 0, 0};
    const auto few = [&](std::size_t head) { return choose_top_k(rule, head, 24); };
    const auto many = [&](std::size_t head) { return choose_top_k(rule, head, 64); };
    for (int step = 0; step < 4; ++step) {  // head 0 asks the same again and again, head 1 does not
      if (step != 0) rule.ask_anew(random, 1);
      rule.check(bound, 0, many);
    }
    REQUIRE(bound.memory->of(place, 0).found == head_class::steady);
    REQUIRE(bound.memory->of(place, 1).found == head_class::unsteady);
    const auto by_class = [&](std::size_t head) { return head == 0 ? few(head) : many(head); };
    for (int step = 0; step < 9; ++step) {
      rule.ask_anew(random, 1);
      rule.check(bound, 0, by_class);
    }
    CHECK(bound.memory->of(place, 0).n_refreshed == 0);
    // Head 0 drifts now: its selection stands until a check, then it is what is asked for.
    const std::vector<std::size_t> kept = few(0);
    const auto stands = [&](std::size_t head) { return head == 0 ? kept : many(head); };
    rule.ask_anew(random, 0);
    rule.check(bound, 0, stands);
    rule.ask_anew(random, 0);
    rule.check(bound, 0, by_class);
    CHECK(bound.memory->of(place, 0).n_refreshed == 1);
  }
}

TEST_CASE(
    "in the engine: sequences of a batch and the next one in a slot have classes of their own") {
  random_engine random = generator("head_budgets sequences");
  wavekv::geometry sizes;
  sizes.key_dim = sizes.value_dim = 16;
  using index = baselines::oracle_top_k_index::with_segment_size<wavekv::segment_size<128, 128>>;
  wavekv::kv_cache<float, index> cache(sizes);
  constexpr std::size_t n_tokens = 300;
  const auto begin = [&] {
    const wavekv::sequence_id sequence = cache.create();
    append_rows(cache, sequence, 0, normal_rows(random, n_tokens * 16),
                normal_rows(random, n_tokens * 16));
    return sequence;
  };
  const auto bound =
      with_memory(8, 32, sizes, {.n_sequences = 2, .n_observed = 3, .threshold = 0.9F});
  const auto found = [&](wavekv::sequence_id sequence) {
    return bound.memory->of({sequence, 0, 0}, 0).found;
  };
  const auto sequence = begin();
  const auto other = begin();
  const std::vector<float> still = normal_rows(random, 16, 2.0F);
  const auto ask = [&](const std::vector<wavekv::query_run>& batch) {
    std::vector<float> queries;
    for (const wavekv::query_run& run : batch) {
      const std::vector<float> one =
          run.sequence == sequence ? still : normal_rows(random, run.n_queries * 16, 2.0F);
      queries.insert(queries.end(), one.begin(), one.end());
    }
    outputs result(sizes, queries.size() / 16);
    cache.attend(batch, 0, tokens_of(queries, 0, queries.size() / 16, 1, 16),
                 wavekv::nhd(result.out.data(), queries.size() / 16, 1, 16), bound);
    CHECK(std::ranges::all_of(result.out, [](float x) { return std::isfinite(x); }));
  };
  for (int step = 0; step < 4; ++step) ask({{sequence, 1}, {other, 1}});
  CHECK(found(sequence) == head_class::steady);
  CHECK(found(other) == head_class::unsteady);
  cache.release(other);
  const auto next = begin();
  REQUIRE(next.slot == other.slot);
  CHECK(found(next) == head_class::observed);
  ask({{next, 1}});
  CHECK(found(next) == head_class::observed);
  CHECK(found(other) == head_class::observed);  // forgotten
  ask({{next, 4}});  // several of a head at once, on several threads: each is a step
  CHECK(found(next) == head_class::unsteady);
}
