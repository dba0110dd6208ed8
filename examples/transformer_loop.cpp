// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception Where the calls go in somebody's engine:
// prefill, seal, append, attend. The engine here is a stand-in whose layers are random projections;
// examples/transformer is a real one.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include <wavekv/wavekv.hpp>

namespace engine {

constexpr std::size_t n_layers = 3, n_query_heads = 4, n_kv_heads = 2, head_dim = 32, hidden = 64;
using activations = std::vector<float>;

/// Stands for a layer's projections: token-wise, any function of the hidden state.
activations project(const activations& x, std::size_t width, std::size_t layer, unsigned role) {
  std::mt19937 random(static_cast<unsigned>(layer) * 7 + role);
  std::normal_distribution<float> normal(0.0F,
                                         1.0F / std::sqrt(float(x.size() / hidden ? hidden : 1)));
  activations weights(width * hidden), y(x.size() / hidden * width);
  for (float& w : weights) w = normal(random);
  for (std::size_t t = 0; t < x.size() / hidden; ++t)
    for (std::size_t r = 0; r < width; ++r)
      for (std::size_t c = 0; c < hidden; ++c)
        y[t * width + r] += weights[r * hidden + c] * x[t * hidden + c];
  return y;
}

activations embed(std::size_t n_tokens, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  activations x(n_tokens * hidden);
  for (float& value : x) value = normal(random);
  return x;
}

}  // namespace engine

using wavekv::nhd;

using cache_type = wavekv::kv_cache<>;

/// One pass over all layers. A prompt chunk and a decode step differ in the two places that are
/// marked.
engine::activations forward(cache_type& cache, wavekv::sequence_id sequence, engine::activations x,
                            bool is_prompt) {
  using namespace engine;
  const std::size_t n = x.size() / hidden;
  for (std::size_t layer = 0; layer < n_layers; ++layer) {
    auto q = project(x, n_query_heads * head_dim, layer, 0);
    auto k = project(x, n_kv_heads * head_dim, layer, 1);
    auto v = project(x, n_kv_heads * head_dim, layer, 2);
    activations attended(n * n_query_heads * head_dim);

    const auto queries = nhd(q.data(), n, n_query_heads, head_dim);
    const auto keys = nhd(k.data(), n, n_kv_heads, head_dim);
    const auto values = nhd(v.data(), n, n_kv_heads, head_dim);
    const auto out = nhd(attended.data(), n, n_query_heads, head_dim);
    if (is_prompt) {
      cache.prefill(sequence, layer, queries, keys, values,
                    out);  // exact; the index grows meanwhile
    } else {
      cache.append(sequence, layer, keys, values);  // the new token first,
      cache.attend(sequence, layer, queries, out);  // then its question
    }
    // here: x += output projection of `attended`, then the feed-forward part
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += attended[i % attended.size()];
  }
  return x;
}

int main() {
  cache_type cache({.n_layers = engine::n_layers,
                    .n_query_heads = engine::n_query_heads,
                    .n_kv_heads = engine::n_kv_heads,
                    .key_dim = engine::head_dim,
                    .value_dim = engine::head_dim});
  const auto sequence = cache.create();
  constexpr unsigned n_chunks = 3;
  for (unsigned chunk = 0; chunk < n_chunks; ++chunk)
    forward(cache, sequence, engine::embed(512, chunk), true);
  cache.seal(sequence);  // the prompt is complete

  auto x = engine::embed(1, 99);
  for (int step = 0; step < 8; ++step) x = forward(cache, sequence, x, false);

  const auto stats = cache.stats(sequence);
  std::printf("%zu tokens in %zu segments and %zu clusters; %zu steps\n", std::size_t{stats.tokens},
              std::size_t{stats.segments}, std::size_t{stats.clusters}, std::size_t{stats.steps});
  cache.release(sequence);
  return stats.tokens == 512 * n_chunks + 8 && std::isfinite(x[0]) ? 0 : 1;
}
