// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/index/bounds/exact.hpp>

#include "cuda/bound_checks.hpp"
#include "support/partial_bounds.hpp"

// verified_bound on the device: the same rounds, the same draws, the same sampled errors as on the CPU; its promise; its end in
// exact attention.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::testing::schedule;

TEST_CASE("verified_bound draws the same tokens on both sides") { check_verified_cases<bf16>(9); }

TEST_CASE("a verifying bound ends in exact attention when nothing less will do") {
  random_engine random(std::random_device{}());
  for (std::size_t i = 0; i < 3; ++i) {
    constexpr key_family spread[] = {key_family::uniform, key_family::clustered};
    search_case which = random_case(random, i, spread);
    which.what.n_tokens = 300;
    which.order = schedule::random;
    CAPTURE(which.text());
    with_twins<bf16>(which, [&](twin_layers<bf16>& twins, const std::vector<float>& queries) {
      sampled_bound bound;
      bound.accepted = -1.0F;
      bound.rule.epsilon = 0.5F;
      bound.rule.free_tokens = 0;
      bound.rule.max_open = bound.rule.max_read = 0.01F;
      bound.rounds = 2;
      const auto gpu = twins.attend_on_device(queries, bound, which.options);
      const auto exact = twins.attend_on_device(queries, wavekv::exact{}, which.options);
      CHECK(gpu.result == exact.result);
      CHECK(gpu.counts.rounds == 3 * gpu.counts.groups);
      CHECK(gpu.counts.groups == exact.counts.groups);
      CHECK(gpu.counts.tokens_held == exact.counts.tokens_held);
      CHECK(gpu.counts.tokens_read >= exact.counts.tokens_read + gpu.counts.tokens_sampled);
      CHECK(gpu.counts.sampled_error == 0);
      CHECK(gpu.counts.predicted_error == 0);
    });
  }
}

TEST_CASE("verified_bound draws as the seed and the sequence say, in whatever order threads run") {
  search_case which;
  which.sizes = {
      .n_layers = 1, .n_query_heads = 4, .n_kv_heads = 1, .key_dim = 64, .value_dim = 64};
  which.what = {.n_tokens = 400, .family = key_family::uniform};
  which.n_levels = 2;
  which.seed = std::random_device{}();
  CAPTURE(which.seed);
  wavekv::verified_bound<> bound = demanding(0);
  bound.epsilon = 1e6F;            // the first round's answer stands
  bound.rule.hidden_share = 0.0F;  // of so few tokens all could hide: none would be left to draw
  const auto sampled = [&](schedule order, std::uint64_t seed, std::uint32_t sequence) {
    which.order = order;
    which.options.seed = seed;
    which.options.sequence = sequence;
    unsigned bits = 0;
    with_twins<bf16>(which, [&](twin_layers<bf16>& twins, const std::vector<float>& queries) {
      const auto gpu = twins.attend_on_device(queries, bound, which.options);
      CHECK(gpu.counts.rounds == 1);
      CHECK(gpu.counts.tokens_sampled == 64);
      bits = gpu.counts.sampled_error;
    });
    return bits;
  };
  const unsigned first = sampled(schedule::forwards, 1, 1);
  CHECK(sampled(schedule::backwards, 1, 1) == first);
  CHECK(sampled(schedule::random, 1, 1) == first);
  CHECK(sampled(schedule::forwards, 2, 1) != first);
  CHECK(sampled(schedule::forwards, 1, 2) != first);
}
