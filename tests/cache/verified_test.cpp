// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "support/filled_cache.hpp"
#include "support/partial_bounds.hpp"

// verified_bound against its promise; and the same bits on every executor, by every bound.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::geometry;

TEST_CASE("verified_bound: the promise holds for at least 1 - delta of (step, head) pairs") {
  geometry sizes = small_geometry();
  constexpr std::size_t n_queries = is_slow ? 25 : 130;
  for (const key_family family : {key_family::uniform, key_family::clustered, key_family::needle}) {
    for (const float epsilon : {0.3F, 0.1F}) {
      filled<float, tree> data(family, 1500, 8, sizes);
      wavekv::verified_bound<> bound;
      bound.epsilon = epsilon;
      bound.delta = 0.05F;
      bound.rule.epsilon = epsilon;
      bound.rule.free_tokens =
          32;  // little is read at first, so that the check has something to say
      std::size_t n_pairs = 0;
      std::size_t n_missed = 0;
      std::uint64_t rounds = 0;
      std::uint64_t read = 0;
      std::uint64_t held = 0;
      for (std::size_t i = 0; i < n_queries; ++i) {
        const std::vector<float> query = data.query(i % 2 == 0 ? 1.0F : 2.0F);
        const auto [got, stats] = attend_counted(data.cache, data.sequence, 0, query, bound);
        const reference_attention expected = attend_naively(sizes, 0, data.tokens, query);
        for (std::size_t h = 0; h < sizes.n_query_heads; ++h) {
          const std::size_t at = h * sizes.value_dim;
          const double error =
              relative_error(std::span<const float>(got.out).subspan(at, sizes.value_dim),
                             std::span<const double>(expected.out).subspan(at, sizes.value_dim));
          n_missed += error > static_cast<double>(epsilon) ? 1 : 0;
          ++n_pairs;
        }
        CHECK(stats.sampled_error <= epsilon);
        CHECK(stats.rounds <= 2 * 5);
        rounds += stats.rounds;
        read += stats.tokens_read;
        held += stats.tokens_held;
      }
      INFO("keys ", std::string(name_of(family)), ", epsilon ", epsilon, ": missed ", n_missed,
           " of ", n_pairs, ", rounds ", rounds, ", read ", read, " of ", held);
      CHECK(n_pairs == n_queries * sizes.n_query_heads);
      CHECK(static_cast<double>(n_missed) <= 0.05 * static_cast<double>(n_pairs));
      CHECK(rounds >= 2 * n_queries);  // at least one plan for each of two groups a query
    }
  }
}

TEST_CASE("a verifying bound ends in exact attention when nothing less will do") {
  for (const key_family family : {key_family::uniform, key_family::clustered}) {
    filled<float, tree> data(family, 900, 9);
    sampled_bound bound;
    bound.accepted = -1.0F;
    bound.rule.epsilon = 0.5F;
    bound.rule.free_tokens = 0;
    bound.rule.max_open = bound.rule.max_read = 0.01F;
    bound.rounds = 2;
    const std::vector<float> query = data.query();
    const auto [got, stats] = attend_counted(data.cache, data.sequence, 0, query, bound);
    CHECK(stats.rounds == 2 * 3);  // two plans and the exact end, for each KV head
    CHECK(got == attend_once(data.cache, data.sequence, 0, query, wavekv::exact{}));
    CHECK(stats.sampled_error == 0.0F);
    CHECK(stats.groups == 2);
    CHECK(stats.tokens_held == 2 * 900);
  }
}

TEST_CASE("verified_bound reads all that may hide more than it is allowed to miss") {
  filled<float, tree> data(key_family::uniform, 900, 10);
  wavekv::verified_bound<> bound;
  bound.epsilon = 1e-6F;  // of 900 tokens there is none that may be estimated
  bound.rule.epsilon = 0.5F;
  const std::vector<float> query = data.query();
  const auto [got, stats] = attend_counted(data.cache, data.sequence, 0, query, bound);
  const auto expected = attend_once(data.cache, data.sequence, 0, query, wavekv::exact{});
  CHECK(stats.rounds == 2);  // no second plan is needed
  CHECK(stats.clusters_estimated == 0);
  CHECK(stats.tokens_read == stats.tokens_held);
  REQUIRE(got.out.size() == expected.out.size());
  // The same sum in another order: 900 terms of a softmax, each within a few roundings; 64 leave room.
  for (std::size_t i = 0; i < got.out.size(); ++i)
    CHECK(std::abs(got.out[i] - expected.out[i]) <=
          64 * std::numeric_limits<float>::epsilon() * (1.0F + std::abs(expected.out[i])));
}

TEST_CASE_TEMPLATE("every bound gives the same bits on every executor, on every family", S, float,
                   bf16) {
  for (const key_family family : all_families) {
    if (is_slow && family != key_family::clustered && family != key_family::outlier) continue;
    std::vector<outputs> first;
    for (const any_executor& executor : tested_executors()) {
      geometry sizes = small_geometry();
      filled<S, tree> data(family, 1100, 11, sizes, executor);
      std::vector<outputs> seen;
      for (int i = 0; i < 2; ++i) {
        const std::vector<float> query = data.query();
        wavekv::error_bound<> error = without_caps(0.05F);
        wavekv::verified_bound<> verified;
        verified.samples = 32;
        verified.rule.free_tokens = 32;
        seen.push_back(attend_once(data.cache, data.sequence, 0, query, error));
        seen.push_back(attend_once(data.cache, data.sequence, 0, query, wavekv::fixed_budget{}));
        seen.push_back(attend_once(data.cache, data.sequence, 0, query, verified));
        CHECK(std::ranges::all_of(seen, all_finite));
      }
      if (first.empty()) first = seen;
      CHECK(first == seen);
    }
  }
}
