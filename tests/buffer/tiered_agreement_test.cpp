// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/buffer/memory_store.hpp>
#include <wavekv/buffer/tiered.hpp>
#include <wavekv/wavekv.hpp>

#include "archetypes/executors.hpp"
#include "support/tiered_cache.hpp"

// Blocks in two tiers: whatever the store, the budgets, the eviction policy, the engine and the executor, answers are those
// of a resident cache.

using namespace wavekv_test;
using namespace wavekv_test::tiered;
namespace eviction = wavekv::eviction;
namespace placement = wavekv::placement;
namespace transfer = wavekv::transfer;

namespace {

using over_memory = placement::tiered_over<wavekv::memory_store>;

constexpr std::size_t all_of_it = std::size_t{8} << 20U;

/// What a server does to a few sequences, in both caches.
template <class Buffer>
void live(const typename Buffer::placement_type::options_type& options,
          const any_executor& executor) {
  const std::size_t fast_bytes = options.fast_bytes;
  CAPTURE(fast_bytes);
  CAPTURE(options.write_back_bytes);
  CAPTURE(executor.concurrency());
  twins<Buffer> both(options, executor);
  const std::size_t a = both.create();
  both.compare(a);  // of nothing
  CHECK(both.tiers().cache_bytes <= fast_bytes);

  // Once all is written, reads come from the store.
  both.append(a, 150);
  both.cache.flush();
  CHECK(both.tiers().write_failures == 0);
  CHECK(both.tiers().waiting_bytes == 0);
  CHECK(both.tiers().written_bytes == both.stats(a).kv_bytes);
  CHECK(both.stats(a).kv_bytes == 128 * token_bytes);
  const std::vector<float> query = make_queries(both.random);
  const wavekv::step_stats first = both.compare(a, wavekv::exact{}, query);
  CHECK(first.hits == 0);
  CHECK(first.misses > 0);
  CHECK(first.bytes_moved >= both.stats(a).kv_bytes);
  const wavekv::step_stats second = both.compare(a, wavekv::exact{}, query);
  if (fast_bytes == 0) CHECK(second.hits == 0);
  if (fast_bytes == all_of_it) {
    CHECK(second.misses == 0);
    CHECK(both.tiers().evictions == 0);
  } else {
    CHECK(second.misses > 0);
  }
  both.compare(a);

  // Decode steps, and what an engine asks for ahead of them.
  for (int step = 0; step < 40; ++step) {
    both.append(a, 1);
    both.cache.prefetch(both.sequences[a].first, 0);
    if (step % 4 == 0) both.compare(a, reads_some());
    if (step % 8 == 1) both.compare(a, verifies(), make_queries(both.random, 3));
  }
  both.prefill(a, 90);
  both.compare(a);
  both.seal(a);
  both.cache.flush();
  both.prefill(a, 30);  // over what is in the store, all of it

  // A fork goes its own way; a segment that is cut is read back, for one of the two.
  const std::size_t b = both.fork(a);
  both.append(a, 70, 7);
  both.append(b, 130);
  both.compare(a);
  both.compare(b);
  both.cache.flush();
  both.truncate(b, 101);
  CHECK(both.length(b) == 101);
  both.compare(a);
  both.compare(b);
  both.append(b, 90);
  const std::size_t c = both.create();
  both.append(c, 85);
  both.compare(c);  // written or not
  for (int i = 0; i < 2; ++i) {
    both.compare_batch({{a, 1}, {b, 3}, {c, 1}, {a, 2}}, reads_some());
    both.compare_batch({{c, 1}, {b, 1}}, wavekv::exact{});
    both.compare_batch({{b, 1}, {a, 1}}, some_budget);
    both.compare_batch({{b, 1}, {a, 1}}, verifies());
    both.cache.flush();
  }
  // What is shared outlives either of them.
  both.release(a);
  both.compare(b);
  both.truncate(b, 3);
  both.compare(b);
  both.release(b);
  both.compare(c);
  both.append(c, 100);
  both.compare(c);
  if (fast_bytes != 0 && fast_bytes != all_of_it) CHECK(both.tiers().evictions > 0);
}

/// Budgets of nothing, of one block or so, of some blocks, of all; on one thread and on two.
template <class Buffer>
void live_everywhere(const typename Buffer::placement_type::options_type& options) {
  for (const std::size_t fast_bytes :
       {std::size_t{0}, std::size_t{2500}, std::size_t{40000}, all_of_it}) {
    auto chosen = options;
    chosen.fast_bytes = fast_bytes;
    for (const std::size_t write_back_bytes : {std::size_t{0}, std::size_t{1} << 28U}) {
      chosen.write_back_bytes = write_back_bytes;
      if (write_back_bytes == 0) live<Buffer>(chosen, {});
      live<Buffer>(chosen, {any_executor::kind::openmp, 2});
    }
  }
}

}  // namespace

TEST_CASE("over memory, lru, inline reads") {
  live_everywhere<wavekv::wave_buffer<over_memory, eviction::lru, transfer::inline_read>>({});
}

TEST_CASE("over a file, lru, reads on threads") {
  const scratch_folder directory;
  placement::tiered::options_type options;
  options.store.path = directory.path() / "blocks";
  live_everywhere<wavekv::wave_buffer<placement::tiered, eviction::lru, transfer::threads>>(
      options);
  CHECK(directory.is_empty());
}

TEST_CASE("over a file, clock, inline reads") {
  const scratch_folder directory;
  for (const bool direct : {true, false}) {
    placement::tiered::options_type options;
    options.store = {directory.path(), direct};
    live_everywhere<wavekv::wave_buffer<placement::tiered, eviction::clock, transfer::inline_read>>(
        options);
  }
  CHECK(directory.is_empty());
}

TEST_CASE("over memory, sieve, reads on threads") {
  live_everywhere<wavekv::wave_buffer<over_memory, eviction::sieve, transfer::threads>>({});
}
