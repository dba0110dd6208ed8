// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <new>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/executors.hpp"
#include "support/counting_new.hpp"
#include "support/model.hpp"

// Memory may run out at any allocation of any call. The call then throws std::bad_alloc and the cache is as
// it was: same lengths, same segments, same answers bit for bit; and the call succeeds when made again.

using namespace wavekv_test;
using wavekv::geometry;
using wavekv::sequence_id;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<2>, wavekv::error_bound<>>;
using cache_type =
    wavekv::kv_cache<float, index_type, wavekv::wave_buffer<>, wavekv::cpu<any_executor>>;

geometry small_geometry() {
  geometry sizes;
  sizes.n_layers = 3;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 16;
  sizes.value_dim = 12;
  return sizes;
}

struct fixture {
  fixture() : cache(small_geometry(), options()), random(31) {
    for (const std::size_t n : {230U, 40U}) {
      sequences.push_back(cache.create());
      for (std::size_t layer = 0; layer < 3; ++layer) {
        append_rows(cache, sequences.back(), layer, normal_rows(random, n * 2 * 16),
                    normal_rows(random, n * 2 * 12), 90);
      }
    }
    query = normal_rows(random, 4 * 16);
  }

  static cache_type::options_type options() {
    cache_type::options_type chosen;
    chosen.window_tokens = 16;
    chosen.bound.free_tokens = 16;
    return chosen;
  }

  std::vector<outputs> answers() {
    std::vector<outputs> seen;
    for (const sequence_id sequence : sequences) {
      for (std::size_t layer = 0; layer < 3; ++layer) {
        seen.push_back(attend_once(cache, sequence, layer, query, wavekv::exact{}));
        seen.push_back(attend_once(cache, sequence, layer, query));
        seen.back().lse.push_back(static_cast<float>(cache.length(sequence, layer)));
      }
      seen.back().lse.push_back(static_cast<float>(cache.stats(sequence).segments));
    }
    return seen;
  }

  cache_type cache;
  random_engine random;
  std::vector<sequence_id> sequences;
  std::vector<float> query;
};

/// Lets the 1st, 2nd, 3rd ... allocation of a call fail, each on a fresh cache, until the call gets through.
/// @return how many of its allocations failed
template <class Call>
std::size_t fail_every_allocation(Call&& call) {
  for (std::size_t n = 0; n < 5000; ++n) {
    fixture f;
    const std::vector<outputs> before = f.answers();
    bool failed = false;
    allocations_until_failure = static_cast<std::ptrdiff_t>(n);
    try {
      call(f);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    allocations_until_failure = -1;
    if (!failed) return n;
    INFO("allocation ", n, " failed");
    CHECK(f.answers() == before);
    call(f);  // and now it works
    f.answers();
  }
  FAIL("more allocations than expected");
  return 0;
}

const std::vector<float> keys(400 * 2 * 16, 0.25F);
const std::vector<float> values(400 * 2 * 12, 0.5F);
const std::vector<float> queries(400 * 4 * 16, 0.75F);

}  // namespace

TEST_CASE("append of a few tokens, of tokens that seal, and of queries") {
  for (const std::size_t n : {1U, 20U, 64U, 300U}) {
    const std::size_t n_failed = fail_every_allocation([&](fixture& f) {
      f.cache.append(f.sequences[1], 1, tokens_of(keys, 0, n, 2, 16),
                     tokens_of(values, 0, n, 2, 12), tokens_of(queries, 0, n, 4, 16));
    });
    // Few tokens need no memory, queries or not: the tail has room, and the metric learns in place.
    if (n <= 20) CHECK(n_failed == 0);
    if (n >= 64) CHECK(n_failed > 10);
  }
}

TEST_CASE("seal") {
  const std::size_t n_failed =
      fail_every_allocation([](fixture& f) { f.cache.seal(f.sequences[0]); });
  CHECK(n_failed > 10);
}

TEST_CASE("create, fork") {
  CHECK(fail_every_allocation([](fixture& f) { f.cache.release(f.cache.create()); }) > 0);
  CHECK(fail_every_allocation([](fixture& f) { f.cache.release(f.cache.fork(f.sequences[0])); }) >
        0);
}

TEST_CASE("truncate, in the tail and inside a segment") {
  for (const std::size_t n : {225U, 200U, 150U, 100U, 2U}) {
    fail_every_allocation([n](fixture& f) { f.cache.truncate(f.sequences[0], n); });
  }
}

TEST_CASE("prefill") {
  std::vector<float> out(100 * 4 * 12);
  const std::size_t n_failed = fail_every_allocation([&](fixture& f) {
    f.cache.prefill(f.sequences[0], 2, tokens_of(queries, 0, 100, 4, 16),
                    tokens_of(keys, 0, 100, 2, 16), tokens_of(values, 0, 100, 2, 12),
                    wavekv::nhd(out.data(), 100, 4, 12));
  });
  CHECK(n_failed > 0);
}

TEST_CASE("attend: the first ones allocate") {
  // A fixture has attended already, so that a longer sequence is needed to make scratch grow.
  std::vector<float> out(4 * 12);
  for (const bool verified : {false, true}) {
    fail_every_allocation([&](fixture& f) {
      const std::ptrdiff_t left = allocations_until_failure.exchange(-1);
      const sequence_id longer = f.cache.create();
      f.cache.append(longer, 0, tokens_of(keys, 0, 400, 2, 16), tokens_of(values, 0, 400, 2, 12));
      allocations_until_failure = left;
      const auto q = tokens_of(f.query, 0, 1, 4, 16);
      const auto to = wavekv::nhd(out.data(), 1, 4, 12);
      try {
        if (verified) {
          f.cache.attend(longer, 0, q, to, wavekv::tensor_view<float, 2>(),
                         wavekv::verified_bound<>{});
        } else {
          f.cache.attend(longer, 0, q, to);
        }
      } catch (...) {
        allocations_until_failure = -1;
        f.cache.release(longer);
        throw;
      }
      allocations_until_failure = -1;
      f.cache.release(longer);
    });
  }
}
