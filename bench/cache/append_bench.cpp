// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Writing one layer of the Llama-3.1-8B shape (8 KV heads, groups of 4, dim 128, bf16): tokens and chunks that
// seal nothing, sealing, and a prefill chunk; then what decode steps of a whole model cost while their layers seal
// in turn. WAVEKV_BENCH_SHORT=1: fewer layers and steps.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <wavekv/wavekv.hpp>

#include "data/diffuse.hpp"

namespace {

using namespace wavekv_bench;
using clock_type = std::chrono::steady_clock;
using cache_type = wavekv::kv_cache<>;

constexpr std::size_t n_query_heads = 32;
constexpr std::size_t n_kv_heads = 8;
constexpr std::size_t dim = 128;

double seconds_since(clock_type::time_point began) {
  return std::chrono::duration<double>(clock_type::now() - began).count();
}

bool is_short() {
  const char* value = std::getenv("WAVEKV_BENCH_SHORT");
  return value != nullptr && *value != '\0' && std::string(value) != "0";
}

wavekv::geometry sizes(std::size_t n_layers) {
  wavekv::geometry sizes;
  sizes.n_layers = n_layers;
  sizes.n_query_heads = n_query_heads;
  sizes.n_kv_heads = n_kv_heads;
  sizes.key_dim = sizes.value_dim = dim;
  return sizes;
}

cache_type::options_type threads(std::size_t n) {
  cache_type::options_type options;
  options.executor = wavekv::openmp_executor(n);
  return options;
}

/// 8,192 tokens with their queries, made once.
const attention_data& tokens() {
  static const attention_data data = [] {
    diffuse_options options;
    options.n_query_heads = n_query_heads;
    options.n_kv_heads = n_kv_heads;
    options.dim = dim;
    return make_diffuse(8192, options);
  }();
  return data;
}

/// Sink, window and n tokens more in one layer, nothing sealed.
void fill(cache_type& cache, wavekv::sequence_id sequence, std::size_t layer, std::size_t n) {
  const std::size_t steady = cache.options().sink_tokens + cache.options().window_tokens;
  const attention_data& data = tokens();
  cache.append(sequence, layer, data.key_view(0, steady), data.value_view(0, steady));
  cache.append(sequence, layer, data.key_view(0, n), data.value_view(0, n), data.query_view(0, n));
}

// Appends of range(0) tokens each, 960 tokens in all: less than what a decoding cache seals.
void append(benchmark::State& run) {
  const auto n = static_cast<std::size_t>(run.range(0));
  constexpr std::size_t n_all = 960;
  cache_type cache(sizes(1), threads(1));
  const auto sequence = cache.create();
  const attention_data& data = tokens();
  for (auto _ : run) {
    const auto began = clock_type::now();
    for (std::size_t i = 0; i + n <= n_all; i += n)
      cache.append(sequence, 0, data.key_view(i, n), data.value_view(i, n));
    run.SetIterationTime(seconds_since(began));
    cache.truncate(sequence, 0);
  }
  const std::int64_t appended = static_cast<std::int64_t>(n_all / n * n) * run.iterations();
  run.SetItemsProcessed(appended);
  run.SetBytesProcessed(appended * static_cast<std::int64_t>(2 * n_kv_heads * dim * 2));
}

// Sealing of range(0) tokens of one layer, all KV heads: clustering, summaries, rows put in order.
void seal(benchmark::State& run) {
  const auto n = static_cast<std::size_t>(run.range(0));
  cache_type cache(sizes(1), threads(static_cast<std::size_t>(run.range(1))));
  double beyond = 0;
  for (auto _ : run) {
    const auto sequence = cache.create();
    fill(cache, sequence, 0, n);
    const auto began = clock_type::now();
    cache.seal(sequence);
    run.SetIterationTime(seconds_since(began));
    const wavekv::statistics held = cache.stats(sequence);
    beyond = static_cast<double>(held.index_bytes) / static_cast<double>(held.kv_bytes);
    cache.release(sequence);
  }
  run.SetItemsProcessed(run.iterations() * run.range(0));
  run.counters["index_share"] = beyond;  // memory beyond K and V
}

// A prompt chunk of range(1) tokens behind range(0) tokens, exact and causal; nothing is sealed by it.
void prefill(benchmark::State& run) {
  const auto n_before = static_cast<std::size_t>(run.range(0));
  const auto n = static_cast<std::size_t>(run.range(1));
  cache_type cache(sizes(1), threads(static_cast<std::size_t>(run.range(2))));
  const auto sequence = cache.create();
  const attention_data& data = tokens();
  for (std::size_t held = 0; held < n_before;) {
    const std::size_t part = std::min(n_before - held, data.n_tokens);
    cache.append(sequence, 0, data.key_view(0, part), data.value_view(0, part),
                 data.query_view(0, part));
    held += part;
  }
  cache.seal(sequence);
  std::vector<float> out(n * n_query_heads * dim);
  for (auto _ : run) {
    const auto began = clock_type::now();
    cache.prefill(sequence, 0, data.query_view(0, n), data.key_view(0, n), data.value_view(0, n),
                  wavekv::nhd(out.data(), n, n_query_heads, dim));
    run.SetIterationTime(seconds_since(began));
    cache.truncate(sequence, n_before);
  }
  run.SetItemsProcessed(run.iterations() * static_cast<std::int64_t>(n));
  run.counters["flop/s"] =
      benchmark::Counter(4.0 * n_query_heads * dim * static_cast<double>(n) *
                             (static_cast<double>(n_before) + static_cast<double>(n + 1) / 2),
                         benchmark::Counter::kIsIterationInvariantRate);
}

// Steps of append and attend through all layers of a model, long enough that every layer seals. One iteration is all
// steps; p50_ms and p99_ms are of a step.
void decode_steps(benchmark::State& run) {
  const auto context = static_cast<std::size_t>(run.range(0));
  const auto n_layers = static_cast<std::size_t>(run.range(1));
  const auto n_steps = static_cast<std::size_t>(run.range(2));
  const attention_data& data = tokens();
  std::vector<double> seconds;
  std::size_t n_segments = 0;
  for (auto _ : run) {
    run.PauseTiming();
    cache_type cache(sizes(n_layers), threads(static_cast<std::size_t>(run.range(3))));
    const auto sequence = cache.create();
    for (std::size_t layer = 0; layer < n_layers; ++layer) {
      for (std::size_t held = 0; held < context; held += data.n_tokens) {
        fill(cache, sequence, layer, std::min(context - held, data.n_tokens));
      }
    }
    cache.seal(sequence);
    const std::size_t n_before = cache.stats(sequence).segments;
    std::vector<float> out(n_query_heads * dim);
    run.ResumeTiming();
    for (std::size_t step = 0; step < n_steps; ++step) {
      const std::size_t token = step % data.n_tokens;
      const auto began = clock_type::now();
      for (std::size_t layer = 0; layer < n_layers; ++layer) {
        cache.append(sequence, layer, data.key_view(token, 1), data.value_view(token, 1));
        cache.attend(sequence, layer, data.query_view(token, 1),
                     wavekv::nhd(out.data(), 1, n_query_heads, dim));
      }
      seconds.push_back(seconds_since(began));
    }
    run.PauseTiming();
    n_segments = cache.stats(sequence).segments - n_before;
    run.ResumeTiming();
  }
  const double median = quantile(seconds, 0.5);
  run.counters["p50_ms"] = median * 1e3;
  run.counters["p99_ms"] = quantile(seconds, 0.99) * 1e3;
  run.counters["p99.9_ms"] = quantile(seconds, 0.999) * 1e3;
  run.counters["max_ms"] = quantile(seconds, 1.0) * 1e3;
  run.counters["p99/p50"] = quantile(seconds, 0.99) / median;
  run.counters["segments_sealed"] = static_cast<double>(n_segments);
}

void prefill_shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"context", "tokens", "threads"});
  for (const std::int64_t context : {0, is_short() ? 2048 : 8192}) {
    bench->ArgsProduct({{context}, {512, is_short() ? 1024 : 2048}, {1, 2}});
  }
}

void decode_shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"context", "layers", "steps", "threads"});
  for (const std::int64_t n_threads : {1, 2}) {
    if (is_short()) {
      bench->Args({1024, 4, 2000, n_threads});
    } else {
      bench->Args({8192, 8, 20000, n_threads});  // what the target asks for
      bench->Args({8192, 32, 4096, n_threads});
      bench->Args({32768, 8, 4096, n_threads});
    }
  }
}

BENCHMARK(append)->ArgName("tokens")->Arg(1)->Arg(16)->Arg(64)->Arg(320)->Arg(960)->UseManualTime();
BENCHMARK(seal)
    ->ArgNames({"tokens", "threads"})
    ->ArgsProduct({{1024, 8191}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(prefill)->Apply(prefill_shapes)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(decode_steps)
    ->Apply(decode_shapes)
    ->Iterations(1)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
