// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/buffer/block_cache.hpp>
#include <wavekv/buffer/eviction.hpp>

#include "archetypes/buffers.hpp"
#include "reference/fresh_seed.hpp"

// Whatever is found is what was admitted, bit for bit, and stays so while it is pinned; slots are never lost or given
// twice, from one thread or from several.

using wavekv::block_cache;
using wavekv::block_directory;

namespace {

constexpr std::size_t key_dim = 24;
constexpr std::size_t value_dim = 40;
constexpr std::size_t n_blocks = 40;  // of a directory

/// Tokens of a block, and what its elements are.
std::size_t tokens_of(std::size_t block) { return 1 + block * 7 % 61; }
float element(std::size_t owner, std::size_t block, std::size_t token, std::size_t column) {
  return static_cast<float>(((owner * 41 + block) * 64 + token) * 64 + column);
}
std::vector<float> rows_of(std::size_t owner, std::size_t block) {
  std::vector<float> rows;
  for (std::size_t token = 0; token < tokens_of(block); ++token) {
    for (std::size_t i = 0; i < key_dim; ++i) rows.push_back(element(owner, block, token, i));
  }
  for (std::size_t token = 0; token < tokens_of(block); ++token) {
    for (std::size_t i = 0; i < value_dim; ++i)
      rows.push_back(element(owner, block, token, key_dim + i));
  }
  return rows;
}

/// Elements of a pinned block that are not its own, or not in their order.
template <class Cache>
std::size_t n_wrong(const Cache& cache, std::uint32_t slot, std::size_t owner, std::size_t block) {
  std::size_t wrong = 0;
  std::size_t next = 0;
  cache.for_runs(slot, tokens_of(block), [&](const wavekv::token_run<float>& run) {
    if (run.n == 0 || run.n > cache.slot_tokens()) ++wrong;
    for (std::size_t t = 0; t < run.n; ++t) {
      for (std::size_t i = 0; i < key_dim; ++i) {
        if (run.keys[t * key_dim + i] != element(owner, block, next + t, i)) ++wrong;
      }
      for (std::size_t i = 0; i < value_dim; ++i) {
        if (run.values[t * value_dim + i] != element(owner, block, next + t, key_dim + i)) ++wrong;
      }
    }
    next += run.n;
  });
  return wrong + (next == tokens_of(block) ? 0 : 1);
}

template <class Cache>
std::size_t slots_of(const Cache& cache, std::size_t block) {
  return (tokens_of(block) + cache.slot_tokens() - 1) / cache.slot_tokens();
}

std::size_t bytes_for(std::size_t n_slots) {  // 8 tokens of 64 floats are a slot of 2 KB
  return n_slots * (8 * (key_dim + value_dim) * sizeof(float) + 96);
}

}  // namespace

TEST_CASE_TEMPLATE("random calls: blocks are found as they were admitted, and no slot is lost",
                   Eviction, wavekv::eviction::lru, wavekv::eviction::clock,
                   wavekv::eviction::sieve, wavekv_test::first_in_first_out) {
  std::mt19937_64 random = wavekv_test::generator("block cache, random calls");
  for (const std::size_t n_slots : {0U, 1U, 7U, 30U, 2000U}) {
    block_cache<float, Eviction> cache(bytes_for(n_slots), key_dim, value_dim);
    CHECK(cache.slot_tokens() == 8);
    CHECK(cache.bytes() <= bytes_for(n_slots));
    CHECK(cache.n_slots() + 2 >= n_slots);
    std::vector<std::unique_ptr<block_directory>> directories;
    for (int i = 0; i < 3; ++i) directories.push_back(std::make_unique<block_directory>(n_blocks));
    struct pinned {
      std::uint32_t slot;
      std::size_t owner;
      std::size_t block;
    };
    std::vector<pinned> held;
    const auto release = [&] {
      std::vector<std::uint32_t> slots;
      for (const pinned& pin : held) slots.push_back(pin.slot);
      cache.unpin(slots);
      held.clear();
    };
    std::size_t n_found = 0;
    for (int i = 0; i < 4000; ++i) {
      const std::size_t owner = random() % directories.size();
      const std::size_t block = random() % n_blocks;
      const bool is_held = cache.holds(*directories[owner], block);
      const std::uint32_t slot = cache.pin(*directories[owner], block);
      REQUIRE(is_held == (slot != cache.nowhere));
      if (slot != cache.nowhere) {
        ++n_found;
        held.push_back({slot, owner, block});
        REQUIRE(n_wrong(cache, slot, owner, block) == 0);
      } else {
        const bool in =
            cache.admit(*directories[owner], block, rows_of(owner, block).data(), tokens_of(block));
        if (slots_of(cache, block) > cache.n_slots()) CHECK_FALSE(in);
        if (held.empty() && slots_of(cache, block) <= cache.n_slots()) CHECK(in);
      }
      for (const pinned& pin : held) REQUIRE(n_wrong(cache, pin.slot, pin.owner, pin.block) == 0);
      if (held.size() >= 4) release();
      if (i % 500 == 499) {  // a segment goes, and another comes
        release();
        const std::size_t gone = random() % directories.size();
        cache.drop(*directories[gone]);
        for (std::size_t b = 0; b < n_blocks; ++b) {
          REQUIRE_FALSE(cache.holds(*directories[gone], b));
          REQUIRE(cache.pin(*directories[gone], b) == cache.nowhere);
        }
      }
    }
    release();
    if (n_slots >= 7) CHECK(n_found > 0);
    if (n_slots == 2000) CHECK(cache.n_evicted() == 0);
    // Nothing is lost: after all have gone, every slot can be filled again, with blocks of one slot.
    for (const auto& directory : directories) cache.drop(*directory);
    block_directory fresh(cache.n_slots());
    const std::vector<float> one(8 * (key_dim + value_dim), 1.5F);
    const std::uint64_t evicted = cache.n_evicted();
    for (std::size_t b = 0; b < fresh.size(); ++b) REQUIRE(cache.admit(fresh, b, one.data(), 8));
    CHECK(cache.n_evicted() == evicted);
    std::set<std::uint32_t> slots;
    for (std::size_t b = 0; b < fresh.size(); ++b) slots.insert(cache.pin(fresh, b));
    CHECK(slots.size() == cache.n_slots());
    CHECK(slots.count(cache.nowhere) == 0);
  }
}

TEST_CASE("what is pinned is not evicted, and a cache full of it refuses") {
  block_cache<float, wavekv::eviction::lru> cache(bytes_for(4), key_dim, value_dim);
  const std::size_t n = cache.n_slots();
  block_directory directory(2 * n);
  std::vector<float> rows(8 * (key_dim + value_dim));
  const auto admit = [&](std::size_t block) {
    std::fill(rows.begin(), rows.end(), static_cast<float>(block));
    return cache.admit(directory, block, rows.data(), 8);
  };
  std::vector<std::uint32_t> pins;
  for (std::size_t b = 0; b < n; ++b) {
    REQUIRE(admit(b));
    pins.push_back(cache.pin(directory, b));
  }
  CHECK_FALSE(admit(n));
  CHECK(cache.n_refused() == 1);
  CHECK(cache.n_evicted() == 0);
  cache.unpin(std::span(pins).first(1));
  CHECK(admit(n));  // the one that was let go of leaves
  CHECK(cache.pin(directory, 0) == cache.nowhere);
  for (std::size_t b = 1; b < n; ++b) {
    cache.for_runs(pins[b], 8, [&](const wavekv::token_run<float>& run) {
      CHECK(run.keys[0] == static_cast<float>(b));
    });
  }
  CHECK(admit(n));  // there already
  CHECK(cache.n_evicted() == 1);
}

TEST_CASE_TEMPLATE("several threads on a tiny cache see their own blocks", Eviction,
                   wavekv::eviction::lru, wavekv::eviction::clock, wavekv::eviction::sieve) {
  const std::uint64_t seed = wavekv_test::run_seed();
  INFO("seed ", seed);
  for (const std::size_t n_slots : {9U, 40U}) {
    block_cache<float, Eviction> cache(bytes_for(n_slots), key_dim, value_dim);
    block_directory directories[2] = {block_directory(n_blocks), block_directory(n_blocks)};
    std::atomic<std::size_t> wrong{0};
    std::atomic<std::size_t> found{0};
    const auto work = [&](std::uint64_t own) {
      std::mt19937_64 random(seed + own);
      std::vector<std::uint32_t> held;
      for (int i = 0; i < 3000; ++i) {
        const std::size_t owner = random() % 2;
        const std::size_t block = random() % 16;  // few, so that threads meet at them
        const std::uint32_t slot = cache.pin(directories[owner], block);
        if (slot == cache.nowhere) {
          cache.admit(directories[owner], block, rows_of(owner, block).data(), tokens_of(block));
        } else {
          ++found;
          wrong += n_wrong(cache, slot, owner, block);
          held.push_back(slot);
        }
        if (held.size() == 2) {
          cache.unpin(held);
          held.clear();
        }
      }
      cache.unpin(held);
    };
    std::vector<std::thread> threads;
    for (std::uint64_t t = 0; t < 4; ++t) threads.emplace_back(work, t);
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(found > 0);
    CHECK(cache.n_evicted() > 0);
  }
}
