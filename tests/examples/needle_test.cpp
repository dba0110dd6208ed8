// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Haystacks are what they say, and a small sample of wavekv_needle_table's questions is answered.
#include <memory>
#include <set>
#include <string>

#include <doctest/doctest.h>

#include "error.hpp"
#include "generation.hpp"
#include "model.hpp"
#include "needle.hpp"
#include "support.hpp"
#include "wave_attention.hpp"

namespace {

using transformer::any_bound;
using transformer::token_id;
using cache_type = wavekv::kv_cache<>;
using attention = transformer::wave_attention<cache_type>;

std::string plain_text() {
  std::string text;
  for (int i = 0; i < 400; ++i)
    text += "The old man walked down to the shore. He had seen nothing there!\n";
  return text;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("a haystack has its length, its needles at sentence ends, and repeats itself by seed") {
  transformer::tokenizer tokenizer(test::needle_dir);
  transformer::needle_maker maker(tokenizer, plain_text(),
                                  transformer::needle_words(test::needle_dir));
  for (const std::size_t n_tokens : {300, 2000, 20'000}) {
    const auto hay = maker.make(n_tokens, 7, 42);
    CHECK(hay.tokens.size() == n_tokens);
    CHECK(hay.tokens.front() == 0);
    CHECK(hay.needles.size() == 7);
    const auto text = tokenizer.decode(hay.tokens);
    CHECK(count(text, "The magic number of ") == 7);
    std::set<std::string> words;
    for (const auto& needle : hay.needles) {
      words.insert(needle.word);
      const std::string statement =
          " The magic number of " + needle.word + " is " + needle.number + ".";
      const auto at = text.find(statement);
      REQUIRE(at != std::string::npos);
      CHECK(needle.number.size() == 5);
      CHECK(std::string(".!").find(text[at - 1]) != std::string::npos);
      CHECK(double(at) / double(text.size()) == doctest::Approx(needle.depth).epsilon(0.25));
    }
    CHECK(words.size() == 7);
    CHECK(maker.make(n_tokens, 7, 42).tokens == hay.tokens);
    CHECK(maker.make(n_tokens, 7, 43).tokens != hay.tokens);
  }
  CHECK_THROWS_AS(maker.make(50, 7, 1), transformer::model_error);
  CHECK_THROWS_AS(maker.make(100'000, 5000, 1), transformer::model_error);
}

TEST_CASE("sentences are hidden in their order, at sentence ends") {
  transformer::tokenizer tokenizer(test::needle_dir);
  transformer::needle_maker maker(tokenizer, plain_text(),
                                  transformer::needle_words(test::needle_dir));
  const std::vector<std::string> sentences = {" A first thing.", " Another one.", " And the last."};
  for (const std::size_t n_tokens : {100, 5000}) {
    const auto tokens = maker.hide(n_tokens, sentences, 42);
    CHECK(tokens.size() == n_tokens);
    CHECK(tokens.front() == 0);
    const auto text = tokenizer.decode(tokens);
    std::size_t last = 0;
    for (const auto& sentence : sentences) {
      CHECK(count(text, sentence) == 1);
      const auto at = text.find(sentence);
      REQUIRE(at != std::string::npos);
      CHECK(at > last);
      CHECK(std::string(".!").find(text[at - 1]) != std::string::npos);
      last = at;
    }
    CHECK(maker.hide(n_tokens, sentences, 42) == tokens);
    CHECK(maker.hide(n_tokens, sentences, 43) != tokens);
  }
  CHECK(maker.hide(200, {}, 1).size() == 200);
  CHECK_THROWS_WITH_AS((void)maker.hide(10, sentences, 1),
                       doctest::Contains("3 needles do not fit into 10 tokens"),
                       transformer::model_error);
}

TEST_CASE("haystack text: lines that would be needles are left out") {
  const test::temporary_directory directory;
  directory.write("a.md", "one\nthe magic number of two is 3\nfour\n");
  directory.write("b.bin", "five\n");
  CHECK(transformer::haystack_text(directory.path()) == "one\nfour\n");
  CHECK(transformer::haystack_text(directory.path() / "b.bin") == "five\n");
  CHECK_THROWS_AS(transformer::haystack_text(directory.path() / "none"), transformer::model_error);
  CHECK(count(transformer::haystack_text(WAVEKV_SOURCE_DIR), "magic number") == 0);
}

TEST_CASE("words and numbers") {
  CHECK(transformer::needle_words("/nonexistent").size() >= 20);
  CHECK(transformer::needle_words(test::needle_dir).size() >= 500);
  const test::temporary_directory directory;
  directory.write("words.json", R"({"heldout": 3})");
  CHECK_THROWS_AS(transformer::needle_words(directory.path()), transformer::model_error);
  CHECK(transformer::leading_number("12345. The") == "12345");
  CHECK(transformer::leading_number(" 7 8") == "7");
  CHECK(transformer::leading_number("none").empty());
  CHECK(transformer::leading_number("").empty());
}

TEST_CASE("every needle of a haystack is found through the index, none without retrieval") {
  transformer::model model(test::needle_dir);
  transformer::tokenizer tokenizer(test::needle_dir);
  transformer::needle_maker maker(tokenizer, transformer::haystack_text(WAVEKV_SOURCE_DIR),
                                  transformer::needle_words(test::needle_dir));
  const auto hay = maker.make(4096, 10, 5);
  cache_type cache(transformer::cache_geometry(model.config(), model.n_full_layers()));
  auto read = model.start(std::make_unique<attention>(cache, wavekv::exact{}));
  model.prefill(read, hay.tokens);
  read.attention->end_prompt();

  const std::vector<any_bound> bounds = {wavekv::exact{}, cache_type::bound_type{},
                                         wavekv::fixed_budget{}, wavekv::verified_bound<>{},
                                         transformer::window_only{}};
  std::vector<std::size_t> n_found(bounds.size());
  for (const auto& needle : hay.needles) {
    const auto question = maker.question(needle.word);
    auto asked = read.fork();
    model.prefill(asked, std::span(question).first(question.size() - 1));
    for (std::size_t i = 0; i < bounds.size(); ++i) {
      auto session = asked.fork(
          std::make_unique<attention>(static_cast<const attention&>(*asked.attention), bounds[i]));
      const auto answer = transformer::generate(model, session, question.back(),
                                                transformer::sampler({}), {5, true});
      n_found[i] += tokenizer.decode(answer.tokens) == needle.number;
    }
  }
  MESSAGE("found of 10: exact ", n_found[0], ", default ", n_found[1], ", fixed ", n_found[2],
          ", verified ", n_found[3], ", no retrieval ", n_found[4]);
  CHECK(n_found[0] >= 9);
  for (const std::size_t i : {1, 2, 3}) CHECK(n_found[i] + 1 >= n_found[0]);
  CHECK(n_found[4] <= 2);
}
