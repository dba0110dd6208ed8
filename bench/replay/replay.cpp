// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// wavekv_replay: sends a trace of decode steps through every eviction policy, and through Belady's optimum.
#include "replay/replay.hpp"

#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <wavekv/buffer/eviction.hpp>

int main(int argc, char** argv) {
  using namespace wavekv_bench;
  CLI::App app{"Hit ratios of a trace (wavekv_decode --trace) by eviction policy and budget."};
  std::string path;
  std::vector<double> shares = {0.02, 0.05, 0.1, 0.2, 0.5};
  std::filesystem::path json_file;
  app.add_option("trace", path, "The trace")->required();
  app.add_option("--budgets", shares, "Shares of all blocks that fit into memory")
      ->capture_default_str();
  app.add_option("--json", json_file, "Write the numbers to this file, too");
  CLI11_PARSE(app, argc, argv);
  try {
    const block_trace trace = read_trace(path);
    const auto all_bytes = static_cast<double>(trace.n_tokens * (trace.key_dim + trace.value_dim) *
                                               sizeof(wavekv::bf16));
    std::printf("| budget | lru | clock | sieve | Belady |\n|---|---|---|---|---|\n");
    nlohmann::json rows = nlohmann::json::array();
    for (const double share : shares) {
      const auto bytes = static_cast<std::size_t>(share * all_bytes);
      const double lru = replay<wavekv::eviction::lru>(trace, bytes).hit_ratio();
      const double clock = replay<wavekv::eviction::clock>(trace, bytes).hit_ratio();
      const double sieve = replay<wavekv::eviction::sieve>(trace, bytes).hit_ratio();
      const double best = replay_belady(trace, bytes).hit_ratio();
      std::printf("| %g %% | %.3f | %.3f | %.3f | %.3f |\n", 100.0 * share, lru, clock, sieve,
                  best);
      rows.push_back(
          {{"budget", share}, {"lru", lru}, {"clock", clock}, {"sieve", sieve}, {"belady", best}});
    }
    if (!json_file.empty()) std::ofstream(json_file) << rows.dump(1) << '\n';
  } catch (const std::exception& error) {
    std::fprintf(stderr, "wavekv_replay: %s\n", error.what());
    return 1;
  }
  return 0;
}
