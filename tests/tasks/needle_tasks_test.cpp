// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Needle tasks: lengths, seeds, what is asked stands in the text once, near misses are near and no hits.
#include <algorithm>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "accuracy/tasks/needle_tasks.hpp"
#include "error.hpp"
#include "made_text.hpp"
#include "support.hpp"

namespace {

using namespace wavekv_bench;

struct material {
  transformer::tokenizer tokenizer{test::needle_dir};
  std::vector<std::string> words = transformer::needle_words(test::needle_dir);
  transformer::needle_maker maker{tokenizer, test::plain_text(), words};
  needle_material made{tokenizer, maker, words};
};

bool is_equal(const prompt& a, const prompt& b) {
  return std::ranges::equal(a.turns, b.turns, [](const turn& x, const turn& y) {
    return x.text == y.text &&
           std::ranges::equal(x.questions, y.questions, [](const question& p, const question& q) {
             return p.tokens == q.tokens && p.expected == q.expected;
           });
  });
}

std::string word_of(const std::string& question) {
  const std::string front = "what is the magic number of ";
  const auto at = question.find(front) + front.size();
  return question.substr(at, question.find('?') - at);
}

}  // namespace

TEST_CASE("questions of one text: it has its length, and every answer stands in it once") {
  const material of;
  std::vector<std::unique_ptr<task>> tasks;
  tasks.push_back(single_needle(of.made));
  tasks.push_back(many_needles(of.made));
  tasks.push_back(near_miss_needles(of.made));
  for (const auto& task : tasks) {
    CAPTURE(task->name());
    CHECK_FALSE(task->grows());
    for (const std::size_t n_tokens : {1024, 4096}) {
      const prompt made = task->make(n_tokens, 3, 7);
      REQUIRE(made.turns.size() == 1);
      const auto& questions = made.turns[0].questions;
      REQUIRE(questions.size() == task->n_questions());
      const std::string text = of.tokenizer.decode(made.turns[0].text);
      std::size_t longest = 0;
      for (const question& asked : questions) {
        longest = std::max(longest, made.turns[0].text.size() + asked.tokens.size() + 5);
        const std::string word = word_of(of.tokenizer.decode(asked.tokens));
        CHECK(test::count(text,
                          " The magic number of " + word + " is " + asked.expected[0] + ".") == 1);
        CHECK(test::count(text, " The magic number of " + word + " is ") == 1);
        CHECK(asked.max_new_tokens == 5);
        CHECK(asked.how == scoring::leading_number);
      }
      CHECK(longest == n_tokens);
      CHECK(is_equal(made, task->make(n_tokens, 3, 7)));
      CHECK_FALSE(is_equal(made, task->make(n_tokens, 4, 7)));
      CHECK_FALSE(is_equal(made, task->make(n_tokens, 3, 8)));
    }
  }
  CHECK_THROWS_AS((void)tasks[0]->make(20, 0, 1), transformer::model_error);
  CHECK_THROWS_AS((void)tasks[1]->make(256, 0, 1), transformer::model_error);
}

TEST_CASE("near misses: other words that share a token or half of their letters") {
  const spelling river{"river", 1, 2, false};
  CHECK_FALSE(is_near_miss(river, river));
  CHECK(is_near_miss(river, {"rope", 1, 3, false}));        // the first token
  CHECK(is_near_miss(river, {"lever", 4, 2, false}));       // the last one
  CHECK_FALSE(is_near_miss(river, {"lamp", 4, 3, false}));  // none
  CHECK_FALSE(is_near_miss(river, {"rope", 1, 1, true}));   // all of a word is no part of it
  CHECK(is_near_miss(river, {"rivet", 5, 6, false}));       // four letters of five
  CHECK(is_near_miss({"a", 1, 1, true}, {"b", 2, 2, true}) == false);
  CHECK(is_near_miss({"kitchen", 1, 1, true}, {"lichen", 2, 2, true}));  // the end
  CHECK_FALSE(is_near_miss({"to", 1, 1, true}, {"tor", 2, 2, true}));    // two letters are too few
}

TEST_CASE("families of near misses are disjoint, and there are enough of them") {
  material of;
  const auto families = near_miss_families(of.tokenizer, of.words, 4);
  MESSAGE(families.size(), " families of ", of.words.size(), " words");
  CHECK(families.size() >= 50);
  std::set<std::string> all;
  const auto spell = [&](const std::string& word) {
    const auto tokens = of.tokenizer.encode(" " + word);
    return spelling{word, tokens.front(), tokens.back(), tokens.size() == 1};
  };
  for (const auto& family : families) {
    REQUIRE(family.size() == 4);
    for (std::size_t i = 1; i < family.size(); ++i)
      CHECK(is_near_miss(spell(family[0]), spell(family[i])));
    all.insert(family.begin(), family.end());
  }
  CHECK(all.size() == 4 * families.size());
}

TEST_CASE("a growing context: new facts and old ones, each asked once, in the length that was "
          "asked for") {
  const material of;
  const auto task = growing_context(of.made);
  CHECK(task->grows());
  for (const std::size_t n_tokens : {4096, 8192}) {
    const prompt made = task->make(n_tokens, 1, 3);
    CHECK(is_equal(made, task->make(n_tokens, 1, 3)));
    std::string before;  // all turns so far
    std::size_t n_all = 0;
    std::size_t n_questions = 0;
    std::size_t n_old = 0;
    std::set<std::string> asked_words;
    for (const turn& turn : made.turns) {
      const std::string text = of.tokenizer.decode(turn.text);
      CHECK(test::count(text, "The magic number of ") == 3);
      n_all += turn.text.size();
      for (const question& asked : turn.questions) {
        const std::string word = word_of(of.tokenizer.decode(asked.tokens));
        const std::string statement =
            " The magic number of " + word + " is " + asked.expected[0] + ".";
        CHECK(test::count(before + text, statement) == 1);
        n_old += test::count(before, statement);
        CHECK(asked_words.insert(word).second);
        n_all += asked.tokens.size() + 5;
        ++n_questions;
      }
      before += text;
    }
    CHECK(n_questions == task->n_questions());
    CHECK(n_old == made.turns.size() - 1);  // one a turn but the first
    CHECK(n_all <= n_tokens);
    CHECK(n_all + 50 >= n_tokens);
    CHECK(made.turns[0].text.front() == 0);
    CHECK(std::ranges::count(made.turns[1].text, 0) == 0);  // no second beginning
  }
  CHECK_THROWS_AS((void)task->make(1024, 0, 1), transformer::model_error);
}

namespace {

/// The words of "<front><word> is <value>." in a text, with their values; each word has one.
std::map<std::string, std::string> told(const std::string& text, const std::string& front) {
  const std::regex sentence(front + "([a-z]+) is ([a-z]+|[0-9]{5})\\.");
  std::map<std::string, std::string> values;
  for (std::sregex_iterator found(text.begin(), text.end(), sentence), end; found != end; ++found)
    CHECK(values.emplace((*found)[1], (*found)[2]).second);
  return values;
}

/// The longest prompt has the length that was asked for, and the same one comes again.
void check_length(task& of, const prompt& made, std::size_t n_tokens) {
  REQUIRE(made.turns.size() == 1);
  REQUIRE(made.turns[0].questions.size() == of.n_questions());
  std::size_t longest = 0;
  for (const question& asked : made.turns[0].questions)
    longest =
        std::max(longest, made.turns[0].text.size() + asked.tokens.size() + asked.max_new_tokens);
  CHECK(longest == n_tokens);
  CHECK(is_equal(made, of.make(n_tokens, 3, 7)));
  CHECK_FALSE(is_equal(made, of.make(n_tokens, 4, 7)));
  CHECK_FALSE(is_equal(made, of.make(n_tokens, 3, 8)));
}

}  // namespace

TEST_CASE(
    "lists: every place of a list stands in the text once, in its order, and no further one") {
  const material of;
  const auto task = number_lists(of.made);
  for (const std::size_t n_tokens : {2048, 4096}) {
    const prompt made = task->make(n_tokens, 3, 7);
    check_length(*task, made, n_tokens);
    const std::string text = of.tokenizer.decode(made.turns[0].text);
    std::vector<std::map<std::string, std::string>> places;
    for (const char* place : {"first", "second", "third", "fourth", "fifth"})
      places.push_back(told(text, std::string(" The ") + place + " magic number of "));
    CHECK(places[0].size() == task->n_questions());
    CHECK(places[4].empty());
    std::set<std::size_t> sizes;
    for (const question& asked : made.turns[0].questions) {
      const std::string asking = of.tokenizer.decode(asked.tokens);
      const std::string front = "what are the magic numbers of ";
      const auto at = asking.find(front) + front.size();
      const std::string word = asking.substr(at, asking.find('?') - at);
      CHECK(asking.ends_with("? Answer: the first magic number of " + word + " is"));
      std::vector<std::string> numbers;
      std::size_t last = 0;
      for (const auto& place : places) {
        const auto found = place.find(word);
        if (found == place.end()) break;
        numbers.push_back(found->second);
        const auto here = text.find(" magic number of " + word + " is " + found->second + ".");
        CHECK(here > last);
        last = here;
      }
      CHECK(numbers == asked.expected);
      CHECK(std::set<std::string>(numbers.begin(), numbers.end()).size() == numbers.size());
      sizes.insert(numbers.size());
      // A score for each number; the whole answer fits.
      CHECK(asked.how == scoring::recall);
      CHECK(score_answer(asked, " " + numbers[0]) ==
            doctest::Approx(1.0 / static_cast<double>(numbers.size())));
      CHECK(asked.max_new_tokens > 6 * numbers.size());
    }
    CHECK(*sizes.begin() >= 2);
    CHECK(*sizes.rbegin() <= 4);
  }
  CHECK_THROWS_AS((void)task->make(256, 0, 1), transformer::model_error);
}

TEST_CASE("traces: the words that a question's word leads to end in its number") {
  material of;
  const auto task = traced_words(of.made);
  for (const std::size_t n_tokens : {2048, 4096}) {
    const prompt made = task->make(n_tokens, 3, 7);
    check_length(*task, made, n_tokens);
    const auto links = told(of.tokenizer.decode(made.turns[0].text), " The magic number of ");
    std::set<std::string> ends;
    std::size_t n_links = 0;
    for (const question& asked : made.turns[0].questions) {
      std::string word = word_of(of.tokenizer.decode(asked.tokens));
      std::string answer;
      for (std::size_t n = 0; links.contains(word); ++n) {
        REQUIRE(n < 3);
        word = links.at(word);
        answer += " " + word + " is";
        ++n_links;
      }
      REQUIRE(asked.expected.size() == 1);
      CHECK(word == asked.expected[0]);
      CHECK(ends.insert(word).second);
      answer = answer.substr(0, answer.size() - 3) + ".";
      CHECK(asked.max_new_tokens == of.tokenizer.encode(answer).size());
      CHECK(score_answer(asked, answer) == 1.0);
      CHECK(score_answer(asked, " other is 00000.") == 0.0);
    }
    CHECK(n_links == 25);  // by turns two sentences and three
    CHECK(links.size() == 25);
  }
  CHECK_THROWS_AS((void)task->make(256, 0, 1), transformer::model_error);
}

TEST_CASE("needle tasks say what they lack") {
  material of;
  needle_material few{of.tokenizer, of.maker, {"river", "harbour"}};
  CHECK_THROWS_WITH_AS((void)many_needles(few)->make(4096, 0, 1),
                       "words for needles: 20 needed, but there are only 2",
                       transformer::model_error);
  CHECK_THROWS_AS((void)near_miss_needles(few)->make(4096, 0, 1), transformer::model_error);
  CHECK_THROWS_AS((void)number_lists(few)->make(4096, 0, 1), transformer::model_error);
  CHECK_THROWS_AS((void)traced_words(few)->make(4096, 0, 1), transformer::model_error);
}
