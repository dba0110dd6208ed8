// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// wavekv_memory: how much memory a cache with two tiers takes while a context grows far beyond it, and whether any is
// lost over many lives of sequences.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <random>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <wavekv/wavekv.hpp>

#include "data/diffuse.hpp"

namespace {

using nlohmann::json;
using buffer = wavekv::wave_buffer<wavekv::placement::tiered, wavekv::eviction::sieve,
                                   wavekv::transfer::threads>;
using cache_type = wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, buffer>;

struct options {
  std::size_t n_tokens = std::size_t{1} << 20U;
  std::size_t n_kv_heads = 8;
  double budget = 0.1;
  std::size_t n_lives = 50000;
  std::filesystem::path work = ".";
  std::filesystem::path json_file;
};

/// Bytes of this process in memory.
double resident_bytes() {
  std::ifstream file("/proc/self/statm");
  double all = 0;
  double pages = 0;
  file >> all >> pages;
  return pages * static_cast<double>(sysconf(_SC_PAGESIZE));
}

wavekv::geometry llama_shape(std::size_t n_kv_heads) {
  wavekv::geometry sizes;
  sizes.n_query_heads = 4 * n_kv_heads;
  sizes.n_kv_heads = n_kv_heads;
  sizes.key_dim = 128;
  sizes.value_dim = 128;
  return sizes;
}

cache_type::options_type cache_options(const options& chosen, std::size_t fast_bytes,
                                       std::size_t write_back_bytes) {
  cache_type::options_type made;
  made.placement.fast_bytes = fast_bytes;
  made.placement.write_back_bytes = write_back_bytes;
  made.placement.store.path = chosen.work;
  return made;
}

/// A context that grows, and is asked after every 8,192 tokens. What the process had before, and what sealing needs to
/// work, is not counted: a first segment is sealed before the count begins.
json grow(const options& chosen) {
  constexpr std::size_t chunk = 8192;
  const wavekv::geometry sizes = llama_shape(chosen.n_kv_heads);
  const std::size_t row = chosen.n_kv_heads * 256;
  const std::size_t kv_bytes = chosen.n_tokens * row * sizeof(wavekv::bf16);
  const auto fast_bytes = static_cast<std::size_t>(chosen.budget * static_cast<double>(kv_bytes));
  const std::size_t write_back_bytes = 2 * chunk * row * sizeof(wavekv::bf16);
  wavekv_bench::normal_source random(7);
  std::vector<float> keys(chunk * row / 2);
  std::vector<float> values(chunk * row / 2);
  std::vector<float> out(4 * row / 2);
  const auto append = [&](cache_type& cache, wavekv::sequence_id sequence) {
    random.fill(keys.data(), keys.size());
    random.fill(values.data(), values.size());
    cache.append(sequence, 0, wavekv::nhd(keys.data(), chunk, chosen.n_kv_heads, 128),
                 wavekv::nhd(values.data(), chunk, chosen.n_kv_heads, 128));
    const auto query = wavekv::nhd(keys.data(), 1, 4 * chosen.n_kv_heads, 128);
    cache.attend(sequence, 0, query, wavekv::nhd(out.data(), 1, 4 * chosen.n_kv_heads, 128));
  };
  {
    cache_type warm(sizes, cache_options(chosen, 0, write_back_bytes));
    const auto sequence = warm.create();
    append(warm, sequence);
    append(warm, sequence);
  }
  const double before = resident_bytes();
  cache_type cache(sizes, cache_options(chosen, fast_bytes, write_back_bytes));
  const auto sequence = cache.create();
  double worst = 0;
  double most = 0;
  double allowed_then = 0;
  for (std::size_t n = 0; n < chosen.n_tokens; n += chunk) {
    append(cache, sequence);
    const double taken = resident_bytes() - before;
    const wavekv::statistics stats = cache.stats(sequence);
    // The budget, and what is in memory in any case.
    const double allowed = static_cast<double>(fast_bytes + write_back_bytes + stats.index_bytes +
                                               stats.learnt_bytes + stats.steady_bytes);
    if (taken / allowed > worst) worst = taken / allowed;
    if (taken > most) {
      most = taken;
      allowed_then = allowed;
    }
  }
  cache.flush();
  std::fprintf(
      stderr,
      "%zu tokens, %.0f MB of K and V: most memory %.1f MB of %.1f allowed; largest share %.3f\n",
      chosen.n_tokens, static_cast<double>(kv_bytes) * 1e-6, most * 1e-6, allowed_then * 1e-6,
      worst);
  return {{"tokens", chosen.n_tokens}, {"kv_heads", chosen.n_kv_heads},
          {"kv_bytes", kv_bytes},      {"budget_bytes", fast_bytes + write_back_bytes},
          {"most_bytes", most},        {"allowed_bytes", allowed_then},
          {"worst_share", worst}};
}

/// Many short lives: create, fork, append, truncate, release, in random order, over a cache whose budget is tiny.
json live(const options& chosen) {
  wavekv::geometry sizes = llama_shape(2);
  sizes.key_dim = sizes.value_dim = 32;
  using small_index = wavekv::wave_index<>::with_segment_size<wavekv::segment_size<256, 64>>;
  using small_cache = wavekv::kv_cache<wavekv::bf16, small_index, buffer>;
  small_cache::options_type small;
  small.placement.fast_bytes = std::size_t{256} << 10U;
  small.placement.write_back_bytes = std::size_t{128} << 10U;
  small.placement.store.path = chosen.work;
  small_cache cache(sizes, small);
  std::mt19937_64 random(3);
  wavekv_bench::normal_source numbers(4);
  std::vector<float> rows(600 * 2 * 32);
  numbers.fill(rows.data(), rows.size());
  std::vector<float> out(8 * 32);
  std::vector<wavekv::sequence_id> alive;
  double early = 0;
  double end = 0;
  for (std::size_t step = 0; step < chosen.n_lives; ++step) {
    if (alive.empty() || (alive.size() < 12 && random() % 4 == 0)) {
      alive.push_back(alive.empty() || random() % 2 == 0
                          ? cache.create()
                          : cache.fork(alive[random() % alive.size()]));
    }
    const std::size_t at = random() % alive.size();
    const wavekv::sequence_id sequence = alive[at];
    switch (random() % 4) {
    case 0:
    case 1: {
      const std::size_t n = cache.length(sequence) > 3000 ? 1 : 1 + random() % 120;
      const std::size_t first = random() % 100;
      const auto view = wavekv::nhd(rows.data() + first * 64, n, 2, 32);
      cache.append(sequence, 0, view, view);
      const auto query = wavekv::nhd(rows.data(), 1, 8, 32);
      cache.attend(sequence, 0, query, wavekv::nhd(out.data(), 1, 8, 32));
      break;
    }
    case 2:
      cache.truncate(sequence, random() % (cache.length(sequence) + 1));
      break;
    default:
      cache.release(sequence);
      alive[at] = alive.back();
      alive.pop_back();
    }
    // What is alive comes and goes: the most of a fifth of the steps beside the most of the last.
    const std::size_t fifth = 5 * step / chosen.n_lives;
    if (fifth == 1) early = std::max(early, resident_bytes());
    if (fifth == 4) end = std::max(end, resident_bytes());
  }
  std::fprintf(
      stderr,
      "%zu steps of create, fork, append, truncate, release: at most %.1f MB in the second "
      "fifth of them, %.1f MB in the last\n",
      chosen.n_lives, early * 1e-6, end * 1e-6);
  return {{"steps", chosen.n_lives}, {"early_bytes", early}, {"end_bytes", end}};
}

}  // namespace

int main(int argc, char** argv) {
  options chosen;
  CLI::App app{"Memory of a cache with two tiers, measured as the process's."};
  app.add_option("--tokens", chosen.n_tokens, "Tokens appended")->capture_default_str();
  app.add_option("--kv-heads", chosen.n_kv_heads, "KV heads of 128 elements")
      ->capture_default_str();
  app.add_option("--budget", chosen.budget, "Share of K and V that fits into memory")
      ->capture_default_str();
  app.add_option("--lives", chosen.n_lives, "Steps of create, fork, append, truncate, release")
      ->capture_default_str();
  app.add_option("--work", chosen.work, "Folder for the slow tier")->capture_default_str();
  app.add_option("--json", chosen.json_file, "Write the numbers to this file");
  CLI11_PARSE(app, argc, argv);
  try {
    const json lives = live(chosen);
    const json result = {{"grow", grow(chosen)}, {"live", lives}};
    if (!chosen.json_file.empty()) std::ofstream(chosen.json_file) << result.dump(1) << '\n';
  } catch (const std::exception& error) {
    std::fprintf(stderr, "wavekv_memory: %s\n", error.what());
    return 1;
  }
  return 0;
}
