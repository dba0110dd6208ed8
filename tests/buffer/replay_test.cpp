// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/buffer/eviction.hpp>

#include "replay/replay.hpp"
#include "support/rows.hpp"
#include "support/saved_file.hpp"

// The trace replayer: Belady's rule on traces whose best is known, and above every policy on others.

using namespace wavekv_bench;
using wavekv_test::random_engine;

namespace {

/// A trace of single-block readings over blocks of one slot (4 tokens of 128 + 128 elements in bf16).
block_trace trace_of(const std::vector<std::uint32_t>& blocks, std::uint32_t n_tokens = 4) {
  block_trace trace;
  trace.n_tokens = 1000;
  trace.key_dim = trace.value_dim = 128;
  for (const std::uint32_t block : blocks) trace.readings.push_back({{block, n_tokens}});
  return trace;
}

/// Bytes for a block cache of n slots.
std::size_t room_for(std::size_t n_slots) {
  std::size_t bytes = 0;
  while (wavekv::block_cache<wavekv::bf16, wavekv::eviction::lru>(bytes, 128, 128).n_slots() <
         n_slots) {
    bytes += 64;
  }
  return bytes;
}

/// The most hits of any way to fill a cache of n slots, by trying all of them.
std::size_t best_by_trying(const std::vector<std::uint32_t>& blocks, std::size_t n_slots,
                           std::size_t at, std::vector<std::uint32_t> held) {
  if (at == blocks.size()) return 0;
  if (std::ranges::find(held, blocks[at]) != held.end())
    return 1 + best_by_trying(blocks, n_slots, at + 1, held);
  std::size_t best = best_by_trying(blocks, n_slots, at + 1, held);  // not taken in
  if (held.size() < n_slots) {
    held.push_back(blocks[at]);
    return std::max(best, best_by_trying(blocks, n_slots, at + 1, held));
  }
  for (std::size_t i = 0; i < held.size(); ++i) {
    auto other = held;
    other[i] = blocks[at];
    best = std::max(best, best_by_trying(blocks, n_slots, at + 1, other));
  }
  return best;
}

}  // namespace

TEST_CASE("Belady's rule finds as much as the best of all ways") {
  random_engine random(61);
  for (const std::size_t n_slots : {1U, 2U, 3U}) {
    for (int i = 0; i < 30; ++i) {
      std::vector<std::uint32_t> blocks(11);
      for (std::uint32_t& block : blocks) block = static_cast<std::uint32_t>(random() % 5);
      CHECK(replay_belady(trace_of(blocks), room_for(n_slots)).hits ==
            best_by_trying(blocks, n_slots, 0, {}));
    }
  }
}

TEST_CASE("the policies on traces that are known: a loop beats lru, not Belady") {
  std::vector<std::uint32_t> loop;
  for (std::uint32_t i = 0; i < 300; ++i) loop.push_back(i % 3);
  CHECK(replay<wavekv::eviction::lru>(trace_of(loop), room_for(2)).hits == 0);
  CHECK(replay_belady(trace_of(loop), room_for(2)).hits >= 148);
  CHECK(replay<wavekv::eviction::lru>(trace_of(loop), room_for(3)).hits == 297);
  CHECK(replay_belady(trace_of(loop), room_for(3)).hits == 297);
  CHECK(replay<wavekv::eviction::lru>(trace_of(loop), 0).hits == 0);
  CHECK(replay_belady(trace_of(loop), 0).hits == 0);
}

TEST_CASE("no policy finds more than Belady's rule by slots, whatever the blocks' sizes") {
  random_engine random(62);
  for (int i = 0; i < 20; ++i) {
    block_trace trace = trace_of({});
    trace.n_warm_up = 20;
    std::vector<std::uint32_t> sizes(60);
    for (std::uint32_t& size : sizes) size = static_cast<std::uint32_t>(1 + random() % 40);
    for (int r = 0; r < 200; ++r) {
      auto& reading = trace.readings.emplace_back();
      for (std::uint32_t block = 0; block < 60; ++block) {
        if (random() % (4 + block / 4) == 0) reading.push_back({block, sizes[block]});
      }
    }
    for (const std::size_t n_slots : {20U, 60U, 150U, 1000U}) {
      const std::size_t bytes = room_for(n_slots);
      const double best = replay_belady(trace, bytes).token_hit_ratio() + 1e-3;  // rounding
      CHECK(replay<wavekv::eviction::lru>(trace, bytes).token_hit_ratio() <= best);
      CHECK(replay<wavekv::eviction::clock>(trace, bytes).token_hit_ratio() <= best);
      CHECK(replay<wavekv::eviction::sieve>(trace, bytes).token_hit_ratio() <= best);
    }
  }
}

TEST_CASE("a trace comes back from its file") {
  const wavekv_test::scratch_folder folder;
  block_trace trace = trace_of({3, 1, 3}, 9);
  trace.n_warm_up = 1;
  trace.readings.push_back({});
  trace.readings.push_back({{7, 2}, {8, 4}});
  write_trace((folder / "t").string(), trace);
  const block_trace back = read_trace((folder / "t").string());
  CHECK(back.n_warm_up == 1);
  CHECK(back.n_tokens == 1000);
  REQUIRE(back.readings.size() == 5);
  CHECK(back.readings[2][0].block == 3);
  CHECK(back.readings[2][0].n_tokens == 9);
  CHECK(back.readings[3].empty());
  CHECK(back.readings[4][1].n_tokens == 4);
  CHECK_THROWS(read_trace((folder / "none").string()));
}
