// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "bounds.hpp"

namespace transformer {

/// @brief What both programs are told on their command lines.
struct run_options {
  std::filesystem::path model;
  std::string device = "cpu";  ///< or cuda
  std::filesystem::path
      haystack;  ///< file or directory; empty: this project's own documentation and sources
  std::size_t chunk = 2048;
  std::size_t threads = 0;  ///< 0: all
  std::uint64_t seed = 1;
  float epsilon = 0.05F;
  float delta = 0.05F;
  std::size_t calibrate = 0;  ///< prompt queries of each layer that predictions are calibrated with
  float retrieve = 0.018F;
  float estimate = 0.232F;
};

/// @brief Adds the common options to a command line.
void add_common_options(CLI::App& app, run_options& options);

/// @brief Adds --device to a command line, which may then not name these of its options together with cuda.
void add_device_option(CLI::App& app, run_options& options,
                       const std::vector<std::string>& cpu_only = {});

/// @brief Names that make_bound knows.
const std::vector<std::string>& bound_names();

/// @brief The bound of a name: `default` is the one that wavekv::kv_cache<> has.
any_bound make_bound(const std::string& name, const run_options& options);

/// @brief Gives OpenMP, Eigen and the cache's executor the number of threads that was asked for.
void use_threads(const run_options& options);

/// @brief Where haystacks come from.
std::filesystem::path haystack_path(const run_options& options);

}  // namespace transformer
