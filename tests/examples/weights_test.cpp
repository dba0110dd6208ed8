// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Wrong and truncated weight files: each is one clear error, none a crash.
#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include "error.hpp"
#include "json_file.hpp"
#include "linear.hpp"
#include "model.hpp"
#include "safetensors.hpp"
#include "support.hpp"

namespace {

using nlohmann::json;

std::string file_of(const std::string& header, const std::string& data) {
  std::string file;
  for (unsigned i = 0; i < 8; ++i)
    file.push_back(static_cast<char>((std::uint64_t{header.size()} >> (8 * i)) & 0xFFU));
  return file + header + data;
}

json entry(const char* type, json shape, std::size_t begin, std::size_t end) {
  return {{"dtype", type}, {"shape", std::move(shape)}, {"data_offsets", {begin, end}}};
}

std::string error_of_file(const std::string& content) {
  const test::temporary_directory directory;
  directory.write("model.safetensors", content);
  try {
    const transformer::checkpoint weights(directory.path());
  } catch (const transformer::model_error& e) {
    return e.what();
  }
  return "no error";
}

std::string error_of(const json& header, std::size_t n_data_bytes) {
  // Headers are padded so that the data is aligned, as the reference implementation does.
  auto text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return error_of_file(file_of(text, std::string(n_data_bytes, '\0')));
}

std::string error_of_model(const std::filesystem::path& directory) {
  try {
    const transformer::model model(directory);
  } catch (const transformer::model_error& e) {
    return e.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  CAPTURE(text);
  return text.find(part) != std::string::npos && text.find('\n') == std::string::npos;
}

void copy_model(const std::string& name, const test::temporary_directory& to) {
  std::filesystem::copy(test::data_dir / "models" / name, to.path(),
                        std::filesystem::copy_options::recursive);
}

}  // namespace

TEST_CASE("a well-formed file loads, whatever its element type") {
  CHECK(error_of({{"__metadata__", {{"format", "pt"}}}, {"a", entry("F32", {2, 2}, 0, 16)}}, 16) ==
        "no error");
  CHECK(error_of({{"a", entry("F16", {4}, 0, 8)}, {"b", entry("BF16", {0, 4}, 8, 8)}}, 8) ==
        "no error");
  CHECK(error_of(json::object(), 0) == "no error");
}

TEST_CASE("a header that is no header") {
  CHECK(contains(error_of_file(""), "truncated"));
  CHECK(contains(error_of_file("1234"), "truncated"));
  CHECK(contains(error_of_file(file_of("{}", "").substr(0, 9)), "does not fit"));
  CHECK(contains(error_of_file(std::string(8, '\xFF') + "{}"), "does not fit"));
  CHECK(contains(error_of_file(file_of("not json", "")), "bad header"));
  CHECK(contains(error_of_file(file_of("[1, 2]  ", "")), "not a JSON object"));
  CHECK(contains(error_of_file(file_of(std::string(50'000, '['), "")), "bad header"));
}

TEST_CASE("a tensor that does not fit its file, its shape or its neighbours") {
  CHECK(contains(error_of({{"a", entry("F32", {4}, 0, 16)}}, 12), "outside"));
  CHECK(contains(error_of({{"a", entry("F32", {4}, 16, 0)}}, 16), "outside"));
  CHECK(contains(error_of({{"a", entry("F32", {4}, 0, SIZE_MAX)}}, 16), "outside"));
  CHECK(contains(error_of({{"a", entry("F32", {5}, 0, 16)}}, 16), "does not match"));
  CHECK(contains(error_of({{"a", entry("F32", {SIZE_MAX / 2, 8}, 0, 16)}}, 16), "too large"));
  CHECK(contains(error_of({{"a", entry("F32", {-1}, 0, 16)}}, 16), "non-negative"));
  CHECK(contains(error_of({{"a", entry("F32", {1.5}, 0, 16)}}, 16), "non-negative"));
  CHECK(contains(error_of({{"a", entry("I64", {2}, 0, 16)}}, 16), "unsupported dtype"));
  CHECK(contains(error_of({{"a", entry("F32", {4}, 0, 16)}, {"b", entry("F32", {2}, 8, 16)}}, 16),
                 "overlap"));
  CHECK(contains(error_of({{"a", entry("F32", {1}, 2, 6)}}, 8), "aligned"));
  CHECK(contains(error_of({{"a", {{"dtype", "F32"}, {"shape", {4}}}}}, 16), "data_offsets"));
  CHECK(contains(error_of({{"a", {{"dtype", "F32"}, {"shape", {4}}, {"data_offsets", {0}}}}}, 16),
                 "not a pair"));
  CHECK(contains(error_of({{"a", 3}}, 16), "tensor a"));
}

TEST_CASE("a model file cut off anywhere is an error") {
  const test::temporary_directory directory;
  copy_model("llama_f16", directory);
  const auto weights = directory.path() / "model.safetensors";
  const auto size = std::filesystem::file_size(weights);
  for (const std::uintmax_t kept :
       {std::uintmax_t{0}, std::uintmax_t{7}, std::uintmax_t{100}, size / 2, size - 1}) {
    std::filesystem::resize_file(weights, kept);
    CHECK(contains(error_of_model(directory.path()), "model.safetensors"));
  }
  std::filesystem::remove(weights);
  CHECK(contains(error_of_model(directory.path()), "cannot open"));
  std::filesystem::create_directory(weights);
  CHECK(contains(error_of_model(directory.path()), "not a regular file"));
}

TEST_CASE("weights that are not what config.json says") {
  const test::temporary_directory directory;
  copy_model("llama_f16", directory);
  const auto config = transformer::read_json(directory.path() / "config.json");
  const auto with = [&](const char* key, const json& value) {
    auto changed = config;
    changed[key] = value;
    directory.write("config.json", changed.dump());
    return error_of_model(directory.path());
  };
  CHECK(with("use_cache", true) == "no error");
  CHECK(contains(with("num_hidden_layers", 9), "model.layers.2.input_layernorm.weight is missing"));
  CHECK(contains(with("vocab_size", 300), "has shape [272, 64]"));
  CHECK(contains(with("tie_word_embeddings", false), "lm_head.weight is missing"));
  CHECK(contains(with("attention_bias", true), "q_proj.bias is missing"));
}

TEST_CASE("shards: a missing one, a wrong index, a tensor in two of them") {
  const test::temporary_directory directory;
  copy_model("llama_sharded", directory);
  CHECK(error_of_model(directory.path()) == "no error");
  const auto shard = [&](int i) {
    return "model-0000" + std::to_string(i) + "-of-00003.safetensors";
  };
  std::filesystem::copy_file(directory.path() / shard(1), directory.path() / shard(2),
                             std::filesystem::copy_options::overwrite_existing);
  CHECK(contains(error_of_model(directory.path()), "is in two shards"));
  std::filesystem::remove(directory.path() / shard(2));
  CHECK(contains(error_of_model(directory.path()), "cannot open"));
  directory.write("model.safetensors.index.json",
                  R"({"weight_map": {"a": "../model.safetensors"}})");
  CHECK(contains(error_of_model(directory.path()), "not a plain file name"));
  directory.write("model.safetensors.index.json", R"({"weight_map": {"a": 3}})");
  CHECK(contains(error_of_model(directory.path()), "index.json"));
  directory.write("model.safetensors.index.json", "{");
  CHECK(contains(error_of_model(directory.path()), "not valid JSON"));
}

TEST_CASE("matrices are read where they lie, in every stored type, for one token and for many") {
  for (const std::string name : {"llama_f32", "llama_f16", "llama"}) {
    const transformer::checkpoint weights(test::data_dir / "models" / name);
    const auto config = transformer::read_config(test::data_dir / "models" / name);
    const auto up = weights.matrix("model.layers.0.mlp.up_proj.weight", config.intermediate_size,
                                   config.hidden_size);
    const transformer::linear layer{up, std::vector<float>(up.n_rows, 0.5F)};
    constexpr std::size_t n_tokens = 13;
    std::vector<float> x(n_tokens * up.n_cols);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
    std::vector<float> many(n_tokens * up.n_rows);
    transformer::apply(layer, x.data(), n_tokens, many.data());
    for (std::size_t t = 0; t < n_tokens; ++t) {
      std::vector<float> one(up.n_rows);
      transformer::apply(layer, x.data() + t * up.n_cols, 1, one.data());
      for (std::size_t r = 0; r < up.n_rows; ++r) {
        std::vector<float> row(up.n_cols);
        transformer::copy_row(up, r, row.data());
        double expected = 0.5;
        for (std::size_t c = 0; c < row.size(); ++c)
          expected += double{row[c]} * double{x[t * row.size() + c]};
        REQUIRE(one[r] == doctest::Approx(expected).epsilon(1e-4));
        REQUIRE(many[t * up.n_rows + r] == doctest::Approx(expected).epsilon(1e-4));
      }
    }
  }
}
