// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Exact decode attention of one group over one long run, keys and values cold: the ceiling of the exact
// bound. bytes_per_second counts keys and values once; compare with sequential_read of the cpu benches.

#include <cstddef>
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include <wavekv/attention/exact.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/scalar.hpp>

namespace {

template <class S>
void attend_runs(benchmark::State& run) {
  const auto n = static_cast<std::size_t>(run.range(0));  // tokens of one run
  const auto n_q = static_cast<std::size_t>(run.range(1));
  const auto dim = static_cast<std::size_t>(run.range(2));
  // Runs follow each other until they are far more than any cache holds: [n, dim] keys, [n, dim] values.
  const std::size_t n_runs = (std::size_t{256} << 20U) / (2 * n * dim * sizeof(S)) + 1;
  wavekv::aligned_storage<S> rows(n_runs * 2 * n * dim);
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    state = state * 1664525U + 1013904223U;
    rows[i] = wavekv::from_float<S>(static_cast<float>(state >> 8U) * 0x1p-23F - 1.0F);
  }
  const std::vector<float> q(n_q * dim, 0.05F);
  wavekv::partial_softmax softmax(n_q, dim);
  for (auto _ : run) {
    wavekv::reset(softmax.view());
    wavekv::attend_runs(
        wavekv::query_rows{q.data(), n_q, dim, dim}, n_runs,
        [&](std::size_t i) {
          const S* keys = rows.data() + i * 2 * n * dim;
          return wavekv::token_run<S>{keys, keys + n * dim, n};
        },
        0.0F, softmax.view());
    benchmark::DoNotOptimize(softmax.view().denominator[0]);
  }
  run.SetBytesProcessed(run.iterations() *
                        static_cast<std::int64_t>(n_runs * 2 * n * dim * sizeof(S)));
  run.counters["flop/s"] = benchmark::Counter(static_cast<double>(4 * n_runs * n * dim * n_q),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"run", "n_q", "dim"});
  for (const std::int64_t n_q : {1, 4, 8}) bench->Args({131072, n_q, 128});
  for (const std::int64_t n : {16, 128, 1024}) bench->Args({n, 4, 128});
  bench->Args({131072, 4, 64});
}

BENCHMARK_TEMPLATE(attend_runs, wavekv::bf16)->Apply(shapes);
BENCHMARK_TEMPLATE(attend_runs, wavekv::f16)->Apply(shapes);
BENCHMARK_TEMPLATE(attend_runs, float)->Args({131072, 4, 128})->ArgNames({"run", "n_q", "dim"});

}  // namespace
