// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/buffers.hpp"
#include "support/backend.hpp"
#include "support/model.hpp"

// prefill: exact causal attention of a chunk over the cache and itself, then append.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::geometry;
using wavekv::sequence_id;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<2>, wavekv::exact>;
template <class S>
using cache_of = tested_cache<S, index_type>;

geometry make_geometry(std::size_t n_query_heads, std::size_t n_kv_heads, std::size_t key_dim,
                       std::size_t value_dim) {
  geometry sizes;
  sizes.n_query_heads = n_query_heads;
  sizes.n_kv_heads = n_kv_heads;
  sizes.key_dim = key_dim;
  sizes.value_dim = value_dim;
  return sizes;
}

template <class Cache>
outputs prefill(Cache& cache, sequence_id sequence, const std::vector<float>& queries,
                const std::vector<float>& keys, const std::vector<float>& values) {
  const geometry& sizes = cache.geometry();
  const std::size_t n = queries.size() / (sizes.n_query_heads * sizes.key_dim);
  outputs got(sizes, n);
  cache.prefill(sequence, 0, tokens_of(queries, 0, n, sizes.n_query_heads, sizes.key_dim),
                tokens_of(keys, 0, n, sizes.n_kv_heads, sizes.key_dim),
                tokens_of(values, 0, n, sizes.n_kv_heads, sizes.value_dim),
                wavekv::nhd(got.out.data(), n, sizes.n_query_heads, sizes.value_dim),
                wavekv::tensor_view<float, 2>(got.lse.data(), {n, sizes.n_query_heads}));
  return got;
}

template <class S>
void check_chunks(const geometry& sizes) {
  const double tolerance =
      on_device || std::is_same_v<S, bf16> ? 1e-4 : 1e-5;  // see exact_test.cpp
  std::vector<std::vector<outputs>> by_executor;
  for (const any_executor& executor : tested_executors()) {
    typename cache_of<S>::options_type options;
    options.window_tokens = 16;
    run_on(options, executor);
    cache_of<S> cache(sizes, options);
    const sequence_id sequence = cache.create();
    naive_layer model;
    random_engine random(61);
    std::vector<outputs> seen;
    for (const std::size_t n : {1U, 0U, 5U, 64U, 33U, 130U, 1U, 2U, 63U, 65U}) {
      const std::vector<float> keys =
          make_keys(random, key_family::uniform, n, sizes.n_kv_heads, sizes.key_dim);
      const std::vector<float> values = normal_rows(random, n * sizes.n_kv_heads * sizes.value_dim);
      const std::vector<float> queries =
          normal_rows(random, n * sizes.n_query_heads * sizes.key_dim);
      append_naively<S>(model, keys, values);
      seen.push_back(prefill(cache, sequence, queries, keys, values));
      REQUIRE(cache.length(sequence) == length_of(sizes, model));
      if (by_executor.empty() && n != 0) {
        INFO("chunk of ", n, " up to ", cache.length(sequence));
        const reference_attention expected = attend_naively(sizes, 0, model, queries);
        CHECK(largest_error(sizes, seen.back().out, expected) <= tolerance);
        CHECK(largest_lse_error(seen.back().lse, expected) <= tolerance);
      }
    }
    // What was appended is what attend sees.
    const std::vector<float> query = normal_rows(random, sizes.n_query_heads * sizes.key_dim);
    seen.push_back(attend_once(cache, sequence, 0, query));
    CHECK(largest_error(sizes, seen.back().out, attend_naively(sizes, 0, model, query)) <=
          tolerance);
    by_executor.push_back(seen);
    CHECK(by_executor.front() == seen);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("prefill in chunks equals the oracle, on every executor", S, float, bf16, f16) {
  check_chunks<S>(make_geometry(2, 2, 64, 64));
  check_chunks<S>(make_geometry(8, 2, dim_like(33), dim_like(17)));
  geometry sizes = make_geometry(6, 1, 24, 40);
  sizes.logit_softcap = 3.0F;
  sizes.scale = 0.4F;
  sizes.sink_logits = {0.0F, 1.0F, -2.0F, 3.0F, 0.5F, -1.0F};
  check_chunks<S>(sizes);
}

TEST_CASE("prefill teaches the query metric: what is sealed later is clustered by it") {
  const geometry sizes = make_geometry(2, 1, 16, 16);
  cache_of<float>::options_type options;
  options.window_tokens = 16;
  const std::vector<float> values(200 * 16, 1.0F);  // values drop out of the clustering
  std::vector<float> queries(200 * 2 * 16, 0.0F);   // all look along the first direction
  for (std::size_t i = 0; i < queries.size(); i += 16) queries[i] = 3.0F;
  std::vector<float> query(2 * 16, 0.0F);
  query[0] = query[16] = 6.0F;
  wavekv::error_bound<> lax;
  lax.epsilon = 1e6F;
  lax.hidden_share = 0.0F;
  // One sum of exponentials may be met by chance, so the squares of many are compared.
  double taught_squares = 0;
  double untaught_squares = 0;
  for (std::uint64_t data = 0; data < (is_slow ? 8 : 32); ++data) {
    cache_of<float> cache(sizes, options);
    random_engine random(62 + data);
    const std::vector<float> keys = normal_rows(random, 200 * 16);
    const sequence_id taught = cache.create();
    prefill(cache, taught, queries, keys, values);
    const sequence_id told = cache.create();  // the same through append
    cache.append(told, 0, tokens_of(keys, 0, 200, 1, 16), tokens_of(values, 0, 200, 1, 16),
                 tokens_of(queries, 0, 200, 2, 16));
    const sequence_id untaught = cache.create();
    append_rows(cache, untaught, 0, keys, values);
    const double exact = attend_once(cache, taught, 0, query, wavekv::exact{}).lse[0];
    const outputs by_prefill = attend_once(cache, taught, 0, query, lax);
    CHECK(attend_once(cache, told, 0, query, lax) == by_prefill);
    taught_squares += std::pow(by_prefill.lse[0] - exact, 2);
    untaught_squares += std::pow(attend_once(cache, untaught, 0, query, lax).lse[0] - exact, 2);
  }
  CHECK(taught_squares < 0.25 * untaught_squares);
}

#ifndef WAVEKV_TEST_ON_DEVICE
TEST_CASE_TEMPLATE("prefill over a slow tier, and after a read that failed", Transfer,
                   overlapped_transfer, late_transfer) {
  using buffer = wavekv::wave_buffer<two_tiers, wavekv::eviction::lru, Transfer>;
  slow_tier::instance() = {};
  const geometry sizes = make_geometry(4, 2, 16, 16);
  using cache_type = wavekv::kv_cache<float, index_type, buffer, wavekv::cpu<any_executor>>;
  typename cache_type::options_type options;
  options.window_tokens = 16;
  options.placement.n_slots = 4;
  cache_type cache(sizes, options);
  const sequence_id sequence = cache.create();
  random_engine random(63);
  naive_layer model;
  for (const std::size_t n : {150U, 90U}) {
    const std::vector<float> keys = normal_rows(random, n * 2 * 16);
    const std::vector<float> values = normal_rows(random, n * 2 * 16);
    const std::vector<float> queries = normal_rows(random, n * 4 * 16);
    if (n == 90) {
      // Two segments of two heads are read at least once each.
      for (const std::ptrdiff_t fails : {0, 1, 3}) {
        slow_tier::instance().fails_after = fails;
        CHECK_THROWS_AS(prefill(cache, sequence, queries, keys, values), wavekv::io_error);
        CHECK(slow_tier::instance().fails_after == -1);
        CHECK(slow_tier::instance().n_leases == 0);
        CHECK(cache.length(sequence) == 150);
      }
      slow_tier::instance().fails_after = -1;
    }
    append_naively<float>(model, keys, values);
    const outputs got = prefill(cache, sequence, queries, keys, values);
    CHECK(largest_error(sizes, got.out, attend_naively(sizes, 0, model, queries)) <= 1e-5);
    CHECK(slow_tier::instance().n_leases == 0);
  }
}
#endif
