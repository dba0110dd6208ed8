// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Predictions are made from summaries; how far they are off depends on model, layer and length. A few
// of the prompt's own queries, asked by the bound and exactly, say by how much.
#include <cstdio>
#include <random>
#include <vector>

#include <wavekv/wavekv.hpp>

// Neighbouring rows resemble each other, as the keys of a text do.
std::vector<float> random_rows(std::size_t n, std::size_t width) {
  static std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> rows(n * width);
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i] = i < width ? normal(random) : 0.99F * rows[i - width] + 0.14F * normal(random);
  return rows;
}

int main() {
  using namespace wavekv;
  const std::size_t n = 20'000, n_layers = 2;  // 2 KV heads and 8 query heads of 64
  kv_cache<> cache(
      {.n_layers = n_layers, .n_query_heads = 8, .n_kv_heads = 2, .key_dim = 64, .value_dim = 64});
  const sequence_id sequence = cache.create();
  std::vector<std::vector<float>> kept(n_layers);  // of each layer, 32 of the prompt's queries
  for (std::size_t layer = 0; layer < n_layers; ++layer) {
    const auto keys = random_rows(n, 2 * 64), values = random_rows(n, 2 * 64);
    cache.append(sequence, layer, nhd(keys.data(), n, 2, 64), nhd(values.data(), n, 2, 64));
    kept[layer] = random_rows(32, 8 * 64);
  }

  // [listing]
  cache.seal(sequence);
  std::vector<error_bound<>> bounds;  // one a layer
  for (std::size_t layer = 0; layer < n_layers; ++layer)
    bounds.push_back(calibrate(cache, sequence, layer, nhd(kept[layer].data(), 32, 8, 64),
                               error_bound<>{.epsilon = 0.02F}));
  // [listing]

  const auto query = random_rows(1, 8 * 64);
  std::vector<float> out(8 * 64), exactly(8 * 64);
  for (std::size_t layer = 0; layer < n_layers; ++layer) {
    const auto ask = nhd(query.data(), 1, 8, 64);
    const auto step = cache.attend(sequence, layer, ask, nhd(out.data(), 1, 8, 64), bounds[layer]);
    cache.attend(sequence, layer, ask, nhd(exactly.data(), 1, 8, 64), exact{});
    std::printf("layer %zu: errors are %.2f times what summaries predict; a step predicts %.4f and "
                "errs by %.4f\n",
                layer, bounds[layer].error_scale, step.predicted_error,
                largest_error(nhd(out.data(), 1, 8, 64), nhd(exactly.data(), 1, 8, 64)));
  }
}
