// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "tiers.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>

#include "mapped_file.hpp"

namespace transformer {

tiered_cache::options_type tier_options::cache_options() const {
  tiered_cache::options_type options;
  if (ram_budget) {
    // A fifth for rows on their way to the file, which a prompt's segments need for a moment.
    options.placement.write_back_bytes = *ram_budget / 5;
    options.placement.fast_bytes = *ram_budget - options.placement.write_back_bytes;
  }
  if (!store.empty()) options.placement.store.path = store;
  return options;
}

void add_tier_options(CLI::App& app, tier_options& options) {
  app.add_option("--ram-budget", options.ram_budget,
                 "Memory for K and V of sealed tokens, as in 64MB; the rest lives in a file "
                 "(summaries and newest tokens are in memory besides)")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--store", options.store,
                 "Directory or new file for what has no room in memory (default: where temporary "
                 "files go)");
}

std::string model_name(const run_options& options) {
  // Weights are told apart by what they are, not by where they lie.
  const std::filesystem::path config = options.model / "config.json";
  std::uint64_t sum = 0;
  for (const auto& file : std::filesystem::directory_iterator(options.model)) {
    if (file.path().extension() == ".safetensors") {
      const mapped_file weights(file.path());
      const auto bytes = weights.bytes();
      // The ends, and some of the middle: all of it would take longer than loading.
      constexpr std::size_t part = std::size_t{1} << 20U;
      for (std::size_t i = 0; i < 3; ++i) {
        const std::size_t at = (bytes.size() - std::min(part, bytes.size())) * i / 2;
        sum ^= wavekv::checksum(std::as_bytes(bytes.subspan(at, std::min(part, bytes.size())))) +
               bytes.size() + i;
      }
    }
  }
  const mapped_file text(config);
  sum ^= wavekv::checksum(std::as_bytes(text.bytes()));
  char name[32];
  std::snprintf(name, sizeof name, "%016llx", static_cast<unsigned long long>(sum));
  return name;
}

void print_tiers(const wavekv::cache_statistics& stats) {
  const auto& total = stats.total;
  const std::uint64_t read = std::max<std::uint64_t>(1, total.hits + total.misses);
  std::fprintf(stderr,
               "blocks: %.1f %% of %llu in memory, %.1f MB read from the file, %.0f ms waited for, "
               "%.1f MB written\n",
               100.0 * static_cast<double>(total.hits) / static_cast<double>(read),
               static_cast<unsigned long long>(total.hits + total.misses),
               static_cast<double>(total.bytes_moved) * 1e-6,
               static_cast<double>(total.stall_ns) * 1e-6,
               static_cast<double>(stats.tiers.written_bytes) * 1e-6);
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace transformer
