// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "cuda/small_device_cache.hpp"

// Device memory: all of it is given back, and a call that finds none leaves the cache as it was.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::query_run;
using wavekv::sequence_id;
using wavekv::testing::emulated_runtime;
using wavekv::testing::emulated_stream;
using wavekv::testing::emulation_options;

namespace {

using cache_type = small_device_cache<bf16>;
constexpr std::size_t all_there_is = std::numeric_limits<std::size_t>::max();

struct fixture {
  explicit fixture(std::uint64_t seed)
      : runtime([&] {
          emulation_options emulation;
          emulation.seed = seed;
          return emulation;
        }()),
        cache(sizes, small_device_options<cache_type>(runtime)),
        calls(cache, emulated_stream{}) {}

  void append(sequence_id sequence, std::size_t first, std::size_t n) {
    for (std::size_t layer = 0; layer < 2; ++layer) calls.append(sequence, layer, tokens, first, n);
  }

  /// Lengths, and what attention over everything answers.
  struct sight {
    std::vector<std::size_t> lengths;
    std::vector<float> answers;
  };
  sight look() {
    sight seen;
    (void)cache.collect();
    for (const sequence_id sequence : sequences) {
      for (std::size_t layer = 0; layer < 2; ++layer) {
        seen.lengths.push_back(cache.length(sequence, layer));
        const std::vector<float> answer = calls.answer(sequence, layer, tokens, 3, wavekv::exact{});
        // By the device's own count, too: what it reads are the tokens that it holds.
        const wavekv::step_stats stats = cache.collect();
        CHECK(stats.tokens_held == seen.lengths.back());
        CHECK(stats.tokens_read == seen.lengths.back());
        seen.answers.insert(seen.answers.end(), answer.begin(), answer.end());
      }
    }
    return seen;
  }

  /// Lets a call fail at each of its allocations in turn, until it succeeds; each time the cache must be as before.
  /// Returns how often it failed.
  template <class Call>
  std::size_t fail_everywhere(const std::string& name, Call&& call) {
    INFO(name);
    const sight before = look();
    for (std::size_t n = 0;; ++n) {
      REQUIRE(n < 100);
      const std::size_t held = runtime.bytes_in_use();
      runtime.set_allocations_left(n);
      try {
        call();
        runtime.set_allocations_left(all_there_is);
        return n;
      } catch (const wavekv::cuda_error& error) {
        runtime.set_allocations_left(all_there_is);
        CHECK(error.call() == "cudaMallocAsync");
        CHECK(error.code() == 2);
        CHECK(std::string(error.what()).find("out of memory") != std::string::npos);
      }
      INFO("allocation ", n);
      const sight after = look();
      CHECK(after.lengths == before.lengths);
      // A segment that was put back into the tail is summed in another order.
      CHECK((same_bits(after.answers, before.answers) ||
             relative_error(std::span<const float>(after.answers),
                            std::span<const float>(before.answers)) < 1e-6));
      // Tables may have grown, no more.
      CHECK(runtime.bytes_in_use() < held + 100'000);
    }
  }

  wavekv::geometry sizes = small_device_geometry(2);
  emulated_runtime runtime;
  host_tokens tokens{sizes, 600, 21};
  cache_type cache;
  caller<cache_type> calls;
  std::vector<sequence_id> sequences;
};

}  // namespace

TEST_CASE("whatever allocation of a call fails, the cache is as before the call, and goes on") {
  for (const std::uint64_t seed : {1U, 2U}) {
    fixture f(seed);
    std::size_t n_failures = f.fail_everywhere(
        "create", [&] { f.sequences.push_back(f.cache.create(f.calls.stream())); });
    const sequence_id first = f.sequences[0];
    // One layer a call: what is promised is promised of a call.
    for (std::size_t layer = 0; layer < 2; ++layer) {
      n_failures +=
          f.fail_everywhere("prompt", [&] { f.calls.append(first, layer, f.tokens, 0, 230); });
    }
    n_failures += f.fail_everywhere(
        "fork", [&] { f.sequences.push_back(f.cache.fork(first, f.calls.stream())); });
    for (std::size_t t = 0; t < 70; ++t) {
      for (std::size_t layer = 0; layer < 2; ++layer) {
        n_failures += f.fail_everywhere("decode " + std::to_string(t), [&] {
          const query_run batch[] = {{first, 1}, {f.sequences[1], t % 3}};
          f.calls.append(batch, layer, f.tokens, 230 + t);
        });
      }
      if (t % 20 == 9) {  // also while segments are being sealed
        n_failures += f.fail_everywhere(
            "fork", [&] { f.sequences.push_back(f.cache.fork(first, f.calls.stream())); });
        f.cache.release(f.sequences.back());
        f.sequences.pop_back();
      }
    }
    for (std::size_t layer = 0; layer < 2; ++layer) {
      n_failures += f.fail_everywhere("prompt behind", [&] {
        const query_run batch[] = {{first, 150}, {f.sequences[1], 3}};
        f.calls.append(batch, layer, f.tokens, 0);
      });
    }
    n_failures += f.fail_everywhere("attend", [&] { f.calls.attend(first, 0, f.tokens, 1); });
    // seal is not all or nothing: segments that were sealed stay so. No answer of exact attention changes.
    n_failures += f.fail_everywhere("seal", [&] { f.cache.seal(first); });
    n_failures += f.fail_everywhere("truncate", [&] { f.cache.truncate(first, 100); });
    CHECK(n_failures > 60);
    CHECK(f.cache.length(first) == 100);
    CHECK(f.calls.answer(first, 0, f.tokens, 1).size() == 2 * 9);
    CHECK_NOTHROW((void)f.cache.collect());
  }
}

TEST_CASE("tables of segments grow: where an allocation fails the device keeps those it knows") {
  fixture f(3);
  const sequence_id sequence = f.cache.create();
  f.sequences.push_back(sequence);
  std::size_t first = 0;
  const auto decode = [&] { f.calls.append(sequence, 0, f.tokens, first % 500, 31); };
  // At 64 segments of two top nodes both tables are full: that of segments and that of top runs.
  for (; f.cache.stats(sequence).segments < 63; first += 31) decode();
  std::size_t n_failures = 0;
  for (; f.cache.stats(sequence).segments < 66; first += 31) {
    n_failures += f.fail_everywhere("decode " + std::to_string(first), decode);
  }
  CHECK(n_failures > 12);
}

TEST_CASE("all memory is given back: with the sequences, with the cache") {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    emulation_options emulation;
    emulation.seed = seed;
    const emulated_runtime runtime(emulation);
    {
      const wavekv::geometry sizes = small_device_geometry(2);
      const host_tokens tokens(sizes, 300, 22);
      cache_type cache(sizes, small_device_options<cache_type>(runtime));
      caller calls(cache, emulated_stream{});
      const std::size_t empty = runtime.bytes_in_use();
      std::size_t of_one_round = 0;
      for (int round = 0; round < 3; ++round) {
        const sequence_id a = cache.create();
        for (std::size_t layer = 0; layer < 2; ++layer) calls.append(a, layer, tokens, 0, 150);
        const sequence_id b = cache.fork(a);
        for (std::size_t t = 0; t < 60; ++t) calls.append(a, 0, tokens, t, 1);
        for (std::size_t t = 0; t < 7; ++t) calls.attend(b, 1, tokens, t);
        cache.truncate(a, 20);
        const std::size_t held = runtime.bytes_in_use();
        if (round == 0) of_one_round = held;
        CHECK(held == of_one_round);
        cache.release(a);
        cache.release(b);
        CHECK(runtime.bytes_in_use() == empty);
      }
    }
    CHECK(runtime.bytes_in_use() == 0);
  }
}

TEST_CASE(
    "a budget for one sequence: the second finds no memory, and finds it when the first has gone") {
  const wavekv::geometry sizes = small_device_geometry(2);
  const host_tokens tokens(sizes, 300, 23);
  const emulated_runtime runtime;
  cache_type cache(sizes, small_device_options<cache_type>(runtime));
  caller calls(cache, emulated_stream{});
  auto workspace = cache.make_workspace(1, 250);
  const sequence_id first = cache.create();
  const sequence_id second = cache.create();
  for (std::size_t layer = 0; layer < 2; ++layer) calls.append(first, layer, tokens, 0, 250);
  const std::vector<float> expected = calls.answer(first, 1, tokens, 2, workspace);
  runtime.set_memory_budget(runtime.peak_bytes_in_use());
  CHECK_THROWS_AS(calls.append(second, 0, tokens, 0, 250), wavekv::cuda_error);
  CHECK(cache.length(second, 0) == 0);
  CHECK(same_bits(calls.answer(first, 1, tokens, 2, workspace), expected));
  cache.release(first);
  for (std::size_t layer = 0; layer < 2; ++layer) calls.append(second, layer, tokens, 0, 250);
  CHECK(same_bits(calls.answer(second, 1, tokens, 2, workspace), expected));
}
