// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A captured decode step on a GPU: ../graph_test.cpp at real sizes, through two decode segments a layer.
#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cuda/backend.cuh>
#include <wavekv/wavekv.hpp>

#include "cuda/graph_case.hpp"

namespace {

using namespace wavekv_test;
using wavekv::device::detail::check_cuda;

class recorder {
 public:
  recorder() = default;
  recorder(const recorder&) = delete;
  recorder& operator=(const recorder&) = delete;
  recorder(recorder&&) = delete;
  recorder& operator=(recorder&&) = delete;
  ~recorder() { cudaGraphExecDestroy(work_); }

  void begin(cudaStream_t stream) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
               "cudaStreamBeginCapture");
  }
  void end(cudaStream_t stream) {
    cudaGraph_t graph{};
    check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    check_cuda(cudaGraphInstantiate(&work_, graph, 0), "cudaGraphInstantiate");
    check_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  void launch(cudaStream_t stream) {
    check_cuda(cudaGraphLaunch(work_, stream), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t work_ = nullptr;
};

class own_stream {
 public:
  own_stream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
               "cudaStreamCreateWithFlags");
  }
  own_stream(const own_stream&) = delete;
  own_stream& operator=(const own_stream&) = delete;
  own_stream(own_stream&&) = delete;
  own_stream& operator=(own_stream&&) = delete;
  ~own_stream() { cudaStreamDestroy(stream_); }
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace

TEST_CASE("a graph of one step, replayed 4,096 times, answers as steps without a graph") {
  using cache_type =
      wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::wave_buffer<>, wavekv::cuda>;
  wavekv::geometry sizes;
  sizes.n_layers = 2;
  sizes.n_query_heads = 8;
  sizes.n_kv_heads = 2;
  sizes.key_dim = sizes.value_dim = 128;
  const own_stream stream;
  recorder graph;
  check_replay<cache_type>(sizes, {}, stream.get(), graph, {100, 9000}, 4096, 16);
}

TEST_CASE("small: a graph of one step, replayed while small segments are sealed") {
  using cache_type = wavekv::kv_cache<
      wavekv::f16,
      wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                         wavekv::query_metric_kmeans<2>, wavekv::error_bound<>>,
      wavekv::wave_buffer<>, wavekv::cuda>;
  wavekv::geometry sizes;
  sizes.n_layers = 2;
  sizes.n_query_heads = 2;
  sizes.key_dim = sizes.value_dim = 16;
  cache_type::options_type options;
  options.window_tokens = 16;
  options.bound.free_tokens = 8;
  options.bound.max_read = 0.1F;
  const own_stream stream;
  recorder graph;
  check_replay<cache_type>(sizes, options, stream.get(), graph, {3, 150}, 120, 5);
}
