// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The smallest use on a GPU: as first_cache.cpp, in device memory and on a stream.
#include <cstdio>
#include <random>
#include <vector>

#include <thrust/device_vector.h>

#include <wavekv/cache/kv_cache.cuh>
#include <wavekv/cuda/backend.cuh>

// Neighbouring rows resemble each other, as the keys of a text do.
thrust::device_vector<float> random_rows(std::size_t n, std::size_t width) {
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
  auto query = random_rows(1, 8 * 64), out = thrust::device_vector<float>(8 * 64);
  const auto memory = [](auto& vector) { return thrust::raw_pointer_cast(vector.data()); };
  const cudaStream_t stream = cudaStreamPerThread;
  // [listing]
  using namespace wavekv;
  kv_cache<bf16, wave_index<>, wave_buffer<>, wavekv::cuda> cache(
      geometry{.n_layers = 1, .n_query_heads = 8, .n_kv_heads = 2, .key_dim = 64, .value_dim = 64});
  const sequence_id sequence = cache.create(stream);

  // The same verbs on device memory: each enqueues its work in the stream and returns.
  cache.append(sequence, 0, device_nhd(memory(keys), n, 2, 64),
               device_nhd(memory(values), n, 2, 64), stream);
  cache.seal(sequence, stream);
  cache.attend(sequence, 0, device_nhd(memory(query), 1, 8, 64), device_nhd(memory(out), 1, 8, 64),
               stream);

  const step_stats step = cache.collect(stream);  // waits, and throws what only the device saw
  std::printf("read %.1f %% of the tokens, predicted error %.3f\n",
              100.0 * double(step.tokens_read) / double(step.tokens_held), step.predicted_error);
  // [listing]
}
