// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/buffers.hpp"
#include "archetypes/clusterers.hpp"
#include "support/model.hpp"

// The data flow through a buffer whose blocks are not all in the fast tier: the answers are those of
// `resident`, and hits, misses and bytes are counted.

using namespace wavekv_test;
using wavekv::geometry;
using wavekv::sequence_id;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::spherical_kmeans<3>, wavekv::error_bound<>>;
template <class Buffer>
using cache_of = wavekv::kv_cache<float, index_type, Buffer, wavekv::cpu<wavekv::serial_executor>>;

geometry small_geometry() {
  geometry sizes;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 16;
  sizes.value_dim = 12;
  return sizes;
}

template <class Buffer>
typename cache_of<Buffer>::options_type small_options() {
  typename cache_of<Buffer>::options_type options;
  options.window_tokens = 16;
  return options;
}

wavekv::error_bound<> reads_some() {
  wavekv::error_bound<> bound;
  bound.epsilon = 0.01F;
  bound.free_tokens = 60;
  bound.max_open = 1.0F;
  return bound;
}
wavekv::verified_bound<> verifies() {
  wavekv::verified_bound<> bound;
  bound.samples = 16;
  bound.epsilon = 0.3F;
  bound.rule = reads_some();
  return bound;
}

/// The same calls on a resident cache and on one with a slow tier; answers may differ by the order of sums.
template <class Buffer>
void check_against_resident(std::size_t n_slots) {
  slow_tier::instance() = {};
  slow_tier::instance().n_slots = n_slots;
  {
    using resident = wavekv::wave_buffer<>;
    cache_of<Buffer> tiered(small_geometry(), small_options<Buffer>());
    cache_of<resident> plain(small_geometry(), small_options<resident>());
    random_engine random(41);
    const sequence_id a = tiered.create();
    const sequence_id b = plain.create();
    const auto both = [&](std::size_t n) {
      const std::vector<float> keys = make_keys(random, key_family::clustered, n, 2, 16);
      const std::vector<float> values = normal_rows(random, n * 2 * 12);
      append_rows(tiered, a, 0, keys, values);
      append_rows(plain, b, 0, keys, values);
    };
    const auto compare = [&](const auto& bound) {
      const std::vector<float> query = normal_rows(random, 4 * 16);
      const std::size_t fetches = slow_tier::instance().n_fetches;
      const auto [got, stats] = attend_counted(tiered, a, 0, query, bound);
      const auto [expected, plain_stats] = attend_counted(plain, b, 0, query, bound);
      CHECK(relative_error(std::span<const float>(got.out), std::span<const float>(expected.out)) <=
            1e-6);
      CHECK(stats.clusters_read == plain_stats.clusters_read);
      CHECK(stats.tokens_read == plain_stats.tokens_read);
      CHECK(stats.hits + stats.misses == plain_stats.hits);
      CHECK(plain_stats.misses == 0);
      CHECK(plain_stats.bytes_moved == 0);
      CHECK(slow_tier::instance().n_fetches - fetches >= stats.misses);
      CHECK((stats.bytes_moved == 0) == (stats.misses == 0));
      return stats;
    };
    both(150);
    compare(wavekv::exact{});
    both(100);
    const auto first = compare(wavekv::exact{});
    CHECK(first.misses > 0);
    // Every sealed row crosses at most once a step, and at least what no slot can hold.
    const std::size_t sealed_bytes = tiered.stats(a).kv_bytes;
    CHECK(first.bytes_moved <= sealed_bytes);
    const auto second = compare(wavekv::exact{});
    if (n_slots >= 500) {  // all blocks fit: nothing moves any more
      CHECK(second.misses == 0);
      CHECK(second.bytes_moved == 0);
      CHECK(slow_tier::instance().n_evictions == 0);
    } else {
      CHECK(second.misses > 0);
    }
    for (int i = 0; i < 5; ++i) {
      compare(reads_some());
      compare(wavekv::fixed_budget{0.2F, 0.5F});
      compare(verifies());
    }
    // A cut segment is read back from wherever it lies.
    tiered.truncate(a, 101);
    plain.truncate(b, 101);
    compare(wavekv::exact{});
    both(90);
    compare(wavekv::exact{});
    compare(reads_some());
    const sequence_id fork = tiered.fork(a);
    tiered.release(a);
    const std::vector<float> query = normal_rows(random, 4 * 16);
    CHECK(relative_error(std::span<const float>(attend_once(tiered, fork, 0, query).out),
                         std::span<const float>(attend_once(plain, b, 0, query).out)) <= 1e-6);
    CHECK(slow_tier::instance().n_kept == tiered.stats(fork).segments);
  }
  CHECK(slow_tier::instance().n_kept == 0);
}

}  // namespace

TEST_CASE("two tiers, inline reads, lru") {
  for (const std::size_t n_slots : {0U, 1U, 5U, 60U, 500U}) {
    check_against_resident<wavekv::wave_buffer<>::with_placement<two_tiers>>(n_slots);
  }
}

TEST_CASE("two tiers, fetches on threads of their own, first in first out") {
  using buffer = wavekv::wave_buffer<two_tiers, first_in_first_out, overlapped_transfer>;
  for (const std::size_t n_slots : {0U, 60U, 500U}) check_against_resident<buffer>(n_slots);
}

TEST_CASE("two tiers, an engine that does nothing before wait()") {
  using buffer = wavekv::wave_buffer<two_tiers, wavekv::eviction::lru, late_transfer>;
  for (const std::size_t n_slots : {5U, 60U}) check_against_resident<buffer>(n_slots);
}

TEST_CASE_TEMPLATE("a fetch that fails: io_error, and the cache answers when it is asked again",
                   Transfer, wavekv::transfer::inline_read, overlapped_transfer, late_transfer) {
  using buffer =
      typename wavekv::wave_buffer<>::with_placement<two_tiers>::template with_transfer<Transfer>;
  slow_tier::instance() = {};
  slow_tier::instance().n_slots = 3;
  cache_of<buffer> cache(small_geometry(), small_options<buffer>());
  random_engine random(43);
  const sequence_id sequence = cache.create();
  append_rows(cache, sequence, 0, normal_rows(random, 300 * 2 * 16),
              normal_rows(random, 300 * 2 * 12));
  const std::vector<float> query = normal_rows(random, 4 * 16);
  const outputs exact = attend_once(cache, sequence, 0, query, wavekv::exact{});
  for (const std::ptrdiff_t n : {0, 1, 20}) {
    slow_tier::instance().fails_after = n;
    CHECK_THROWS_AS(attend_once(cache, sequence, 0, query, wavekv::exact{}), wavekv::io_error);
    CHECK(slow_tier::instance().fails_after == -1);
    CHECK(relative_error(
              std::span<const float>(attend_once(cache, sequence, 0, query, wavekv::exact{}).out),
              std::span<const float>(exact.out)) <= 1e-6);
    slow_tier::instance().fails_after = n / 4;
    CHECK_THROWS_AS(cache.truncate(sequence, 100), wavekv::io_error);
    slow_tier::instance().fails_after = -1;
    CHECK(cache.length(sequence) == 300);
  }
}

TEST_CASE("resident never fetches") {
  using tiers_type = wavekv::placement::resident::tiers<float, wavekv::eviction::lru>;
  tiers_type tiers;
  wavekv::aligned_storage<float> rows(8);
  for (std::size_t i = 0; i < 8; ++i) rows[i] = static_cast<float>(i);
  const float* data = rows.data();
  const auto handle = tiers.keep(std::move(rows));
  CHECK(tiers.lookup(handle, {3, 2}) == data + 3);  // where they were, not copied
  float to[2];
  CHECK_THROWS_AS(tiers.fetch(handle, {3, 2}, to), wavekv::io_error);
}

TEST_CASE("block_reader hands every block on once, resident ones before those that travel") {
  using buffer = wavekv::wave_buffer<two_tiers, wavekv::eviction::lru, late_transfer>;
  slow_tier::instance() = {};
  slow_tier::instance().n_slots = 2;
  wavekv::block_reader<float, buffer> reader;
  wavekv::block_reader<float, buffer>::lane_type lane;
  wavekv::aligned_storage<float> rows(64);
  for (std::size_t i = 0; i < 64; ++i) rows[i] = static_cast<float>(i);
  const auto handle = reader.keep(std::move(rows));
  const auto read = [&](const std::vector<wavekv::block>& blocks) {
    std::vector<std::size_t> order;
    bool travelling = false;
    const wavekv::read_counts counts = reader.read(
        handle, blocks, lane,
        [&](std::size_t i, const float* block) {
          CHECK(travelling);
          order.push_back(i);
          for (std::size_t e = 0; e < blocks[i].n_elements; ++e) {
            CHECK(block[e] == static_cast<float>(blocks[i].offset + e));
          }
        },
        [&] { travelling = true; });
    return std::pair(order, counts);
  };
  auto [order, counts] = read({{0, 4}, {10, 6}});
  CHECK(order == std::vector<std::size_t>{0, 1});
  CHECK(counts.misses == 2);
  CHECK(counts.bytes_moved == 10 * sizeof(float));
  std::tie(order, counts) = read({{20, 3}, {10, 6}, {0, 4}, {30, 2}});
  CHECK(order == std::vector<std::size_t>{1, 2, 0, 3});
  CHECK(counts.hits == 2);
  CHECK(counts.misses == 2);
  CHECK(counts.bytes_moved == 5 * sizeof(float));
  std::tie(order, counts) = read({});
  CHECK(order.empty());
  CHECK(counts.hits + counts.misses == 0);
}

TEST_CASE("with_... changes one slot and names no other") {
  using buffer = wavekv::wave_buffer<>::with_eviction<first_in_first_out>::with_transfer<
      late_transfer>::with_placement<two_tiers>;
  CHECK(std::is_same_v<buffer, wavekv::wave_buffer<two_tiers, first_in_first_out, late_transfer>>);
}
