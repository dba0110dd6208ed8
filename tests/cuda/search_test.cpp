// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/index/bounds/exact.hpp>

#include "cuda/search_cases.hpp"
#include "cuda/twin_layers.hpp"

// The machinery of a search on the device: exact attention against an oracle in double; a search whose plan depends on no
// number, so that it is the same on the CPU, against that. Seeds are drawn anew; a check that fails says which.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::zone;
using wavekv::testing::schedule;
namespace device = wavekv::device;

namespace a_user {

/// A bound of a user's: nodes take zones in turns, whatever the numbers say. Its twin on the CPU is the archetype.
template <bool Drops>
struct taking_turns : alternate<Drops> {};

template <class Block, bool Drops>
WAVEKV_DEVICE void plan_on_device(Block& b, const taking_turns<Drops>& bound,
                                  const device::frontier_view& nodes, zone* zones,
                                  const device::plan_memory& memory) {
  constexpr zone turns[] = {zone::retrieval, zone::estimation, zone::dropped};
  unsigned before = 0;  // nodes
  for (unsigned first = 0; first < nodes.n_columns; first += b.n_threads()) {
    const unsigned column = first + b.thread();
    const bool is_node = column < nodes.n_columns && nodes.is_node(column);
    unsigned n = 0;
    const unsigned i = before + device::block_scan(b, is_node ? 1U : 0U, memory.of_warps, n);
    if (is_node) zones[column] = turns[(i + bound.offset + nodes.level) % (Drops ? 3 : 2)];
    before += n;
  }
}

}  // namespace a_user

namespace {

constexpr schedule all_schedules[] = {schedule::forwards, schedule::backwards, schedule::random};

/// What both did, number by number.
void check_counts(const device::step_counts& counts, const wavekv::step_stats& stats) {
  CHECK(counts.faults == 0);
  CHECK(counts.groups == stats.groups);
  CHECK(counts.rounds == stats.rounds);
  CHECK(counts.tokens_held == stats.tokens_held);
  CHECK(counts.tokens_read == stats.tokens_read);
  CHECK(counts.tokens_sampled == 0);
  CHECK(counts.clusters_read == stats.clusters_read);
  CHECK(counts.clusters_estimated == stats.clusters_estimated);
  CHECK(counts.clusters_dropped == stats.clusters_dropped);
  CHECK(counts.summaries_read == stats.summaries_read);
  CHECK(counts.bytes_read == stats.bytes_read);
  CHECK(counts.capped == stats.capped);
}

template <class S>
void check_exact(const search_case& which) {
  CAPTURE(which.text());
  with_twins<S>(which, [&](twin_layers<S>& twins, const std::vector<float>& queries) {
    const auto cpu = twins.attend_on_cpu(queries, wavekv::exact{});
    const auto gpu = twins.attend_on_device(queries, wavekv::exact{}, which.options);
    check_counts(gpu.counts, cpu.stats);
    const reference_attention truth = attend_naively(which.sizes, 0, twins.tokens(), queries);
    const closeness<S> allowed(which, twins, queries);
    CHECK(largest_distance<float, double>(gpu.result.out, truth.out, which.sizes.value_dim) <=
          allowed.out);
    CHECK(largest_lse_error(gpu.result.lse, truth) <= allowed.lse);
  });
}

template <class S, bool Drops>
void check_turns(const search_case& which) {
  CAPTURE(which.text());
  CAPTURE(Drops);
  with_twins<S>(which, [&](twin_layers<S>& twins, const std::vector<float>& queries) {
    const a_user::taking_turns<Drops> bound{{which.seed % 3}};
    const auto cpu = twins.attend_on_cpu(queries, bound);
    const auto gpu = twins.attend_on_device(queries, bound, which.options);
    REQUIRE(different_zones(cpu.zones, gpu.zones) == 0.0);
    check_counts(gpu.counts, cpu.stats);
    // An estimate that is taken out again may have been some 55 times what takes its place (see group_search.hpp), but
    // seldom is: four times the rounding leave room enough.
    const closeness<S> allowed(which, twins, queries, 4.0);
    CHECK(largest_distance<float, float>(gpu.result.out, cpu.result.out, which.sizes.value_dim) <=
          allowed.out);
    CHECK(largest_distance<float, float>(gpu.result.lse, cpu.result.lse, 1) <= allowed.lse);
    // Shares follow the rounding of logits; errors are sums of such squares.
    const auto close = [&](unsigned bits, float expected) {
      return std::abs(std::bit_cast<float>(bits) - expected) <=
             (allowed.lse + 1e-5) * static_cast<double>(expected);
    };
    CHECK(close(gpu.counts.predicted_error, cpu.stats.predicted_error));
    CHECK(close(gpu.counts.dropped_mass, cpu.stats.dropped_mass));
  });
}

}  // namespace

TEST_CASE_TEMPLATE("exact attention on the device keeps to an oracle", S, bf16, f16, float) {
  random_engine random(std::random_device{}());
  for (std::size_t i = 0; i < 6; ++i) check_exact<S>(random_case(random, i));
}

TEST_CASE_TEMPLATE("a plan that is the same on both sides gives the same answer", S, bf16, f16,
                   float) {
  random_engine random(std::random_device{}());
  // Not an outlier for the bound that drops: it may drop all but nothing, and then the CPU's shares of the rest, which it
  // corrects the values by, are flushed to zero earlier than the device's.
  constexpr key_family no_outlier[] = {key_family::uniform, key_family::clustered,
                                       key_family::needle, key_family::equal, key_family::tiny};
  for (std::size_t i = 0; i < 6; ++i) {
    check_turns<S, false>(random_case(random, i));
    check_turns<S, true>(random_case(random, i, no_outlier));
  }
}

TEST_CASE("a search gives the same bits in whatever order threads run") {
  random_engine random(std::random_device{}());
  for (std::size_t i = 0; i < 3; ++i) {
    search_case which = random_case(random, i);
    CAPTURE(which.text());
    std::vector<outputs> seen;
    for (const schedule order : all_schedules) {
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
  with_twins<f16>(which, [&](twin_layers<f16>& twins, const std::vector<float>& queries) {
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
