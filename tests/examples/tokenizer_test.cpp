// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Token ids and decoded text against Hugging Face's tokenizers (see tests/data/README.md).
#include <fstream>
#include <map>
#include <string>

#include <doctest/doctest.h>

#include "bpe.hpp"
#include "error.hpp"
#include "json_file.hpp"
#include "regex_splitter.hpp"
#include "support.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace {

using nlohmann::json;
using transformer::token_id;

const auto tokenizer_dir = test::data_dir / "tokenizers";

/// The tokenizers are stored as NAME.json; a model directory has tokenizer.json.
transformer::tokenizer load(const std::string& name) {
  if (name == "needle") return transformer::tokenizer(test::needle_dir);
  const test::temporary_directory directory;
  std::filesystem::copy_file(tokenizer_dir / (name + ".json"), directory.path() / "tokenizer.json");
  return transformer::tokenizer(directory.path());
}

template <class F>
void for_each_line(const std::string& file, const F& f) {
  std::ifstream in(tokenizer_dir / file);
  REQUIRE(in);
  for (std::string line; std::getline(in, line);) f(json::parse(line));
}

std::string error_of(const json& tokenizer, const std::string& config = "{}") {
  const test::temporary_directory directory;
  directory.write("tokenizer.json", tokenizer.dump());
  directory.write("tokenizer_config.json", config);
  try {
    const transformer::tokenizer loaded(directory.path());
  } catch (const transformer::model_error& e) {
    return e.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("ids equal the reference's on mixed text") {
  for (const std::string name : {"llama3", "qwen2", "gpt2", "needle"}) {
    auto tokenizer = load(name);
    std::size_t n_lines = 0;
    std::size_t n_wrong = 0;
    std::size_t n_wrong_text = 0;
    std::string first_wrong;
    for_each_line("lines.jsonl", [&](const json& line) {
      const auto text = line["text"].get<std::string>();
      auto ids = name == "needle" ? std::vector<token_id>() : tokenizer.prefix();
      for (const token_id id : tokenizer.encode(text)) ids.push_back(id);
      const auto expected = line[name].get<std::vector<token_id>>();
      ++n_lines;
      if (ids != expected && n_wrong++ == 0) first_wrong = line.dump();
      const auto decoded = line.contains("decoded") && line["decoded"].contains(name)
                               ? line["decoded"][name].get<std::string>()
                               : text;
      if (tokenizer.decode(expected) != decoded) ++n_wrong_text;
    });
    CAPTURE(name);
    CAPTURE(first_wrong);
    CHECK(n_lines >= 2000);
    CHECK(n_wrong == 0);
    CHECK(n_wrong_text == 0);
  }
}

TEST_CASE("ids cut anywhere decode as the reference decodes them") {
  std::map<std::string, transformer::tokenizer> tokenizers;
  for_each_line("decode.jsonl", [&](const json& line) {
    const auto name = line["tokenizer"].get<std::string>();
    if (!tokenizers.contains(name)) tokenizers.emplace(name, load(name));
    const auto ids = line["ids"].get<std::vector<token_id>>();
    CHECK(tokenizers.at(name).decode(ids, true) == line["decoded"].get<std::string>());
  });
}

TEST_CASE("streamed text equals decoded text, and is valid at every step") {
  auto tokenizer = load("qwen2");
  for_each_line("lines.jsonl", [&](const json& line) {
    const auto ids = line["qwen2"].get<std::vector<token_id>>();
    transformer::utf8_stream stream;
    std::string streamed;
    for (const token_id id : ids) {
      const auto piece = stream.push(tokenizer.bytes(id));
      REQUIRE(transformer::valid_utf8(piece) == piece);
      streamed += piece;
    }
    streamed += stream.finish();
    CHECK(streamed == tokenizer.decode(ids));
  });
}

TEST_CASE("broken UTF-8 in the input is replaced") {
  auto tokenizer = load("llama3");
  CHECK(transformer::valid_utf8("a\xFFz") == "a\xEF\xBF\xBDz");
  CHECK(transformer::valid_utf8("\xE2\x82") == "\xEF\xBF\xBD");
  CHECK(transformer::valid_utf8("\xED\xA0\x80") == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(tokenizer.decode(tokenizer.encode("x\xC3")) == "x\xEF\xBF\xBD");
  CHECK(tokenizer.encode("").empty());
  CHECK_NOTHROW(tokenizer.encode(std::string(3, '\0')));
  CHECK(tokenizer.encode(std::string(200'000, 'a')).size() > 0);  // one word; must not be quadratic
}

TEST_CASE("what goes in front of a sequence") {
  CHECK(load("needle").prefix() == std::vector<token_id>{0});
  CHECK(load("llama3").prefix().size() == 1);
  CHECK(load("qwen2").prefix().empty());
}

TEST_CASE("a wrong tokenizer.json is one clear error") {
  auto good = transformer::read_json(test::needle_dir / "tokenizer.json");
  CHECK(error_of(good) == "no error");
  const auto broken = [&](const json::json_pointer& at, const json& value) {
    auto copy = good;
    copy[at] = value;
    return error_of(copy);
  };
  using p = json::json_pointer;
  CHECK(contains(broken(p("/model/type"), "Unigram"), "not supported"));
  CHECK(contains(broken(p("/model/byte_fallback"), true), "byte_fallback"));
  CHECK(contains(broken(p("/model/merges/0"), "abc"), "not a pair"));
  CHECK(contains(broken(p("/model/merges/0"), json::array({"zq", "qz"})), "not in the vocabulary"));
  CHECK(contains(broken(p("/model/vocab/the"), -3), "out of range"));
  CHECK(contains(broken(p("/model/vocab/the"), 1'000'000'000), "out of range"));
  CHECK(contains(broken(p("/normalizer"), {{"type", "Lowercase"}}), "Lowercase"));
  CHECK(contains(broken(p("/pre_tokenizer"), {{"type", "Metaspace"}}), "Metaspace"));
  CHECK(contains(broken(p("/pre_tokenizer/pretokenizers/0/pattern/Regex"), "(a"),
                 "regular expression"));
  CHECK(contains(broken(p("/pre_tokenizer/pretokenizers/0/behavior"), "MergedWithNext"),
                 "MergedWithNext"));
  CHECK(contains(broken(p("/added_tokens"), "x"), "tokenizer.json"));
  CHECK(contains(broken(p("/model"), nullptr), "tokenizer.json"));
  CHECK(contains(error_of(json::array()), "tokenizer.json"));
  CHECK(contains(error_of(good, R"({"bos_token": "<none>", "add_bos_token": true})"), "<none>"));
  CHECK(contains(error_of(good, "{"), "not valid JSON"));
}

TEST_CASE("white space around an added token") {
  auto json = transformer::read_json(test::needle_dir / "tokenizer.json");
  json["added_tokens"][1]["lstrip"] = true;
  json["added_tokens"][1]["rstrip"] = true;
  json["added_tokens"][2]["single_word"] = true;
  const test::temporary_directory directory;
  directory.write("tokenizer.json", json.dump());
  transformer::tokenizer tokenizer(directory.path());
  const auto joined = tokenizer.encode("a \t<|eos|>  b");
  CHECK(joined.size() == 3);
  CHECK(joined[1] == 1);
  const auto single = tokenizer.encode("x <|pad|> y");
  CHECK(std::count(single.begin(), single.end(), 2) == 1);
  const auto inside = tokenizer.encode("x<|pad|>y");
  CHECK(std::count(inside.begin(), inside.end(), 2) == 0);
}
