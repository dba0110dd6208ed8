// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "run_options.hpp"
#include "wave_attention.hpp"

namespace transformer {

/// @brief Where sealed tokens live, when not all of them are to stay in memory.
struct tier_options {
  std::optional<std::size_t> ram_budget;  ///< bytes of K and V in memory
  std::filesystem::path store;  ///< directory or new file; empty: a directory for temporary files

  /// @brief Whether a cache with two tiers was asked for.
  [[nodiscard]] bool wanted() const noexcept { return ram_budget || !store.empty(); }

  [[nodiscard]] tiered_cache::options_type cache_options() const;
};

/// @brief Adds --ram-budget and --store to a command line.
void add_tier_options(CLI::App& app, tier_options& options);

/// @brief What a saved prompt is said to belong to: the checkpoint and its weights' size.
std::string model_name(const run_options& options);

/// @brief One line on standard error: hits, what moved, what waited.
void print_tiers(const wavekv::cache_statistics& stats);

/// @brief Seconds on a clock that only goes forward.
double seconds_now();

}  // namespace transformer
