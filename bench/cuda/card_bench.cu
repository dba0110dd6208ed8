// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What the card is, and how fast it moves memory: the ceiling of everything that decodes. `--json FILE`, `--short`.
#include <cstddef>
#include <cstdio>
#include <exception>

#include <wavekv/cuda/cuda_runtime.cuh>

#include "cuda/measure.cuh"

namespace {

using namespace wavekv;

/// Reads n sixteen-byte words and writes next to nothing: what the rows of a decode step cost at least.
struct read_words {
  static constexpr unsigned n_threads = 256;

  const device::words4* from;
  unsigned* to;
  std::size_t n;

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    constexpr unsigned n_at_once = 4;
    const std::size_t step = std::size_t{b.n_blocks_x()} * b.n_threads();
    unsigned seen = 0;
    for (std::size_t i = std::size_t{b.block_x()} * b.n_threads() + b.thread(); i < n;
         i += n_at_once * step) {
      device::words4 words[n_at_once] = {};
      WAVEKV_UNROLL
      for (unsigned k = 0; k < n_at_once; ++k) {
        if (i + k * step < n) words[k] = b.load16(from + i + k * step);
      }
      WAVEKV_UNROLL
      for (unsigned k = 0; k < n_at_once; ++k) {
        seen |= words[k].word[0] | words[k].word[1] | words[k].word[2] | words[k].word[3];
      }
    }
    if (seen != 0) *to = seen;  // the memory is zero: read, but never so
  }
};

}  // namespace

int main(int argc, char** argv) {
  wavekv_bench::bench_options options;
  if (!options.read(argc, argv)) return 2;
  try {
    const device::cuda_runtime gpu;
    cudaDeviceProp card{};
    device::detail::check_cuda(cudaGetDeviceProperties(&card, gpu.device()),
                               "cudaGetDeviceProperties");
    int driver = 0;
    int toolkit = 0;
    device::detail::check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    device::detail::check_cuda(cudaRuntimeGetVersion(&toolkit), "cudaRuntimeGetVersion");

    // Far more than the L2 cache holds.
    const std::size_t bytes = std::size_t{options.is_short ? 1U : 4U} << 30U;
    cudaStream_t stream = gpu.side_stream();
    auto* const from = static_cast<std::byte*>(gpu.allocate(bytes, stream));
    auto* const to = static_cast<std::byte*>(gpu.allocate(bytes, stream));
    gpu.fill(from, 0, bytes, stream);
    gpu.fill(to, 0, bytes, stream);
    wavekv_bench::stream_clock clock(stream);
    const int n = options.is_short ? 10 : 50;
    const double copied = clock.median_seconds(n, [&] { gpu.copy(to, from, bytes, stream); });
    const double read = clock.median_seconds(n, [&] {
      gpu.launch(stream, {gpu.n_multiprocessors() * 8},
                 read_words{reinterpret_cast<const device::words4*>(from),
                            reinterpret_cast<unsigned*>(to), bytes / 16});
    });
    gpu.deallocate(from, bytes, stream);
    gpu.deallocate(to, bytes, stream);
    gpu.synchronize(stream);

    char text[1024];
    std::snprintf(
        text, sizeof text,
        "{\"card\": \"%s\", \"capability\": \"%d.%d\", \"multiprocessors\": %d, \"memory_bytes\": "
        "%zu, \"l2_bytes\": %d, \"cuda_driver\": \"%d.%d\", \"cuda_toolkit\": \"%d.%d\", "
        "\"copy_gb_per_s\": %.1f, \"read_gb_per_s\": %.1f}\n",
        card.name, card.major, card.minor, card.multiProcessorCount, card.totalGlobalMem,
        card.l2CacheSize, driver / 1000, driver % 1000 / 10, toolkit / 1000, toolkit % 1000 / 10,
        2e-9 * static_cast<double>(bytes) / copied, 1e-9 * static_cast<double>(bytes) / read);
    std::printf("copy (read and written): %.1f GB/s; read: %.1f GB/s\n%s",
                2e-9 * static_cast<double>(bytes) / copied,
                1e-9 * static_cast<double>(bytes) / read, text);
    return options.write(text) ? 0 : 1;
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
}
