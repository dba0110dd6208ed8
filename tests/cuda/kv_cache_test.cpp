// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "cuda/small_device_cache.hpp"

// What only a cache on a device does: sealing beside decoding, several streams, workspaces, and what it tells late.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::query_run;
using wavekv::sequence_id;
using wavekv::testing::emulated_event;
using wavekv::testing::emulated_runtime;
using wavekv::testing::emulated_stream;
using wavekv::testing::emulation_options;
using wavekv::testing::schedule;

namespace {

using cache_type = small_device_cache<bf16>;

emulation_options emulation_of(std::uint64_t seed, schedule order = schedule::forwards) {
  emulation_options emulation;
  emulation.seed = seed;
  emulation.order = order;
  return emulation;
}

/// Two sequences, a prompt and decoded tokens, nothing waited for until the end: all answers on the way.
std::vector<float> decode(const emulation_options& emulation) {
  const wavekv::geometry sizes = small_device_geometry(2);
  const emulated_runtime runtime(emulation);
  const host_tokens tokens(sizes, 300, 5);
  cache_type cache(sizes, small_device_options<cache_type>(runtime));
  caller calls(cache, runtime.make_stream());
  const sequence_id a = cache.create(calls.stream());
  const sequence_id b = cache.create(calls.stream());
  for (std::size_t layer = 0; layer < 2; ++layer) calls.append(a, layer, tokens, 0, 90);
  std::vector<device_rows<emulated_runtime>> answers;
  for (std::size_t t = 0; t < 90; ++t) {
    for (std::size_t layer = 0; layer < 2; ++layer) {
      const query_run batch[] = {{a, 1}, {b, 1}};
      calls.append(batch, layer, tokens, 90 + t);
      if (t % 3 == 0) answers.push_back(calls.attend(a, layer, tokens, t));
      if (t % 3 == 1) answers.push_back(calls.attend(b, layer, tokens, t));
    }
  }
  CHECK(cache.stats(a, calls.stream()).segments >= 2 * (1 + 2));
  std::vector<float> all;
  for (auto& answer : answers) {
    const std::vector<float> floats = answer.read(calls.stream());
    all.insert(all.end(), floats.begin(), floats.end());
  }
  CHECK(cache.collect(calls.stream()).clusters_estimated > 0);
  cache.synchronize(calls.stream());
  return all;
}

}  // namespace

TEST_CASE("answers do not depend on when the side stream runs, nor on the order of blocks") {
  emulation_options in_turn;
  in_turn.streams_in_turn = true;
  const std::vector<float> expected = decode(in_turn);
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    constexpr schedule orders[] = {schedule::forwards, schedule::backwards, schedule::random};
    INFO("seed ", seed);
    CHECK(same_bits(decode(emulation_of(seed, orders[seed % 3])), expected));
  }
}

TEST_CASE("a segment is published at a fixed length, however tokens are split over calls") {
  const wavekv::geometry sizes = small_device_geometry();
  const host_tokens tokens(sizes, 200, 6);
  std::map<std::size_t, std::uint64_t> segments_at;  // by the length when a call began
  for (const std::size_t chunk : {1U, 2U, 5U, 13U, 31U}) {
    const emulated_runtime runtime(emulation_of(chunk));
    cache_type cache(sizes, small_device_options<cache_type>(runtime));
    caller calls(cache, emulated_stream{});
    const sequence_id sequence = cache.create();
    for (std::size_t length = 0; length + chunk <= 200; length += chunk) {
      calls.append(sequence, 0, tokens, length, chunk);
      const std::uint64_t segments = cache.stats(sequence).segments;
      if (chunk == 1) segments_at[length] = segments;
      INFO("chunks of ", chunk, ", at ", length);
      CHECK(segments == segments_at.at(length));
    }
  }
  // Sink, half a segment (the first is one, so that layers take turns), window, lag.
  std::size_t first = 0;
  while (segments_at.at(first) == 0) ++first;
  CHECK((first - 4 - 16 - small_seal_lag) % 16 == 0);
  CHECK(segments_at.at(199) >= 4);
}

TEST_CASE("a batched append equals single appends") {
  const wavekv::geometry sizes = small_device_geometry();
  const host_tokens tokens(sizes, 2000, 7);
  const emulated_runtime runtime(emulation_of(3));
  cache_type cache(sizes, small_device_options<cache_type>(runtime));
  caller calls(cache, emulated_stream{});
  std::vector<sequence_id> together;
  std::vector<sequence_id> alone;
  for (int i = 0; i < 3; ++i) {
    together.push_back(cache.create());
    alone.push_back(cache.create());
  }
  std::size_t at = 0;
  constexpr std::size_t counts[][3] = {{1, 1, 1}, {2, 0, 5}, {0, 0, 0}, {1, 70, 33}, {31, 1, 0}};
  for (std::size_t round = 0; round < 30; ++round) {
    std::vector<query_run> batch;
    std::size_t first = at;
    for (std::size_t i = 0; i < 3; ++i) {
      const std::size_t n = counts[round < 10 ? round % 5 : 0][i];
      batch.push_back({together[i], n});
      calls.append(alone[i], 0, tokens, first, n);
      first += n;
    }
    calls.append(batch, 0, tokens, at);
    at = first;
    for (std::size_t i = 0; i < 3; ++i) {
      REQUIRE(cache.length(together[i]) == cache.length(alone[i]));
      CHECK(same_bits(calls.answer(together[i], 0, tokens, round),
                      calls.answer(alone[i], 0, tokens, round)));
    }
  }
  const query_run twice[] = {{together[0], 1}, {together[0], 1}};
  CHECK_THROWS_AS(calls.append(twice, 0, tokens, 0), wavekv::sequence_error);
}

TEST_CASE("a batch longer than a launch takes") {
  const wavekv::geometry sizes = small_device_geometry();
  const host_tokens tokens(sizes, 300, 8);
  const emulated_runtime runtime;
  cache_type cache(sizes, small_device_options<cache_type>(runtime));
  caller calls(cache, emulated_stream{});
  std::vector<query_run> batch;
  for (std::size_t i = 0; i < 260; ++i) batch.push_back({cache.create(), 1});
  calls.append(batch, 0, tokens, 0);
  const auto heads = sizes.n_query_heads;
  const device_rows<emulated_runtime> queries(
      runtime, {tokens.queries.begin(), tokens.queries.begin() + 260 * 2 * 16}, {});
  device_rows<emulated_runtime> out(runtime, std::size_t{260} * heads * 8, {});
  cache.attend(std::span<const query_run>(batch), 0,
               wavekv::device_nhd<const float>(queries.data(), 260, heads, 16),
               wavekv::device_nhd(out.data(), 260, heads, 8));
  const std::vector<float> got = out.read({});
  std::size_t n_wrong = 0;
  for (std::size_t i = 0; i < 260; ++i) {  // of one token the answer is its value
    for (std::size_t j = 0; j < heads * 8; ++j) {
      const float value = wavekv::to_float(wavekv::from_float<bf16>(tokens.values[i * 8 + j % 8]));
      n_wrong += std::abs(got[i * heads * 8 + j] - value) <= 1e-6F * std::abs(value) ? 0 : 1;
    }
  }
  CHECK(n_wrong == 0);
  CHECK(cache.collect().groups == 260);
}

TEST_CASE("collect in one stream while another one steps: every step is counted once") {
  const wavekv::geometry sizes = small_device_geometry();
  const host_tokens tokens(sizes, 60, 81);
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    INFO("seed ", seed);
    const emulated_runtime runtime(emulation_of(seed));
    cache_type cache(sizes, small_device_options<cache_type>(runtime));
    caller calls(cache, runtime.make_stream());
    const emulated_stream other = runtime.make_stream();
    const sequence_id sequence = cache.create(calls.stream());
    calls.append(sequence, 0, tokens, 0, 40);
    std::vector<device_rows<emulated_runtime>> answers;
    std::uint64_t groups = 0;
    float largest = 0.0F;
    for (std::size_t t = 0; t < 20; ++t) {
      answers.push_back(calls.attend(sequence, 0, tokens, t));
      const wavekv::step_stats seen = cache.collect(other);
      groups += seen.groups;
      largest = std::max(largest, seen.predicted_error);
    }
    const wavekv::step_stats rest = cache.collect(calls.stream());
    CHECK(groups + rest.groups == 20 * sizes.n_kv_heads);
    CHECK(rest.groups < 20 * sizes.n_kv_heads);  // else nothing was taken on the way
    CHECK(cache.collect(calls.stream()).groups == 0);
    cache.synchronize(calls.stream());
  }
}

TEST_CASE("fork, truncate and release while a segment is being sealed") {
  const wavekv::geometry sizes = small_device_geometry();
  const host_tokens tokens(sizes, 140, 9);
  const host_tokens others(sizes, 10, 10);
  std::vector<float> expected;
  for (std::size_t at = 30; at < 80; at += 3) {  // through a segment, due to published, and more
    const emulated_runtime runtime(emulation_of(at));
    cache_type cache(sizes, small_device_options<cache_type>(runtime));
    caller calls(cache, emulated_stream{});
    const auto decode_to = [&](sequence_id sequence, std::size_t end) {
      for (std::size_t t = cache.length(sequence); t < end; ++t) {
        calls.append(sequence, 0, tokens, t, 1);
      }
    };
    const sequence_id whole = cache.create();
    decode_to(whole, at);
    const sequence_id forked = cache.fork(whole);
    const sequence_id released = cache.fork(whole);
    cache.release(released);  // with what it was sealing
    decode_to(whole, 120);
    decode_to(forked, at + 2);
    calls.append(forked, 0, others, 0, 3);  // rejected
    cache.truncate(forked, at + 2);
    const sequence_id grandchild = cache.fork(forked);
    cache.release(forked);
    decode_to(grandchild, 120);
    const std::vector<float> seen = calls.answer(whole, 0, tokens, 130);
    if (expected.empty()) expected = seen;
    INFO("at ", at);
    CHECK(same_bits(seen, expected));
    CHECK(same_bits(calls.answer(grandchild, 0, tokens, 130), expected));
    cache.truncate(whole, at / 2);  // in a sealed segment, or in the sink
    decode_to(whole, at);
    CHECK(cache.length(whole) == at);
    const std::vector<float> exact = calls.answer(whole, 0, tokens, 130, wavekv::exact{});
    const sequence_id fresh = cache.create();
    decode_to(fresh, at);
    const std::vector<float> same = calls.answer(fresh, 0, tokens, 130, wavekv::exact{});
    CHECK(relative_error(std::span(exact), std::span(same)) < 1e-5);
  }
}

TEST_CASE("a cache that goes while segments are being sealed takes its memory along") {
  const wavekv::geometry sizes = small_device_geometry(2);
  const host_tokens tokens(sizes, 140, 11);
  for (std::size_t n = 30; n < 60; ++n) {
    const emulated_runtime runtime(emulation_of(n));
    {
      cache_type cache(sizes, small_device_options<cache_type>(runtime));
      caller calls(cache, emulated_stream{});
      const sequence_id sequence = cache.create();
      for (std::size_t t = 0; t < n; ++t) {
        for (std::size_t layer = 0; layer < 2; ++layer) calls.append(sequence, layer, tokens, t, 1);
      }
      if (n % 2 == 0) cache.release(sequence);
      if (n % 3 == 0) calls.attend(cache.create(), 0, tokens, 0);
    }
    CHECK(runtime.bytes_in_use() == 0);
    runtime.synchronize_all();
  }
}

TEST_CASE("sequences that share segments live in streams that know nothing of each other") {
  const wavekv::geometry sizes = small_device_geometry();
  const host_tokens tokens(sizes, 300, 12);
  std::vector<float> expected;
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    const emulated_runtime runtime(emulation_of(seed));
    cache_type cache(sizes, small_device_options<cache_type>(runtime));
    std::vector<caller<cache_type>> calls;
    for (int i = 0; i < 3; ++i) calls.emplace_back(cache, runtime.make_stream());
    const sequence_id first = cache.create(calls[0].stream());
    calls[0].append(first, 0, tokens, 0, 220);
    sequence_id sequences[3] = {first, cache.fork(first, calls[0].stream()),
                                cache.fork(first, calls[0].stream())};
    emulated_event forked;
    runtime.record(forked, calls[0].stream());
    std::vector<device_rows<emulated_runtime>> answers;
    for (std::size_t i = 0; i < 3; ++i) {
      runtime.wait(calls[i].stream(), forked);
      calls[i].append(sequences[i], 0, tokens, 220 + 10 * i, 10);
      answers.push_back(calls[i].attend(sequences[i], 0, tokens, 250));
      if (seed % 2 == 0) {
        cache.truncate(sequences[i], 5, calls[i].stream());
      } else {
        cache.release(sequences[i], calls[i].stream());
      }
    }
    std::vector<float> seen;
    for (std::size_t i = 0; i < 3; ++i) {
      const std::vector<float> floats = answers[i].read(calls[i].stream());
      seen.insert(seen.end(), floats.begin(), floats.end());
    }
    if (expected.empty()) expected = seen;
    CHECK(same_bits(seen, expected));
    runtime.synchronize_all();
  }
}

TEST_CASE("one sequence moves from stream to stream, ordered by events") {
  const wavekv::geometry sizes = small_device_geometry();
  const host_tokens tokens(sizes, 200, 13);
  std::vector<float> expected;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const emulated_runtime runtime(emulation_of(seed));
    cache_type cache(sizes, small_device_options<cache_type>(runtime));
    std::vector<caller<cache_type>> calls;
    for (int i = 0; i < 3; ++i) calls.emplace_back(cache, runtime.make_stream());
    const sequence_id sequence = cache.create(calls[0].stream());
    std::vector<device_rows<emulated_runtime>> answers;
    emulated_event before;
    for (std::size_t t = 0; t < 150; ++t) {
      caller<cache_type>& in = calls[expected.empty() ? 0 : (t * seed) % 3];
      runtime.wait(in.stream(), before);
      in.append(sequence, 0, tokens, t, 1);
      if (t % 10 == 9) answers.push_back(in.attend(sequence, 0, tokens, t));
      runtime.record(before, in.stream());
    }
    for (const auto& in : calls) runtime.synchronize(in.stream());
    std::vector<float> seen;
    for (auto& answer : answers) {
      const std::vector<float> floats = answer.read({});
      seen.insert(seen.end(), floats.begin(), floats.end());
    }
    if (expected.empty()) expected = seen;
    CHECK(same_bits(seen, expected));
  }
}

TEST_CASE("workspaces: the cache's, the caller's, too small, outgrown") {
  const wavekv::geometry sizes = small_device_geometry();
  const host_tokens tokens(sizes, 500, 14);
  const emulated_runtime runtime;
  cache_type cache(sizes, small_device_options<cache_type>(runtime));
  caller calls(cache, emulated_stream{});
  const sequence_id sequence = cache.create();
  calls.append(sequence, 0, tokens, 0, 200);
  const std::vector<float> expected = calls.answer(sequence, 0, tokens, 3);

  auto own = cache.make_workspace(1, 200);
  CHECK(own.n_queries() == 1);
  CHECK(own.n_tokens() == 200);
  CHECK(same_bits(calls.answer(sequence, 0, tokens, 3, own), expected));
  CHECK(same_bits(
      calls.answer(sequence, 0, tokens, 3, own, wavekv::error_bound<>(cache.options().bound)),
      expected));
  auto larger = cache.make_workspace(7, 4000);
  CHECK(same_bits(calls.answer(sequence, 0, tokens, 3, larger), expected));

  const std::size_t bytes = cache.workspace_bytes(1, 200);
  const device_rows<emulated_runtime, std::byte> memory(runtime, bytes, {});
  auto callers = cache.make_workspace(1, 200, memory.data(), bytes);
  CHECK(same_bits(calls.answer(sequence, 0, tokens, 3, callers), expected));
  CHECK_THROWS_AS((void)cache.make_workspace(1, 200, memory.data(), bytes - 1),
                  wavekv::capacity_error);
  CHECK_THROWS_AS((void)cache.make_workspace(1, 4000, memory.data(), bytes),
                  wavekv::capacity_error);

  calls.append(sequence, 0, tokens, 200, 1);
  CHECK_THROWS_AS(calls.attend(sequence, 0, tokens, 3, own), wavekv::capacity_error);
  CHECK_NOTHROW(calls.attend(sequence, 0, tokens, 3, larger));
  CHECK_NOTHROW((void)cache.collect());

  // A captured step learns of it on the device alone, and reads nothing that is not there.
  const emulated_stream stream = runtime.make_stream();
  caller in_stream(cache, stream);
  const sequence_id growing = cache.create(stream);
  in_stream.append(growing, 0, tokens, 0, 10);
  auto small = cache.make_workspace(1, 10, stream);
  const device_rows<emulated_runtime> query(
      runtime, {tokens.queries.begin(), tokens.queries.begin() + 2 * 16}, stream);
  device_rows<emulated_runtime> out(runtime, std::size_t{2} * 8, stream);
  runtime.begin_capture(stream);
  cache.attend(growing, 0, wavekv::device_nhd<const float>(query.data(), 1, 2, 16),
               wavekv::device_nhd(out.data(), 1, 2, 8), small, stream);
  CHECK_THROWS_AS(  // no memory of its own while a graph is made
      cache.attend(growing, 0, wavekv::device_nhd<const float>(query.data(), 1, 2, 16),
                   wavekv::device_nhd(out.data(), 1, 2, 8), stream),
      wavekv::config_error);
  const auto graph = runtime.end_capture(stream);
  in_stream.append(growing, 0, tokens, 0, 450);
  cache.seal(growing, stream);
  runtime.launch_graph(graph, stream);
  CHECK_THROWS_AS((void)cache.collect(stream), wavekv::capacity_error);
  CHECK(in_stream.answer(growing, 0, tokens, 1).size() == 2 * 9);  // and the cache goes on
  CHECK_NOTHROW((void)cache.collect(stream));
  cache.synchronize(stream);
}

TEST_CASE("a tail made of many small segments has room in a workspace") {
  const wavekv::geometry sizes = small_device_geometry();
  const host_tokens tokens(sizes, 340, 15);
  const emulated_runtime runtime;
  cache_type cache(sizes, small_device_options<cache_type>(runtime));
  caller calls(cache, emulated_stream{});
  const sequence_id sequence = cache.create();
  naive_layer model;
  append_naively<bf16>(model, std::span(tokens.keys).first(340 * 16),
                       std::span(tokens.values).first(340 * 8));
  for (std::size_t t = 0; t < 340; t += 17) {
    calls.append(sequence, 0, tokens, t, 17);
    cache.seal(sequence);
  }
  CHECK(cache.stats(sequence).segments == 18);
  wavekv::error_bound<> open = cache.options().bound;
  open.epsilon = 1e-12F;
  open.max_open = open.max_read = 1.0F;
  const std::vector<float> got = calls.answer(sequence, 0, tokens, 3, open);
  const reference_attention expected =
      attend_naively(sizes, 0, model, std::span(tokens.queries).subspan(3 * 32, 32));
  CHECK(largest_error(sizes, std::span(got).first(16), expected) < 1e-4);
  CHECK_NOTHROW((void)cache.collect());
}

TEST_CASE_TEMPLATE("numbers that are not finite are told by collect and harm nothing else", S,
                   float, bf16, f16) {
  using wavekv::value_error;
  const wavekv::geometry sizes = small_device_geometry();
  const emulated_runtime runtime;
  using typed_cache = small_device_cache<S>;
  typed_cache cache(sizes, small_device_options<typed_cache>(runtime));
  caller<typed_cache> calls(cache, emulated_stream{});
  host_tokens tokens(sizes, 100, 16);
  host_tokens bad(sizes, 100, 16);
  const sequence_id good_sequence = cache.create();
  const sequence_id sequence = cache.create();
  calls.append(good_sequence, 0, tokens, 0, 90);
  CHECK_NOTHROW((void)cache.collect());

  bad.keys[50 * 16 + 3] = std::numeric_limits<float>::infinity();
  bad.values[60 * 8 + 7] = std::numeric_limits<float>::quiet_NaN();
  if (std::is_same_v<S, f16>) bad.values[70 * 8] = 65520.0F;  // rounds up to an infinity
  calls.append(sequence, 0, bad, 0, 90);
  CHECK_THROWS_AS((void)cache.collect(), value_error);
  CHECK_NOTHROW((void)cache.collect());  // told once
  CHECK(cache.length(sequence) == 90);
  host_tokens stored = bad;
  stored.keys[50 * 16 + 3] = stored.values[60 * 8 + 7] = 0.0F;
  if (std::is_same_v<S, f16>) stored.values[70 * 8] = 0.0F;
  const sequence_id zeroed = cache.create();
  calls.append(zeroed, 0, stored, 0, 90);
  CHECK(same_bits(calls.answer(sequence, 0, tokens, 5), calls.answer(zeroed, 0, tokens, 5)));
  CHECK_NOTHROW((void)cache.collect());

  // A query that is not finite: its own answer is none, a neighbour's in the batch is as ever.
  for (const bool by_exact : {false, true}) {
    const std::vector<float> expected =
        by_exact ? calls.answer(good_sequence, 0, tokens, 7, wavekv::exact{})
                 : calls.answer(good_sequence, 0, tokens, 7);
    std::vector<float> rows(tokens.queries.begin() + 7 * 32, tokens.queries.begin() + 9 * 32);
    rows[32 + 5] = std::numeric_limits<float>::quiet_NaN();
    const device_rows<emulated_runtime> queries(runtime, rows, {});
    device_rows<emulated_runtime> out(runtime, std::size_t{2} * 16, {});
    const query_run batch[] = {{good_sequence, 1}, {sequence, 1}};
    const auto q = wavekv::device_nhd<const float>(queries.data(), 2, 2, 16);
    const auto o = wavekv::device_nhd(out.data(), 2, 2, 8);
    if (by_exact) {
      cache.attend(std::span<const query_run>(batch), 0, q, o, wavekv::exact{});
    } else {
      cache.attend(std::span<const query_run>(batch), 0, q, o);
    }
    const std::vector<float> got = out.read({});
    CHECK(same_bits({got.begin(), got.begin() + 16}, {expected.begin(), expected.begin() + 16}));
    CHECK((std::isnan(got[16]) || got[16] == 0.0F));  // nothing that one could take for an answer
    CHECK_THROWS_AS((void)cache.collect(), value_error);
    CHECK_NOTHROW((void)cache.collect());
  }
  CHECK(same_bits(calls.answer(sequence, 0, tokens, 5), calls.answer(zeroed, 0, tokens, 5)));
}
