// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// One prefill task: 256 query rows over a run of keys, beside the rate of multiply-adds in registers.

#include <cstddef>
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include <wavekv/attention/prefill.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/simd.hpp>

namespace {

void multiply_adds(benchmark::State& run) {
  namespace hn = wavekv::simd::detail::hn;
  constexpr wavekv::simd::detail::float_tag d{};
  constexpr std::size_t n_sums = 10;
  constexpr std::size_t n = 1000;
  wavekv::simd::detail::float_vector sums[n_sums];
  for (auto& sum : sums) sum = hn::Zero(d);
  auto factor = hn::Set(d, 0.5F);
  for (auto _ : run) {
    for (std::size_t i = 0; i < n; ++i) {
      factor = wavekv::simd::detail::in_register(factor);
      for (auto& sum : sums) sum = hn::MulAdd(sum, factor, factor);
    }
  }
  for (auto& sum : sums) benchmark::DoNotOptimize(hn::GetLane(sum));
  run.counters["flop/s"] =
      benchmark::Counter(static_cast<double>(2 * n_sums * n * wavekv::simd::n_lanes),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void tile_product(benchmark::State& run) {
  const auto k = static_cast<std::size_t>(run.range(0));
  constexpr std::size_t m = 64;
  constexpr std::size_t n = 64;
  const std::vector<float> a(m * k, 0.5F);
  const std::vector<float> b(k * n, 0.5F);
  std::vector<float> c(m * n);
  for (auto _ : run) {
    wavekv::simd::tile_product(a.data(), m, k, b.data(), k, n, c.data(), n, false);
    benchmark::ClobberMemory();
  }
  run.counters["flop/s"] = benchmark::Counter(static_cast<double>(2 * m * n * k),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

template <class S>
void prefill(benchmark::State& run) {
  const auto dim = static_cast<std::size_t>(run.range(0));
  constexpr std::size_t n_rows = wavekv::prefill_tile::preferred_rows;
  constexpr std::size_t n_keys = 4096;
  std::vector<S> rows(n_keys * dim);
  std::uint32_t state = 1;
  for (S& x : rows) {
    state = state * 1664525U + 1013904223U;
    x = wavekv::from_float<S>(static_cast<float>(state >> 8U) * 0x1p-23F - 1.0F);
  }
  std::vector<float> query(dim);
  wavekv::simd::to_float(query.data(), rows.data(), dim);
  wavekv::prefill_tile tile(n_rows, dim, dim);
  std::vector<float> out(dim);
  for (auto _ : run) {
    tile.begin(n_rows, 4, 0, 0.0F);
    for (std::size_t r = 0; r < n_rows; ++r) tile.set_query(r, query.data(), 0.1F);
    tile.add_run(rows.data(), dim, rows.data(), dim, n_keys);
    for (std::size_t r = 0; r < n_rows; ++r) tile.finish_row(r, out.data());
    benchmark::DoNotOptimize(out.data());
  }
  run.counters["flop/s"] = benchmark::Counter(static_cast<double>(4 * n_rows * n_keys * dim),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

BENCHMARK(multiply_adds);
BENCHMARK(tile_product)->ArgName("k")->Arg(64)->Arg(128);
BENCHMARK_TEMPLATE(prefill, wavekv::bf16)
    ->ArgName("dim")
    ->Arg(64)
    ->Arg(80)
    ->Arg(96)
    ->Arg(128)
    ->Arg(256);
BENCHMARK_TEMPLATE(prefill, float)->ArgName("dim")->Arg(64)->Arg(128);

}  // namespace
