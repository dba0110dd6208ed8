// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "cuda/emulated_runtime.hpp"
#include "cuda/graph_case.hpp"

// A captured step stays valid while sequences grow and are sealed beside it.

using namespace wavekv_test;
using wavekv::testing::emulated_graph;
using wavekv::testing::emulated_runtime;
using wavekv::testing::emulated_stream;
using wavekv::testing::emulation_options;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<2>, wavekv::error_bound<>>;
using cache_type = wavekv::kv_cache<wavekv::bf16, index_type, wavekv::wave_buffer<>,
                                    wavekv::basic_cuda<emulated_runtime>>;

struct recorder {
  emulated_runtime runtime;
  emulated_graph graph;

  void begin(emulated_stream stream) { runtime.begin_capture(stream); }
  void end(emulated_stream stream) { graph = runtime.end_capture(stream); }
  void launch(emulated_stream stream) { runtime.launch_graph(graph, stream); }
};

wavekv::geometry small_geometry() {
  wavekv::geometry sizes;
  sizes.n_layers = 2;
  sizes.n_query_heads = 2;
  sizes.n_kv_heads = 1;
  sizes.key_dim = sizes.value_dim = 16;
  return sizes;
}

cache_type::options_type small_options(const emulated_runtime& runtime) {
  cache_type::options_type options;
  options.window_tokens = 16;
  options.bound.epsilon = 0.01F;
  options.bound.free_tokens = 8;
  options.bound.max_read = 0.1F;
  options.bound.hidden_share = 0.0F;
  options.runtime = runtime;
  return options;
}

}  // namespace

TEST_CASE("a graph of one step, replayed, answers as steps without a graph") {
  for (const std::uint64_t seed : {1U, 2U}) {
    emulation_options emulation;
    emulation.seed = seed;
    const emulated_runtime runtime(emulation);
    recorder graph{runtime, {}};
    check_replay<cache_type>(small_geometry(), small_options(runtime), runtime.make_stream(), graph,
                             {3, 150}, 300, seed == 1 ? 1 : 20);
  }
}
