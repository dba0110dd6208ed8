// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// One decode step's attention of one layer, by the default bound and exactly, over contexts and batches: the median of
// replays of a CUDA graph that walks through several layers, so that the L2 cache does not hold what is read. Steps go on
// as in a server: no synchronisation inside a replay. `--json FILE`, `--short`.
#include <cstddef>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include <wavekv/cuda/cuda_runtime.cuh>

#include "cuda/llama_cache.cuh"
#include "cuda/measure.cuh"

namespace {

using namespace wavekv;
using namespace wavekv_bench;
using device::detail::check_cuda;

struct row {
  std::size_t context;
  std::size_t batch;
  std::string bound;
  double seconds;    // of one layer's attend
  step_stats stats;  // of one
};

// The median of replays of a graph of all layers' attends, for one layer.
template <class Bound>
row measure(llama_cache& filled, const std::vector<query_run>& batch, std::size_t context,
            const char* name, const Bound& bound, int n_replays,
            const device::cuda_runtime& runtime, cudaStream_t stream) {
  llama_cache::cache_type& cache = filled.cache();
  const std::size_t n = batch.size();
  const std::size_t n_layers = cache.geometry().n_layers;
  const device_rows<bf16> queries(runtime, n * n_query_heads * dim, stream);
  const device_rows<bf16> out(runtime, n * n_query_heads * dim, stream);
  filled.make_queries(queries.data(), n, 7);
  auto workspace = cache.make_workspace(n, context, stream);
  const auto step = [&](std::size_t layer) {
    cache.attend(std::span<const query_run>(batch), layer,
                 device_nhd<const bf16>(queries.data(), n, n_query_heads, dim),
                 device_nhd(out.data(), n, n_query_heads, dim), bound, workspace, stream);
  };
  step(0);
  (void)cache.collect(stream);
  step(0);
  row result{context, n, name, 0.0, cache.collect(stream)};
  cudaGraph_t graph{};
  cudaGraphExec_t captured{};
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
  for (std::size_t layer = 0; layer < n_layers; ++layer) step(layer);
  check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check_cuda(cudaGraphInstantiate(&captured, graph, 0), "cudaGraphInstantiate");
  stream_clock clock(stream);
  result.seconds = clock.median_seconds(n_replays, [&] {
    check_cuda(cudaGraphLaunch(captured, stream), "cudaGraphLaunch");
  }) / static_cast<double>(n_layers);
  cudaGraphExecDestroy(captured);
  cudaGraphDestroy(graph);
  (void)cache.collect(stream);
  return result;
}

std::string as_json(const std::vector<row>& rows) {
  std::string text = "[\n";
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const row& r = rows[i];
    char line[512];
    std::snprintf(line, sizeof line,
                  " {\"context\": %zu, \"batch\": %zu, \"bound\": \"%s\", \"seconds\": %.4e, "
                  "\"bytes_read\": %llu, \"tokens_read\": %llu, \"tokens_held\": %llu, "
                  "\"predicted_error\": %.4f}%s\n",
                  r.context, r.batch, r.bound.c_str(), r.seconds,
                  static_cast<unsigned long long>(r.stats.bytes_read),
                  static_cast<unsigned long long>(r.stats.tokens_read),
                  static_cast<unsigned long long>(r.stats.tokens_held),
                  static_cast<double>(r.stats.predicted_error), i + 1 < rows.size() ? "," : "");
    text += line;
  }
  return text + "]\n";
}

}  // namespace

int main(int argc, char** argv) {
  bench_options options;
  if (!options.read(argc, argv)) return 2;
  try {
    const device::cuda_runtime runtime;
    cudaStream_t stream{};
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
               "cudaStreamCreateWithFlags");
    cudaDeviceProp card{};
    check_cuda(cudaGetDeviceProperties(&card, runtime.device()), "cudaGetDeviceProperties");
    const std::vector<std::size_t> contexts =
        options.is_short ? std::vector<std::size_t>{8192}
                         : std::vector<std::size_t>{8192, 32768, 131072, 524288, 1048576};
    const std::vector<std::size_t> batches =
        options.is_short ? std::vector<std::size_t>{1, 2} : std::vector<std::size_t>{1, 8, 32, 64};
    std::vector<row> rows;
    for (const std::size_t context : contexts) {
      for (const std::size_t n : batches) {
        const std::size_t bytes = n * context * token_bytes;
        // Enough layers that what is read of one has left the L2 cache when its turn comes again.
        const std::size_t l2 = static_cast<std::size_t>(card.l2CacheSize);
        const std::size_t n_layers = std::min<std::size_t>(16, 16 * l2 / bytes + 1);
        std::size_t free = 0;
        std::size_t total = 0;
        check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
        if (static_cast<double>(bytes * n_layers) * 1.25 > static_cast<double>(total) * 0.8) {
          std::printf("%8zu tokens x %2zu: does not fit\n", context, n);
          continue;
        }
        llama_cache filled(runtime, n_layers, stream);
        std::vector<query_run> batch;
        for (std::size_t i = 0; i < n; ++i) {
          batch.push_back({filled.fill(context, i, [](const auto& work) { work(); }), 1});
        }
        (void)filled.cache().collect(stream);
        const int n_replays = options.is_short ? 5 : 30;
        rows.push_back(measure(filled, batch, context, "default", error_bound<>{}, n_replays,
                               runtime, stream));
        rows.push_back(
            measure(filled, batch, context, "exact", exact{}, n_replays, runtime, stream));
        const row& found = rows[rows.size() - 2];
        const row& dense = rows.back();
        std::printf("%8zu tokens x %2zu: default %8.1f us, exact %8.1f us (%.0f GB/s); %.2f %% of "
                    "the tokens read\n",
                    context, n, found.seconds * 1e6, dense.seconds * 1e6,
                    1e-9 * static_cast<double>(bytes) / dense.seconds,
                    100.0 * static_cast<double>(found.stats.tokens_read) /
                        static_cast<double>(found.stats.tokens_held));
        std::fflush(stdout);
        filled.cache().synchronize(stream);
      }
    }
    return options.write(as_json(rows)) ? 0 : 1;
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
}
