// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "full_attention.hpp"
#include "model.hpp"
#include "sliding_window.hpp"

namespace test {

inline const std::filesystem::path data_dir = WAVEKV_TEST_DATA_DIR;
inline const std::filesystem::path models_dir =
    std::filesystem::path(WAVEKV_SOURCE_DIR) / "examples/models";
inline const std::filesystem::path needle_dir = models_dir / "needle";
/// The shipped models, each with data_dir / name / golden.json.
inline const std::vector<std::string> shipped_models = {"needle", "needle_trace"};

/// Full attention without a cache of any kind: a window that no sequence outgrows. The model's own
/// oracle.
class dense_attention : public transformer::full_attention {
 public:
  dense_attention(const transformer::model_config& config, std::size_t n_layers)
      : layers_(n_layers, transformer::sliding_window(
                              {config.n_query_heads, config.n_kv_heads, config.head_dim},
                              std::size_t{1} << 40)) {}

  void prefill(const transformer::attention_input& in, float* out) override {
    layers_[in.layer].append_and_attend(in.n_tokens, in.queries, in.keys, in.values, out);
  }
  void append(const transformer::attention_input& in) override {
    layers_[in.layer].append(in.n_tokens, in.keys, in.values);
  }
  void decode(const transformer::attention_input& in, float* out) override { prefill(in, out); }
  void end_prompt() override {}
  std::unique_ptr<full_attention> fork() const override {
    return std::make_unique<dense_attention>(*this);
  }

 private:
  std::vector<transformer::sliding_window> layers_;
};

inline transformer::session start_dense(const transformer::model& model) {
  return model.start(std::make_unique<dense_attention>(model.config(), model.n_full_layers()));
}

/// Prefills all tokens but the last in chunks, and decodes the last.
inline std::span<const float> read_prompt(transformer::model& model, transformer::session& session,
                                          std::span<const transformer::token_id> ids,
                                          std::size_t chunk) {
  for (std::size_t at = 0; at + 1 < ids.size(); at += chunk)
    model.prefill(session, ids.subspan(at, std::min(chunk, ids.size() - 1 - at)));
  session.attention->end_prompt();
  return model.decode(session, ids.back());
}

/// A directory that is deleted with the object.
class temporary_directory {
 public:
  temporary_directory() {
    std::random_device random;
    path_ = std::filesystem::temp_directory_path() /
            ("wavekv_test_" + std::to_string(random()) + std::to_string(random()));
    std::filesystem::create_directories(path_);
  }
  ~temporary_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;

  const std::filesystem::path& path() const { return path_; }

  void write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace test
