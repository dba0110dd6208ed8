// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <new>
#include <numeric>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/buffers.hpp"
#include "archetypes/clusterers.hpp"
#include "support/model.hpp"
#include "support/partial_bounds.hpp"

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
typename cache_of<Buffer>::options_type small_options(std::size_t n_slots = 4) {
  typename cache_of<Buffer>::options_type options;
  options.window_tokens = 16;
  if constexpr (requires { options.placement.n_slots; }) options.placement.n_slots = n_slots;
  return options;
}

/// The same calls on a resident cache and on one with a slow tier; answers may differ by the order of sums.
template <class Buffer>
void check_against_resident(std::size_t n_slots) {
  slow_tier& tier = slow_tier::instance() = {};
  {
    using resident = wavekv::wave_buffer<>;
    cache_of<Buffer> tiered(small_geometry(), small_options<Buffer>(n_slots));
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
      const std::size_t reads = tier.n_reads;
      const auto [got, stats] = attend_counted(tiered, a, 0, query, bound);
      const auto [expected, plain_stats] = attend_counted(plain, b, 0, query, bound);
      CHECK(relative_error(std::span<const float>(got.out), std::span<const float>(expected.out)) <=
            1e-6);
      CHECK(stats.clusters_read == plain_stats.clusters_read);
      CHECK(stats.tokens_read == plain_stats.tokens_read);
      CHECK(stats.hits + stats.misses == plain_stats.hits);
      // What was fetched ahead may not have been wanted.
      CHECK(stats.prefetched_in_vain <= stats.prefetched);
      CHECK(stats.prefetched <= stats.misses + stats.prefetched_in_vain);
      CHECK(plain_stats.misses == 0);
      CHECK(plain_stats.prefetched == 0);
      CHECK(plain_stats.bytes_moved == 0);
      CHECK(plain_stats.stall_ns == 0);
      const std::uint64_t n_fetched = stats.misses + stats.prefetched_in_vain;
      CHECK(tier.n_reads - reads <= n_fetched);  // neighbours travel together
      CHECK((tier.n_reads == reads) == (n_fetched == 0));
      CHECK((stats.bytes_moved == 0) == (n_fetched == 0));
      CHECK(tier.n_leases == 0);
      return stats;
    };
    both(150);
    compare(wavekv::exact{});
    both(100);
    const auto first = compare(wavekv::exact{});
    CHECK(first.misses > 0);
    CHECK(first.prefetched == 0);
    // Every sealed row crosses at most once a step, and at least what no slot can hold.
    const std::size_t sealed_bytes = tiered.stats(a).kv_bytes;
    CHECK(first.bytes_moved <= sealed_bytes);
    if (n_slots == 0) CHECK(first.bytes_moved == sealed_bytes);
    const auto second = compare(wavekv::exact{});
    if (n_slots >= 500) {  // all blocks fit: nothing moves any more
      CHECK(second.misses == 0);
      CHECK(second.bytes_moved == 0);
      CHECK(tier.n_evictions == 0);
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
    CHECK(tier.n_leases == 0);
    compare(wavekv::exact{});
    both(90);
    compare(wavekv::exact{});
    compare(reads_some());
    const sequence_id fork = tiered.fork(a);
    tiered.release(a);
    const std::vector<float> query = normal_rows(random, 4 * 16);
    CHECK(relative_error(std::span<const float>(attend_once(tiered, fork, 0, query).out),
                         std::span<const float>(attend_once(plain, b, 0, query).out)) <= 1e-6);
    CHECK(tier.n_kept == tiered.stats(fork).segments);
  }
  CHECK(tier.n_kept == 0);
  CHECK(tier.n_leases == 0);
}

}  // namespace

TEST_CASE("two tiers, inline reads, lru") {
  for (const std::size_t n_slots : {0U, 1U, 5U, 60U, 500U}) {
    check_against_resident<wavekv::wave_buffer<>::with_placement<two_tiers>>(n_slots);
  }
}

TEST_CASE("two tiers, reads on threads of their own, first in first out") {
  using buffer = wavekv::wave_buffer<two_tiers, first_in_first_out, overlapped_transfer>;
  for (const std::size_t n_slots : {0U, 60U, 500U}) check_against_resident<buffer>(n_slots);
}

TEST_CASE("two tiers, an engine that does nothing before next()") {
  using buffer = wavekv::wave_buffer<two_tiers, wavekv::eviction::lru, late_transfer>;
  for (const std::size_t n_slots : {5U, 60U}) check_against_resident<buffer>(n_slots);
}

TEST_CASE_TEMPLATE("a read that fails: io_error, and the cache answers when it is asked again",
                   Transfer, wavekv::transfer::inline_read, overlapped_transfer, late_transfer) {
  using buffer =
      typename wavekv::wave_buffer<>::with_placement<two_tiers>::template with_transfer<Transfer>;
  slow_tier& tier = slow_tier::instance() = {};
  cache_of<buffer> cache(small_geometry(), small_options<buffer>(3));
  random_engine random(43);
  const sequence_id sequence = cache.create();
  append_rows(cache, sequence, 0, normal_rows(random, 300 * 2 * 16),
              normal_rows(random, 300 * 2 * 12));
  const std::vector<float> query = normal_rows(random, 4 * 16);
  const auto check = [&](const auto& bound, std::initializer_list<std::ptrdiff_t> places) {
    const outputs expected = attend_once(cache, sequence, 0, query, bound);
    for (const std::ptrdiff_t n : places) {
      const std::size_t steps = cache.stats(sequence).steps;
      tier.fails_after = n;
      CHECK_THROWS_AS(attend_once(cache, sequence, 0, query, bound), wavekv::io_error);
      CHECK(tier.fails_after == -1);
      CHECK(tier.n_leases == 0);
      CHECK(cache.stats(sequence).steps == steps);
      CHECK(
          relative_error(std::span<const float>(attend_once(cache, sequence, 0, query, bound).out),
                         std::span<const float>(expected.out)) <= 1e-6);
      CHECK(tier.n_leases == 0);
      tier.fails_after = n == 0 ? 0 : 1;  // a segment's two heads are read
      CHECK_THROWS_AS(cache.truncate(sequence, 100), wavekv::io_error);
      CHECK(tier.n_leases == 0);
      tier.fails_after = -1;
      CHECK(cache.length(sequence) == 300);
    }
  };
  check(wavekv::exact{}, {0, 1, 6});
  check(reads_some(), {0, 1, 4});
  check(verifies(), {0, 1, 4, 12});
}

TEST_CASE("resident never fetches") {
  using tiers_type = wavekv::placement::resident::tiers<float, wavekv::eviction::lru>;
  using reader_type = wavekv::block_reader<float, wavekv::wave_buffer<>>;
  tiers_type tiers({}, 3, 1);
  wavekv::aligned_storage<float> rows(12);
  for (std::size_t i = 0; i < 12; ++i) rows[i] = static_cast<float>(i);
  const float* data = rows.data();
  const wavekv::block blocks[] = {{0, 0, 1}, {1, 4, 2}};
  const auto handle = tiers.keep(std::move(rows), blocks);
  const auto lease = tiers.look_up(handle, blocks[1]);
  CHECK(lease);
  int n_runs = 0;
  tiers.for_runs(lease, 2, [&](const wavekv::token_run<float>& run) {
    CHECK(run.keys == data + 4);  // where they were, not copied
    CHECK(run.values == data + 4 + 6);
    CHECK(run.n == 2);
    ++n_runs;
  });
  CHECK(n_runs == 1);
  tiers.release(std::span(&lease, 1));
  float part[3];
  tiers.copy(handle, 7, part);
  CHECK(part[0] == 7.0F);
  CHECK(part[2] == 9.0F);
  static_assert(reader_type::always_fast);
  static_assert(!wavekv::slow_block_tiers<tiers_type, float>);  // it could not
}

namespace {

/// A late_transfer that knows what is under way.
class counted_transfer : public late_transfer {
 public:
  static inline std::size_t n_under_way = 0;
  static inline std::size_t n_bytes_under_way = 0;
  static inline std::size_t most_bytes_under_way = 0;
  static inline std::size_t largest_read = 0;

  void start(const wavekv::slow_read& read, std::size_t tag) {
    late_transfer::start(read, tag);
    sizes_[tag] = read.to.size();
    ++n_under_way;
    n_bytes_under_way += read.to.size();
    most_bytes_under_way = std::max(most_bytes_under_way, n_bytes_under_way);
    largest_read = std::max(largest_read, read.to.size());
  }
  std::size_t next() {
    const std::size_t tag = late_transfer::next();
    --n_under_way;
    n_bytes_under_way -= sizes_.at(tag);
    return tag;
  }

 private:
  std::map<std::size_t, std::size_t> sizes_;
};

/// One segment's blocks in two tiers, whose elements are their own indices, and a reader of them.
struct read_segment {
  using buffer = wavekv::wave_buffer<two_tiers, wavekv::eviction::lru, counted_transfer>;
  using reader_type = wavekv::block_reader<float, buffer>;
  static constexpr std::size_t key_dim = 3;
  static constexpr std::size_t value_dim = 2;

  explicit read_segment(const std::vector<std::size_t>& tokens, std::size_t n_slots = 2)
      : reader({n_slots}, key_dim, value_dim) {
    slow_tier::instance() = {};
    counted_transfer::most_bytes_under_way = counted_transfer::largest_read = 0;
    std::size_t offset = 0;
    for (const std::size_t n : tokens) {
      blocks.push_back({blocks.size(), offset, n});
      offset += n * (key_dim + value_dim);
    }
    REQUIRE(offset < (1U << 24U));  // a float tells them apart
    wavekv::aligned_storage<float> rows(offset);
    for (std::size_t i = 0; i < offset; ++i) rows[i] = static_cast<float>(i);
    handle = reader.keep(std::move(rows), blocks);
  }

  /// Whether runs show a block, all of it.
  [[nodiscard]] bool shows(std::size_t b, std::span<const wavekv::token_run<float>> runs) const {
    std::size_t key = blocks[b].offset;
    std::size_t value = key + blocks[b].n_tokens * key_dim;
    std::size_t n = 0;
    for (const auto& run : runs) {
      for (std::size_t i = 0; i < run.n * key_dim; ++i) {
        if (run.keys[i] != static_cast<float>(key++)) return false;
      }
      for (std::size_t i = 0; i < run.n * value_dim; ++i) {
        if (run.values[i] != static_cast<float>(value++)) return false;
      }
      n += run.n;
    }
    return n == blocks[b].n_tokens;
  }

  /// Reads some blocks at once; returns the places in which they were handed on.
  std::pair<std::vector<std::size_t>, wavekv::read_counts> read(
      const std::vector<std::size_t>& wanted) {
    std::vector<wavekv::block> chosen;
    for (const std::size_t b : wanted) chosen.push_back(blocks[b]);
    std::vector<std::size_t> order;
    const wavekv::read_counts counts = reader.read(
        handle, chosen, lane, [&](std::size_t i, std::span<const wavekv::token_run<float>> runs) {
          order.push_back(i);
          CHECK(shows(wanted[i], runs));
        });
    CHECK(counted_transfer::n_under_way == 0);
    CHECK(slow_tier::instance().n_leases == 0);
    return {order, counts};
  }

  [[nodiscard]] std::size_t bytes_of(std::size_t b) const {
    return blocks[b].n_tokens * (key_dim + value_dim) * sizeof(float);
  }

  reader_type reader;
  reader_type::lane_type lane;
  std::vector<wavekv::block> blocks;
  reader_type::handle handle;
};

std::vector<std::size_t> sorted(std::vector<std::size_t> order) {
  std::ranges::sort(order);
  return order;
}

std::vector<std::size_t> all_up_to(std::size_t n) {
  std::vector<std::size_t> all(n);
  std::iota(all.begin(), all.end(), std::size_t{0});
  return all;
}

}  // namespace

TEST_CASE("block_reader hands every block on once, those that are found before those that travel") {
  read_segment segment({4, 1, 6, 2, 3, 9, 5});
  auto [order, counts] = segment.read({0, 2});
  CHECK(sorted(order) == std::vector<std::size_t>{0, 1});
  CHECK(counts.hits == 0);
  CHECK(counts.misses == 2);
  CHECK(counts.prefetched == 0);
  CHECK(counts.bytes_moved == segment.bytes_of(0) + segment.bytes_of(2));
  CHECK(slow_tier::instance().n_reads == 2);  // they are no neighbours
  std::tie(order, counts) = segment.read({4, 2, 0, 6});
  REQUIRE(order.size() == 4);
  CHECK(order[0] == 1);
  CHECK(order[1] == 2);
  CHECK(sorted(order) == all_up_to(4));
  CHECK(counts.hits == 2);
  CHECK(counts.misses == 2);
  CHECK(counts.bytes_moved == segment.bytes_of(4) + segment.bytes_of(6));
  std::tie(order, counts) = segment.read({});
  CHECK(order.empty());
  CHECK(counts.hits + counts.misses + counts.bytes_moved == 0);
  std::tie(order, counts) = segment.read({5, 5, 5});  // a sampler may draw a block more than once
  CHECK(sorted(order) == all_up_to(3));
  CHECK(counts.hits + counts.misses == 3);
  CHECK(counts.bytes_moved == segment.bytes_of(5));
}

TEST_CASE("what is found can be attended right after start, while nothing has travelled yet") {
  read_segment segment({4, 1, 6, 2, 3, 9, 5}, 3);
  segment.read({1, 3, 5});
  const std::size_t n_reads = slow_tier::instance().n_reads;
  auto& [reader, lane, blocks, handle] = segment;
  reader.open(lane);
  for (const std::size_t b : {0U, 1U, 2U, 3U, 4U, 5U, 6U}) {
    reader.look_up(lane, handle, blocks[b], 100 + b);
  }
  CHECK(slow_tier::instance().n_leases == 3);
  reader.start(lane);
  CHECK(slow_tier::instance().n_reads == n_reads);
  REQUIRE(lane.found.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(lane.found[i].tag == 100 + 2 * i + 1);
    CHECK(segment.shows(2 * i + 1, lane.runs_of(i)));
  }
  CHECK(reader.counts(lane).hits == 3);
  std::vector<std::size_t> arrived;
  for (auto some = reader.next(lane); !some.empty(); some = reader.next(lane)) {
    for (const auto& one : some) {
      arrived.push_back(one.tag - 100);
      CHECK(segment.shows(arrived.back(), std::span(&one.tokens, 1)));
    }
  }
  CHECK(sorted(arrived) == std::vector<std::size_t>{0, 2, 4, 6});
  CHECK(reader.next(lane).empty());
  for (std::size_t i = 0; i < 3; ++i) CHECK(segment.shows(2 * i + 1, lane.runs_of(i)));
  reader.close(lane);
  CHECK(slow_tier::instance().n_leases == 0);
}

TEST_CASE("a reading that needs more than a lane has is served in rounds") {
  constexpr std::size_t lane_bytes = read_segment::reader_type::lane_bytes;
  constexpr std::size_t most_read_bytes = read_segment::reader_type::most_read_bytes;
  random_engine random(45);
  // Thousands of blocks of any size; all, every other one, in no order, some of them in the fast tier.
  std::vector<std::size_t> tokens(2000);
  for (std::size_t& n : tokens) n = 1 + random() % 150;
  for (const std::size_t n_slots : {0U, 100U}) {
    read_segment segment(tokens, n_slots);
    std::vector<std::size_t> wanted = all_up_to(tokens.size());
    auto [order, counts] = segment.read(wanted);
    CHECK(sorted(order) == wanted);
    std::size_t all_bytes = 0;
    for (const std::size_t b : wanted) all_bytes += segment.bytes_of(b);
    CHECK(counts.bytes_moved == all_bytes);
    CHECK(all_bytes > 2 * lane_bytes);
    CHECK(counted_transfer::most_bytes_under_way <= lane_bytes);
    CHECK(counted_transfer::most_bytes_under_way > lane_bytes / 2);  // both halves of it
    CHECK(counted_transfer::largest_read <= most_read_bytes);
    CHECK(slow_tier::instance().n_reads < tokens.size() / 10);
    std::erase_if(wanted, [](std::size_t b) { return b % 2 == 0; });
    std::tie(order, counts) = segment.read(wanted);
    CHECK(sorted(order) == all_up_to(wanted.size()));
    std::ranges::shuffle(wanted, random);
    std::tie(order, counts) = segment.read(wanted);
    CHECK(sorted(order) == all_up_to(wanted.size()));
    CHECK(counts.hits <= n_slots);
    CHECK(counted_transfer::most_bytes_under_way <= lane_bytes);
  }
  // Blocks that are larger than half a lane, and than a lane.
  read_segment large({5, 30000, 2, 60000, 60000, 1, 100000, 7, 3}, 4);
  for (int i = 0; i < 3; ++i) {
    const auto [order, counts] = large.read(all_up_to(9));
    CHECK(sorted(order) == all_up_to(9));
    CHECK(counts.hits + counts.misses == 9);
  }
  CHECK(counted_transfer::most_bytes_under_way <=
        large.bytes_of(6) + lane_bytes + large.bytes_of(3));
}

TEST_CASE("a reading may be abandoned anywhere") {
  std::vector<std::size_t> tokens(300, 100);
  read_segment segment(tokens, 5);
  segment.read({10, 20, 30});
  auto& [reader, lane, blocks, handle] = segment;
  for (const int n_taken : {-3, -2, -1, 0, 1, 2, 5, 1000}) {
    CAPTURE(n_taken);
    reader.open(lane);
    const std::size_t n_wanted = n_taken == -3 ? 0 : n_taken == -2 ? 15 : tokens.size();
    for (std::size_t b = 0; b < n_wanted; ++b) reader.look_up(lane, handle, blocks[b], b);
    if (n_taken >= -1) reader.start(lane);
    for (int i = 0; i < n_taken && !reader.next(lane).empty(); ++i) {}
    reader.abandon(lane);
    reader.abandon(lane);  // nothing is left to do
    CHECK(counted_transfer::n_under_way == 0);
    CHECK(slow_tier::instance().n_leases == 0);
    const auto [order, counts] = segment.read({1, 10, 290, 291});
    CHECK(sorted(order) == all_up_to(4));
  }
  // The reader's own way out, when a read fails or the caller throws.
  for (const std::ptrdiff_t n : {0, 3, 4}) {
    slow_tier::instance().fails_after = n;
    CHECK_THROWS_AS(segment.read(all_up_to(300)), wavekv::io_error);
    CHECK(counted_transfer::n_under_way == 0);
    CHECK(slow_tier::instance().n_leases == 0);
    CHECK_THROWS_AS(reader.read(handle, blocks, lane,
                                [&](std::size_t i, auto) {
                                  if (i == 20 * static_cast<std::size_t>(n)) throw std::bad_alloc();
                                }),
                    std::bad_alloc);
    CHECK(counted_transfer::n_under_way == 0);
    CHECK(slow_tier::instance().n_leases == 0);
    CHECK(sorted(segment.read(all_up_to(300)).first) == all_up_to(300));
  }
}

TEST_CASE("a reader that admits nothing leaves the fast tier as it is") {
  read_segment segment({4, 1, 6, 2, 3, 9, 5}, 3);
  segment.read({0, 1, 2});
  segment.lane.admits = false;
  CHECK(segment.read({3, 4, 5, 6}).second.misses == 4);
  segment.lane.admits = true;
  CHECK(segment.read({0, 1, 2}).second.misses == 0);
  CHECK(segment.read({3}).second.misses == 1);
  CHECK(slow_tier::instance().n_evictions == 1);
}

TEST_CASE(
    "blocks that are fetched ahead: handed on if they are wanted, and in the fast tier later") {
  read_segment segment({4, 1, 6, 2, 3, 9, 5, 8, 2, 2}, 10);
  segment.read({1});
  auto& [reader, lane, blocks, handle] = segment;
  const auto fetch_ahead = [&](const std::vector<std::size_t>& which) {
    reader.open(lane);
    reader.prefetch(lane, which.size(),
                    [&](std::size_t i) { return std::pair(&handle, blocks[which[i]]); });
  };
  const auto finish = [&](const std::vector<std::size_t>& wanted) {
    for (const std::size_t b : wanted) reader.look_up(lane, handle, blocks[b], b);
    reader.start(lane);
    std::vector<std::size_t> seen;
    for (std::size_t i = 0; i < lane.found.size(); ++i) {
      seen.push_back(lane.found[i].tag);
      CHECK(segment.shows(seen.back(), lane.runs_of(i)));
    }
    for (auto some = reader.next(lane); !some.empty(); some = reader.next(lane)) {
      for (const auto& one : some) {
        seen.push_back(one.tag);
        CHECK(segment.shows(one.tag, std::span(&one.tokens, 1)));
      }
    }
    const wavekv::read_counts counts = reader.close(lane);
    CHECK(counted_transfer::n_under_way == 0);
    CHECK(slow_tier::instance().n_leases == 0);
    CHECK(sorted(seen) == sorted(wanted));
    return counts;
  };
  fetch_ahead({0, 1, 2, 5});
  CHECK(counted_transfer::n_under_way == 3);  // one is there
  wavekv::read_counts counts = finish({0, 1, 4, 5, 6});
  CHECK(counts.hits == 1);
  CHECK(counts.prefetched == 3);
  CHECK(counts.prefetched_in_vain == 1);
  CHECK(counts.misses == 4);
  CHECK(counts.bytes_moved == segment.bytes_of(0) + segment.bytes_of(2) + segment.bytes_of(4) +
                                  segment.bytes_of(5) + segment.bytes_of(6));
  fetch_ahead({3, 7});
  CHECK(counted_transfer::n_under_way == 2);
  counts = finish({0});  // nothing of it is wanted
  CHECK(counts.hits == 1);
  CHECK(counts.misses == 0);
  CHECK(counts.prefetched == 2);
  CHECK(counts.prefetched_in_vain == 2);
  CHECK(counts.bytes_moved == segment.bytes_of(3) + segment.bytes_of(7));
  CHECK(segment.read({2, 3, 7}).second.misses == 3);  // which blocks are kept is no guess
  fetch_ahead({0, 3, 7});                             // all is there
  CHECK(counted_transfer::n_under_way == 0);
  finish({3});
  fetch_ahead({8});
  CHECK(counted_transfer::n_under_way == 1);
  reader.abandon(lane);
  CHECK(counted_transfer::n_under_way == 0);
  CHECK(segment.read({8}).second.misses == 1);
  fetch_ahead({});
  finish({9, 3});

  // No more than half a lane is fetched ahead.
  std::vector<std::size_t> tokens(2000, 100);
  read_segment many(tokens, 10);
  many.reader.open(many.lane);
  many.reader.prefetch(many.lane, tokens.size(),
                       [&](std::size_t i) { return std::pair(&many.handle, many.blocks[i]); });
  CHECK(counted_transfer::most_bytes_under_way <= read_segment::reader_type::lane_bytes / 2);
  CHECK(counted_transfer::most_bytes_under_way > read_segment::reader_type::lane_bytes / 4);
  many.reader.abandon(many.lane);
  CHECK(sorted(many.read(all_up_to(2000)).first) == all_up_to(2000));
}

TEST_CASE("with_... changes one slot and names no other") {
  using buffer = wavekv::wave_buffer<>::with_eviction<first_in_first_out>::with_transfer<
      late_transfer>::with_placement<two_tiers>;
  CHECK(std::is_same_v<buffer, wavekv::wave_buffer<two_tiers, first_in_first_out, late_transfer>>);
}
