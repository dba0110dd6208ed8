// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include "cuda/search_checks.hpp"

// Searches on bf16, by far the most usual; of other scalars in programs of their own, for the compiler's memory.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::testing::schedule;
namespace device = wavekv::device;

TEST_CASE("exact attention on the device keeps to an oracle") { check_exact_cases<bf16>(10); }

TEST_CASE("a plan that is the same on both sides gives the same answer") {
  check_turns_cases<bf16>(8);
}

TEST_CASE("a search gives the same bits in whatever order threads run") {
  random_engine random(std::random_device{}());
  for (std::size_t i = 0; i < 3; ++i) {
    search_case which = random_case(random, i);
    CAPTURE(which.text());
    std::vector<outputs> seen;
    for (const schedule order : {schedule::forwards, schedule::backwards, schedule::random}) {
      which.order = order;
      with_twins<bf16>(which, [&](twin_layers<bf16>& twins, const std::vector<float>& queries) {
        const a_user::taking_turns<false> bound{};
        seen.push_back(twins.attend_on_device(queries, bound, which.options).result);
      });
    }
    CHECK(seen[0] == seen[1]);
    CHECK(seen[0] == seen[2]);
  }
}

TEST_CASE("sequences of a batch do not see each other") {
  using layers = twin_layers<bf16>;
  random_engine random(std::random_device{}());
  const std::uint64_t seed = random();
  CAPTURE(seed);
  wavekv::testing::emulation_options options;
  options.order = schedule::random;
  options.seed = seed;
  const layers::runtime_type runtime(options);
  wavekv::geometry sizes{
      .n_layers = 1, .n_query_heads = 6, .n_kv_heads = 2, .key_dim = 64, .value_dim = 32};
  const std::size_t per_query = sizes.n_query_heads * sizes.key_dim;
  std::vector<std::unique_ptr<layers>> sequences;
  std::vector<device::query_run_view<bf16>> runs;
  std::vector<float> queries;
  device::search_room room;
  for (const auto& [n_tokens, n_queries] :
       {std::pair{700U, 1U}, {0U, 1U}, {3U, 2U}, {300U, 4U}, {0U, 1U}}) {
    const layer_contents what{n_tokens, key_family::clustered, n_tokens == 3};
    sequences.push_back(
        std::make_unique<layers>(wavekv::tokens_per_cluster<8, 64>{}, sizes, what, seed, runtime));
    const layers& last = *sequences.back();
    runs.push_back({last.view(), n_queries, 0});
    const auto more = normal_rows(random, n_queries * per_query);
    queries.insert(queries.end(), more.begin(), more.end());
    for (std::size_t level = 0; level < 2; ++level)
      room.n_columns[level] = std::max(room.n_columns[level], last.room().n_columns[level]);
    room.n_token_runs = std::max(room.n_token_runs, last.room().n_token_runs);
  }
  const a_user::taking_turns<true> bound{};
  const device_attend together = layers::run_searches(runtime, sizes, sequences[0]->shape(), runs,
                                                      room, queries, bound, device_options{});
  CHECK(together.counts.groups == 9 * sizes.n_kv_heads);
  std::size_t first = 0;  // query
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const auto from = queries.begin() + static_cast<std::ptrdiff_t>(first * per_query);
    const std::vector<float> own(from,
                                 from + static_cast<std::ptrdiff_t>(runs[i].n_queries * per_query));
    const device_attend alone = sequences[i]->attend_on_device(own, bound);
    const auto same = [&](const std::vector<float>& part, const std::vector<float>& all,
                          std::size_t per_row) {
      return std::ranges::equal(part, std::span(all).subspan(first * per_row, part.size()));
    };
    CHECK(same(alone.result.out, together.result.out, sizes.n_query_heads * sizes.value_dim));
    CHECK(same(alone.result.lse, together.result.lse, sizes.n_query_heads));
    first += runs[i].n_queries;
  }
}

TEST_CASE("a workspace that a sequence has outgrown is told, and nothing is written past it") {
  search_case which;
  which.sizes = {
      .n_layers = 1, .n_query_heads = 2, .n_kv_heads = 1, .key_dim = 64, .value_dim = 64};
  which.what.n_tokens = 600;
  which.n_levels = 2;
  with_twins<bf16>(which, [&](twin_layers<bf16>& twins, const std::vector<float>& queries) {
    const a_user::taking_turns<false> opens_half{};
    const auto faults = [&](const device::search_room& room) {
      device_options options;
      options.room = room;
      return twins.attend_on_device(queries, opens_half, options).counts.faults;
    };
    CHECK(faults(twins.room()) == 0);
    for (std::size_t level = 0; level < 2; ++level) {
      device::search_room small = twins.room();
      small.n_columns[level] = 8;
      CHECK(faults(small) == static_cast<unsigned>(device::fault::workspace_too_small));
    }
    device::search_room small = twins.room();
    small.n_token_runs = 2;
    CHECK(faults(small) == static_cast<unsigned>(device::fault::workspace_too_small));
  });
}
