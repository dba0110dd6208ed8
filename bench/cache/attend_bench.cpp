// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// One layer step of the Llama-3.1-8B shape (8 KV heads, groups of 4, dim 128, bf16), one query token, keys and
// values cold in cache, on diffuse data: every bound on flat, two-level and three-level indexes. Times are of the
// attend alone; median_ms and min_ms are what to quote on a machine that is not quiet. The physical limit is
// sequential_read of the same run: a dense step reads context · 4096 bytes.
//
// WAVEKV_BENCH_SHORT=1: contexts of 2K and 8K. WAVEKV_BENCH_LARGE=1: 512K and 1M too (9 GB, minutes of building).

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <wavekv/wavekv.hpp>

#include "data/diffuse.hpp"
#include "data/memory.hpp"

namespace {

using namespace wavekv_bench;
using clock_type = std::chrono::steady_clock;

constexpr std::size_t n_query_heads = 32;
constexpr std::size_t n_kv_heads = 8;
constexpr std::size_t dim = 128;
constexpr std::size_t n_probes = 16;  // queries that are asked in turn

std::size_t n_active_threads = 1;

/// A team whose size is set between steps, so that one cache serves every number of threads.
class adjustable_executor {
 public:
  static std::size_t concurrency() noexcept { return max_threads(); }
  static std::size_t max_threads() noexcept {
    return std::max<std::size_t>(2, std::thread::hardware_concurrency());
  }
  template <class F>
  void parallel_for(std::size_t n, F&& f) const {
    wavekv::openmp_executor(n_active_threads).parallel_for(n, f);
  }
};

template <std::size_t... TokensPerCluster>
using cache_type =
    wavekv::kv_cache<wavekv::bf16,
                     wavekv::wave_index<wavekv::segment_size<8192, 1024>,
                                        wavekv::tokens_per_cluster<TokensPerCluster...>>,
                     wavekv::wave_buffer<>, wavekv::cpu<adjustable_executor>>;

bool asked_for(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0' && std::string(value) != "0";
}

const memory_sweep& cold_memory() {
  static const memory_sweep memory;
  return memory;
}

/// Pushes everything else out of the caches of all cores.
void sweep_caches() {
  wavekv::openmp_executor team(adjustable_executor::max_threads());
  benchmark::DoNotOptimize(cold_memory().read(team));
}

/// Whatever cache the last benchmark used; the next one that needs another replaces it.
struct held_layer {
  held_layer() = default;
  held_layer(const held_layer&) = delete;
  held_layer& operator=(const held_layer&) = delete;
  virtual ~held_layer() = default;
};

std::unique_ptr<held_layer>& current_layer() {
  static std::unique_ptr<held_layer> layer;
  return layer;
}

/// One layer of `context` tokens, some queries, and full attention's answers to them.
template <class Cache>
struct loaded_layer : held_layer {
  explicit loaded_layer(std::size_t n_tokens) : context(n_tokens), cache(sizes()) {
    n_active_threads = adjustable_executor::max_threads();
    diffuse_options options;
    options.n_query_heads = n_query_heads;
    options.n_kv_heads = n_kv_heads;
    options.dim = dim;
    diffuse_source source(options);
    for (std::size_t first = 0; first < context;) {
      const std::size_t n = std::min<std::size_t>(8192, context - first);
      const bool teach = first == 0;  // the metric takes few queries of a long prompt anyway
      const attention_data chunk = source.next(n, teach);
      if (teach) {
        cache.append(sequence, 0, chunk.key_view(0, n), chunk.value_view(0, n),
                     chunk.query_view(0, n));
      } else {
        cache.append(sequence, 0, chunk.key_view(0, n), chunk.value_view(0, n));
      }
      first += n;
    }
    cache.seal(sequence);
    queries = source.queries(n_probes);
    expected.resize(queries.size());
    for (std::size_t probe = 0; probe < n_probes; ++probe)
      ask(probe, expected.data() + probe * n_query_heads * dim, wavekv::exact{});
  }

  template <class Bound>
  wavekv::step_stats ask(std::size_t probe, float* out, const Bound& bound) {
    return cache.attend(sequence, 0,
                        wavekv::nhd<const float>(queries.data() + probe * n_query_heads * dim, 1,
                                                 n_query_heads, dim),
                        wavekv::nhd(out, 1, n_query_heads, dim), wavekv::tensor_view<float, 2>{},
                        bound);
  }

  static wavekv::geometry sizes() {
    wavekv::geometry sizes;
    sizes.n_layers = 1;
    sizes.n_query_heads = n_query_heads;
    sizes.n_kv_heads = n_kv_heads;
    sizes.key_dim = sizes.value_dim = dim;
    return sizes;
  }

  std::size_t context;
  Cache cache;
  wavekv::sequence_id sequence = cache.create();
  std::vector<float> queries;   // [n_probes, n_query_heads, dim]
  std::vector<float> expected;  // the same
};

/// The layer of this type and context; building it drops the one before, so that one at a time is in memory.
template <class Cache>
loaded_layer<Cache>& load(std::size_t context) {
  auto* layer = dynamic_cast<loaded_layer<Cache>*>(current_layer().get());
  if (layer == nullptr || layer->context != context) {
    current_layer().reset();
    current_layer() = std::make_unique<loaded_layer<Cache>>(context);
    layer = static_cast<loaded_layer<Cache>*>(current_layer().get());
  }
  return *layer;
}

template <class Cache, class Bound>
void attend(benchmark::State& run, std::size_t context, std::size_t n_threads, const Bound& bound) {
  loaded_layer<Cache>& layer = load<Cache>(context);
  n_active_threads = n_threads;
  std::vector<float> out(n_query_heads * dim);
  std::vector<float> errors;
  wavekv::step_stats done;
  for (std::size_t probe = 0; probe < n_probes; ++probe) {  // also the warm-up
    done += layer.ask(probe, out.data(), bound);
    for (std::size_t head = 0; head < n_query_heads; ++head)
      errors.push_back(relative_error(&out[head * dim],
                                      &layer.expected[(probe * n_query_heads + head) * dim], dim));
  }

  std::vector<double> seconds;
  std::size_t probe = 0;
  for (auto _ : run) {
    sweep_caches();
    const auto began = clock_type::now();
    layer.ask(probe, out.data(), bound);
    const std::chrono::duration<double> took = clock_type::now() - began;
    run.SetIterationTime(took.count());
    seconds.push_back(took.count());
    probe = (probe + 1) % n_probes;
  }

  const auto per_step = [](std::uint64_t total) {
    return static_cast<double>(total) / static_cast<double>(n_probes);
  };
  const double median = quantile(seconds, 0.5);
  run.counters["median_ms"] = median * 1e3;
  run.counters["min_ms"] = quantile(seconds, 0.0) * 1e3;
  run.counters["bytes_read"] = per_step(done.bytes_read);
  run.counters["GB/s"] = per_step(done.bytes_read) / median * 1e-9;
  run.counters["tokens_read"] = per_step(done.tokens_read) / n_kv_heads;
  run.counters["read_share"] =
      static_cast<double>(done.tokens_read) / static_cast<double>(done.tokens_held);
  run.counters["clusters_read"] = per_step(done.clusters_read) / n_kv_heads;
  run.counters["clusters_estimated"] = per_step(done.clusters_estimated) / n_kv_heads;
  run.counters["clusters_dropped"] = per_step(done.clusters_dropped) / n_kv_heads;
  run.counters["capped"] = static_cast<double>(done.capped) / static_cast<double>(done.groups);
  run.counters["error_p50"] = static_cast<double>(quantile(errors, 0.5));
  run.counters["error_p95"] = static_cast<double>(quantile(errors, 0.95));
}

void sequential_read(benchmark::State& run) {
  wavekv::openmp_executor team(static_cast<std::size_t>(run.range(0)));
  for (auto _ : run) benchmark::DoNotOptimize(cold_memory().read(team));
  run.SetBytesProcessed(run.iterations() * static_cast<std::int64_t>(cold_memory().bytes()));
}

template <class Cache, class Bound>
void add(const std::string& index, const std::string& bound_name, std::size_t context,
         const Bound& bound) {
  for (const std::size_t n_threads : {std::size_t{1}, std::size_t{2}}) {
    const std::string name = "attend/index:" + index + "/bound:" + bound_name +
                             "/context:" + std::to_string(context) +
                             "/threads:" + std::to_string(n_threads);
    benchmark::RegisterBenchmark(
        name.c_str(), [=](benchmark::State& run) { attend<Cache>(run, context, n_threads, bound); })
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
}

template <class Cache>
void add_bounds(const std::string& index, std::size_t context) {
  add<Cache>(index, "fixed_budget", context, wavekv::fixed_budget{});
  add<Cache>(index, "error_bound", context, wavekv::error_bound<>{});
  add<Cache>(index, "verified_bound", context, wavekv::verified_bound<>{});
}

/// In this order each layer is built once.
bool add_all() {
  std::vector<std::size_t> contexts{8192, 32768, 131072};
  if (asked_for("WAVEKV_BENCH_SHORT")) contexts = {2048, 8192};
  if (asked_for("WAVEKV_BENCH_LARGE")) contexts.insert(contexts.end(), {524288, 1048576});
  for (const std::size_t context : contexts) {
    add<cache_type<16, 128>>("two_level", "exact", context, wavekv::exact{});
    add_bounds<cache_type<16, 128>>("two_level", context);
    add_bounds<cache_type<16>>("flat", context);
    add_bounds<cache_type<16, 128, 1024>>("three_level", context);
  }
  return true;
}

BENCHMARK(sequential_read)
    ->ArgName("threads")
    ->Arg(1)
    ->Arg(2)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
[[maybe_unused]] const bool added = add_all();

}  // namespace
