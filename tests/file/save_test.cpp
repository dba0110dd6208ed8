// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/clusterers.hpp"
#include "support/model.hpp"
#include "support/partial_bounds.hpp"
#include "support/saved_file.hpp"

// Sequences that go to a file and come back: whole, from the same and from other placements, or not at all.

using namespace wavekv_test;
using wavekv::geometry;
using wavekv::sequence_id;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<3>, wavekv::error_bound<>>;
template <class Buffer, class Index = index_type, wavekv::scalar S = float>
using cache_of = wavekv::kv_cache<S, Index, Buffer, wavekv::cpu<wavekv::serial_executor>>;

using resident = wavekv::wave_buffer<>;
using in_memory = wavekv::wave_buffer<wavekv::placement::tiered_over<wavekv::memory_store>>;
using in_file = wavekv::wave_buffer<wavekv::placement::tiered>;

geometry small_geometry() {
  geometry sizes;
  sizes.n_layers = 2;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 16;
  sizes.value_dim = 12;
  return sizes;
}

template <class Cache>
typename Cache::options_type small_options() {
  typename Cache::options_type options;
  options.window_tokens = 16;
  if constexpr (requires { options.placement.fast_bytes; }) {
    options.placement.fast_bytes = 20000;
    options.placement.write_back_bytes = 1;
  }
  return options;
}

/// Layers of different lengths, taught by queries.
template <class Cache>
sequence_id fill(Cache& cache, std::uint64_t seed, std::size_t n = 300) {
  const geometry& sizes = cache.geometry();
  const sequence_id sequence = cache.create();
  random_engine random(seed);
  for (std::size_t layer = 0; layer < sizes.n_layers; ++layer, n += 7) {
    const auto keys = make_keys(random, key_family::clustered, n, sizes.n_kv_heads, sizes.key_dim);
    const auto values = normal_rows(random, n * sizes.n_kv_heads * sizes.value_dim);
    const auto queries = normal_rows(random, n * sizes.n_query_heads * sizes.key_dim);
    cache.append(sequence, layer, tokens_of(keys, 0, n, sizes.n_kv_heads, sizes.key_dim),
                 tokens_of(values, 0, n, sizes.n_kv_heads, sizes.value_dim),
                 tokens_of(queries, 0, n, sizes.n_query_heads, sizes.key_dim));
  }
  return sequence;
}

/// Answers of every layer, estimated and exact.
template <class Cache>
std::vector<outputs> answers(Cache& cache, sequence_id sequence, std::uint64_t seed = 9) {
  const geometry& sizes = cache.geometry();
  random_engine random(seed);
  std::vector<outputs> all;
  for (std::size_t layer = 0; layer < sizes.n_layers; ++layer) {
    const auto query = normal_rows(random, sizes.n_query_heads * sizes.key_dim);
    all.push_back(attend_once(cache, sequence, layer, query, reads_some()));
    all.push_back(attend_once(cache, sequence, layer, query, wavekv::exact{}));
  }
  return all;
}

void check_close(const std::vector<outputs>& seen, const std::vector<outputs>& expected) {
  REQUIRE(seen.size() == expected.size());
  for (std::size_t i = 0; i < seen.size(); ++i) {
    CHECK(relative_error(std::span<const float>(seen[i].out),
                         std::span<const float>(expected[i].out)) <= 1e-5);
  }
}

template <class Error, class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& other) {
    return std::string("another error: ") + other.what();
  }
  return "no error";
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("resident: what was saved comes back bit for bit, and grows on") {
  const scratch_folder folder;
  cache_of<resident> cache(small_geometry(), small_options<cache_of<resident>>());
  const sequence_id saved = fill(cache, 11);
  cache.save(saved, folder / "a", "some model");
  const sequence_id loaded = cache.load(folder / "a", "some model");
  CHECK(loaded != saved);
  CHECK(cache.length(loaded, 0) == cache.length(saved, 0));
  CHECK(cache.length(loaded, 1) == cache.length(saved, 1));
  CHECK(cache.stats(loaded).clusters == cache.stats(saved).clusters);
  CHECK(cache.stats(loaded).index_bytes == cache.stats(saved).index_bytes);
  CHECK(answers(cache, loaded) == answers(cache, saved));
  // The query metric and the covariances came along: segments sealed from now on are the same, too.
  for (const sequence_id each : {saved, loaded}) {
    random_engine random(12);
    const auto keys = normal_rows(random, 200 * 2 * 16);
    const auto values = normal_rows(random, 200 * 2 * 12);
    for (std::size_t layer = 0; layer < 2; ++layer) append_rows(cache, each, layer, keys, values);
    cache.seal(each);
  }
  CHECK(answers(cache, loaded) == answers(cache, saved));
  cache.truncate(loaded, 150);
  cache.truncate(saved, 150);
  CHECK(answers(cache, loaded) == answers(cache, saved));
  // A second save of the loaded one is the same file.
  cache.save(saved, folder / "b");
  cache.save(loaded, folder / "c");
  CHECK(bytes_of(folder / "b") == bytes_of(folder / "c"));
  CHECK_FALSE(std::filesystem::exists(folder / "b.saving"));
}

TEST_CASE("a file from one placement is loaded by all others; a decode segment in the making is "
          "made again") {
  const scratch_folder folder;
  cache_of<resident> plain(small_geometry(), small_options<cache_of<resident>>());
  const sequence_id original = fill(plain, 13);
  // Decode until a segment is in the making.
  random_engine random(14);
  while (plain.stats(original).chores_in_making == 0) {
    const auto keys = normal_rows(random, 2 * 16);
    const auto values = normal_rows(random, 2 * 12);
    for (std::size_t layer = 0; layer < 2; ++layer)
      append_rows(plain, original, layer, keys, values);
  }
  const auto expected = answers(plain, original);
  plain.save(original, folder / "a");
  const auto check = [&](auto& cache) {
    const sequence_id loaded = cache.load(folder / "a");
    check_close(answers(cache, loaded), expected);
    const auto other = folder / "b";
    cache.save(loaded, other);  // from wherever its rows are
    CHECK(bytes_of(other) == bytes_of(folder / "a"));
    cache.flush();
    const sequence_id again = cache.load(other);
    cache.release(loaded);
    check_close(answers(cache, again), expected);
    const auto keys = normal_rows(random, 100 * 2 * 16);
    const auto values = normal_rows(random, 100 * 2 * 12);
    for (std::size_t layer = 0; layer < 2; ++layer) append_rows(cache, again, layer, keys, values);
    CHECK(cache.length(again, 0) == plain.length(original, 0) + 100);
    answers(cache, again);
  };
  cache_of<in_memory> memory(small_geometry(), small_options<cache_of<in_memory>>());
  check(memory);
  cache_of<in_file> file(small_geometry(), small_options<cache_of<in_file>>());
  check(file);
}

TEST_CASE("a saved file is the slow tier itself, and outlives being replaced and removed") {
  const scratch_folder folder;
  cache_of<in_file> cache(small_geometry(), small_options<cache_of<in_file>>());
  const sequence_id original = fill(cache, 15);
  const auto expected = answers(cache, original);
  cache.save(original, folder / "a");
  cache.flush();
  const std::uint64_t written = cache.stats().tiers.written_bytes;
  const sequence_id loaded = cache.load(folder / "a");
  cache.flush();
  CHECK(cache.stats().tiers.written_bytes == written);  // nothing was copied
  const sequence_id other = fill(cache, 16, 200);
  cache.save(other, folder / "a");  // takes the name; the loaded sequence keeps the file it had
  check_close(answers(cache, loaded), expected);
  std::filesystem::remove(folder / "a");
  check_close(answers(cache, cache.fork(loaded)), expected);
  cache.save(loaded, folder / "a");
  cache.release(loaded);
  check_close(answers(cache, cache.load(folder / "a")), expected);
}

TEST_CASE("what a cache may hold: nothing, a tail alone, other scalars, the engine's own bytes") {
  const scratch_folder folder;
  cache_of<resident> cache(small_geometry(), small_options<cache_of<resident>>());
  const sequence_id empty = cache.create();
  const std::vector<std::byte> engine = {std::byte{1}, std::byte{2}, std::byte{3}};
  cache.save(empty, folder / "empty", "m", engine);
  std::vector<std::byte> back = {std::byte{9}};
  CHECK(cache.length(cache.load(folder / "empty", "m", &back)) == 0);
  CHECK(back == engine);
  const sequence_id tail = fill(cache, 17, 10);
  cache.save(tail, folder / "tail");
  CHECK(answers(cache, cache.load(folder / "tail")) == answers(cache, tail));

  using narrow = cache_of<in_file, index_type, wavekv::bf16>;
  narrow small(small_geometry(), small_options<narrow>());
  const sequence_id sequence = fill(small, 18);
  small.save(sequence, folder / "bf16");
  check_close(answers(small, small.load(folder / "bf16")), answers(small, sequence));
}

namespace {
std::atomic<int> n_clustered{0};
struct counted_runs : wavekv::consecutive {
  std::size_t cluster(const wavekv::cluster_request& request, std::span<std::uint32_t> ids,
                      wavekv::clustering_scratch& scratch) const {
    ++n_clustered;
    return wavekv::consecutive::cluster(request, ids, scratch);
  }
};
}  // namespace

TEST_CASE("nothing is clustered again") {
  const scratch_folder folder;
  using counted = cache_of<resident, index_type::with_clusterer<counted_runs>>;
  counted cache(small_geometry(), small_options<counted>());
  const sequence_id sequence = fill(cache, 19);
  cache.save(sequence, folder / "a");
  const int before = n_clustered;
  CHECK(before > 0);
  answers(cache, cache.load(folder / "a"));
  CHECK(n_clustered == before);
}

TEST_CASE("another model, geometry, scalar or index: mismatch_error that names what differs") {
  const scratch_folder folder;
  cache_of<resident> cache(small_geometry(), small_options<cache_of<resident>>());
  cache.save(fill(cache, 20), folder / "a", "one");
  CHECK(contains(message_of<wavekv::mismatch_error>([&] { cache.load(folder / "a", "two"); }),
                 "\"model one\"; allowed: \"model two\""));
  const auto refused = [&]<class Cache>(Cache& other, std::string_view part) {
    const std::string message =
        message_of<wavekv::mismatch_error>([&] { other.load(folder / "a", "one"); });
    CAPTURE(message);
    CHECK(contains(message, part));
    CHECK(contains(message, (folder / "a").string()));
    CHECK(other.stats().sequences == 0);
  };
  const auto with_geometry = [&](auto&& change, std::string_view part) {
    geometry sizes = small_geometry();
    change(sizes);
    cache_of<resident> other(sizes, small_options<cache_of<resident>>());
    refused(other, part);
  };
  with_geometry([](geometry& g) { g.n_layers = 3; }, "\"n_layers 2\"; allowed: \"n_layers 3\"");
  with_geometry([](geometry& g) { g.n_query_heads = 8; }, "n_query_heads");
  with_geometry([](geometry& g) { g.n_kv_heads = 4; }, "n_kv_heads");
  with_geometry([](geometry& g) { g.key_dim = 8; }, "key_dim");
  with_geometry([](geometry& g) { g.value_dim = 16; }, "value_dim");
  with_geometry([](geometry& g) { g.scale = 0.3F; }, "\"scale 0.25\"; allowed: \"scale 0.3\"");
  with_geometry([](geometry& g) { g.logit_softcap = 30.0F; }, "logit_softcap");
  with_geometry([](geometry& g) { g.sink_logits.assign(8, 0.5F); }, "sink_logits");
  auto options = small_options<cache_of<resident>>();
  options.sink_tokens = 8;
  cache_of<resident> other_sink(small_geometry(), options);
  refused(other_sink, "sink_tokens");
  const auto with_type = [&]<class Cache>(std::string_view part) {
    Cache other(small_geometry(), small_options<Cache>());
    refused(other, part);
  };
  with_type.operator()<cache_of<resident, index_type, wavekv::bf16>>("scalar");
  with_type
      .operator()<cache_of<resident, index_type::with_segment_size<wavekv::segment_size<64, 16>>>>(
          "segment_size");
  with_type.
  operator()<cache_of<resident, index_type::with_cluster_count<wavekv::tokens_per_cluster<4>>>>(
      "tokens_per_cluster");
  with_type.operator()<cache_of<resident, index_type::with_clusterer<wavekv::spherical_kmeans<3>>>>(
      "clusterer");
  // Another bound reads the same file.
  using exact_cache = cache_of<resident, index_type::with_bound<wavekv::exact>>;
  exact_cache exact(small_geometry(), small_options<exact_cache>());
  CHECK(exact.length(exact.load(folder / "a", "one")) == 300);
  CHECK(answers(cache, cache.load(folder / "a", "one")).size() == 4);  // it was not hurt
}

TEST_CASE(
    "files that are none, of another version, or cut short: typed errors that name file and part") {
  const scratch_folder folder;
  cache_of<resident> cache(small_geometry(), small_options<cache_of<resident>>());
  const sequence_id sequence = fill(cache, 21);
  const auto path = folder / "a";
  cache.save(sequence, path);
  const file_bytes whole = bytes_of(path);
  const auto before = answers(cache, sequence);
  CHECK(contains(message_of<wavekv::io_error>([&] { cache.load(folder / "nothing"); }), "open"));
  CHECK(contains(message_of<wavekv::io_error>([&] { cache.load(folder / ""); }), "no ordinary"));
  CHECK_THROWS_AS(cache.save(sequence, folder / "no/such/folder"), wavekv::io_error);
  CHECK_THROWS_AS(cache.save({77, 1}, path), wavekv::sequence_error);
  const auto loads = [&](const file_bytes& bytes) {
    write_bytes(path, bytes);
    return message_of<wavekv::format_error>([&] { cache.load(path); });
  };
  CHECK(contains(loads({}), "header"));
  CHECK(contains(loads(file_bytes(5000, std::byte{7})), "does not begin"));
  file_bytes other = whole;
  auto header = header_of(other);
  header.version = 2;
  header.checksum = header.checksum_due();
  std::memcpy(other.data(), &header, sizeof header);
  CHECK(contains(loads(other), "version is 2; allowed: 1"));
  random_engine random(22);
  for (std::size_t i = 0; i < 200; ++i) {
    const std::size_t n = i < whole.size() / 4096 ? i * 4096 : random() % whole.size();
    const std::string message = loads(file_bytes(whole.begin(), whole.begin() + n));
    CAPTURE(message);
    CHECK(contains(message, "header: "));
    CHECK(contains(message, path.string()));
  }
  other = whole;
  other.resize(whole.size() + 1);
  CHECK(contains(loads(other), "which were written"));
  CHECK(cache.stats().sequences == 1);
  CHECK(answers(cache, sequence) == before);  // others are untouched
  write_bytes(path, whole);
  CHECK(answers(cache, cache.load(path)) == before);
}

TEST_CASE("a part that is there twice, missing, or elsewhere") {
  const scratch_folder folder;
  cache_of<resident> cache(small_geometry(), small_options<cache_of<resident>>());
  const auto path = folder / "a";
  cache.save(fill(cache, 23), path);
  const file_bytes whole = bytes_of(path);
  const auto parts = parts_of(whole);
  const auto with_table = [&](auto&& change) {
    file_bytes other = whole;
    auto table = table_of(other);
    change(table);
    std::memcpy(other.data() + parts[1].offset, table.data(), parts[1].n_bytes);
    auto header = header_of(other);
    header.table_checksum = wavekv::checksum(std::as_bytes(std::span(table)));
    header.checksum = header.checksum_due();
    std::memcpy(other.data(), &header, sizeof header);
    write_bytes(path, other);
    return message_of<wavekv::format_error>([&] { cache.load(path); });
  };
  using table_type = std::vector<wavekv::detail::table_entry>;
  CHECK(contains(with_table([](table_type& t) { t[2] = t[3]; }), "twice"));
  CHECK(contains(with_table([](table_type& t) { t[0].layer = 5; }), "fingerprint: is missing"));
  CHECK(contains(with_table([](table_type& t) { t.back().kind = 77; }), "whose parts"));
  CHECK(contains(with_table([](table_type& t) { t[t.size() - 2].kind = 77; }), "is missing"));
  CHECK(contains(with_table([](table_type& t) { t[1].offset += 8; }), "whole pages"));
  CHECK(contains(with_table([](table_type& t) { t[3].n_bytes = ~0ULL; }), "inside the file"));
  CHECK(contains(with_table([](table_type& t) { t[3].offset = 1ULL << 60U; }), "inside the file"));
}

TEST_CASE("two saves to one name at once: the second is refused, the first is whole") {
  const scratch_folder folder;
  cache_of<resident> cache(small_geometry(), small_options<cache_of<resident>>());
  const sequence_id sequence = fill(cache, 24);
  {
    wavekv::replacing_file other(folder / "a");
    CHECK(contains(message_of<wavekv::io_error>([&] { cache.save(sequence, folder / "a"); }),
                   "another save"));
  }
  std::vector<std::thread> threads;
  std::atomic<int> n_saved{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        try {
          cache.save(sequence, folder / "a");
          ++n_saved;
        } catch (const wavekv::io_error&) {  // refused
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(n_saved > 0);
  CHECK(answers(cache, cache.load(folder / "a")) == answers(cache, sequence));
}

// Not under the thread sanitizer, which does not follow a fork.
#if defined(__SANITIZE_THREAD__)
#define WAVEKV_NO_FORK
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WAVEKV_NO_FORK
#endif
#endif
#if !defined(WAVEKV_NO_FORK)

TEST_CASE("no space for the file: io_error, and the old file is as it was") {
  const scratch_folder folder;
  cache_of<resident> cache(small_geometry(), small_options<cache_of<resident>>());
  const sequence_id old = fill(cache, 25, 100);
  const sequence_id larger = fill(cache, 26, 400);
  cache.save(old, folder / "a");
  const file_bytes before = bytes_of(folder / "a");
  // A limit on the size of files stands in for a full disk; in a process of its own.
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    int status = 0;
    for (const std::size_t limit :
         {std::size_t{0}, std::size_t{1}, std::size_t{5000}, before.size() / 2, before.size()}) {
      const rlimit few{limit, limit + (std::size_t{1} << 30U)};
      ::setrlimit(RLIMIT_FSIZE, &few);
      const std::string message =
          message_of<wavekv::io_error>([&] { cache.save(larger, folder / "a"); });
      if (!contains(message, "cannot") || std::filesystem::exists(folder / "a.saving")) status = 1;
    }
    ::_exit(status);
  }
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(bytes_of(folder / "a") == before);
}

TEST_CASE("a process killed at any point of save: the old file or the new one, never a part") {
  const scratch_folder folder;
  cache_of<resident> cache(small_geometry(), small_options<cache_of<resident>>());
  const sequence_id one = fill(cache, 27);
  const sequence_id two = fill(cache, 28, 280);
  cache.save(one, folder / "one");
  cache.save(two, folder / "two");
  const file_bytes as_one = bytes_of(folder / "one");
  const file_bytes as_two = bytes_of(folder / "two");
  cache.save(one, folder / "a");
  random_engine random(29);
  int n_one = 0;
  int n_two = 0;
  for (int i = 0; i < 120; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      for (;;) {
        cache.save(two, folder / "a");
        cache.save(one, folder / "a");
      }
    }
    ::usleep(static_cast<useconds_t>(random() % 6000));
    ::kill(child, SIGKILL);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    const file_bytes now = bytes_of(folder / "a");
    n_one += now == as_one ? 1 : 0;
    n_two += now == as_two ? 1 : 0;
    REQUIRE((now == as_one || now == as_two));
    if (i % 20 == 0) CHECK(cache.length(cache.load(folder / "a"), 0) >= 280);
  }
  MESSAGE("found the first ", n_one, " times, the second ", n_two, " times");
  cache.save(two, folder / "a");  // what was left of a killed save is in nobody's way
  CHECK(bytes_of(folder / "a") == as_two);
}
#endif
