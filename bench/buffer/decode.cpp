// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// wavekv_decode: decode steps of the example's model through two tiers, beside a cache that keeps everything in memory.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "buffer/decoder.hpp"
#include "buffer/trace_recorder.hpp"
#include "data/captured.hpp"
#include "data/llama_layer.hpp"
#include "data/memory.hpp"

namespace {

using namespace wavekv_bench;
using nlohmann::json;

struct options {
  std::size_t n_tokens = 131072;
  std::size_t n_warm_up = 128;
  std::size_t n_steps = 256;
  std::size_t n_threads = 1;
  std::vector<double> budgets = {0.02, 0.05, 0.1, 0.2, 0.5};
  std::vector<std::string> caches;
  std::filesystem::path model = std::filesystem::path(WAVEKV_SOURCE_DIR) / "examples/models/needle";
  std::filesystem::path haystack = WAVEKV_SOURCE_DIR;
  std::filesystem::path work = ".";
  std::filesystem::path json_file;
  std::uint64_t seed = 1;
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// What the model computed, made once and then kept in the work folder.
std::vector<attention_data> captured_layers(const options& chosen, std::size_t n) {
  const std::string prefix =
      (chosen.work / ("captured_" + std::to_string(n) + "_" + std::to_string(chosen.seed)))
          .string();
  if (!std::filesystem::exists(prefix + ".json")) {
    std::fprintf(stderr, "the model reads %zu tokens\n", n);
    write_captured(prefix, capture_model(chosen.model, chosen.haystack, n, chosen.seed));
  }
  return read_captured(prefix);
}

/// Notes which blocks every step reads.
block_trace record(const options& chosen, const attention_data& data, const wavekv::geometry& sizes,
                   const std::filesystem::path& saved) {
  block_trace trace;
  recording to;
  using buffer = wavekv::wave_buffer<recording_placement>;
  using cache_type = wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, buffer,
                                      wavekv::cpu<wavekv::serial_executor>>;
  cache_type::options_type cache_options;
  cache_options.placement.to = &to;
  cache_type cache(sizes, cache_options);
  const auto sequence = cache.load(saved, "bench");
  to.trace = &trace;
  std::vector<float> out(data.n_query_heads * data.dim);
  for (std::size_t step = 0; step < chosen.n_warm_up + chosen.n_steps; ++step) {
    if (step == chosen.n_warm_up) trace.n_warm_up = trace.readings.size();
    const std::size_t token = chosen.n_tokens + step;
    cache.append(sequence, 0, data.key_view(token, 1), data.value_view(token, 1));
    cache.attend(sequence, 0, data.query_view(token, 1),
                 wavekv::nhd(out.data(), 1, data.n_query_heads, data.dim));
    to.ended = true;
  }
  trace.n_tokens = chosen.n_tokens * sizes.n_kv_heads;
  trace.key_dim = sizes.key_dim;
  trace.value_dim = sizes.value_dim;
  return trace;
}

/// Decodes the trace through one cache beside the resident one, step by step in turns.
json measure(const options& chosen, const attention_data& data, decoder& tested, decoder& resident,
             const memory_sweep& sweep) {
  const wavekv::openmp_executor executor(chosen.n_threads);
  std::vector<double> times;
  std::vector<double> resident_times;
  std::vector<double> moved;
  wavekv::step_stats sum;
  float worst = 0.0F;
  std::vector<float> out(data.n_query_heads * data.dim);
  std::vector<float> expected(out.size());
  resident.restart();
  const auto kv_bytes = static_cast<double>(tested.stats().kv_bytes);
  for (std::size_t step = 0; step < chosen.n_warm_up + chosen.n_steps; ++step) {
    const std::size_t token = chosen.n_tokens + step;
    const auto timed = [&](decoder& one, float* to, std::vector<double>& into) {
      one.append(data, token);
      (void)sweep.read(executor);
      const double begin = now();
      const wavekv::step_stats stats = one.attend(data, token, to);
      if (step >= chosen.n_warm_up) into.push_back(now() - begin);
      return stats;
    };
    timed(resident, expected.data(), resident_times);
    const wavekv::step_stats stats = timed(tested, out.data(), times);
    for (std::size_t head = 0; head < data.n_query_heads; ++head) {
      worst = std::max(worst, relative_error(out.data() + head * data.dim,
                                             expected.data() + head * data.dim, data.dim));
    }
    if (step >= chosen.n_warm_up) {
      sum += stats;
      moved.push_back(static_cast<double>(stats.bytes_moved) / kv_bytes);
    }
  }
  const auto n = static_cast<double>(chosen.n_steps);
  return {
      {"hit_ratio", static_cast<double>(sum.hits) /
                        static_cast<double>(std::max<std::uint64_t>(1, sum.hits + sum.misses))},
      {"step_ms", 1e3 * quantile(times, 0.5)},
      {"step_p95_ms", 1e3 * quantile(times, 0.95)},
      {"resident_ms", 1e3 * quantile(resident_times, 0.5)},
      {"resident_p95_ms", 1e3 * quantile(resident_times, 0.95)},
      {"stall_ms", static_cast<double>(sum.stall_ns) * 1e-6 / n},
      {"misses", static_cast<double>(sum.misses) / n},
      {"prefetched", static_cast<double>(sum.prefetched) / n},
      {"clusters", static_cast<double>(sum.clusters_read) / n},
      {"tokens_read", static_cast<double>(sum.tokens_read) / static_cast<double>(sum.tokens_held)},
      {"bytes_moved", static_cast<double>(sum.bytes_moved) / n / kv_bytes},
      {"bytes_moved_p95", quantile(moved, 0.95)},
      {"difference", worst}};
}

json run(const options& chosen) {
  constexpr std::size_t lag = 512;
  // The same length for the short form, so that what the model computed serves both.
  const std::size_t n_data =
      chosen.n_tokens + std::max<std::size_t>(512, chosen.n_warm_up + chosen.n_steps);
  const auto captured = captured_layers(chosen, n_data + lag);
  const attention_data data = make_llama_layer(captured, lag);
  const wavekv::geometry sizes = llama_geometry(captured_scale(captured));
  const memory_sweep sweep;
  const auto saved = chosen.work / "prompt.wavekv";
  json result = {{"tokens", chosen.n_tokens},
                 {"steps", chosen.n_steps},
                 {"warm_up", chosen.n_warm_up},
                 {"threads", chosen.n_threads}};

  std::fprintf(stderr, "building and saving the index of %zu tokens\n", chosen.n_tokens);
  const auto resident = make_decoder("resident", sizes, {.n_threads = chosen.n_threads});
  double begin = now();
  resident->read_prompt(data, 0, chosen.n_tokens);
  result["build_s"] = now() - begin;
  begin = now();
  resident->save(saved);
  result["save_s"] = now() - begin;
  result["file_bytes"] = std::filesystem::file_size(saved);

  std::fprintf(stderr, "noting which blocks are read\n");
  write_trace((chosen.work / "decode.trace").string(), record(chosen, data, sizes, saved));

  const auto kv_bytes = static_cast<double>(resident->stats().kv_bytes);
  const auto names = chosen.caches.empty() ? decoder_names() : chosen.caches;
  result["caches"] = json::array();
  for (const double budget : chosen.budgets) {
    for (const std::string& name : names) {
      // Every policy at every budget; engines are compared at one.
      const bool engine_alone = name.ends_with("/inline_read") || name == "lru/threads";
      if (chosen.caches.empty() && engine_alone && budget != 0.1) continue;
      const auto tested = make_decoder(name, sizes,
                                       {.fast_bytes = static_cast<std::size_t>(budget * kv_bytes),
                                        .store = chosen.work,
                                        .n_threads = chosen.n_threads});
      if (tested == nullptr) throw std::runtime_error("no cache is called " + name);
      begin = now();
      tested->load(saved);
      const double load_s = now() - begin;
      json row = measure(chosen, data, *tested, *resident, sweep);
      row["cache"] = name;
      row["budget"] = budget;
      row["load_s"] = load_s;
      row["evictions"] = tested->cache_stats().tiers.evictions;
      std::fprintf(
          stderr,
          "%s, %g %%: hits %.3f, %.2f ms beside %.2f, stall %.2f ms, moved %.3f %%, load %.0f ms\n",
          name.c_str(), 100 * budget, row["hit_ratio"].get<double>(), row["step_ms"].get<double>(),
          row["resident_ms"].get<double>(), row["stall_ms"].get<double>(),
          100 * row["bytes_moved"].get<double>(), 1e3 * load_s);
      result["caches"].push_back(std::move(row));
    }
  }
  std::filesystem::remove(saved);
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  options chosen;
  CLI::App app{"Decode steps through two tiers beside a cache in memory, on keys of the example's "
               "model in the "
               "Llama-3.1-8B layer shape."};
  app.add_option("--tokens", chosen.n_tokens, "Length of the prompt")->capture_default_str();
  app.add_option("--steps", chosen.n_steps, "Steps that count")->capture_default_str();
  app.add_option("--warm-up", chosen.n_warm_up, "Steps before those")->capture_default_str();
  app.add_option("--threads", chosen.n_threads, "Threads that compute")->capture_default_str();
  app.add_option("--budgets", chosen.budgets, "Shares of the blocks that fit into memory")
      ->capture_default_str();
  app.add_option("--caches", chosen.caches, "eviction/transfer, as in lru/threads; default: all");
  app.add_option("--model", chosen.model, "Model directory")->capture_default_str();
  app.add_option("--haystack", chosen.haystack, "Text it reads, a file or a directory")
      ->capture_default_str();
  app.add_option("--work", chosen.work,
                 "Folder for the slow tier, the trace, and what the model computed")
      ->capture_default_str();
  app.add_option("--seed", chosen.seed, "Of the needles")->capture_default_str();
  app.add_option("--json", chosen.json_file, "Write the numbers to this file");
  CLI11_PARSE(app, argc, argv);
  try {
    const json result = run(chosen);
    if (chosen.json_file.empty()) {
      std::printf("%s\n", result.dump(1).c_str());
    } else {
      std::ofstream(chosen.json_file) << result.dump(1) << '\n';
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "wavekv_decode: %s\n", error.what());
    return 1;
  }
  return 0;
}
