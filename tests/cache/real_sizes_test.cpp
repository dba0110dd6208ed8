// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "support/backend.hpp"
#include "support/model.hpp"

// The defaults at their real sizes: segments of 8,192 and 1,024 tokens, heads of 128.

using namespace wavekv_test;
using wavekv::geometry;
using wavekv::sequence_id;

namespace {

geometry llama_geometry() {
  geometry sizes;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 1;
  sizes.key_dim = sizes.value_dim = 128;
  return sizes;
}

/// A prompt, then decode steps until segments of both sizes are sealed; exact against the oracle at the edges.
template <class Cache>
void check(double most_index_bytes) {
  const geometry sizes = llama_geometry();
  typename Cache::options_type options;
  run_on(options, {any_executor::kind::openmp, 2});
  Cache cache(sizes, options);
  const sequence_id sequence = cache.create();
  random_engine random(71);
  constexpr std::size_t steady = 4 + 64;
  constexpr std::size_t prompt = 8192 + steady;
  const std::vector<float> keys =
      make_keys(random, key_family::clustered, prompt + 1300, 1, sizes.key_dim);
  const std::vector<float> values = normal_rows(random, (prompt + 1300) * sizes.value_dim);
  std::size_t length = 0;
  const auto append = [&](std::size_t n) {
    cache.append(sequence, 0, tokens_of(keys, length, n, 1, 128),
                 tokens_of(values, length, n, 1, 128));
    length += n;
  };
  const auto compare = [&](std::uint64_t n_segments) {
    CHECK(cache.stats(sequence).segments == n_segments);
    naive_layer model;
    append_naively<wavekv::bf16>(model, std::span(keys).first(length * 128),
                                 std::span(values).first(length * 128));
    const std::vector<float> query = normal_rows(random, 4 * 128);
    const reference_attention expected = attend_naively(sizes, 0, model, query);
    CHECK(largest_error(sizes, attend_once(cache, sequence, 0, query, wavekv::exact{}).out,
                        expected) <= 1e-4);
    const auto [got, stats] = attend_counted(cache, sequence, 0, query, cache.options().bound);
    CHECK(largest_error(sizes, got.out, expected) < 1.0);
    CHECK(stats.tokens_read >= std::min<std::size_t>(length, steady));
    if (n_segments != 0) CHECK(stats.tokens_read < length / 4);
    wavekv::verified_bound<> verified;
    verified.epsilon = 0.2F;
    CHECK(largest_error(sizes, attend_once(cache, sequence, 0, query, verified).out, expected) <=
          0.2);
  };
  // One token would do on a device as well, but as a decoded one: what waits is then sealed beside, in decode segments.
  constexpr std::size_t last = on_device ? 1024 : 1;
  append(prompt - last);
  compare(0);
  append(last);  // fills the first segment
  compare(1);
  append(1023);  // one at a time would do the same
  compare(1);
  append(1);  // fills the second; half of its head is made
  compare(1);
  append(on_device ? 128 : 1);  // a device seals beside so many, however long it takes
  compare(1);
  append(1);  // finishes it
  compare(2);
  append(68);
  compare(2);
  const wavekv::statistics stats = cache.stats(sequence);
  CHECK(stats.kv_bytes == (8192 + 1024) * 256 * sizeof(wavekv::bf16));
  // A device has room for as many nodes as there may be, and says so.
  CHECK(static_cast<double>(stats.index_bytes) <=
        (on_device ? 1.5 : 1.0) * most_index_bytes * static_cast<double>(stats.kv_bytes));
  // Lower half of the query metric, and a covariance of keys with keys and values for each level.
  using index_type = typename Cache::index_type;
  const std::size_t metric =
      wavekv::detail::uses_queries<typename index_type::clusterer_type>() ? 128 * 129 / 2 : 0;
  const std::size_t learnt =
      (metric + index_type::cluster_count_type::n_levels * 128 * 256) * sizeof(float);
  CHECK(stats.learnt_bytes >= learnt);
  CHECK(stats.learnt_bytes <= (on_device ? 2 : 1) * learnt);  // which has the upper half, too
  cache.truncate(sequence, 5000);
  length = 5000;
  compare(0);
}

}  // namespace

TEST_CASE("the default cache") { check<tested_cache<wavekv::bf16, wavekv::wave_index<>>>(0.09); }

TEST_CASE("the paper's parameters") {
  check<tested_cache<wavekv::bf16, wavekv::paper_defaults>>(0.08);
}
