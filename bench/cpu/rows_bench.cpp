// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The row leaves beside the machine's sequential read, cold (256 MB) and in the second-level cache.
// bytes_per_second counts the rows once; read it as a share of sequential_read in the same run.

#include <cstddef>
#include <cstdint>

#include <benchmark/benchmark.h>

#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/simd.hpp>

namespace {

constexpr std::int64_t cold_bytes = 256 << 20;
constexpr std::int64_t hot_bytes = 256 << 10;

template <class S>
wavekv::aligned_storage<S> random_rows(std::size_t n) {
  wavekv::aligned_storage<S> rows(n);
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < n; ++i) {
    state = state * 1664525U + 1013904223U;
    rows[i] = wavekv::from_float<S>(static_cast<float>(state >> 8U) * 0x1p-23F - 1.0F);
  }
  return rows;
}

void sequential_read(benchmark::State& run) {
  namespace hn = wavekv::simd::detail::hn;
  const hn::ScalableTag<std::uint32_t> d;
  const auto n = static_cast<std::size_t>(run.range(0)) / sizeof(std::uint32_t);
  const auto data = random_rows<float>(n);
  const auto* words = reinterpret_cast<const std::uint32_t*>(data.data());
  const std::size_t step = hn::MaxLanes(d);
  for (auto _ : run) {
    auto a = hn::Zero(d);
    auto b = a;
    for (std::size_t i = 0; i < n; i += 2 * step) {
      __builtin_prefetch(words + i + 1024);
      a = hn::Xor(a, hn::LoadU(d, words + i));
      b = hn::Xor(b, hn::LoadU(d, words + i + step));
    }
    benchmark::DoNotOptimize(hn::GetLane(hn::Xor(a, b)));
  }
  run.SetBytesProcessed(run.iterations() * run.range(0));
}

template <class S>
void score_rows(benchmark::State& run) {
  const auto n_q = static_cast<std::size_t>(run.range(1));
  const auto dim = static_cast<std::size_t>(run.range(2));
  const std::size_t n = static_cast<std::size_t>(run.range(0)) / (dim * sizeof(S));
  const auto rows = random_rows<S>(n * dim);
  const auto q = random_rows<float>(n_q * dim);
  constexpr std::size_t chunk = 64;
  float logits[16 * chunk];
  for (auto _ : run) {
    for (std::size_t r = 0; r + chunk <= n; r += chunk) {
      wavekv::simd::score_rows(q.data(), n_q, dim, rows.data() + r * dim, chunk, dim, logits,
                               chunk);
      benchmark::ClobberMemory();
    }
  }
  run.SetBytesProcessed(run.iterations() * static_cast<std::int64_t>(n * dim * sizeof(S)));
  run.counters["flop/s"] = benchmark::Counter(static_cast<double>(2 * n * dim * n_q),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

template <class S>
void add_weighted_rows(benchmark::State& run) {
  const auto n_q = static_cast<std::size_t>(run.range(1));
  const auto dim = static_cast<std::size_t>(run.range(2));
  const std::size_t n = static_cast<std::size_t>(run.range(0)) / (dim * sizeof(S));
  const auto rows = random_rows<S>(n * dim);
  constexpr std::size_t chunk = 64;
  const auto w = random_rows<float>(n_q * chunk);
  auto acc = random_rows<float>(n_q * dim);
  for (auto _ : run) {
    for (std::size_t r = 0; r + chunk <= n; r += chunk) {
      wavekv::simd::add_weighted_rows(w.data(), n_q, chunk, rows.data() + r * dim, chunk, dim,
                                      acc.data(), dim);
      benchmark::ClobberMemory();
    }
  }
  run.SetBytesProcessed(run.iterations() * static_cast<std::int64_t>(n * dim * sizeof(S)));
  run.counters["flop/s"] = benchmark::Counter(static_cast<double>(2 * n * dim * n_q),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"bytes", "n_q", "dim"});
  for (const std::int64_t bytes : {cold_bytes, hot_bytes}) {
    for (const std::int64_t n_q : {1, 4, 8}) bench->Args({bytes, n_q, 128});
    bench->Args({bytes, 4, 64});
    bench->Args({bytes, 4, 100});
  }
}

BENCHMARK(sequential_read)->ArgName("bytes")->Arg(cold_bytes)->Arg(hot_bytes);
BENCHMARK_TEMPLATE(score_rows, wavekv::bf16)->Apply(shapes);
BENCHMARK_TEMPLATE(add_weighted_rows, wavekv::bf16)->Apply(shapes);
BENCHMARK_TEMPLATE(score_rows, wavekv::f16)->Apply(shapes);
BENCHMARK_TEMPLATE(add_weighted_rows, wavekv::f16)->Apply(shapes);
BENCHMARK_TEMPLATE(score_rows, float)->Apply(shapes);
BENCHMARK_TEMPLATE(add_weighted_rows, float)->Apply(shapes);

}  // namespace
