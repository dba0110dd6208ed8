// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What the index costs to build while a prompt is read: appends of 8,192 tokens to one layer, sealed.
// `--json FILE`, `--short`.
#include <cstddef>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include <wavekv/cuda/cuda_runtime.cuh>

#include "cuda/llama_cache.cuh"
#include "cuda/measure.cuh"

int main(int argc, char** argv) {
  using namespace wavekv;
  using namespace wavekv_bench;
  bench_options options;
  if (!options.read(argc, argv)) return 2;
  try {
    const device::cuda_runtime runtime;
    cudaStream_t stream{};
    device::detail::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                               "cudaStreamCreateWithFlags");
    std::string text = "[\n";
    const std::vector<std::size_t> contexts = options.is_short
                                                  ? std::vector<std::size_t>{8192}
                                                  : std::vector<std::size_t>{8192, 32768, 131072};
    for (const std::size_t context : contexts) {
      llama_cache filled(runtime, 1, stream);
      stream_clock clock(stream);
      std::vector<double> times;
      for (int i = 0; i < (options.is_short ? 2 : 6); ++i) {
        double sum = 0.0;
        const sequence_id sequence =
            filled.fill(context, 1, [&](const auto& work) { sum += clock.seconds(work); });
        filled.cache().release(sequence, stream);
        if (i != 0) times.push_back(sum);  // the first one makes the memory
      }
      std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                       times.end());
      const double seconds = times[times.size() / 2];
      char line[160];
      std::snprintf(line, sizeof line, "%s {\"context\": %zu, \"layer_seconds\": %.4e}",
                    text.size() > 2 ? ",\n" : "", context, seconds);
      text += line;
      std::printf("%8zu tokens: %.2f ms a layer\n", context, seconds * 1e3);
    }
    return options.write(text + "\n]\n") ? 0 : 1;
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
}
