// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The model on a device, emulated: its logits against those of the model on the CPU.
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "device_model.hpp"
#include "support.hpp"

namespace {

using test::token_id;

using float_machine = test::emulated_machine<float, wavekv::wave_index<>, true>;

/// A small random model with every bias there is.
void write_biased_model(const test::temporary_directory& directory, const char* family) {
  constexpr std::size_t hidden = 32;
  constexpr std::size_t wide = 48;
  directory.write("config.json", nlohmann::json{{"model_type", family},
                                                {"vocab_size", 50},
                                                {"hidden_size", hidden},
                                                {"intermediate_size", wide},
                                                {"num_attention_heads", 4},
                                                {"num_key_value_heads", 2},
                                                {"num_hidden_layers", 2},
                                                {"attention_bias", true},
                                                {"mlp_bias", true}}
                                     .dump());
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 0.3F);
  nlohmann::json header;
  std::string data;
  const auto add = [&](const std::string& name, const std::vector<std::size_t>& shape) {
    std::size_t n = 1;
    for (const std::size_t extent : shape) n *= extent;
    const std::size_t begin = data.size();
    for (std::size_t i = 0; i < n; ++i) {
      const auto bits = wavekv::from_float<wavekv::bf16>(normal(random)).bits;
      data.push_back(static_cast<char>(bits & 0xFFU));
      data.push_back(static_cast<char>(bits >> 8U));
    }
    header[name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
  };
  add("model.embed_tokens.weight", {50, hidden});
  add("lm_head.weight", {50, hidden});
  add("model.norm.weight", {hidden});
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    add(layer + "input_layernorm.weight", {hidden});
    add(layer + "post_attention_layernorm.weight", {hidden});
    for (const auto& [name, n_out, n_in] :
         std::vector<std::tuple<std::string, std::size_t, std::size_t>>{
             {"self_attn.q_proj", hidden, hidden},
             {"self_attn.k_proj", hidden / 2, hidden},
             {"self_attn.v_proj", hidden / 2, hidden},
             {"self_attn.o_proj", hidden, hidden},
             {"mlp.gate_proj", wide, hidden},
             {"mlp.up_proj", wide, hidden},
             {"mlp.down_proj", hidden, wide}}) {
      add(layer + name + ".weight", {n_out, n_in});
      add(layer + name + ".bias", {n_out});
    }
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string size(8, '\0');
  for (std::size_t i = 0; i < 8; ++i)
    size[i] = static_cast<char>(static_cast<std::uint64_t>(text.size()) >> (8 * i));
  directory.write("model.safetensors", size + text + data);
}

const std::vector<std::string> families = {"llama", "llama_f32", "llama_f16",     "llama_sharded",
                                           "qwen3", "smollm3",   "smollm3_window"};

}  // namespace

// Two terms of 16-bit weights' type say 16 bits of an activation or more, and keys and values are floats: what differs is
// 2^-17 of what enters each of some ten products, and the order of sums. Logits are up to 13.
TEST_CASE("with keys and values in float, every family's logits equal the CPU's") {
  for (const auto& name : families) {
    CAPTURE(name);
    const auto directory = test::data_dir / "models" / name;
    const auto ids = test::stored_prompt(directory, 3);  // of 200 tokens
    CHECK(test::largest_difference<float_machine>(directory, ids, 190, 64) <= 2e-4F);
    CHECK(test::largest_difference<float_machine>(directory, std::span(ids).first(12), 7, 190) <=
          2e-4F);
  }
}

TEST_CASE("biases enter") {
  for (const char* family : {"llama", "qwen2"}) {
    CAPTURE(family);
    const test::temporary_directory directory;
    write_biased_model(directory, family);
    std::vector<token_id> ids(40);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<token_id>(i * 7 % 50);
    CHECK(test::largest_difference<float_machine>(directory.path(), ids, 30, 16) <= 2e-4F);
  }
}
