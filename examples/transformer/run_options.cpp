// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "run_options.hpp"

#include <Eigen/Core>
#include <omp.h>

#include "cuda_engine.hpp"
#include "error.hpp"

namespace transformer {

void add_common_options(CLI::App& app, run_options& options) {
  app.add_option("--model", options.model,
                 "Model directory: config.json, tokenizer.json, model.safetensors (or shards)")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--haystack", options.haystack,
                 "Text to hide needles in, a file or a directory (default: this project's "
                 "documentation and sources)")
      ->check(CLI::ExistingPath);
  app.add_option("--chunk", options.chunk, "Prompt tokens per prefill chunk")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  app.add_option("--threads", options.threads, "Threads (0: all cores)")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  app.add_option("--seed", options.seed, "Of sampling and of needles: words, numbers, depths")
      ->capture_default_str();
  app.add_option("--epsilon", options.epsilon,
                 "error, verified: relative error of the attention output to keep")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--delta", options.delta, "verified: share of outputs that may miss it")
      ->capture_default_str()
      ->check(CLI::Range(1e-6, 0.5));
  app.add_option("--retrieve", options.retrieve, "fixed: share of clusters that is read")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--estimate", options.estimate, "fixed: share of clusters that is estimated")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
}

void add_device_option(CLI::App& app, run_options& options,
                       const std::vector<std::string>& cpu_only) {
  app.add_option("--device", options.device,
                 "Where the model and its cache are: cpu, or cuda, the current CUDA device")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->check([](const std::string& device) {
        return device != "cuda" || has_cuda_engine()
                   ? ""
                   : "built without CUDA (configure with -DWAVEKV_CUDA=ON)";
      });
  app.final_callback([&app, &options, cpu_only] {
    for (const std::string& name : cpu_only)
      if (options.device == "cuda" && app.count(name) > 0)
        throw CLI::ValidationError(name,
                                   "is not there on cuda, where sequences are not saved, have "
                                   "no second tier and are not calibrated");
  });
}

const std::vector<std::string>& bound_names() {
  static const std::vector<std::string> names = {"default", "exact",    "fixed",
                                                 "error",   "verified", "none"};
  return names;
}

any_bound make_bound(const std::string& name, const run_options& options) {
  if (name == "exact") return wavekv::exact{};
  if (name == "fixed") return wavekv::fixed_budget{options.retrieve, options.estimate};
  if (name == "error") return wavekv::error_bound<>{.epsilon = options.epsilon};
  if (name == "verified")
    return wavekv::verified_bound<>{.epsilon = options.epsilon, .delta = options.delta};
  if (name == "none") return window_only{};
  return wavekv::kv_cache<>::bound_type{};
}

void use_threads(const run_options& options) {
  if (options.threads > 0) omp_set_num_threads(static_cast<int>(options.threads));
}

std::filesystem::path haystack_path(const run_options& options) {
  if (!options.haystack.empty()) return options.haystack;
  const std::filesystem::path source = WAVEKV_SOURCE_DIR;
  if (std::filesystem::exists(source / "include/wavekv")) return source;
  throw model_error(
      "the sources this program was built from are gone; name a text with --haystack");
}

}  // namespace transformer
