// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/buffer/tiered.hpp>
#include <wavekv/wavekv.hpp>

#include "archetypes/stores.hpp"
#include "reference/fresh_seed.hpp"
#include "support/tiered_cache.hpp"

// A slow tier that fails, corrupts what it reads, is full, or is slow: the call throws io_error that says what happened,
// the cache is as it was, other sequences notice nothing, and when the store is mended, nothing was lost.

using namespace wavekv_test;
using namespace wavekv_test::tiered;
namespace eviction = wavekv::eviction;
namespace placement = wavekv::placement;
namespace transfer = wavekv::transfer;

namespace {

using over_failing = placement::tiered_over<failing_store>;
template <class Transfer>
using buffer_with = wavekv::wave_buffer<over_failing, eviction::lru, Transfer>;
using control_type = std::shared_ptr<store_control>;

constexpr std::size_t segment_bytes = 64 * token_bytes;
constexpr std::size_t window = 16;
constexpr std::size_t sink = 4;

over_failing::options_type options_for(const control_type& control, std::size_t fast_bytes,
                                       std::size_t write_back_bytes = std::size_t{1} << 28U) {
  over_failing::options_type options;
  options.fast_bytes = fast_bytes;
  options.write_back_bytes = write_back_bytes;
  options.store = {.control = control, .alignment = 64};
  return options;
}

/// What an io_error of a call says; nothing when there is none.
template <class Call>
std::string said_by(Call&& call) {
  try {
    call();
  } catch (const wavekv::io_error& error) {
    return error.what();
  }
  return {};
}

bool mentions(const std::string& said, const std::string& what) {
  return said.find(what) != std::string::npos;
}

/// Waits until something has happened on another thread.
template <class Condition>
bool happens(Condition&& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

/// Appends to the cache with two tiers only.
template <class Twins>
void append_to(Twins& both, std::size_t s, const token_rows& tokens, std::size_t chunk = SIZE_MAX,
               std::size_t layer = 0) {
  append_rows(both.cache, both.sequences[s].first, layer, tokens.keys, tokens.values, chunk);
}

}  // namespace

TEST_CASE_TEMPLATE("reads that fail, come short, or are corrupt", Transfer, transfer::inline_read,
                   transfer::threads) {
  using twins_type = twins<buffer_with<Transfer>>;
  for (const any_executor& executor :
       {any_executor(), any_executor(any_executor::kind::openmp, 2)}) {
    const auto control = std::make_shared<store_control>();
    twins_type both(options_for(control, 3000), executor);
    const std::size_t a = both.create();
    const std::size_t b = both.create();
    const std::size_t c = both.create();
    both.append(a, 200);
    both.append(b, 300);
    both.append(c, 15);  // nothing of it is sealed
    both.cache.flush();
    both.compare(a);
    both.compare(b);
    const auto asks = [&](std::size_t s, const auto& bound) {
      return [&, s] {
        attend_once(both.cache, both.sequences[s].first, 0, make_queries(both.random), bound);
      };
    };
    const auto check_fault = [&](fault& one, const std::string& what) {
      CAPTURE(what);
      const auto check_call = [&](std::size_t after, auto&& call) {
        // What lies in the memory that is read to is not what comes short.
        both.compare(b, wavekv::exact{});
        const std::uint64_t steps = both.stats(a).steps;
        const std::size_t before = one.n_struck();
        one.set(after);
        const std::string said = said_by(call);
        one.mend();
        REQUIRE(one.n_struck() == before + 1);
        CHECK(mentions(said, what));
        CHECK(both.stats(a).steps == steps);
      };
      for (const std::size_t after : {0U, 1U, 3U}) {
        check_call(after, asks(a, wavekv::exact{}));
        both.compare(a);
        check_call(after, asks(a, reads_some()));
        check_call(after, asks(a, some_budget));
        check_call(after, asks(a, verifies()));
        both.compare(c);
      }
      // A batch fails as a whole, and each of its sequences is well.
      check_call(6, [&] { both.ask_batch({{c, 1}, {a, 1}, {b, 1}}, wavekv::exact{}); });
      both.compare_batch({{c, 1}, {a, 1}, {b, 1}}, wavekv::exact{});
      both.compare(b);
      // What writes after it has read.
      for (const std::size_t after : {0U, 1U}) {
        check_call(after, [&] { both.cache.truncate(both.sequences[a].first, 30); });
        CHECK(both.length(a) == 200);
        const token_rows tokens = make_tokens(both.random, 20);
        check_call(after, [&] {
          twins_type::prefill_one(both.cache, both.sequences[a].first, 0,
                                  make_queries(both.random, 20), tokens);
        });
        CHECK(both.length(a) == 200);
      }
      both.compare(a);
      // While it lasts, whoever needs no read is served.
      one.set(0, store_control::always);
      both.compare(c);
      CHECK(said_by(asks(a, wavekv::exact{})) != "");
      CHECK(said_by(asks(b, wavekv::exact{})) != "");
      CHECK(said_by(asks(a, wavekv::exact{})) != "");
      const std::size_t d = both.create();
      both.append(d, 70);
      both.truncate(c, 10);
      both.append(c, 5);
      both.compare(c);
      one.mend();
      both.cache.flush();
      both.compare(a);
      both.compare(b);
      both.compare(d);
      both.release(d);
    };
    check_fault(control->read_fails, "failing_store: a read of");
    check_fault(control->read_is_short, "checksum");
    check_fault(control->read_corrupts, "checksum");
    // Blocks that came before a failure are in the cache, or not; none of them is wrong.
    for (int i = 0; i < 40; ++i) {
      fault* const faults[] = {&control->read_fails, &control->read_is_short,
                               &control->read_corrupts};
      fault& one = *faults[i % 3];
      one.set(static_cast<std::size_t>(i) / 3);
      (void)said_by(asks(i % 2 == 0 ? a : b, reads_some()));
      one.mend();
      both.compare(a, reads_some());
      both.compare(b, wavekv::exact{});
    }
    CHECK(both.tiers().write_failures == 0);
  }
}

TEST_CASE("what is fetched ahead and fails is forgotten") {
  const auto control = std::make_shared<store_control>();
  twins<buffer_with<transfer::threads>> both(options_for(control, 40000));
  const std::size_t a = both.create();
  const std::size_t b = both.create();
  both.append(a, 300);
  both.append(b, 300);
  both.cache.flush();
  both.compare(a, reads_some());
  for (int i = 0; i < 12; ++i) {
    both.compare(b, wavekv::exact{});  // drives a's blocks out
    both.compare(b, wavekv::exact{});
    fault& one = i % 2 == 0 ? control->read_fails : control->read_corrupts;
    one.set(static_cast<std::size_t>(i) / 4, store_control::always);
    both.cache.prefetch(both.sequences[a].first, 0);
    if (i % 3 == 0) both.truncate(a, both.length(a) - 1);
    // They are over, one way or another, before the store is mended.
    both.cache.prefetch(both.sequences[a].first, 0);
    one.mend();
    both.compare(a, reads_some());
  }
  CHECK(control->read_fails.n_struck() > 0);
  CHECK(control->read_corrupts.n_struck() > 0);
}

TEST_CASE("a write that fails: rows stay readable, appends say so, and nothing is lost") {
  using twins_type = twins<buffer_with<transfer::inline_read>>;
  for (const std::size_t write_back_bytes : {std::size_t{0}, segment_bytes, 3 * segment_bytes}) {
    CAPTURE(write_back_bytes);
    const auto control = std::make_shared<store_control>();
    twins_type both(options_for(control, 3000, write_back_bytes));
    const std::size_t a = both.create();
    const std::size_t b = both.create();
    both.append(b, 100);
    both.cache.flush();
    CHECK(control->n_flushes == 1);
    for (const bool is_full : {false, true}) {
      CAPTURE(is_full);
      const std::string what = is_full ? "no space for" : "a write of";
      if (is_full) {
        control->space = control->n_held + segment_bytes - 1;
      } else {
        control->write_fails.set(0, store_control::always);
      }
      const std::size_t flushes = control->n_flushes;
      const std::uint64_t failures = both.tiers().write_failures;
      both.append(a, sink + window + 64);
      REQUIRE(happens([&] { return both.tiers().write_failures > failures; }));
      CHECK(both.compare(a, wavekv::exact{}).misses == 2U * 16 * (is_full ? 4 : 0));
      both.compare(a);
      both.compare(b);
      const std::size_t length = both.length(a);
      const std::uint64_t segments = both.stats(a).segments;
      const token_rows more = make_tokens(both.random, 3 * 64);
      // As often as it is tried: of what is new nothing is taken.
      for (int i = 0; i < 5; ++i) {
        CHECK(mentions(said_by([&] { append_to(both, a, more); }), what));
        CHECK(both.length(a) == length);
        CHECK(both.stats(a).segments == segments);
        CHECK(both.tiers().waiting_bytes <= std::max(write_back_bytes, segment_bytes));
        both.compare(a);
        CHECK(mentions(said_by([&] { both.cache.flush(); }), what));
      }
      // Other sequences may still be read, forked and cut; and what seals nothing is written nowhere.
      both.compare(b);
      const std::size_t fork = both.fork(b);
      both.append(fork, 5);
      both.truncate(fork, 90);
      both.compare(fork);
      both.release(fork);
      CHECK(control->n_flushes == flushes);
      control->mend();
      // What was not told yet is told once more, at most.
      (void)said_by([&] { both.cache.flush(); });
      both.append(a, more);
      both.cache.flush();
      CHECK(both.tiers().waiting_bytes == 0);
      CHECK(both.stats(a).segments == segments + 3);
      CHECK(control->n_held == both.stats(a).kv_bytes + both.stats(b).kv_bytes);
      CHECK(both.tiers().written_bytes == control->n_held);
      both.compare(a);
      both.compare(b);
    }
    CHECK(both.tiers().write_failures >= 2);
  }
}

TEST_CASE("after the store is mended, append alone is enough") {
  const auto control = std::make_shared<store_control>();
  twins<buffer_with<transfer::inline_read>> both(options_for(control, 3000, segment_bytes));
  const std::size_t a = both.create();
  control->write_fails.set(0, store_control::always);
  both.append(a, sink + window + 64);
  const token_rows more = make_tokens(both.random, 64);
  for (int i = 0; i < 3; ++i) {
    CHECK(mentions(said_by([&] { append_to(both, a, more); }), "a write of"));
  }
  REQUIRE(
      happens([&] { return both.tiers().write_failures >= 4; }));  // it was tried again each time
  control->mend();
  // The failure of the last try, which nobody was told of yet; then it is tried once more.
  int n_told = 0;
  while (both.length(a) == sink + window + 64) {
    if (said_by([&] { append_to(both, a, more); }) != "") ++n_told;
    REQUIRE(n_told <= 1);
  }
  append_rows(both.plain, both.sequences[a].second, 0, more.keys, more.values);
  both.compare(a);
  both.cache.flush();
  both.compare(a);
}

TEST_CASE("a full store has room again when a sequence goes") {
  const auto control = std::make_shared<store_control>();
  twins<buffer_with<transfer::threads>> both(options_for(control, 10000, 0));
  control->space = 6 * segment_bytes;
  const std::size_t a = both.create();
  const std::size_t b = both.create();
  const std::size_t c = both.create();
  both.append(a, sink + window + 3 * 64);
  both.append(b, sink + window + 3 * 64);
  both.cache.flush();
  const token_rows tokens = make_tokens(both.random, sink + window + 3 * 64);
  for (int i = 0; i < 4; ++i) {
    CHECK(mentions(said_by([&] {
                     append_to(both, c, tokens);
                     both.cache.flush();
                   }),
                   "no space"));
    CHECK(both.length(c) == 0);
    both.compare(a);
    both.compare(b);
  }
  both.release(a);
  (void)said_by([&] { both.cache.flush(); });
  both.append(c, tokens);
  both.cache.flush();
  both.compare(b);
  both.compare(c);
  CHECK(control->n_held == 6 * segment_bytes);
}

TEST_CASE("sealing all layers: all of them or none") {
  const auto control = std::make_shared<store_control>();
  twins<buffer_with<transfer::inline_read>> both(options_for(control, 3000, 0), {}, 3);
  const std::size_t a = both.create();
  for (std::size_t layer = 0; layer < 3; ++layer) both.append(a, 180, SIZE_MAX, layer);
  both.cache.flush();
  for (const std::size_t n_well : {0U, 1U}) {
    const std::uint64_t segments = both.stats(a).segments;
    // So many are written. The next is taken and fails, and the one behind it is told.
    control->write_fails.set(n_well, store_control::always);
    CHECK(mentions(said_by([&] { both.cache.seal(both.sequences[a].first); }), "a write of"));
    CHECK(both.stats(a).segments == segments);
    for (std::size_t layer = 0; layer < 3; ++layer) {
      CHECK(both.cache.length(both.sequences[a].first, layer) == 180);
      both.compare(a, wavekv::exact{}, make_queries(both.random), layer);
      both.compare(a, reads_some(), make_queries(both.random), layer);
    }
    control->mend();
    both.cache.flush();  // those that nobody wants any more are not written
    CHECK(control->n_held == both.stats(a).kv_bytes);
  }
  both.seal(a);
  CHECK(both.stats(a).segments == 3 * 2 + 3);
  both.cache.flush();
  CHECK(control->n_held == both.stats(a).kv_bytes);
  for (std::size_t layer = 0; layer < 3; ++layer) {
    both.compare(a, wavekv::exact{}, make_queries(both.random), layer);
    both.compare(a, reads_some(), make_queries(both.random), layer);
  }
}

TEST_CASE("decode steps while the store fails: a token is taken, or it is not") {
  const auto control = std::make_shared<store_control>();
  twins<buffer_with<transfer::inline_read>> both(options_for(control, 3000, 0), {}, 2);
  const std::size_t a = both.create();
  for (std::size_t layer = 0; layer < 2; ++layer) both.append(a, 100, SIZE_MAX, layer);
  both.cache.flush();
  std::size_t n_refused = 0;
  for (int step = 0; step < 300; ++step) {
    if (step % 60 == 30) control->write_fails.set(0, store_control::always);
    if (step % 60 == 0) control->mend();
    for (std::size_t layer = 0; layer < 2; ++layer) {
      const token_rows token = make_tokens(both.random, 1);
      const std::size_t length = both.cache.length(both.sequences[a].first, layer);
      const std::string said = said_by([&] { append_to(both, a, token, 1, layer); });
      if (said.empty()) {
        append_rows(both.plain, both.sequences[a].second, layer, token.keys, token.values);
        CHECK(both.cache.length(both.sequences[a].first, layer) == length + 1);
      } else {
        ++n_refused;
        CHECK(mentions(said, "a write of"));
        CHECK(both.cache.length(both.sequences[a].first, layer) == length);
      }
      // Where segments end may differ by now: what is estimated differs then.
      if (step % 5 == 0) {
        CHECK(distance(attend_once(both.cache, both.sequences[a].first, layer,
                                   std::vector<float>(64, 0.5F), wavekv::exact{}),
                       attend_once(both.plain, both.sequences[a].second, layer,
                                   std::vector<float>(64, 0.5F), wavekv::exact{})) <= tolerance);
      }
    }
  }
  CHECK(n_refused > 0);
  control->mend();
  (void)said_by([&] { both.cache.flush(); });
  both.cache.flush();
  CHECK(both.tiers().waiting_bytes == 0);
  CHECK(control->n_held == both.stats(a).kv_bytes);
}

TEST_CASE_TEMPLATE("a slow store: nothing stands still for good, and what waits is bounded",
                   Transfer, transfer::inline_read, transfer::threads) {
  for (const std::size_t write_back_bytes : {std::size_t{0}, 3 * segment_bytes}) {
    const auto control = std::make_shared<store_control>();
    twins<buffer_with<Transfer>> both(options_for(control, 5000, write_back_bytes));
    control->write_us = 2000;
    control->read_us = 100;
    const std::size_t most = std::max(write_back_bytes, segment_bytes);
    std::atomic<bool> done{false};
    std::atomic<std::uint64_t> most_seen{0};
    std::thread watcher([&] {
      while (!done) {
        most_seen = std::max<std::uint64_t>(most_seen, both.tiers().waiting_bytes);
        std::this_thread::yield();
      }
    });
    const std::size_t a = both.create();
    const std::size_t b = both.create();
    const auto begun = std::chrono::steady_clock::now();
    for (int i = 0; i < 10; ++i) {
      both.append(a, 2 * 64);
      both.append(b, 64);
      both.compare(a, reads_some());
    }
    // It cannot have been faster than the store, but for what waits.
    const auto n_written = static_cast<int>(30 - most / segment_bytes - 2);
    CHECK(std::chrono::steady_clock::now() - begun >= n_written * std::chrono::microseconds(2000));
    both.cache.flush();
    CHECK(both.tiers().waiting_bytes == 0);
    const wavekv::step_stats step = both.compare(a, wavekv::exact{});
    CHECK(step.misses > 0);
    CHECK(step.stall_ns > 100000);
    both.compare(b);
    // Given up while it is written, and while it waits.
    both.append(b, 4 * 64);
    both.release(b);
    both.append(a, 64);
    both.truncate(a, 50);
    both.compare(a);
    both.cache.flush();
    CHECK(control->n_held == both.stats(a).kv_bytes);
    done = true;
    watcher.join();
    CHECK(most_seen <= most);
    CHECK(most_seen > 0);
  }
}

TEST_CASE("a cache may go while its store writes, or fails to") {
  for (const bool fails : {false, true}) {
    const auto control = std::make_shared<store_control>();
    control->write_us = 5000;
    if (fails) control->write_fails.set(2, store_control::always);
    {
      cache_of<buffer_with<transfer::inline_read>> cache(
          small_geometry(),
          small_options<buffer_with<transfer::inline_read>>(options_for(control, 0)));
      random_engine random(81);
      const token_rows tokens = make_tokens(random, 20 + 10 * 64);
      for (int i = 0; i < 3; ++i) {
        const sequence_id s = cache.create();
        try {
          append_rows(cache, s, 0, tokens.keys, tokens.values);
        } catch (const wavekv::io_error&) {
          CHECK(fails);
        }
        if (i == 1) cache.release(s);
      }
    }
    CHECK(control->n_held == 0);
    CHECK(control->n_writes < 30);  // it does not write what nobody will read
  }
}

TEST_CASE("rows that were given up before their turn are not written") {
  const auto control = std::make_shared<store_control>();
  control->write_us = 20000;
  cache_of<buffer_with<transfer::inline_read>> cache(
      small_geometry(), small_options<buffer_with<transfer::inline_read>>(options_for(control, 0)));
  random_engine random(82);
  const token_rows tokens = make_tokens(random, 20 + 10 * 64);
  for (int i = 0; i < 5; ++i) {
    const sequence_id s = cache.create();
    append_rows(cache, s, 0, tokens.keys, tokens.values);
    cache.release(s);
  }
  cache.flush();
  CHECK(control->n_writes <= 25);
  CHECK(control->n_held == 0);
  CHECK(cache.stats().tiers.written_bytes == control->n_writes * segment_bytes);
}

TEST_CASE("several threads, and a store that fails in every way now and then") {
  using buffer = buffer_with<transfer::threads>;
  const std::uint64_t seed = run_seed();
  const auto control = std::make_shared<store_control>();
  cache_of<buffer> cache(small_geometry(),
                         small_options<buffer>(options_for(control, 8000, 2 * segment_bytes)));
  std::atomic<bool> done{false};
  std::thread saboteur([&] {
    std::mt19937_64 random(seed);
    while (!done) {
      control->read_fails.set(random() % 40);
      control->read_is_short.set(random() % 40);
      control->read_corrupts.set(random() % 40);
      control->write_fails.set(random() % 6);
      control->write_us = random() % 4 == 0 ? 300 : 0;
      control->read_us = random() % 4 == 0 ? 100 : 0;
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
    control->mend();
  });
  constexpr std::size_t n_users = 3;
  std::vector<std::size_t> n_failed(n_users, 0);
  std::vector<double> worst(n_users, 0.0);
  std::vector<std::thread> users;
  for (std::size_t user = 0; user < n_users; ++user) {
    users.emplace_back([&, user] {
      random_engine random(seed + 1 + user);
      plain_cache plain(small_geometry(), small_options<wavekv::wave_buffer<>>());
      // Until it succeeds, however often that takes.
      const auto insist = [&](auto&& call) {
        for (;; ++n_failed[user]) {
          try {
            return call();
          } catch (const wavekv::io_error&) {}
        }
      };
      for (int round = 0; round < 4; ++round) {
        sequence_id ours = cache.create();
        sequence_id theirs = plain.create();
        for (int step = 0; step < 30; ++step) {
          const std::size_t n = step % 10 == 0 ? 150 : 3;
          const token_rows tokens = make_tokens(random, n);
          insist([&] {
            cache.append(ours, 0, tokens_of(tokens.keys, 0, n, n_heads, key_dim),
                         tokens_of(tokens.values, 0, n, n_heads, value_dim));
          });
          append_rows(plain, theirs, 0, tokens.keys, tokens.values);
          if (step == 15) {
            insist([&] { cache.truncate(ours, 100); });
            plain.truncate(theirs, 100);
          }
          if (step == 20) {
            const sequence_id fork = cache.fork(ours);
            cache.release(std::exchange(ours, fork));
          }
          if (step % 7 == 0) cache.prefetch(ours, 0);
          const std::vector<float> query = make_queries(random);
          insist([&] { attend_once(cache, ours, 0, query, reads_some()); });
          const outputs got =
              insist([&] { return attend_once(cache, ours, 0, query, wavekv::exact{}); });
          const outputs expected = attend_once(plain, theirs, 0, query, wavekv::exact{});
          worst[user] = std::max(worst[user], distance(got, expected));
        }
        cache.release(ours);
        plain.release(theirs);
      }
    });
  }
  for (std::thread& user : users) user.join();
  done = true;
  saboteur.join();
  for (std::size_t user = 0; user < n_users; ++user) {
    CHECK(worst[user] <= tolerance);
    CHECK(n_failed[user] > 0);
  }
  CHECK(control->read_fails.n_struck() > 0);
  CHECK(control->read_corrupts.n_struck() > 0);
  CHECK(control->write_fails.n_struck() > 0);
  (void)said_by([&] { cache.flush(); });
  cache.flush();
  CHECK(control->n_held == 0);
  CHECK(cache.stats().tiers.waiting_bytes == 0);
}
