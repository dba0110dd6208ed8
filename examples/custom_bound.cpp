// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// An estimation bound of your own: a value with one function. No base class, no registration.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <span>
#include <vector>

#include <wavekv/wavekv.hpp>

// [listing]
/// Reads every cluster that is expected to hold at least `share` of some query head's attention,
/// and estimates the others; a coarse node is opened by the same rule, with what its clusters may
/// hold.
struct heavy_clusters {
  float share = 0.002F;

  void plan(const wavekv::frontier& nodes, std::span<wavekv::zone> zones) const noexcept {
    const auto shares = nodes.share();
    for (std::size_t i = 0; i < zones.size(); ++i)
      if (shares[i] >= share) zones[i] = wavekv::zone::retrieval;  // they come in as estimation
  }
};
static_assert(wavekv::estimation_bound<heavy_clusters>);
// [listing]

int main() {
  constexpr std::size_t n_tokens = 30'000, dim = 64;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> keys(n_tokens * dim), values(n_tokens * dim);
  for (float& x : keys) x = 1.5F * normal(random);
  for (float& x : values) x = normal(random);

  // The cache's default bound is ours; one call names another, for comparison.
  wavekv::kv_cache<float, wavekv::wave_index<>::with_bound<heavy_clusters>> cache(
      {.n_layers = 1, .n_query_heads = 1, .n_kv_heads = 1, .key_dim = dim, .value_dim = dim});
  const auto sequence = cache.create();
  cache.append(sequence, 0, wavekv::nhd(keys.data(), n_tokens, 1, dim),
               wavekv::nhd(values.data(), n_tokens, 1, dim));
  cache.seal(sequence);

  const std::vector<float> query(keys.begin() + 1000 * dim,
                                 keys.begin() + 1001 * dim);  // looks for token 1000
  std::vector<float> found(dim), expected(dim);
  const auto step = cache.attend(sequence, 0, wavekv::nhd(query.data(), 1, 1, dim),
                                 wavekv::nhd(found.data(), 1, 1, dim));
  cache.attend(sequence, 0, wavekv::nhd(query.data(), 1, 1, dim),
               wavekv::nhd(expected.data(), 1, 1, dim), wavekv::tensor_view<float, 2>{},
               wavekv::exact{});

  float difference = 0, norm = 0;
  for (std::size_t i = 0; i < dim; ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  const float error = std::sqrt(difference / norm);
  std::printf("read %zu of %zu tokens, error %.4f\n", std::size_t{step.tokens_read}, n_tokens,
              error);
  return error < 0.1F ? 0 : 1;
}
