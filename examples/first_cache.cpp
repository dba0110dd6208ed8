// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The smallest use: fill a cache, ask it, see what was read.
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
  const std::size_t n = 20'000;  // tokens; 2 KV heads and 8 query heads of 64
  auto keys = random_rows(n, 2 * 64), values = random_rows(n, 2 * 64);
  auto query = random_rows(1, 8 * 64), out = std::vector<float>(8 * 64);
  // [listing]
  using namespace wavekv;
  kv_cache<> cache(
      geometry{.n_layers = 1, .n_query_heads = 8, .n_kv_heads = 2, .key_dim = 64, .value_dim = 64});
  const sequence_id sequence = cache.create();

  // A prompt's keys and values, [token, head, dim]; a decoded token's are appended the same way.
  cache.append(sequence, 0, nhd(keys.data(), n, 2, 64), nhd(values.data(), n, 2, 64));
  cache.seal(sequence);

  // One step: attention of the newest token over all others, found by searching.
  const step_stats step =
      cache.attend(sequence, 0, nhd(query.data(), 1, 8, 64), nhd(out.data(), 1, 8, 64));

  std::printf("read %.1f %% of the tokens, predicted error %.3f\n",
              100.0 * double(step.tokens_read) / double(step.tokens_held), step.predicted_error);
  // [listing]
}
