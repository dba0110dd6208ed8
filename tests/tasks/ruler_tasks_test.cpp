// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// RULER's tasks: lengths, seeds, what is expected stands in the prompt as often as the task says; scores; templates.
#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include <doctest/doctest.h>

#include "accuracy/tasks/chat_template.hpp"
#include "accuracy/tasks/ruler_tasks.hpp"
#include "error.hpp"
#include "json_file.hpp"
#include "made_text.hpp"
#include "support.hpp"

namespace {

using namespace wavekv_bench;
using test::count;

ruler_material material_of(transformer::tokenizer& tokenizer) {
  std::vector<std::string> words;
  const auto lists = transformer::read_json(test::needle_dir / "words.json");
  for (const auto& word : lists.at("train")) words.push_back(word);
  return {tokenizer, split_words(test::plain_text()), std::move(words), {}, false};
}

std::size_t length_of(const prompt& made) {
  const question& asked = made.turns.at(0).questions.at(0);
  return made.turns[0].text.size() + asked.tokens.size() + asked.max_new_tokens;
}

/// The text between the last two occurrences of marks.
std::string between(const std::string& text, const std::string& first, const std::string& last) {
  const auto end = text.rfind(last);
  const auto begin = text.rfind(first, end) + first.size();
  return text.substr(begin, end - begin);
}

std::map<std::string, std::size_t> counts_of(const std::string& text) {
  std::map<std::string, std::size_t> counts;
  for (const std::string& word : split_words(text)) ++counts[word];
  return counts;
}

}  // namespace

TEST_CASE("every task fills its length without exceeding it, and repeats itself by seed") {
  transformer::tokenizer tokenizer(test::needle_dir);
  const ruler_material material = material_of(tokenizer);
  for (const std::string& name : ruler_task_names()) {
    CAPTURE(name);
    const auto task = make_ruler_task(name, material);
    CHECK(task->name() == name);
    CHECK(task->n_questions() == 1);
    for (const std::size_t n_tokens : {4096, 6000}) {
      const prompt made = task->make(n_tokens, 2, 5);
      CHECK(length_of(made) <= n_tokens);
      CHECK(length_of(made) + 100 >= n_tokens);  // less than one unit of any task is left
      CHECK(made.turns[0].text.front() == 0);
      const std::string text = test::text_of(tokenizer, made);
      CHECK(text == test::text_of(tokenizer, task->make(n_tokens, 2, 5)));
      CHECK(text != test::text_of(tokenizer, task->make(n_tokens, 3, 5)));
      CHECK(text != test::text_of(tokenizer, task->make(n_tokens, 2, 6)));
      for (const std::string& expected : made.turns[0].questions[0].expected)
        CHECK(count(text, expected) >= 1);
    }
    CHECK_THROWS_AS((void)task->make(64, 0, 1), transformer::model_error);
  }
  CHECK_THROWS_AS((void)make_ruler_task("qa_1", material), std::invalid_argument);
}

TEST_CASE("needles: as many as the task says, each expected value once") {
  transformer::tokenizer tokenizer(test::needle_dir);
  const ruler_material material = material_of(tokenizer);
  struct expectation {
    std::string name;
    std::size_t n_expected = 1;
    std::size_t n_statements = 1;  // 0: more than anyone counts
    std::size_t value_size = 7;
  };
  const std::vector<expectation> all = {{"niah_single_1"},           {"niah_single_2"},
                                        {"niah_single_3", 1, 1, 36}, {"niah_multikey_1", 1, 4},
                                        {"niah_multikey_2", 1, 0},   {"niah_multikey_3", 1, 0, 36},
                                        {"niah_multivalue", 4, 4},   {"niah_multiquery", 4, 4}};
  for (const expectation& of : all) {
    CAPTURE(of.name);
    const prompt made = make_ruler_task(of.name, material)->make(4096, 0, 1);
    const std::string text = test::text_of(tokenizer, made);
    const question& asked = made.turns[0].questions[0];
    REQUIRE(asked.expected.size() == of.n_expected);
    for (const std::string& value : asked.expected) {
      CHECK(value.size() == of.value_size);
      CHECK(count(text, " is " + value + ".") == 1);
    }
    const std::size_t n = count(text, " magic number of ") + count(text, " magic UUID of ");
    if (of.n_statements == 0)
      CHECK(n > 30);
    else
      CHECK(n >= of.n_statements);
  }
  // The question names the key whose value is expected.
  const prompt made = make_ruler_task("niah_multikey_2", material)->make(4096, 0, 1);
  const std::string text = test::text_of(tokenizer, made);
  const std::string key = between(text, "what is the magic number of ", "? Answer:");
  CHECK(key.find('-') != std::string::npos);
  CHECK(count(text, " The magic number of " + key + " is " +
                        made.turns[0].questions[0].expected[0] + ".") == 1);
}

TEST_CASE("variable tracking: each variable takes its value from the one before, in the order of "
          "the text") {
  transformer::tokenizer tokenizer(test::needle_dir);
  const prompt made = make_ruler_task("vt", material_of(tokenizer))->make(2048, 0, 1);
  const std::string text = test::text_of(tokenizer, made);
  const auto& names = made.turns[0].questions[0].expected;
  REQUIRE(names.size() == 5);
  const std::string value = between(text, "with the value ", " are:");
  auto at = text.find("VAR " + names[0] + " = " + value + ".");
  REQUIRE(at != std::string::npos);
  for (std::size_t i = 1; i < names.size(); ++i) {
    const auto next = text.find("VAR " + names[i] + " = VAR " + names[i - 1] + ".");
    REQUIRE(next != std::string::npos);
    CHECK(next > at);
    at = next;
  }
}

TEST_CASE("common words stand thirty times, the others three times") {
  transformer::tokenizer tokenizer(test::needle_dir);
  const prompt made = make_ruler_task("cwe", material_of(tokenizer))->make(4096, 0, 1);
  const std::string list =
      between(test::text_of(tokenizer, made), "Now the list that matters.\n", "\nQuestion:");
  const auto& expected = made.turns[0].questions[0].expected;
  const std::set<std::string> common(expected.begin(), expected.end());
  CHECK(common.size() == 10);
  for (const auto& [word, n] : counts_of(list))
    if (word.back() != '.') CHECK(n == (common.contains(word) ? 30 : 3));
}

TEST_CASE("frequent words: the three that stand most often but the dots, in falling order") {
  transformer::tokenizer tokenizer(test::needle_dir);
  const prompt made = make_ruler_task("fwe", material_of(tokenizer))->make(2048, 0, 1);
  const std::string coded = between(test::text_of(tokenizer, made), "no words.\n", "\nQuestion:");
  auto counts = counts_of(coded);
  CHECK(counts.at("...") > 0);
  counts.erase("...");
  const auto& expected = made.turns[0].questions[0].expected;
  REQUIRE(expected.size() == 3);
  std::size_t least = SIZE_MAX;
  for (const std::string& word : expected) {
    CHECK(counts.at(word) < least);
    least = counts.at(word);
    counts.erase(word);
  }
  for (const auto& [word, n] : counts) CHECK(n < least);
}

TEST_CASE(
    "scores: recall of the expected strings in any case; the leading number is all or nothing") {
  question asked;
  asked.expected = {"Alpha", "beta", "1234567"};
  CHECK(score_answer(asked, " alpha, BETA and 1234567.") == 1.0);
  CHECK(score_answer(asked, "beta") == doctest::Approx(1.0 / 3.0));
  CHECK(score_answer(asked, "") == 0.0);
  asked.how = scoring::leading_number;
  asked.expected = {"12345"};
  CHECK(score_answer(asked, " 12345. The") == 1.0);
  CHECK(score_answer(asked, "123456") == 0.0);
  CHECK(score_answer(asked, "1 12345") == 0.0);
}

TEST_CASE("the largest number that fits is found, on even and on uneven growth") {
  std::size_t n_calls = 0;
  const auto line = [&](std::size_t n) { return ++n_calls, 100 + 7 * n; };
  CHECK(largest_fit(0, 100'000, line) == 14'271);
  CHECK(n_calls < 20);
  CHECK(largest_fit(3, 121, line) == 3);
  CHECK_THROWS_AS((void)largest_fit(4, 121, line), transformer::model_error);
  CHECK(largest_fit(1, 1000, [](std::size_t n) { return n * n; }) == 31);
  CHECK(largest_fit(0, 1000, [](std::size_t n) { return n < 500 ? n : 10 * n; }) == 499);
}

TEST_CASE("templates: by name, or as the model directory says") {
  const test::temporary_directory directory;
  CHECK(choose_template("auto", directory.path()).before.empty());
  directory.write("tokenizer_config.json", R"({"chat_template": "{{ '<|im_start|>' }}"})");
  CHECK(choose_template("auto", directory.path()).before == "<|im_start|>user\n");
  CHECK(choose_template("plain", directory.path()).after.empty());
  directory.write("chat_template.jinja", "{{ '<|start_header_id|>' + role }}");
  CHECK(choose_template("auto", directory.path()).after ==
        choose_template("llama3", directory.path()).after);

  transformer::tokenizer tokenizer(test::needle_dir);
  ruler_material material = material_of(tokenizer);
  material.chat = choose_template("chatml", directory.path());
  const prompt made = make_ruler_task("niah_single_2", material)->make(1024, 0, 1);
  const std::string text = test::text_of(tokenizer, made);
  CHECK(count(text, "<|im_start|>user\nSome magic numbers") == 1);
  CHECK(count(text, "?<|im_end|>\n<|im_start|>assistant\nAnswer: the magic number of ") == 1);
  CHECK(length_of(made) <= 1024);
}
