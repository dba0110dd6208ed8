// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A cache type is one line per choice; one slot can also be changed by its name alone.
#include <cstdio>
#include <random>
#include <vector>

#include <wavekv/wavekv.hpp>

// Every slot written out.
using spelled_out = wavekv::kv_cache<
    wavekv::bf16,
    wavekv::wave_index<wavekv::segment_size<4096, 1024>, wavekv::tokens_per_cluster<16, 128>,
                       wavekv::spherical_kmeans<10>, wavekv::fixed_budget>,
    wavekv::wave_buffer<wavekv::placement::resident, wavekv::eviction::lru,
                        wavekv::transfer::inline_read>,
    wavekv::cpu<wavekv::serial_executor>>;

// The defaults, but for the slots that are named.
using by_name = wavekv::kv_cache<float, wavekv::wave_index<>::with_bound<wavekv::verified_bound<>>::
                                            with_clusterer<wavekv::spherical_kmeans<5>>>;

template <class Cache>
void show(const char* name, typename Cache::options_type options = {}) {
  constexpr std::size_t n_tokens = 10'000, n_heads = 2, dim = 64;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> rows(n_tokens * n_heads * dim);
  for (float& x : rows) x = normal(random);
  std::vector<float> out(n_heads * dim);

  Cache cache({.n_layers = 1,
               .n_query_heads = n_heads,
               .n_kv_heads = n_heads,
               .key_dim = dim,
               .value_dim = dim},
              options);
  const auto sequence = cache.create();
  cache.append(sequence, 0, wavekv::nhd(rows.data(), n_tokens, n_heads, dim),
               wavekv::nhd(rows.data(), n_tokens, n_heads, dim));
  cache.seal(sequence);
  const auto step = cache.attend(sequence, 0, wavekv::nhd(rows.data(), 1, n_heads, dim),
                                 wavekv::nhd(out.data(), 1, n_heads, dim));
  std::printf("%-12s %6zu tokens read, %4zu clusters read, %4zu estimated, %4zu dropped\n", name,
              std::size_t{step.tokens_read}, std::size_t{step.clusters_read},
              std::size_t{step.clusters_estimated}, std::size_t{step.clusters_dropped});
}

int main() {
  show<spelled_out>("spelled_out");
  show<by_name>("by_name", {.window_tokens = 128, .bound = {.epsilon = 0.1F, .delta = 0.05F}});
}
