// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/executors.hpp"
#include "support/model.hpp"

// What may run at the same time: different layers, different sequences, and sequences that come and go.
// Plain threads only, so that the thread sanitizer sees all of it.

using namespace wavekv_test;
using wavekv::geometry;
using wavekv::sequence_id;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 16>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<2>, wavekv::error_bound<>>;
using cache_type =
    wavekv::kv_cache<float, index_type, wavekv::wave_buffer<>, wavekv::cpu<any_executor>>;

geometry small_geometry() {
  geometry sizes;
  sizes.n_layers = 4;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 16;
  sizes.value_dim = 16;
  return sizes;
}

cache_type::options_type small_options(const any_executor& executor) {
  cache_type::options_type options;
  options.window_tokens = 16;
  options.executor = executor;
  options.bound.free_tokens = 16;
  return options;
}

/// What one user does to one (sequence, layer): appends and attends, and notes the answers.
std::vector<outputs> use(cache_type& cache, sequence_id sequence, std::size_t layer, int n_steps) {
  random_engine random(100 + layer);
  std::vector<outputs> seen;
  append_rows(cache, sequence, layer, normal_rows(random, 100 * 2 * 16),
              normal_rows(random, 100 * 2 * 16), 40);
  for (int step = 0; step < n_steps; ++step) {
    append_rows(cache, sequence, layer, normal_rows(random, 2 * 16), normal_rows(random, 2 * 16));
    const std::vector<float> query = normal_rows(random, 4 * 16);
    seen.push_back(attend_once(cache, sequence, layer, query));
    seen.push_back(attend_once(cache, sequence, layer, query, wavekv::exact{}));
  }
  return seen;
}

}  // namespace

TEST_CASE("layers from different threads") {
  for (const any_executor& executor :
       {any_executor(), any_executor(any_executor::kind::threads, 2)}) {
    cache_type together(small_geometry(), small_options(executor));
    const sequence_id a = together.create();
    std::vector<std::vector<outputs>> seen(4);
    std::vector<std::thread> threads;
    for (std::size_t layer = 0; layer < 4; ++layer) {
      threads.emplace_back([&, layer] { seen[layer] = use(together, a, layer, 40); });
    }
    for (std::thread& thread : threads) thread.join();
    cache_type alone(small_geometry(), small_options({}));
    const sequence_id b = alone.create();
    for (std::size_t layer = 0; layer < 4; ++layer) {
      CHECK(seen[layer] == use(alone, b, layer, 40));
    }
  }
}

TEST_CASE("sequences from different threads, while others come and go") {
  cache_type together(small_geometry(), small_options({}));
  std::vector<sequence_id> sequences;
  for (int i = 0; i < 3; ++i) sequences.push_back(together.create());
  const sequence_id prompt = together.create();
  {
    random_engine random(7);
    append_rows(together, prompt, 0, normal_rows(random, 150 * 2 * 16),
                normal_rows(random, 150 * 2 * 16));
  }
  std::vector<std::vector<outputs>> seen(3);
  std::atomic<bool> done{false};
  std::atomic<int> n_wrong{0};
  std::vector<std::thread> users;
  for (std::size_t i = 0; i < 3; ++i) {
    users.emplace_back([&, i] { seen[i] = use(together, sequences[i], i, 40); });
  }
  std::thread crowd([&] {  // forks share segments with `prompt`, and are attended and released
    const std::vector<float> query(4 * 16, 0.5F);
    const sequence_id first = together.fork(prompt);
    const outputs expected = attend_once(together, first, 0, query);
    std::vector<sequence_id> alive{first};
    while (!done) {
      alive.push_back(together.fork(prompt));
      if (!(attend_once(together, alive.back(), 0, query) == expected)) ++n_wrong;
      if (alive.size() > 20) {
        for (const sequence_id id : alive) together.release(id);
        alive.clear();
        for (int i = 0; i < 30; ++i) alive.push_back(together.create());
        together.truncate(alive.front(), 0);
        if (together.length(alive.back()) != 0) ++n_wrong;
      }
    }
  });
  for (std::thread& user : users) user.join();
  done = true;
  crowd.join();
  CHECK(n_wrong == 0);
  cache_type alone(small_geometry(), small_options({}));
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(seen[i] == use(alone, alone.create(), i, 40));
  }
}
