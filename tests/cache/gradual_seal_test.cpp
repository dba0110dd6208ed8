// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/executors.hpp"
#include "support/counting_new.hpp"
#include "support/model.hpp"

// A decode segment is sealed over several steps. Until it is finished its tokens are read from the tail, and what is
// made of it may be copied, dropped and made again without a trace in any answer.

using namespace wavekv_test;
using wavekv::geometry;
using wavekv::sequence_id;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<128, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<3>, wavekv::error_bound<>>;
using cache_type =
    wavekv::kv_cache<float, index_type, wavekv::wave_buffer<>, wavekv::cpu<any_executor>>;

constexpr std::size_t n_heads = 6;
constexpr std::size_t dim = 16;
constexpr std::size_t n_chores = 2 * n_heads + 1;  // of a segment, one a token
constexpr std::size_t prompt = 4 + 128 + 16;       // sink, a segment, window

geometry small_geometry(std::size_t n_layers = 1) {
  geometry sizes;
  sizes.n_layers = n_layers;
  sizes.n_query_heads = 2 * n_heads;
  sizes.n_kv_heads = n_heads;
  sizes.key_dim = sizes.value_dim = dim;
  return sizes;
}

cache_type::options_type small_options(const any_executor& executor = {}) {
  cache_type::options_type options;
  options.window_tokens = 16;
  options.executor = executor;
  options.bound.free_tokens = 8;
  options.bound.max_read = 0.1F;
  options.bound.hidden_share = 0.0F;
  return options;
}

/// The same tokens in every test: a prompt and what is decoded after it.
struct tokens {
  random_engine random{77};
  std::vector<float> keys = make_keys(random, key_family::clustered, 400, n_heads, dim);
  std::vector<float> values = normal_rows(random, 400 * n_heads * dim);
  std::vector<float> query = normal_rows(random, 2 * n_heads * dim);

  void append(cache_type& cache, sequence_id sequence, std::size_t first, std::size_t n,
              std::size_t layer = 0) const {
    cache.append(sequence, layer, tokens_of(keys, first, n, n_heads, dim),
                 tokens_of(values, first, n, n_heads, dim));
  }
  /// Tokens [first, last) one by one.
  void decode(cache_type& cache, sequence_id sequence, std::size_t first, std::size_t last,
              std::size_t layer = 0) const {
    for (std::size_t t = first; t < last; ++t) append(cache, sequence, t, 1, layer);
  }
  /// By a bound that reads everything, and by one that estimates.
  std::vector<outputs> answers(cache_type& cache, sequence_id sequence) const {
    return {attend_once(cache, sequence, 0, query, wavekv::exact{}),
            attend_once(cache, sequence, 0, query)};
  }
};

std::uint64_t n_made(const cache_type& cache, sequence_id sequence) {
  return cache.stats(sequence).chores_in_making;
}

}  // namespace

TEST_CASE(
    "a decode segment is sealed half a KV head a step, and read exactly until it is finished") {
  const tokens data;
  const geometry sizes = small_geometry();
  cache_type cache(sizes, small_options());
  const sequence_id sequence = cache.create();
  data.append(cache, sequence, 0, prompt);
  REQUIRE(cache.stats(sequence).segments == 1);
  for (std::size_t decoded = 1; decoded <= 80; ++decoded) {
    data.append(cache, sequence, prompt + decoded - 1, 1);
    // The segment is full with its 32nd token; the chores follow one by one.
    const std::size_t n_ends = decoded < 32 ? 0 : (decoded - 32) / 32 + 1;
    const std::size_t since = decoded < 32 ? 0 : (decoded - 32) % 32 + 1;
    const bool is_made = since >= n_chores;
    INFO("decoded ", decoded);
    CHECK(cache.stats(sequence).segments == 1 + n_ends - (n_ends != 0 && !is_made ? 1 : 0));
    CHECK(n_made(cache, sequence) == (is_made ? 0 : since));
    naive_layer model;
    const std::size_t n = (prompt + decoded) * n_heads * dim;
    append_naively<float>(model, std::span(data.keys).first(n), std::span(data.values).first(n));
    CHECK(largest_error(sizes, attend_once(cache, sequence, 0, data.query, wavekv::exact{}).out,
                        attend_naively(sizes, 0, model, data.query)) <= 1e-5);
  }
  // What is being made is counted, and let go of when it is done.
  const std::uint64_t idle = cache.stats(sequence).steady_bytes;
  data.decode(cache, sequence, prompt + 80, prompt + 97);
  REQUIRE(n_made(cache, sequence) == 2);
  CHECK(cache.stats(sequence).steady_bytes >= idle + 32 * n_heads * 2 * dim * sizeof(float));
  data.decode(cache, sequence, prompt + 97, prompt + 108);
  REQUIRE(n_made(cache, sequence) == 0);
  CHECK(cache.stats(sequence).steady_bytes == idle);
}

TEST_CASE("chunks, single tokens and every executor give the same, bit for bit, at every length") {
  const tokens data;
  std::vector<std::vector<outputs>> expected;
  for (const any_executor& executor : executors_to_compare()) {
    for (const std::size_t chunk : {1U, 2U, 3U, 7U, 31U}) {
      cache_type cache(small_geometry(), small_options(executor));
      const sequence_id sequence = cache.create();
      data.append(cache, sequence, 0, prompt);
      for (std::size_t t = prompt; t < prompt + 140; t += chunk) {
        data.append(cache, sequence, t, std::min(chunk, prompt + 140 - t));
        const std::size_t length = cache.length(sequence);
        if (chunk == 1 && expected.size() < 140) {
          expected.push_back(data.answers(cache, sequence));
        } else {
          INFO("chunk ", chunk, ", length ", length);
          CHECK(data.answers(cache, sequence) == expected[length - prompt - 1]);
        }
      }
    }
  }
}

TEST_CASE("a fork goes on where its parent was; parent and fork do not see each other") {
  const tokens data;
  for (std::size_t decoded = 31; decoded < 47; ++decoded) {
    cache_type cache(small_geometry(), small_options());
    const sequence_id plain = cache.create();
    const sequence_id parent = cache.create();
    for (const sequence_id sequence : {plain, parent}) {
      data.append(cache, sequence, 0, prompt);
      data.decode(cache, sequence, prompt, prompt + decoded);
    }
    const sequence_id fork = cache.fork(parent);
    CHECK(n_made(cache, fork) == n_made(cache, parent));
    const sequence_id other = cache.fork(parent);
    data.append(cache, other, 300, 9);  // other tokens after the same segment
    INFO("forked after ", decoded);
    for (std::size_t t = prompt + decoded; t < prompt + 60; ++t) {
      data.append(cache, plain, t, 1);
      data.append(cache, fork, t, 1);
      CHECK(data.answers(cache, fork) == data.answers(cache, plain));
    }
    cache.release(fork);
    cache.release(other);
    data.decode(cache, parent, prompt + decoded, prompt + 60);
    CHECK(data.answers(cache, parent) == data.answers(cache, plain));
  }
}

TEST_CASE("truncation into, before and behind a segment in the making leaves no trace") {
  const tokens data;
  for (const std::size_t decoded : {32U, 33U, 36U, 42U, 43U}) {
    for (std::size_t kept = 0; kept <= decoded; ++kept) {
      cache_type cache(small_geometry(), small_options());
      const sequence_id plain = cache.create();
      const sequence_id cut = cache.create();
      data.append(cache, plain, 0, prompt);
      data.append(cache, cut, 0, prompt);
      data.decode(cache, plain, prompt, prompt + kept);
      data.decode(cache, cut, prompt, prompt + decoded);
      cache.truncate(cut, prompt + kept);
      if (kept < 32) CHECK(n_made(cache, cut) == 0);
      // Then other tokens than those that were cut off.
      for (std::size_t i = 0; i < 45; ++i) {
        data.append(cache, plain, 320 + i, 1);
        data.append(cache, cut, 320 + i, 1);
        INFO("cut from ", decoded, " to ", kept, ", then ", i + 1, " more");
        CHECK(data.answers(cache, cut) == data.answers(cache, plain));
      }
    }
  }
}

TEST_CASE("seal and a prompt's chunk while a segment is in the making") {
  const tokens data;
  const geometry sizes = small_geometry();
  for (const std::size_t decoded : {32U, 37U, 43U}) {
    for (const std::size_t chunk : {0U, 33U, 40U, 140U}) {
      cache_type cache(sizes, small_options());
      const sequence_id sequence = cache.create();
      data.append(cache, sequence, 0, prompt);
      data.decode(cache, sequence, prompt, prompt + decoded);
      if (chunk == 0) {
        cache.seal(sequence);
      } else {
        data.append(cache, sequence, prompt + decoded, chunk);
      }
      CHECK(n_made(cache, sequence) == 0);
      CHECK(cache.length(sequence) == prompt + decoded + chunk);
      naive_layer model;
      const std::size_t n = (prompt + decoded + chunk) * n_heads * dim;
      append_naively<float>(model, std::span(data.keys).first(n), std::span(data.values).first(n));
      INFO("decoded ", decoded, ", then ", chunk);
      CHECK(largest_error(sizes, attend_once(cache, sequence, 0, data.query, wavekv::exact{}).out,
                          attend_naively(sizes, 0, model, data.query)) <= 1e-5);
    }
  }
}

TEST_CASE("memory that runs out while a segment is in the making changes nothing") {
  const tokens data;
  std::size_t n_failed = 0;
  // The step that begins a segment, one between, and the one that finishes it.
  for (const std::size_t decoded : {31U, 32U, 33U, 42U, 43U}) {
    for (std::ptrdiff_t allowed = 0;; ++allowed) {
      cache_type cache(small_geometry(), small_options());
      const sequence_id sequence = cache.create();
      data.append(cache, sequence, 0, prompt);
      data.decode(cache, sequence, prompt, prompt + decoded);
      const std::vector<outputs> before = data.answers(cache, sequence);
      const std::uint64_t segments = cache.stats(sequence).segments;
      bool failed = false;
      allocations_until_failure = allowed;
      try {
        data.append(cache, sequence, prompt + decoded, 1);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
      allocations_until_failure = -1;
      if (!failed) break;
      ++n_failed;
      INFO("decoded ", decoded, ", allocation ", allowed);
      CHECK(cache.length(sequence) == prompt + decoded);
      CHECK(cache.stats(sequence).segments == segments);
      CHECK(data.answers(cache, sequence) == before);
      // It goes on, and in the end the segment is there.
      data.decode(cache, sequence, prompt + decoded, prompt + 60);
      CHECK(cache.length(sequence) == prompt + 60);
      CHECK(cache.stats(sequence).segments == 2);
      CHECK(n_made(cache, sequence) == 0);
    }
  }
  CHECK(n_failed > 30);
}

TEST_CASE("layers seal one after the other, and none waits with a longer tail") {
  const tokens data;
  constexpr std::size_t n_layers = 4;
  cache_type cache(small_geometry(n_layers), small_options());
  const sequence_id sequence = cache.create();
  // A prompt whose end lies anywhere.
  for (std::size_t layer = 0; layer < n_layers; ++layer) {
    data.append(cache, sequence, 0, 150, layer);
  }
  cache.seal(sequence);
  std::uint64_t before = cache.stats(sequence).segments;
  for (std::size_t t = 150; t < 390; ++t) {
    std::uint64_t chores = 0;
    for (std::size_t layer = 0; layer < n_layers; ++layer) {
      const std::uint64_t made = n_made(cache, sequence);
      const std::uint64_t segments = cache.stats(sequence).segments;
      data.append(cache, sequence, t, 1, layer);
      chores +=
          n_made(cache, sequence) + n_chores * (cache.stats(sequence).segments - segments) - made;
    }
    INFO("token ", t);
    CHECK(chores <= 2);  // in all layers together, which have 52 of them and 32 tokens
    const std::uint64_t now = cache.stats(sequence).segments;
    CHECK(now - before <= 1);
    before = now;
  }
  CHECK(before >= n_layers * (1 + 240 / 32 - 1));
}

TEST_CASE("sizes of decode segments: every layer ends at its own turn") {
  using sizes = wavekv::segment_size<8192, 1024>;
  const auto size = [](std::size_t first, std::size_t pending, std::size_t layer) {
    return wavekv::detail::decode_seal_size<sizes>(first, pending, layer, 32);
  };
  for (std::size_t layer = 0; layer < 32; ++layer) {
    for (const std::size_t first : {0U, 1U, 500U, 1023U, 8192U, 8192U + 777U}) {
      std::size_t due = 1;
      while (size(first, due, layer) == 0) ++due;
      CHECK(size(first, due, layer) == due);  // all that waits
      CHECK(due >= 512);
      CHECK(due <= 1024 + 512);
      CHECK((first + due) % 1024 == 32 * layer);
      CHECK(size(first + due, 1023, layer) == 0);
      CHECK(size(first + due, 1024, layer) == 1024);
      CHECK(size(first, due + 5000, layer) == due + 4096);  // a prompt's rest: one segment
    }
  }
}
