// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <new>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/buffer/memory_store.hpp>
#include <wavekv/buffer/tiered.hpp>
#include <wavekv/wavekv.hpp>

#include "support/counting_new.hpp"
#include "support/tiered_cache.hpp"

// Memory may run out at any allocation of any call of a cache with two tiers, on the thread that calls, on those that read
// for it, or on the one that writes. The call then throws std::bad_alloc, now or when the writing is asked for again, and
// the cache is as it was.

using namespace wavekv_test;
using namespace wavekv_test::tiered;
namespace eviction = wavekv::eviction;
namespace placement = wavekv::placement;
namespace transfer = wavekv::transfer;

namespace {

using over_memory = placement::tiered_over<wavekv::memory_store>;
template <class Transfer>
using buffer_with = wavekv::wave_buffer<over_memory, eviction::lru, Transfer>;

template <class Buffer>
struct fixture {
  fixture() : cache(small_geometry(2), small_options<Buffer>(options())), random(31) {
    for (const std::size_t n : {230U, 40U}) {
      sequences.push_back(cache.create());
      for (std::size_t layer = 0; layer < 2; ++layer) append(sequences.back(), layer, n);
    }
    query = make_queries(random);
    cache.flush();
    answers();
  }

  static over_memory::options_type options() {
    over_memory::options_type chosen;
    chosen.fast_bytes = 9000;
    chosen.write_back_bytes = 2 * 64 * token_bytes;
    return chosen;
  }

  void append(sequence_id sequence, std::size_t layer, std::size_t n) {
    const token_rows tokens = make_tokens(random, n);
    append_rows(cache, sequence, layer, tokens.keys, tokens.values);
  }

  std::vector<outputs> answers() {
    std::vector<outputs> seen;
    for (const sequence_id sequence : sequences) {
      for (std::size_t layer = 0; layer < 2; ++layer) {
        seen.push_back(attend_once(cache, sequence, layer, query, wavekv::exact{}));
        seen.push_back(attend_once(cache, sequence, layer, query, reads_some()));
        seen.back().lse.push_back(static_cast<float>(cache.length(sequence, layer)));
      }
      seen.back().lse.push_back(static_cast<float>(cache.stats(sequence).segments));
    }
    return seen;
  }

  cache_of<Buffer> cache;
  random_engine random;
  std::vector<sequence_id> sequences;
  std::vector<float> query;
};

bool agree(const std::vector<outputs>& a, const std::vector<outputs>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].lse.size() != b[i].lse.size() || distance(a[i], b[i]) > tolerance) return false;
  }
  return a.size() == b.size();
}

/// Lets the 1st, 2nd, 3rd ... allocation during a call fail, each on a fresh cache, until none is left to fail.
/// @return how many calls failed
template <class Buffer, class Call>
std::size_t fail_every_allocation(Call&& call) {
  std::size_t n_failed = 0;
  for (std::size_t n = 0; n < 5000; ++n) {
    fixture<Buffer> f;
    const std::vector<outputs> before = f.answers();
    bool failed = false;
    allocations_until_failure = static_cast<std::ptrdiff_t>(n);
    try {
      call(f);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    if (allocations_until_failure.exchange(-1) >= 0) {
      REQUIRE_FALSE(failed);
      return n_failed;
    }
    CAPTURE(n);
    if (failed) {
      ++n_failed;
      CHECK(agree(f.answers(), before));
    }
    // What is written was perhaps what failed: that is said once, by whoever seals or flushes next.
    int n_told = 0;
    for (;;) {
      try {
        call(f);
        f.cache.flush();
        break;
      } catch (const std::bad_alloc&) {
        REQUIRE(++n_told <= 1);
      }
    }
    CHECK(f.cache.stats().tiers.waiting_bytes == 0);
    f.answers();
  }
  FAIL("more allocations than expected");
  return 0;
}

const std::vector<float> keys(400 * n_heads * key_dim, 0.25F);
const std::vector<float> values(400 * n_heads * value_dim, 0.5F);
const std::vector<float> queries(400 * n_query_heads * key_dim, 0.75F);

auto rows(const std::vector<float>& from, std::size_t n, std::size_t heads, std::size_t dim) {
  return tokens_of(from, 0, n, heads, dim);
}

}  // namespace

TEST_CASE_TEMPLATE("appends and seals", Transfer, transfer::inline_read, transfer::threads) {
  using buffer = buffer_with<Transfer>;
  for (const std::size_t n : {64U, 300U}) {
    const std::size_t n_failed = fail_every_allocation<buffer>([&](fixture<buffer>& f) {
      f.cache.append(f.sequences[1], 1, rows(keys, n, n_heads, key_dim),
                     rows(values, n, n_heads, value_dim));
    });
    CHECK(n_failed > 10);
  }
  CHECK(fail_every_allocation<buffer>([](fixture<buffer>& f) { f.cache.seal(f.sequences[0]); }) >
        10);
}

TEST_CASE_TEMPLATE("create, fork, flush, prefetch", Transfer, transfer::inline_read,
                   transfer::threads) {
  using buffer = buffer_with<Transfer>;
  using fixture_type = fixture<buffer>;
  CHECK(fail_every_allocation<buffer>([](fixture_type& f) { f.cache.release(f.cache.create()); }) >
        0);
  CHECK(fail_every_allocation<buffer>(
            [](fixture_type& f) { f.cache.release(f.cache.fork(f.sequences[0])); }) > 0);
  fail_every_allocation<buffer>([](fixture_type& f) { f.cache.flush(); });
  CHECK(fail_every_allocation<buffer>([](fixture_type& f) {
          for (std::size_t layer = 0; layer < 2; ++layer) f.cache.prefetch(f.sequences[0], layer);
        }) > 0);
}

TEST_CASE_TEMPLATE("what reads a segment back, and what reads all of them", Transfer,
                   transfer::inline_read, transfer::threads) {
  using buffer = buffer_with<Transfer>;
  for (const std::size_t n : {200U, 100U}) {
    CHECK(fail_every_allocation<buffer>(
              [n](fixture<buffer>& f) { f.cache.truncate(f.sequences[0], n); }) > 0);
  }
  std::vector<float> out(100 * n_query_heads * value_dim);
  CHECK(fail_every_allocation<buffer>([&](fixture<buffer>& f) {
          f.cache.prefill(f.sequences[0], 1, rows(queries, 30, n_query_heads, key_dim),
                          rows(keys, 30, n_heads, key_dim), rows(values, 30, n_heads, value_dim),
                          wavekv::nhd(out.data(), 30, n_query_heads, value_dim));
        }) > 0);
}

TEST_CASE_TEMPLATE("attends of a sequence that is longer than any before", Transfer,
                   transfer::inline_read, transfer::threads) {
  using buffer = buffer_with<Transfer>;
  std::vector<float> out(n_query_heads * value_dim);
  const auto attend_longer = [&](const auto& bound) {
    fail_every_allocation<buffer>([&](fixture<buffer>& f) {
      const std::ptrdiff_t left = allocations_until_failure.exchange(-1);
      const sequence_id longer = f.cache.create();
      f.cache.append(longer, 0, rows(keys, 400, n_heads, key_dim),
                     rows(values, 400, n_heads, value_dim));
      f.cache.flush();
      allocations_until_failure = left;
      try {
        f.cache.attend(longer, 0, rows(f.query, 1, n_query_heads, key_dim),
                       wavekv::nhd(out.data(), 1, n_query_heads, value_dim), bound);
      } catch (...) {
        const std::ptrdiff_t after = allocations_until_failure.exchange(-1);
        f.cache.release(longer);
        allocations_until_failure = after;
        throw;
      }
      const std::ptrdiff_t after = allocations_until_failure.exchange(-1);
      f.cache.release(longer);
      allocations_until_failure = after;
    });
  };
  attend_longer(wavekv::exact{});
  attend_longer(reads_some());
  attend_longer(verifies());
}
