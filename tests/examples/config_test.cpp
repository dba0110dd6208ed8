// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <numbers>
#include <string>

#include <doctest/doctest.h>

#include "config.hpp"
#include "error.hpp"
#include "json_file.hpp"
#include "rope.hpp"
#include "support.hpp"

namespace {

using nlohmann::json;
using changes = std::vector<std::pair<std::string, json>>;

json base(const char* family) {
  return {{"model_type", family},     {"vocab_size", 100},        {"hidden_size", 64},
          {"intermediate_size", 128}, {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"num_hidden_layers", 8},   {"rms_norm_eps", 1e-5},     {"rope_theta", 10000.0}};
}

transformer::model_config with(const char* family, const changes& changed) {
  auto config = base(family);
  for (const auto& [key, value] : changed) config[key] = value;
  return transformer::parse_config(json::parse(config.dump()));  // numbers as a file has them
}

std::string error_of(const char* family, const changes& changed) {
  try {
    with(family, changed);
  } catch (const transformer::model_error& e) {
    return e.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  CAPTURE(text);
  return text.find(part) != std::string::npos && text.find('\n') == std::string::npos;
}

std::string sliding_pattern(const transformer::model_config& config) {
  std::string pattern;
  for (const auto& layer : config.layers) pattern += layer.sliding ? 'L' : 'G';
  return pattern;
}

std::string rope_pattern(const transformer::model_config& config) {
  std::string pattern;
  for (const auto& layer : config.layers) pattern += layer.rope ? '1' : '0';
  return pattern;
}

}  // namespace

TEST_CASE("biases, norms and head sizes by family") {
  CHECK(with("llama", {}).head_dim == 16);
  CHECK(with("llama", {{"head_dim", 32}}).head_dim == 32);
  CHECK_FALSE(with("llama", {}).qkv_bias);
  CHECK(with("llama", {{"attention_bias", true}, {"mlp_bias", true}}).output_bias);
  CHECK(with("llama", {{"attention_bias", true}, {"mlp_bias", true}}).mlp_bias);
  CHECK(with("qwen2", {}).qkv_bias);
  CHECK_FALSE(with("qwen2", {}).output_bias);
  CHECK(with("qwen3", {}).qk_norm);
  CHECK(with("qwen3", {{"head_dim", nullptr}}).head_dim == 128);
  CHECK(with("smollm3", {}).tied_embeddings);
  CHECK_FALSE(with("llama", {}).tied_embeddings);
}

TEST_CASE("which layers slide and which have no positions") {
  CHECK(sliding_pattern(with("llama", {{"sliding_window", 16}})) == "GGGGGGGG");
  CHECK(sliding_pattern(with("qwen2", {{"sliding_window", 16}, {"use_sliding_window", false}})) ==
        "GGGGGGGG");
  const changes in_use = {
      {"sliding_window", 16}, {"use_sliding_window", true}, {"max_window_layers", 6}};
  CHECK(sliding_pattern(with("qwen2", in_use)) == "GGGGGGLL");
  CHECK(rope_pattern(with("smollm3", {})) == "11101110");
  CHECK(rope_pattern(with(
            "smollm3", {{"no_rope_layers", json::array({0, 0, 1, 1, 1, 1, 1, 1})}})) == "00111111");
  CHECK(sliding_pattern(with("smollm3", {{"sliding_window", 16}, {"use_sliding_window", true}})) ==
        "GGGLGGGL");
  auto types = json::array();
  for (int i = 0; i < 8; ++i) types.push_back(i % 2 == 0 ? "sliding_attention" : "full_attention");
  const auto config = with(
      "smollm3", {{"sliding_window", 16}, {"use_sliding_window", true}, {"layer_types", types}});
  CHECK(sliding_pattern(config) == "LGLGLGLG");
  CHECK(config.sliding_window == 16);
}

TEST_CASE("both spellings of rope parameters") {
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  const auto old_spelling = with("llama", {{"rope_theta", 5e5}, {"rope_scaling", llama3}});
  json with_theta = llama3;
  with_theta["rope_theta"] = 5e5;
  const auto new_spelling =
      with("llama", {{"rope_theta", nullptr}, {"rope_parameters", with_theta}});
  CHECK(old_spelling.rope.theta == 5e5);
  CHECK(transformer::rope_frequencies(old_spelling.rope, 128) ==
        transformer::rope_frequencies(new_spelling.rope, 128));
  CHECK(with("llama", {{"rope_scaling", json{{"type", "linear"}, {"factor", 2}}}}).rope.factor ==
        2.0);
  CHECK(contains(error_of("llama", {{"rope_scaling", json{{"rope_type", "yarn"}, {"factor", 4}}}}),
                 "yarn"));
  CHECK(contains(error_of("llama", {{"rope_scaling", json::object({{"rope_type", "llama3"}})}}),
                 "factor"));
}

TEST_CASE("llama3 scaling keeps short wavelengths, divides long ones and is continuous between") {
  const transformer::rope_config plain{.theta = 5e5};
  const transformer::rope_config scaled{transformer::rope_config::kind::llama3, 5e5, 8, 1, 4, 8192};
  const auto before = transformer::rope_frequencies(plain, 128);
  const auto after = transformer::rope_frequencies(scaled, 128);
  for (std::size_t i = 0; i < before.size(); ++i) {
    const double wavelength = 2 * std::numbers::pi / double{before[i]};
    const float ratio = before[i] / after[i];
    if (wavelength < 8192.0 / 4) CHECK(ratio == doctest::Approx(1));
    if (wavelength > 8192.0) CHECK(ratio == doctest::Approx(8));
    CHECK(ratio >= doctest::Approx(1));
    CHECK(ratio <= doctest::Approx(8));
  }
}

TEST_CASE("rotation keeps lengths, and dot products depend on distance alone") {
  const auto frequencies = transformer::rope_frequencies({.theta = 1e4}, 8);
  const std::vector<float> a = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<float> b = {2, -1, 0, 1, 1, 3, -2, 1};
  const auto dot_at = [&](std::size_t p, std::size_t q) {
    auto x = a;
    auto y = b;
    transformer::rope_table(frequencies, p, 1).rotate(x.data(), 1);
    transformer::rope_table(frequencies, q, 1).rotate(y.data(), 1);
    float sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
    return sum;
  };
  CHECK(dot_at(0, 0) == doctest::Approx(2 - 2 + 0 + 4 + 5 + 18 - 14 + 8));
  CHECK(dot_at(7, 3) == doctest::Approx(dot_at(104, 100)).epsilon(1e-4));
}

TEST_CASE("a config that is wrong, or not implemented, is one clear error") {
  CHECK(contains(error_of("gpt_neox", {}), "gpt_neox"));
  CHECK(contains(error_of("llama", {{"model_type", nullptr}}), "type"));
  CHECK(contains(error_of("llama", {{"hidden_size", 0}}), "hidden_size is 0"));
  CHECK(contains(error_of("llama", {{"hidden_size", -4}}), "hidden_size"));
  CHECK(contains(error_of("llama", {{"hidden_size", "big"}}), "hidden_size"));
  CHECK(contains(error_of("llama", {{"hidden_size", 1e30}}), "hidden_size"));
  CHECK(contains(error_of("llama", {{"num_key_value_heads", 3}}), "not a multiple"));
  CHECK(contains(error_of("llama", {{"head_dim", 15}}), "not even"));
  CHECK(contains(error_of("llama", {{"hidden_act", "gelu"}}), "gelu"));
  CHECK(contains(error_of("llama", {{"rms_norm_eps", -1}}), "rms_norm_eps"));
  CHECK(contains(error_of("llama", {{"num_hidden_layers", 1'000'000'000}}), "num_hidden_layers"));
  CHECK(contains(error_of("llama", {{"quantization_config", json::object({{"bits", 4}})}}),
                 "quantized"));
  CHECK(contains(error_of("smollm3", {{"no_rope_layers", json::array({1, 0})}}), "no_rope_layers"));
  CHECK(contains(error_of("qwen2", {{"use_sliding_window", true}, {"sliding_window", 0}}),
                 "sliding_window"));
  CHECK_THROWS_AS(transformer::parse_config(json::array()), transformer::model_error);
  CHECK_THROWS_AS(transformer::read_config("/nonexistent"), transformer::model_error);
}

TEST_CASE("end tokens come from both files") {
  const test::temporary_directory directory;
  auto config = base("llama");
  config["eos_token_id"] = {5, 6};
  config["bos_token_id"] = 1;
  directory.write("config.json", config.dump());
  directory.write("generation_config.json", R"({"eos_token_id": 7})");
  const auto read = transformer::read_config(directory.path());
  CHECK(read.eos_ids == std::vector<transformer::token_id>{5, 6, 7});
  CHECK(read.bos_id == 1);
}
