// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <future>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <unistd.h>

#include <wavekv/buffer/memory_store.hpp>
#include <wavekv/buffer/tiered.hpp>
#include <wavekv/wavekv.hpp>

#include "support/tiered_cache.hpp"

// Blocks in two tiers: what is shared is shared in both of them, and what is given up is gone from both; what several
// threads do at once; files that change. That answers are those of a resident cache: tiered_agreement_test.cpp; stores
// that fail: tiered_failures_test.cpp.

using namespace wavekv_test;
using namespace wavekv_test::tiered;
namespace eviction = wavekv::eviction;
namespace fs = std::filesystem;
namespace placement = wavekv::placement;
namespace transfer = wavekv::transfer;

namespace {

using over_memory = placement::tiered_over<wavekv::memory_store>;

// A file on threads as a server would have it, and memory where the store does not matter.
using file_buffer = wavekv::wave_buffer<placement::tiered, eviction::lru, transfer::threads>;
using memory_buffer = wavekv::wave_buffer<over_memory, eviction::lru, transfer::inline_read>;

constexpr std::size_t all_of_it = std::size_t{8} << 20U;

placement::tiered::options_type in_file(const fs::path& path, std::size_t fast_bytes) {
  placement::tiered::options_type options;
  options.fast_bytes = fast_bytes;
  options.store.path = path;
  return options;
}

}  // namespace

TEST_CASE("what was wrong with the options, or with the place of the file, is said when the cache "
          "is made") {
  const scratch_folder directory;
  const auto make = [](const placement::tiered::options_type& options) {
    const cache_of<file_buffer> cache(small_geometry(), small_options<file_buffer>(options));
  };
  CHECK_THROWS_AS(make(in_file(directory.path(), (std::size_t{1} << 46U) + 1)),
                  wavekv::config_error);
  CHECK_THROWS_AS(make(in_file({}, 1000)), wavekv::config_error);
  CHECK_THROWS_AS(make(in_file(directory.path() / "none" / "blocks", 1000)), wavekv::io_error);
  std::ofstream(directory.path() / "mine") << "a user's";
  CHECK_THROWS_AS(make(in_file(directory.path() / "mine", 1000)), wavekv::io_error);
  CHECK(fs::file_size(directory.path() / "mine") == 8);
  make(in_file(directory.path() / "blocks", 0));
  CHECK_FALSE(fs::exists(directory.path() / "blocks"));
}

TEST_CASE("layers of several sequences in one cache do not meet") {
  const scratch_folder directory;
  twins<file_buffer> both(in_file(directory.path(), 20000), {}, 3);
  for (int i = 0; i < 3; ++i) both.create();
  for (std::size_t layer = 0; layer < 3; ++layer) {
    for (std::size_t s = 0; s < 3; ++s) both.append(s, 100 + 40 * s, SIZE_MAX, layer);
  }
  for (int i = 0; i < 4; ++i) {
    for (std::size_t layer = 0; layer < 3; ++layer) {
      both.prefill(i % 3, 20, layer);
      for (std::size_t s = 0; s < 3; ++s) {
        both.compare(s, reads_some(), make_queries(both.random), layer);
        both.compare(s, wavekv::exact{}, make_queries(both.random), layer);
      }
      both.compare_batch({{0, 1}, {1, 1}, {2, 1}}, reads_some(), layer);
    }
    both.cache.flush();
  }
  both.truncate(1, 90);
  for (std::size_t layer = 0; layer < 3; ++layer) {
    both.compare(1, wavekv::exact{}, make_queries(both.random), layer);
  }
}

TEST_CASE("forks share blocks in both tiers") {
  twins<memory_buffer> both([] {
    over_memory::options_type options;
    options.fast_bytes = all_of_it;
    return options;
  }());
  const std::size_t parent = both.create();
  both.append(parent, 300);
  both.cache.flush();
  const std::uint64_t written = both.tiers().written_bytes;
  const std::vector<float> query = make_queries(both.random);
  CHECK(both.compare(parent, wavekv::exact{}, query).misses > 0);
  const std::size_t child = both.fork(parent);
  CHECK(both.compare(child, wavekv::exact{}, query).misses == 0);
  CHECK(both.compare(child, reads_some(), query).misses == 0);
  both.cache.flush();
  CHECK(both.tiers().written_bytes == written);  // nothing is there twice
  both.release(parent);
  CHECK(both.compare(child, wavekv::exact{}, query).misses == 0);  // their slots stay
  const std::size_t grandchild = both.fork(child);
  both.append(grandchild, 64);
  both.cache.flush();
  CHECK(both.tiers().written_bytes == written + 64 * token_bytes);
  const wavekv::step_stats own = both.compare(grandchild, wavekv::exact{}, query);
  CHECK(own.misses > 0);  // its own segment only
  CHECK(own.bytes_moved == 64 * token_bytes);
  CHECK(both.tiers().evictions == 0);
}

TEST_CASE("a sequence that is released gives back its space in the file, and its slots") {
  const scratch_folder directory;
  const fs::path name = directory.path() / "blocks";
  constexpr std::size_t n_tokens = 16 + 4 + 3 * 64;
  // Slots for two such sequences, and some that blocks leave unfilled.
  twins<file_buffer> both(in_file(name, 12 * 3 * 64 * token_bytes));
  const std::size_t stays = both.create();
  both.append(stays, n_tokens);
  both.cache.flush();
  both.compare(stays, wavekv::exact{});
  const std::vector<float> query = make_queries(both.random);
  std::uintmax_t after_some = 0;
  for (int round = 0; round < 200; ++round) {
    const std::size_t s = both.create();
    both.append(s, n_tokens);
    if (round % 3 != 0) both.cache.flush();  // else it is released while it is written
    if (round % 5 == 0) both.compare(s, wavekv::exact{}, query);
    both.release(s);
    if (round % 20 == 19) {
      both.cache.flush();
      const wavekv::step_stats kept = both.compare(stays, wavekv::exact{}, query);
      CHECK(kept.misses == 0);
      if (after_some == 0) after_some = fs::file_size(name);
      CHECK(fs::file_size(name) <= 2 * after_some);
    }
  }
  CHECK(both.tiers().evictions == 0);  // there was always room
  CHECK(both.tiers().refusals == 0);
  // Five sequences at most were there at any time, written or on their way.
  CHECK(fs::file_size(name) <= 5 * 3 * (64 * token_bytes + 4096));
}

TEST_CASE("rows that nobody wants any more when their turn comes are not written") {
  over_memory::options_type options;
  cache_of<memory_buffer> cache(small_geometry(), small_options<memory_buffer>(options));
  random_engine random(72);
  const token_rows tokens = make_tokens(random, 16 + 4 + 50 * 64);
  for (int i = 0; i < 20; ++i) {
    const sequence_id s = cache.create();
    append_rows(cache, s, 0, tokens.keys, tokens.values);
    cache.release(s);
  }
  cache.flush();
  CHECK(cache.stats().tiers.waiting_bytes == 0);
  CHECK(cache.stats().tiers.written_bytes <= 20U * 50 * 64 * token_bytes);
  CHECK(cache.stats().sequences == 0);
}

TEST_CASE("the next step's blocks are fetched while an engine computes something else") {
  over_memory::options_type options;
  options.fast_bytes = 60000;
  twins<memory_buffer> both(options);
  const std::size_t s = both.create();
  const std::size_t other = both.create();
  both.append(s, 400);
  both.append(other, 400);
  both.cache.flush();
  const std::vector<float> query = make_queries(both.random);
  CHECK(both.compare(s, reads_some(), query).misses > 0);
  const auto crowd_out = [&] {
    for (int i = 0; i < 3; ++i) both.compare(other, wavekv::exact{});
  };
  // The same query wants the same blocks: a step begins their reads itself,
  crowd_out();
  const wavekv::step_stats alone = both.compare(s, reads_some(), query);
  CHECK(alone.misses > 0);
  CHECK(alone.prefetched > 0);
  // or they are there before it begins.
  crowd_out();
  both.cache.prefetch(both.sequences[s].first, 0);
  const wavekv::step_stats ahead = both.compare(s, reads_some(), query);
  CHECK(ahead.misses == 0);
  CHECK(ahead.prefetched == 0);
  // Whatever happens to the sequence meanwhile.
  for (int i = 0; i < 6; ++i) {
    crowd_out();
    both.cache.prefetch(both.sequences[s].first, 0);
    both.cache.prefetch(both.sequences[s].first, 0);
    if (i == 0) both.append(s, 40);
    if (i == 1) both.truncate(s, 100);
    if (i == 2) both.seal(s);
    if (i == 3) both.truncate(s, 4);
    if (i == 4) both.compare(both.fork(s));
    if (i == 5) both.release(s);
    if (i != 5) both.compare(s);
  }
  CHECK_THROWS_AS(both.cache.prefetch(both.sequences[s].first, 0), wavekv::sequence_error);
  CHECK_THROWS_AS(both.cache.prefetch(both.sequences[other].first, 1), wavekv::shape_error);
}

TEST_CASE(
    "a smaller segment where a larger one was: what the step before used is not looked for in it") {
  over_memory::options_type options;
  options.fast_bytes = 0;
  twins<memory_buffer> both(options);
  wavekv::error_bound<> reads_all = reads_some();
  reads_all.epsilon = 1e-7F;
  reads_all.max_read = 1.0F;
  reads_all.free_tokens = 1000;
  const std::size_t s = both.create();
  for (int i = 0; i < 50; ++i) {  // some time the allocator gives it the same address
    both.append(s, 16 + 4 + 2 * 64);
    both.cache.flush();
    both.compare(s, reads_all);
    both.truncate(s, 4);
    if (i % 2 == 0) {
      both.append(s, 34);
      both.seal(s);
      both.cache.flush();
    }
    if (i % 4 < 2) both.cache.prefetch(both.sequences[s].first, 0);
    both.compare(s, reads_all);
    both.truncate(s, 0);
  }
}

TEST_CASE("a block in the file that has changed, and a file that was cut short") {
  const scratch_folder directory;
  const fs::path name = directory.path() / "blocks";
  for (const bool direct : {true, false}) {
    CAPTURE(direct);
    placement::tiered::options_type options = in_file(name, 0);
    options.store.direct = direct;
    twins<file_buffer> both(options);
    const std::size_t a = both.create();
    const std::size_t b = both.create();
    both.append(a, 16 + 4 + 64);
    both.cache.flush();
    const std::uintmax_t end_of_a = (fs::file_size(name) + 4095) / 4096 * 4096;
    both.append(b, 16 + 4 + 2 * 64);
    both.cache.flush();
    const auto message = [&](std::size_t s, const auto& bound) -> std::string {
      try {
        attend_once(both.cache, both.sequences[s].first, 0, make_queries(both.random), bound);
      } catch (const wavekv::io_error& error) {
        return error.what();
      }
      return {};
    };
    const auto flip = [&](std::uintmax_t at) {
      std::fstream file(name, std::ios::binary | std::ios::in | std::ios::out);
      file.seekg(static_cast<std::streamoff>(at));
      const auto byte = static_cast<char>(file.get() ^ 0x40);
      file.seekp(static_cast<std::streamoff>(at));
      file.put(byte);
    };
    both.compare(a);
    both.compare(b);
    const std::uintmax_t second_of_b = end_of_a + (64 * token_bytes + 4095) / 4096 * 4096;
    for (const std::uintmax_t at : {end_of_a, end_of_a + 5000, second_of_b + 100}) {
      flip(at);
      const std::string said = message(b, wavekv::exact{});
      CHECK(said.find("checksum") != std::string::npos);
      CHECK(said.find("allowed") != std::string::npos);
      both.compare(a);
      CHECK_THROWS_AS(both.cache.truncate(both.sequences[b].first, at < second_of_b ? 30 : 100),
                      wavekv::format_error);
      CHECK(both.length(b) == 16 + 4 + 2 * 64);
      flip(at);
      both.compare(b);
    }
    fs::resize_file(name, end_of_a);
    const std::string said = message(b, wavekv::exact{});
    CHECK(said.find("read") != std::string::npos);
    CHECK(said.find(name.string()) != std::string::npos);
    CHECK(message(b, verifies()).find("read") != std::string::npos);
    both.compare(a);
    both.append(b, 20, 1);  // what needs no read goes on
    CHECK(both.length(b) == 40 + 2 * 64);
    both.release(b);
    both.append(a, 200);
    both.compare(a);
    both.cache.flush();
    both.compare(a);
  }
}

TEST_CASE("statistics of the whole cache add up") {
  over_memory::options_type options;
  options.fast_bytes = 20000;
  options.write_back_bytes = 1000;
  twins<memory_buffer> both(options);
  wavekv::step_stats sum;
  std::uint64_t n_steps = 0;
  for (int i = 0; i < 3; ++i) {
    const std::size_t s = both.create();
    both.append(s, 200);
    both.cache.flush();
    for (int step = 0; step < 5; ++step) {
      sum += both.compare(s, reads_some());
      ++n_steps;
    }
    if (i != 0) both.release(s);
  }
  const wavekv::cache_statistics seen = both.cache.stats();
  CHECK(seen.sequences == 1);
  CHECK(seen.steps == n_steps);
  CHECK(seen.total.hits == sum.hits);
  CHECK(seen.total.misses == sum.misses);
  CHECK(seen.total.prefetched == sum.prefetched);
  CHECK(seen.total.bytes_moved == sum.bytes_moved);
  CHECK(seen.total.stall_ns == sum.stall_ns);
  CHECK(seen.tiers.cache_bytes > 10000);
  CHECK(seen.tiers.cache_bytes <= 20000);
  CHECK(seen.tiers.written_bytes == 3 * 2 * 64 * token_bytes);
  CHECK(seen.tiers.waiting_bytes == 0);
  CHECK(seen.tiers.write_failures == 0);
  const wavekv::cache_statistics plain = both.plain.stats();
  CHECK(plain.total.misses == 0);
  CHECK(plain.tiers.cache_bytes + plain.tiers.written_bytes == 0);
}

TEST_CASE("several threads, each with sequences of its own, over one cache with hardly any room") {
  const scratch_folder directory;
  // What one user does: the answers, in order.
  const auto use = [](auto& cache, std::uint64_t seed, std::size_t layer, bool flushes) {
    random_engine random(seed);
    std::vector<outputs> seen;
    const auto append = [&](sequence_id s, std::size_t n, std::size_t chunk) {
      const token_rows tokens = make_tokens(random, n);
      append_rows(cache, s, layer, tokens.keys, tokens.values, chunk);
    };
    const auto ask = [&](sequence_id s) {
      const std::vector<float> query = make_queries(random);
      seen.push_back(attend_once(cache, s, layer, query, reads_some()));
      seen.push_back(attend_once(cache, s, layer, query, wavekv::exact{}));
      seen.push_back(attend_once(cache, s, layer, query, some_budget));
    };
    for (int round = 0; round < 3; ++round) {
      const sequence_id s = cache.create();
      append(s, 180, 90);
      ask(s);
      if constexpr (requires { cache.flush(); }) {
        if (flushes) cache.flush();
      }
      for (int step = 0; step < 12; ++step) {
        append(s, 3, 1);
        cache.prefetch(s, layer);
        ask(s);
      }
      const sequence_id fork = cache.fork(s);
      append(s, 70, 70);
      cache.truncate(fork, 100);
      ask(fork);
      ask(s);
      cache.release(s);
      append(fork, 40, 1);
      ask(fork);
      cache.release(fork);
    }
    return seen;
  };
  for (const std::size_t fast_bytes : {std::size_t{0}, std::size_t{2500}, std::size_t{30000}}) {
    placement::tiered::options_type options = in_file(directory.path(), fast_bytes);
    options.write_back_bytes = 64 * token_bytes;
    cache_of<file_buffer> together(small_geometry(2), small_options<file_buffer>(options));
    constexpr std::size_t n_users = 4;
    std::vector<std::vector<outputs>> seen(n_users);
    std::atomic<bool> done{false};
    std::atomic<bool> is_bounded{true};
    std::vector<std::thread> users;
    for (std::size_t i = 0; i < n_users; ++i) {
      users.emplace_back([&, i] { seen[i] = use(together, 500 + i, i % 2, i == 1); });
    }
    std::thread watcher([&] {
      while (!done) {
        // One segment of a truncation's or a prompt's is as large as it gets.
        if (together.stats().tiers.waiting_bytes > 130 * token_bytes) is_bounded = false;
        std::this_thread::yield();
      }
    });
    for (std::thread& user : users) user.join();
    done = true;
    watcher.join();
    CHECK(is_bounded);
    CHECK(together.stats().sequences == 0);
    together.flush();
    CHECK(together.stats().tiers.waiting_bytes == 0);
    plain_cache alone(small_geometry(2), small_options<wavekv::wave_buffer<>>());
    for (std::size_t i = 0; i < n_users; ++i) {
      const std::vector<outputs> expected = use(alone, 500 + i, i % 2, false);
      REQUIRE(seen[i].size() == expected.size());
      double worst = 0.0;
      for (std::size_t k = 0; k < expected.size(); ++k) {
        worst = std::max(worst, distance(seen[i][k], expected[k]));
      }
      CHECK(worst <= tolerance);
    }
  }
}

TEST_CASE("what is sealed is written, though others read it all the time") {
  over_memory::options_type options;
  options.fast_bytes = 20000;
  cache_of<memory_buffer> cache(small_geometry(), small_options<memory_buffer>(options));
  random_engine random(73);
  const token_rows tokens = make_tokens(random, 16 + 4 + 30 * 64);
  const std::vector<float> query = make_queries(random);
  const sequence_id first = cache.create();
  std::vector<sequence_id> forks;
  append_rows(cache, first, 0, tokens.keys, tokens.values);
  for (int i = 0; i < 4; ++i) forks.push_back(cache.fork(first));
  const outputs expected = attend_once(cache, first, 0, query, wavekv::exact{});
  std::atomic<bool> done{false};
  std::atomic<int> n_wrong{0};
  std::vector<std::thread> readers;
  for (const sequence_id fork : forks) {
    readers.emplace_back([&, fork] {
      while (!done) {
        if (distance(attend_once(cache, fork, 0, query, wavekv::exact{}), expected) > tolerance) {
          ++n_wrong;
        }
      }
    });
  }
  auto written = std::async(std::launch::async, [&] { cache.flush(); });
  const bool in_time = written.wait_for(std::chrono::seconds(60)) == std::future_status::ready;
  done = true;
  for (std::thread& reader : readers) reader.join();
  written.get();
  CHECK(in_time);
  CHECK(n_wrong == 0);
  CHECK(cache.stats().tiers.waiting_bytes == 0);
}

// Below the cache: what the tiers promise to whoever else uses them.

TEST_CASE("rows leave memory though there never is a moment in which nobody reads them") {
  using tiers_type = over_memory::tiers<float, eviction::lru>;
  over_memory::options_type options;
  options.fast_bytes = 0;
  tiers_type tiers(options, key_dim, value_dim);
  constexpr std::size_t n_tokens = 2000;
  const wavekv::block whole{0, 0, n_tokens};
  wavekv::aligned_storage<float> rows(n_tokens * (key_dim + value_dim));
  std::fill_n(rows.data(), rows.size(), 1.5F);
  const tiers_type::handle kept = tiers.keep(std::move(rows), std::span(&whole, 1));
  std::atomic<bool> done{false};
  std::atomic<int> n_wrong{0};
  std::atomic<bool> begun{false};
  std::thread reader([&] {
    tiers_type::lease held = tiers.look_up(kept, whole);
    begun = true;
    while (held) {
      const tiers_type::lease next = tiers.look_up(kept, whole);
      tiers.for_runs(held, n_tokens, [&](const wavekv::token_run<float>& run) {
        if (run.keys[0] != 1.5F || run.values[run.n * value_dim - 1] != 1.5F) ++n_wrong;
      });
      tiers.release(std::span(&held, 1));
      held = next;
      if (done && held) {
        tiers.release(std::span(&held, 1));
        return;
      }
    }
  });
  while (!begun) std::this_thread::yield();
  auto written = std::async(std::launch::async, [&] { tiers.flush(); });
  const bool in_time = written.wait_for(std::chrono::seconds(60)) == std::future_status::ready;
  done = true;
  reader.join();
  written.get();
  CHECK(in_time);
  CHECK(n_wrong == 0);
  CHECK_FALSE(tiers.look_up(kept, whole));
}

TEST_CASE_TEMPLATE(
    "reads name the file where there is one, and bring rows at any place and alignment", Store,
    wavekv::memory_store, wavekv::file_store) {
  using tiers_type = typename placement::tiered_over<Store>::template tiers<float, eviction::lru>;
  typename placement::tiered_over<Store>::options_type options;
  options.fast_bytes = 100000;
  tiers_type tiers(options, key_dim, value_dim);
  random_engine random(74);
  std::vector<wavekv::block> blocks;
  std::size_t n_elements = 0;
  for (std::size_t i = 0; i < 60; ++i) {
    blocks.push_back({i, n_elements, 1 + random() % 40});
    n_elements += blocks.back().n_tokens * (key_dim + value_dim);
  }
  const std::vector<float> expected = normal_rows(random, n_elements);
  wavekv::aligned_storage<float> rows(n_elements);
  std::ranges::copy(expected, rows.data());
  const auto kept = tiers.keep(std::move(rows), blocks);
  const auto copy = kept;  // of the name, not of the rows
  CHECK(tiers.checksums(kept).size() == blocks.size());
  for (const wavekv::block& one : blocks) {
    CHECK(tiers.checksums(kept)[one.index] ==
          wavekv::block_checksum(std::as_bytes(
              std::span(expected).subspan(one.offset, one.n_tokens * (key_dim + value_dim)))));
  }
  tiers.flush();
  CHECK(tiers.stats().written_bytes == n_elements * sizeof(float));
  const std::size_t unit = tiers.alignment();
  CHECK(unit == tiers.store().alignment());
  std::vector<std::byte> memory((n_elements * sizeof(float) / unit + 3) * unit);
  const auto at = reinterpret_cast<std::uintptr_t>(memory.data());
  std::byte* aligned = memory.data() + ((at + unit - 1) / unit * unit - at);
  for (int i = 0; i < 30; ++i) {
    const std::size_t begin = random() % (n_elements * sizeof(float)) / unit * unit;
    const std::size_t n =
        (1 + random() % (n_elements * sizeof(float) - begin) + unit - 1) / unit * unit;
    const wavekv::slow_read read = tiers.fetch(copy, begin, std::span(aligned, n));
    CHECK((read.file >= 0) == wavekv::file_backed<Store>);
    if (read.file >= 0 && i % 2 == 0) {  // by other means
      REQUIRE(::pread(read.file, read.to.data(), read.to.size(),
                      static_cast<off_t>(read.file_offset)) == static_cast<ssize_t>(n));
    } else {
      read();
    }
    const std::size_t n_rows_bytes = std::min(n, n_elements * sizeof(float) - begin);
    CHECK(std::equal(aligned, aligned + n_rows_bytes,
                     std::as_bytes(std::span(expected)).begin() +
                         static_cast<std::ptrdiff_t>(begin)));
  }
  // The rows live as long as one name of them.
  tiers.admit(kept, blocks[0], expected.data());
  CHECK(tiers.holds(copy, blocks[0]));
  auto last = copy;
  const_cast<std::remove_const_t<decltype(kept)>&>(kept) = {};
  const_cast<std::remove_const_t<decltype(copy)>&>(copy) = {};
  CHECK(tiers.holds(last, blocks[0]));
  std::vector<float> got(n_elements);
  tiers.copy(last, 0, got);
  CHECK(got == expected);
}

TEST_CASE("rows in a file of another's making are read where they lie") {
  const scratch_folder directory;
  const fs::path name = directory.path() / "saved";
  random_engine random(75);
  const std::vector<wavekv::block> blocks = {{0, 0, 9}, {1, 9 * 28, 100}, {2, 109 * 28, 3}};
  const std::vector<float> expected = normal_rows(random, 112 * 28);
  std::vector<std::uint32_t> checksums;
  for (const wavekv::block& one : blocks) {
    checksums.push_back(wavekv::block_checksum(
        std::as_bytes(std::span(expected).subspan(one.offset, one.n_tokens * 28))));
  }
  const std::size_t n_bytes = expected.size() * sizeof(float);
  const std::size_t n_pages = (n_bytes + 4095) / 4096;
  {
    std::ofstream file(name, std::ios::binary);
    file << std::string(2 * 4096, 'x');
    file.write(reinterpret_cast<const char*>(expected.data()),
               static_cast<std::streamsize>(n_bytes));
    file << std::string(n_pages * 4096 - n_bytes, '\0');
  }
  using tiers_type = placement::tiered::tiers<float, eviction::lru>;
  tiers_type tiers(in_file(directory.path(), 50000), key_dim, value_dim);
  const auto read = [&](const tiers_type::handle& rows, const wavekv::block& one) {
    const std::size_t unit = tiers.alignment();
    const std::size_t begin = one.offset * sizeof(float) / unit * unit;
    const std::size_t end =
        ((one.offset + one.n_tokens * 28) * sizeof(float) + unit - 1) / unit * unit;
    wavekv::aligned_storage<std::byte> memory(end - begin + unit);
    const auto at = reinterpret_cast<std::uintptr_t>(memory.data());
    std::byte* to = memory.data() + ((at + unit - 1) / unit * unit - at);
    tiers.fetch(rows, begin, std::span(to, end - begin))();
    const auto* arrived = reinterpret_cast<const float*>(to + (one.offset * sizeof(float) - begin));
    tiers.check(rows, one, arrived);
    tiers.admit(rows, one, arrived);
    return std::equal(arrived, arrived + one.n_tokens * 28,
                      expected.begin() + static_cast<std::ptrdiff_t>(one.offset));
  };
  {
    const auto file = tiers.open(name);
    const auto rows = tiers.adopt(file, 2 * 4096, n_bytes, checksums);
    for (const wavekv::block& one : blocks) {
      CHECK_FALSE(tiers.holds(rows, one));
      CHECK(read(rows, one));
      const auto lease = tiers.look_up(rows, one);
      CHECK(lease);
      tiers.release(std::span(&lease, 1));
    }
    tiers.flush();
    CHECK(tiers.stats().written_bytes == 0);
    // Of the same file with other checksums: found out when a block arrives.
    std::vector<std::uint32_t> others = checksums;
    ++others[1];
    const auto suspect = tiers.adopt(file, 2 * 4096, n_bytes, others);
    CHECK(read(suspect, blocks[0]));
    CHECK_THROWS_AS(read(suspect, blocks[1]), wavekv::format_error);
    std::string said;
    try {
      read(suspect, blocks[1]);
    } catch (const wavekv::format_error& error) {
      said = error.what();
    }
    CHECK(said.find(name.string()) != std::string::npos);
    CHECK(said.find("block 1") != std::string::npos);
    CHECK(said.find(std::to_string(checksums[1])) != std::string::npos);
    CHECK_THROWS_AS((void)tiers.adopt(file, 100, n_bytes, checksums), wavekv::io_error);
    CHECK_THROWS_AS((void)tiers.adopt(file, 3 * 4096, n_bytes, checksums), wavekv::io_error);
  }
  CHECK_THROWS_AS((void)tiers.open(directory.path() / "none"), wavekv::io_error);
  CHECK(fs::file_size(name) == (2 + n_pages) * 4096);
}
