// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/executors.hpp"
#include "support/counting_new.hpp"
#include "support/model.hpp"

// Nothing is allocated in a decode step after warm-up: appends that seal nothing, and attends, by every
// bound, on one thread and two. OpenMP's own memory does not come from operator new.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::geometry;
using wavekv::sequence_id;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<128, 32>, wavekv::tokens_per_cluster<8, 32>,
                       wavekv::query_metric_kmeans<2>, wavekv::error_bound<>>;
using cache_type =
    wavekv::kv_cache<bf16, index_type, wavekv::wave_buffer<>, wavekv::cpu<any_executor>>;

geometry small_geometry() {
  geometry sizes;
  sizes.n_layers = 2;
  sizes.n_query_heads = 8;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 32;
  sizes.value_dim = 32;
  return sizes;
}

/// Changes in every step that seals something: a chore of a segment that others still lack, or the last one.
std::uint64_t sealed(const cache_type& cache, const std::vector<wavekv::query_run>& batch) {
  std::uint64_t sum = 0;
  for (const wavekv::query_run& run : batch) {
    const wavekv::statistics stats = cache.stats(run.sequence);
    sum += stats.segments * (2 * small_geometry().n_kv_heads + 1) + stats.chores_in_making;
  }
  return sum;
}

template <class Bound>
void check_steps(const any_executor& executor, std::size_t n_sequences, const Bound& bound) {
  const geometry sizes = small_geometry();
  cache_type::options_type options;
  options.window_tokens = 16;
  options.executor = executor;
  cache_type cache(sizes, options);
  random_engine random(21);
  std::vector<wavekv::query_run> batch;
  for (std::size_t i = 0; i < n_sequences; ++i) {
    batch.push_back({cache.create()});
    for (std::size_t layer = 0; layer < sizes.n_layers; ++layer) {
      const std::size_t n = 500 + 17 * i;
      append_rows(cache, batch.back().sequence, layer,
                  make_keys(random, key_family::clustered, n, 2, 32),
                  normal_rows(random, n * 2 * 32));
    }
  }
  const std::size_t q = sizes.n_query_heads * sizes.key_dim;
  const std::vector<float> keys = normal_rows(random, 2 * 32);
  const std::vector<float> values = normal_rows(random, 2 * 32);
  std::vector<float> out(n_sequences * sizes.n_query_heads * sizes.value_dim);
  // Flat queries want estimates, steep ones want exactly a few clusters, those in between want many.
  std::vector<std::vector<float>> queries;
  for (const float length : {1.0F, 0.01F, 4.0F, 0.3F, 10.0F, 2.0F}) {
    queries.push_back(normal_rows(random, n_sequences * q, length));
  }
  std::size_t n_quiet_steps = 0;
  std::size_t n_sealing_steps = 0;
  for (std::size_t step = 0; step < 142; ++step) {
    const std::uint64_t before_step = sealed(cache, batch);
    const std::size_t before = n_allocations;
    for (std::size_t layer = 0; layer < sizes.n_layers; ++layer) {
      for (const wavekv::query_run& run : batch) {
        cache.append(run.sequence, layer, tokens_of(keys, 0, 1, 2, 32),
                     tokens_of(values, 0, 1, 2, 32));
      }
      cache.attend(std::span<const wavekv::query_run>(batch), layer,
                   tokens_of(queries[step % queries.size()], 0, n_sequences, 8, 32),
                   wavekv::nhd(out.data(), n_sequences, 8, 32), {}, bound);
    }
    const std::size_t seen = n_allocations - before;
    if (sealed(cache, batch) != before_step) {
      ++n_sealing_steps;
    } else if (step >= 60) {  // warm: the tail was once at its longest
      INFO("step ", step, ", query kind ", step % queries.size());
      CHECK(seen == 0);
      ++n_quiet_steps;
    }
  }
  CHECK(n_sealing_steps > 0);
  CHECK(n_quiet_steps > 30);
}

void check_bounds(const any_executor& executor, std::size_t n_sequences) {
  INFO("sequences ", n_sequences, ", workers ", executor.concurrency());
  SUBCASE("exact") { check_steps(executor, n_sequences, wavekv::exact{}); }
  SUBCASE("fixed_budget") { check_steps(executor, n_sequences, wavekv::fixed_budget{}); }
  SUBCASE("error_bound") {
    wavekv::error_bound<> bound;
    bound.max_read = 1.0F;
    check_steps(executor, n_sequences, bound);
  }
  SUBCASE("verified_bound") {
    wavekv::verified_bound<> bound;
    bound.samples = 32;
    bound.rule.free_tokens = 64;
    check_steps(executor, n_sequences, bound);
  }
}

}  // namespace

TEST_CASE("decode steps allocate nothing: one sequence, one thread") { check_bounds({}, 1); }

TEST_CASE("decode steps allocate nothing: one sequence, two threads share its parts") {
  check_bounds({any_executor::kind::openmp, 2}, 1);
}

TEST_CASE("decode steps allocate nothing: a batch, a search a thread") {
  check_bounds({any_executor::kind::openmp, 2}, 5);
}
