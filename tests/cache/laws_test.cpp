// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/bounds.hpp"
#include "support/backend.hpp"
#include "support/model.hpp"

// Laws that hold for every bound: what an answer may depend on, and what it may not.

using namespace wavekv_test;
using wavekv::geometry;
using wavekv::sequence_id;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<3>, wavekv::error_bound<>>;
using cache_type = tested_cache<float, index_type>;

constexpr std::size_t sink = 4;
constexpr std::size_t window = 16;
// What exact attention may err by: sums of float products on the CPU, of pairs of bf16 on a device (see exact_test.cpp).
constexpr double tolerance = on_device ? 1e-4 : 1e-5;

cache_type::options_type small_options() {
  cache_type::options_type options;
  options.sink_tokens = sink;
  options.window_tokens = window;
  options.seed = 5;
  fix_sums(options);
  return options;
}

geometry small_geometry() {
  geometry sizes;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 24;
  sizes.value_dim = dim_like(20);
  return sizes;
}

// Bounds with so little room that they do estimate in an index of a few hundred tokens.
wavekv::error_bound<> tight_error() {
  wavekv::error_bound<> bound;
  bound.epsilon = 0.02F;
  bound.free_tokens = 16;
  bound.max_read = 0.1F;
  bound.max_open = 0.5F;
  bound.hidden_share = 0.0F;
  return bound;
}
wavekv::verified_bound<> tight_verified() {
  wavekv::verified_bound<> bound;
  bound.epsilon = 0.2F;
  bound.samples = 32;
  bound.rule = tight_error();
  return bound;
}
constexpr wavekv::fixed_budget small_budget{0.1F, 0.5F};

struct token_rows {
  std::vector<float> keys;
  std::vector<float> values;
};

token_rows make_tokens(random_engine& random, const geometry& sizes, std::size_t n,
                       key_family family = key_family::clustered) {
  return {make_keys(random, family, n, sizes.n_kv_heads, sizes.key_dim),
          normal_rows(random, n * sizes.n_kv_heads * sizes.value_dim)};
}

void append(cache_type& cache, sequence_id sequence, const token_rows& tokens,
            std::size_t chunk = SIZE_MAX, std::size_t layer = 0) {
  append_rows(cache, sequence, layer, tokens.keys, tokens.values, chunk);
}

std::vector<float> query_for(random_engine& random, const geometry& sizes, std::size_t n = 1) {
  return normal_rows(random, n * sizes.n_query_heads * sizes.key_dim);
}

/// Answers of two sequences by every bound whose draws do not depend on the sequence's id; equal bit for bit.
void check_same(cache_type& a, sequence_id in_a, cache_type& b, sequence_id in_b,
                const std::vector<float>& query) {
  CHECK(attend_once(a, in_a, 0, query, wavekv::exact{}) ==
        attend_once(b, in_b, 0, query, wavekv::exact{}));
  CHECK(attend_once(a, in_a, 0, query, small_budget) ==
        attend_once(b, in_b, 0, query, small_budget));
  CHECK(attend_once(a, in_a, 0, query, tight_error()) ==
        attend_once(b, in_b, 0, query, tight_error()));
}

double distance(const outputs& a, const outputs& b) {
  return relative_error(std::span<const float>(a.out), std::span<const float>(b.out));
}

}  // namespace

TEST_CASE("fork, then diverge, equals two separate sequences") {
  random_engine random(1);
  const geometry sizes = small_geometry();
  for (const std::size_t n : {0U, 3U, 20U, 60U, 150U, 333U}) {
    cache_type cache(sizes, small_options());
    const token_rows prompt = make_tokens(random, sizes, n);
    const token_rows left = make_tokens(random, sizes, 45);
    const token_rows right = make_tokens(random, sizes, 101);
    const sequence_id a = cache.create();
    append(cache, a, prompt);
    const sequence_id b = cache.fork(a);
    CHECK(cache.length(b) == n);
    append(cache, a, left, 1);
    append(cache, b, right, 10);

    cache_type other(sizes, small_options());
    const sequence_id plain_a = other.create();
    append(other, plain_a, prompt);
    append(other, plain_a, left, 1);
    const sequence_id plain_b = other.create();
    append(other, plain_b, prompt);
    append(other, plain_b, right, 10);
    const std::vector<float> query = query_for(random, sizes);
    check_same(cache, a, other, plain_a, query);
    check_same(cache, b, other, plain_b, query);

    // What the forks share outlives either of them.
    cache.release(a);
    check_same(cache, b, other, plain_b, query);
    const sequence_id grandchild = cache.fork(b);
    cache.truncate(b, n / 2);
    cache.release(b);
    check_same(cache, grandchild, other, plain_b, query);
  }
}

TEST_CASE("truncate, then append, equals never having appended") {
  random_engine random(2);
  const geometry sizes = small_geometry();
  const token_rows all = make_tokens(random, sizes, 333);
  const token_rows more = make_tokens(random, sizes, 70);
  const std::size_t key_width = sizes.n_kv_heads * sizes.key_dim;
  const std::size_t value_width = sizes.n_kv_heads * sizes.value_dim;
  for (const bool decoded : {false, true}) {
    // 4 + 64·k are borders of prefill segments, 4 + 32·k of decode segments.
    for (const std::size_t n : {0U, 1U, 3U, 4U, 5U, 36U, 67U, 68U, 69U, 100U, 132U, 140U, 195U,
                                196U, 250U, 310U, 332U, 333U, 400U}) {
      cache_type cache(sizes, small_options());
      const sequence_id sequence = cache.create();
      append(cache, sequence, all, decoded ? 1 : SIZE_MAX);
      cache.truncate(sequence, n);
      const std::size_t kept = std::min<std::size_t>(n, 333);
      REQUIRE(cache.length(sequence) == kept);

      naive_layer model;
      append_naively<float>(model, std::span(all.keys).first(kept * key_width),
                            std::span(all.values).first(kept * value_width));
      const std::vector<float> query = query_for(random, sizes);
      INFO("truncated to ", n, decoded ? " after decode steps" : " after a prompt");
      CHECK(largest_error(sizes, attend_once(cache, sequence, 0, query, wavekv::exact{}).out,
                          attend_naively(sizes, 0, model, query)) <= tolerance);
      append(cache, sequence, more, 7);
      append_naively<float>(model, more.keys, more.values);
      CHECK(cache.length(sequence) == kept + 70);
      CHECK(largest_error(sizes, attend_once(cache, sequence, 0, query, wavekv::exact{}).out,
                          attend_naively(sizes, 0, model, query)) <= tolerance);
    }
  }
}

TEST_CASE("rejected draft tokens leave no trace, bit for bit, while nothing was sealed") {
  random_engine random(3);
  const geometry sizes = small_geometry();
  cache_type cache(sizes, small_options());
  const sequence_id a = cache.create();
  const sequence_id b = cache.create();
  const token_rows prompt = make_tokens(random, sizes, 200);
  append(cache, a, prompt);
  append(cache, b, prompt);
  cache.seal(a);
  cache.seal(b);
  for (int step = 0; step < 4; ++step) {
    const std::size_t length = cache.length(a);
    append(cache, a, make_tokens(random, sizes, 5));
    cache.truncate(a, length);
    const token_rows accepted = make_tokens(random, sizes, 2);
    append(cache, a, accepted);
    append(cache, b, accepted);
    check_same(cache, a, cache, b, query_for(random, sizes));
  }
}

TEST_CASE("a ragged batch equals its sequences one by one, on every executor") {
  const geometry sizes = small_geometry();
  std::vector<outputs> first;
  for (const any_executor& executor : tested_executors()) {
    random_engine random(4);
    cache_type::options_type options = small_options();
    run_on(options, executor);
    cache_type cache(sizes, options);
    std::vector<wavekv::query_run> batch;
    std::size_t n_queries = 0;
    for (const std::size_t n : {333U, 0U, 3U, 50U, 21U, 150U, 97U, 333U, 64U}) {
      const sequence_id sequence = cache.create();
      append(cache, sequence, make_tokens(random, sizes, n));
      batch.push_back({sequence, n == 50 ? 4U : n == 333 ? 3U : 1U});
      n_queries += batch.back().n_queries;
    }
    batch.push_back(batch.front());  // one sequence may stand in a batch twice
    n_queries += batch.back().n_queries;
    batch.push_back({batch.front().sequence, 0});  // and ask nothing
    const std::vector<float> queries = query_for(random, sizes, n_queries);

    const auto check = [&](const auto& bound) {
      outputs all(sizes, n_queries);
      cache.attend(std::span<const wavekv::query_run>(batch), 0,
                   tokens_of(queries, 0, n_queries, sizes.n_query_heads, sizes.key_dim),
                   wavekv::nhd(all.out.data(), n_queries, sizes.n_query_heads, sizes.value_dim),
                   wavekv::tensor_view<float, 2>(all.lse.data(), {n_queries, sizes.n_query_heads}),
                   bound);
      std::size_t at = 0;
      for (const wavekv::query_run& run : batch) {
        const std::size_t q = sizes.n_query_heads * sizes.key_dim;
        const std::size_t v = sizes.n_query_heads * sizes.value_dim;
        const std::vector<float> own(queries.begin() + static_cast<std::ptrdiff_t>(at * q),
                                     queries.begin() +
                                         static_cast<std::ptrdiff_t>((at + run.n_queries) * q));
        const outputs one = attend_once(cache, run.sequence, 0, own, bound);
        CHECK(std::equal(one.out.begin(), one.out.end(),
                         all.out.begin() + static_cast<std::ptrdiff_t>(at * v)));
        CHECK(std::equal(one.lse.begin(), one.lse.end(),
                         all.lse.begin() + static_cast<std::ptrdiff_t>(at * sizes.n_query_heads)));
        at += run.n_queries;
      }
      return all;
    };
    const std::vector<outputs> seen = {check(wavekv::exact{}), check(small_budget),
                                       check(tight_error()), check(tight_verified())};
    if (first.empty()) first = seen;
    CHECK(first == seen);
  }
}

TEST_CASE("an empty batch and a sequence without queries are fine") {
  cache_type cache(small_geometry(), small_options());
  const sequence_id sequence = cache.create();
  const wavekv::tensor_view<const float, 3> queries(nullptr, {0, 4, 24});
  const wavekv::tensor_view<float, 3> out(nullptr, {0, 4, dim_like(20)});
  CHECK(cache.attend(std::span<const wavekv::query_run>(), 0, queries, out).groups == 0);
  CHECK(cache.attend(sequence, 0, queries, out).groups == 0);
}

TEST_CASE("several queries of a sequence equal single steps with causal offsets") {
  random_engine random(6);
  const geometry sizes = small_geometry();
  for (const std::size_t n : {0U, 2U, 10U, 90U, 260U}) {
    for (const std::size_t k : {1U, 2U, 5U, 16U}) {
      cache_type cache(sizes, small_options());
      const sequence_id together = cache.create();
      append(cache, together, make_tokens(random, sizes, n));
      cache.seal(together);  // so that the steps below seal nothing, and sums run in one order
      const sequence_id stepwise = cache.fork(together);
      const token_rows drafts = make_tokens(random, sizes, k);
      const std::vector<float> queries = query_for(random, sizes, k);
      append(cache, together, drafts);
      const auto check = [&](const auto& bound) {
        const outputs all = attend_once(cache, together, 0, queries, bound);
        const sequence_id steps = cache.fork(stepwise);
        const std::size_t q = sizes.n_query_heads * sizes.key_dim;
        const std::size_t v = sizes.n_query_heads * sizes.value_dim;
        for (std::size_t i = 0; i < k; ++i) {
          const std::size_t key_width = sizes.n_kv_heads * sizes.key_dim;
          const std::size_t value_width = sizes.n_kv_heads * sizes.value_dim;
          append(cache, steps,
                 {std::vector<float>(
                      drafts.keys.begin() + static_cast<std::ptrdiff_t>(i * key_width),
                      drafts.keys.begin() + static_cast<std::ptrdiff_t>((i + 1) * key_width)),
                  std::vector<float>(
                      drafts.values.begin() + static_cast<std::ptrdiff_t>(i * value_width),
                      drafts.values.begin() + static_cast<std::ptrdiff_t>((i + 1) * value_width))});
          const std::vector<float> own(queries.begin() + static_cast<std::ptrdiff_t>(i * q),
                                       queries.begin() + static_cast<std::ptrdiff_t>((i + 1) * q));
          const outputs one = attend_once(cache, steps, 0, own, bound);
          CHECK(std::equal(one.out.begin(), one.out.end(),
                           all.out.begin() + static_cast<std::ptrdiff_t>(i * v)));
        }
        cache.release(steps);
      };
      check(wavekv::exact{});
      check(tight_error());
      check(small_budget);
    }
  }
}

TEST_CASE("no query sees a token that came after it, wherever a truncation left the tail") {
  random_engine random(16);
  const geometry sizes = small_geometry();
  const token_rows all = make_tokens(random, sizes, 250, key_family::uniform);
  for (std::size_t n = 60; n <= 250; n += is_slow ? 7 : 1) {
    cache_type cache(sizes, small_options());
    const sequence_id sequence = cache.create();
    append(cache, sequence, all);
    cache.truncate(sequence, n);
    naive_layer model;
    append_naively<float>(model, std::span(all.keys).first(n * sizes.n_kv_heads * sizes.key_dim),
                          std::span(all.values).first(n * sizes.n_kv_heads * sizes.value_dim));
    const std::vector<float> queries = query_for(random, sizes, 3);
    INFO("truncated to ", n);
    try {
      const outputs got = attend_once(cache, sequence, 0, queries, wavekv::exact{});
      CHECK(largest_error(sizes, got.out, attend_naively(sizes, 0, model, queries)) <= tolerance);
    } catch (const wavekv::shape_error&) {
      // allowed where the newest tokens lie in a sealed segment, which shows all of itself or nothing
      CHECK((n - 4) % 64 < 2);
    }
  }
}

TEST_CASE("append in chunks of any size keeps the same tokens") {
  // Each key is a direction of its own and each value spells its token's number, so that a query along a
  // key reads that token alone.
  geometry sizes = small_geometry();
  sizes.n_query_heads = sizes.n_kv_heads = 1;
  sizes.key_dim = 64;
  sizes.scale = 1.0F;
  random_engine random(8);
  constexpr std::size_t n = 300;
  token_rows tokens = make_tokens(random, sizes, n, key_family::uniform);
  for (std::size_t t = 0; t < n; ++t) {
    for (std::size_t i = 0; i < sizes.value_dim; ++i) {
      tokens.values[t * sizes.value_dim + i] = static_cast<float>(t + 1);
    }
  }
  for (const std::size_t chunk : {1U, 2U, 7U, 31U, 32U, 33U, 63U, 64U, 65U, 128U, 299U, 300U}) {
    if (is_slow && chunk % 2 == 0) continue;
    cache_type cache(sizes, small_options());
    const sequence_id sequence = cache.create();
    append(cache, sequence, tokens, chunk);
    REQUIRE(cache.length(sequence) == n);
    // Zero weighs all tokens alike: the mean of all numbers shows that each is there once.
    const outputs mean =
        attend_once(cache, sequence, 0, std::vector<float>(sizes.key_dim, 0.0F), wavekv::exact{});
    CHECK(mean.out[0] == doctest::Approx((n + 1) / 2.0).epsilon(1e-5));
    CHECK(mean.lse[0] == doctest::Approx(std::log(static_cast<double>(n))).epsilon(1e-5));
    std::size_t n_wrong = 0;
    for (std::size_t t = 0; t < n; t += is_slow ? 7 : 1) {
      std::vector<float> query(tokens.keys.begin() + static_cast<std::ptrdiff_t>(t * sizes.key_dim),
                               tokens.keys.begin() +
                                   static_cast<std::ptrdiff_t>((t + 1) * sizes.key_dim));
      for (float& x : query) x *= 4.0F;
      const outputs got = attend_once(cache, sequence, 0, query, wavekv::exact{});
      n_wrong += std::abs(got.out[0] - static_cast<float>(t + 1)) < 0.01F ? 0 : 1;
    }
    CHECK(n_wrong == 0);
  }
}

TEST_CASE("softcap, scale and learned sinks, per layer, against the oracle") {
  random_engine random(9);
  for (const bool capped : {false, true}) {
    for (const bool scaled : {false, true}) {
      for (const bool sunk : {false, true}) {
        geometry sizes = small_geometry();
        sizes.n_layers = 3;
        sizes.logit_softcap = capped ? 2.5F : 0.0F;
        sizes.scale = scaled ? 0.7F : 0.0F;
        if (sunk) sizes.sink_logits = normal_rows(random, 3 * sizes.n_query_heads, 3.0F);
        cache_type cache(sizes, small_options());
        const sequence_id sequence = cache.create();
        for (const std::size_t n : {0U, 1U, 40U, 200U}) {
          for (std::size_t layer = 0; layer < 3; ++layer) {
            cache.truncate(sequence, 0);
            const token_rows tokens = make_tokens(random, sizes, n);
            append(cache, sequence, tokens, SIZE_MAX, layer);
            naive_layer model;
            append_naively<float>(model, tokens.keys, tokens.values);
            const std::vector<float> query = query_for(random, sizes);
            const reference_attention expected = attend_naively(sizes, layer, model, query);
            wavekv::error_bound<> open;
            open.epsilon = 1e-12F;
            open.max_open = open.max_read = 1.0F;
            open.hidden_share = 0.0F;
            const outputs by_exact = attend_once(cache, sequence, layer, query, wavekv::exact{});
            const outputs by_search = attend_once(cache, sequence, layer, query, open);
            CHECK(largest_error(sizes, by_exact.out, expected) <= tolerance);
            CHECK(largest_lse_error(by_exact.lse, expected) <= tolerance);
            CHECK(largest_error(sizes, by_search.out, expected) <= 1e-4);
            CHECK(largest_lse_error(by_search.lse, expected) <= 1e-4);
          }
        }
      }
    }
  }
}

TEST_CASE("attend_partial of two halves, merged, equals attend of the whole") {
  random_engine random(10);
  geometry sizes = small_geometry();
  sizes.sink_logits = {0.5F, -1.0F, 2.0F, 0.0F};
  for (const std::size_t n : {0U, 1U, 17U, 100U, 300U}) {
    const token_rows tokens = make_tokens(random, sizes, n);
    const std::size_t middle = n / 2;
    const std::size_t key_at = middle * sizes.n_kv_heads * sizes.key_dim;
    const std::size_t value_at = middle * sizes.n_kv_heads * sizes.value_dim;
    cache_type cache(sizes, small_options());
    const sequence_id whole = cache.create();
    const sequence_id older = cache.create();
    const sequence_id newer = cache.create();
    append(cache, whole, tokens);
    append(
        cache, older,
        {{tokens.keys.begin(), tokens.keys.begin() + static_cast<std::ptrdiff_t>(key_at)},
         {tokens.values.begin(), tokens.values.begin() + static_cast<std::ptrdiff_t>(value_at)}});
    append(cache, newer,
           {{tokens.keys.begin() + static_cast<std::ptrdiff_t>(key_at), tokens.keys.end()},
            {tokens.values.begin() + static_cast<std::ptrdiff_t>(value_at), tokens.values.end()}});
    const std::vector<float> query = query_for(random, sizes);

    const auto partial_of = [&](sequence_id sequence, const auto&... bound) {
      wavekv::partial_softmax sums(sizes.n_query_heads, sizes.value_dim);
      const wavekv::partial_softmax_view view = sums.view();
      std::fill_n(view.numerator, sizes.n_query_heads * sizes.value_dim, NAN);
      wavekv::partial_output to;
      to.max = {view.max, {1, sizes.n_query_heads}};
      to.denominator = {view.denominator, {1, sizes.n_query_heads}};
      to.numerator = wavekv::nhd(view.numerator, 1, sizes.n_query_heads, sizes.value_dim);
      const wavekv::query_run run{sequence, 1};
      cache.attend_partial(std::span(&run, 1), 0,
                           tokens_of(query, 0, 1, sizes.n_query_heads, sizes.key_dim), to,
                           bound...);
      return sums;
    };
    const wavekv::exact all{};
    wavekv::partial_softmax merged = partial_of(older, all);
    wavekv::merge(merged.view(), partial_of(newer, all).view());
    for (std::size_t h = 0; h < sizes.n_query_heads; ++h) {
      wavekv::add_sink_logit(merged.view(), h, sizes.sink_logits[h]);  // once, by who merges
    }
    std::vector<float> out(sizes.n_query_heads * sizes.value_dim);
    wavekv::finish(merged.view(), out.data(), sizes.value_dim);
    naive_layer model;
    append_naively<float>(model, tokens.keys, tokens.values);
    CHECK(largest_error(sizes, out, attend_naively(sizes, 0, model, query)) <= tolerance);
    const outputs at_once = attend_once(cache, whole, 0, query, wavekv::exact{});
    CHECK(relative_error(std::span<const float>(out), std::span<const float>(at_once.out)) <=
          tolerance);
    // Without a bound it is the cache's own: the same as attend by it, but for the learned sinks.
    wavekv::partial_softmax alone = partial_of(whole);
    for (std::size_t h = 0; h < sizes.n_query_heads; ++h) {
      wavekv::add_sink_logit(alone.view(), h, sizes.sink_logits[h]);
    }
    wavekv::finish(alone.view(), out.data(), sizes.value_dim);
    const outputs by_attend = attend_once(cache, whole, 0, query);
    if (on_device) {  // where not the same code divides
      CHECK(relative_error(std::span<const float>(out), std::span<const float>(by_attend.out)) <=
            1e-6);
    } else {
      CHECK(out == by_attend.out);
    }
    // A bound may be named without lse, too.
    std::vector<float> brief(out.size(), NAN);
    cache.attend(whole, 0, tokens_of(query, 0, 1, sizes.n_query_heads, sizes.key_dim),
                 wavekv::nhd(brief.data(), 1, sizes.n_query_heads, sizes.value_dim),
                 wavekv::exact{});
    CHECK(brief == at_once.out);
  }
}

TEST_CASE("a bound named in the call replaces the cache's for that call alone") {
  random_engine random(12);
  const geometry sizes = small_geometry();
  cache_type::options_type options = small_options();
  options.bound = tight_error();
  cache_type cache(sizes, options);
  const sequence_id sequence = cache.create();
  append(cache, sequence, make_tokens(random, sizes, 320, key_family::uniform));
  const std::vector<float> query = query_for(random, sizes);
  const outputs by_default = attend_once(cache, sequence, 0, query);
  const outputs by_exact = attend_once(cache, sequence, 0, query, wavekv::exact{});
  CHECK(attend_once(cache, sequence, 0, query, tight_error()) == by_default);
  CHECK(distance(by_default, by_exact) > 1e-4);  // it did estimate
  CHECK(distance(by_default, by_exact) < 1.0);
  CHECK(attend_once(cache, sequence, 0, query) == by_default);
}

TEST_CASE("what is sampled depends on seed, sequence, layer and step alone") {
  random_engine random(13);
  const geometry sizes = small_geometry();
  const token_rows tokens = make_tokens(random, sizes, 320, key_family::uniform);
  const std::vector<float> query = query_for(random, sizes);
  wavekv::verified_bound<> lenient = tight_verified();
  lenient.epsilon = 100.0F;  // the first answer stands, and reports its sampled error
  const auto sampled_error = [&](std::uint64_t seed, std::size_t n_before, std::size_t n_attends) {
    cache_type::options_type options = small_options();
    options.seed = seed;
    cache_type cache(sizes, options);
    for (std::size_t i = 0; i < n_before; ++i) cache.create();
    const sequence_id sequence = cache.create();
    append(cache, sequence, tokens);
    for (std::size_t i = 0; i < n_attends; ++i) attend_once(cache, sequence, 0, query, lenient);
    return attend_counted(cache, sequence, 0, query, lenient).second.sampled_error;
  };
  const float error = sampled_error(1, 0, 0);
  CHECK(error > 0.0F);
  CHECK(sampled_error(1, 0, 0) == error);
  CHECK(sampled_error(1, 0, 5) == error);  // calls made before do not matter
  CHECK(sampled_error(2, 0, 0) != error);
  CHECK(sampled_error(1, 1, 0) != error);
}

TEST_CASE("seal changes no exact answer, seals all but the window, and twice is once") {
  random_engine random(14);
  geometry sizes = small_geometry();
  sizes.n_layers = 3;
  for (const std::size_t n : {0U, 5U, 20U, 35U, 36U, 84U, 130U, 301U}) {
    cache_type cache(sizes, small_options());
    const sequence_id sequence = cache.create();
    const token_rows tokens = make_tokens(random, sizes, n);
    for (std::size_t layer = 0; layer < 3; ++layer) append(cache, sequence, tokens, 50, layer);
    const std::vector<float> query = query_for(random, sizes);
    const outputs before = attend_once(cache, sequence, 2, query, wavekv::exact{});
    cache.seal(sequence);
    const std::uint64_t segments = cache.stats(sequence).segments;
    cache.seal(sequence);
    CHECK(cache.stats(sequence).segments == segments);
    CHECK(cache.length(sequence) == n);
    // The same tokens in another order: numerator and denominator are sums of positive weights times values, where a change of
    // order moves each by some roundings of 2^-24 of its magnitude, more where a device splits it (1.04e-6 was seen on an H200).
    CHECK(distance(attend_once(cache, sequence, 2, query, wavekv::exact{}), before) <=
          (on_device ? 32 * 0x1p-24 : 1e-6));
    if (n >= sink + window + 16) {  // at least one coarse cluster waits
      CHECK(segments > 0);
      const auto stats = attend_counted(cache, sequence, 0, query, drop_all{}).second;
      CHECK(stats.tokens_read < sizes.n_kv_heads * (sink + window + 16));
    }
  }
}

TEST_CASE("layers take turns at sealing while decoding") {
  random_engine random(15);
  geometry sizes = small_geometry();
  sizes.n_layers = 4;
  cache_type cache(sizes, small_options());
  const sequence_id sequence = cache.create();
  for (std::size_t layer = 0; layer < 4; ++layer) {
    append(cache, sequence, make_tokens(random, sizes, 100), SIZE_MAX, layer);
  }
  std::uint64_t most = 0;
  const token_rows token = make_tokens(random, sizes, 1);
  std::uint64_t before = cache.stats(sequence).segments;
  for (int step = 0; step < 200; ++step) {
    for (std::size_t layer = 0; layer < 4; ++layer) append(cache, sequence, token, 1, layer);
    const std::uint64_t now = cache.stats(sequence).segments;
    most = std::max(most, now - before);
    before = now;
  }
  CHECK(most == 1);
  CHECK(before >= 4 * (200 / 32));
}

TEST_CASE("statistics tell what is held") {
  random_engine random(17);
  geometry sizes = small_geometry();
  sizes.n_layers = 2;
  cache_type cache(sizes, small_options());
  const sequence_id sequence = cache.create();
  append(cache, sequence, make_tokens(random, sizes, 84 + 64), SIZE_MAX, 0);
  CHECK(cache.length(sequence) == 0);  // what every layer holds
  CHECK(cache.length(sequence, 0) == 148);
  CHECK(cache.length(sequence, 1) == 0);
  append(cache, sequence, make_tokens(random, sizes, 90), SIZE_MAX, 1);
  const wavekv::statistics stats = cache.stats(sequence);
  CHECK(stats.tokens == 90);
  CHECK(stats.segments == 3);
  CHECK(stats.kv_bytes == 3 * 64 * 2 * (24 + dim_like(20)) * sizeof(float));
  CHECK(stats.clusters <= 3 * 2 * 16);
  CHECK(stats.clusters > 3 * 2 * 8);
  CHECK(stats.index_bytes > stats.clusters * (24 + 20) * sizeof(float));
  CHECK(stats.steps == 0);
  const std::vector<float> query = query_for(random, sizes);
  attend_once(cache, sequence, 0, query);
  attend_once(cache, sequence, 0, query);
  attend_once(cache, sequence, 1, query);
  if (!on_device) {  // which counts all sequences' steps together: see collect
    const wavekv::statistics after = cache.stats(sequence);
    CHECK(after.steps == 3);
    CHECK(after.last.groups == 4);
    CHECK(after.total.groups == 6);
    CHECK(after.last.tokens_held == 2 * (148 + 90));
  }

  // A batch's work belongs to the sequence it was done for.
  const sequence_id other = cache.create();
  append(cache, other, make_tokens(random, sizes, 10), SIZE_MAX, 0);
  const std::vector<wavekv::query_run> batch = {{sequence}, {other, 3}};
  const std::vector<float> queries = query_for(random, sizes, 4);
  outputs all(sizes, 4);
  const wavekv::step_stats whole =
      cache.attend(std::span<const wavekv::query_run>(batch), 0,
                   tokens_of(queries, 0, 4, sizes.n_query_heads, sizes.key_dim),
                   wavekv::nhd(all.out.data(), 4, sizes.n_query_heads, sizes.value_dim));
  CHECK(whole.groups == 2 * 4);
  CHECK(whole.tokens_held == 2 * (148 + 8 + 9 + 10));
  if (on_device) return;
  CHECK(cache.stats(other).last.groups == 2 * 3);
  CHECK(cache.stats(other).total.tokens_held == 2 * (8 + 9 + 10));
  CHECK(cache.stats(other).steps == 1);
  CHECK(cache.stats(sequence).total.groups == 6 + 2);
}
