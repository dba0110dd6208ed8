// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "accuracy/tasks/needle_tasks.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <utility>

#include "error.hpp"

namespace wavekv_bench {
namespace {

using transformer::below;
using transformer::needle;
using transformer::random_number;
using transformer::token_id;

constexpr std::size_t n_digits = 5;  // of a number, a token each

std::size_t common_prefix(std::string_view a, std::string_view b) noexcept {
  return static_cast<std::size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

std::size_t common_suffix(std::string_view a, std::string_view b) noexcept {
  return static_cast<std::size_t>(std::mismatch(a.rbegin(), a.rend(), b.rbegin(), b.rend()).first -
                                  a.rbegin());
}

spelling spell(transformer::tokenizer& tokenizer, const std::string& word) {
  const auto tokens = tokenizer.encode(" " + word);
  if (tokens.empty()) throw transformer::model_error("the tokenizer has no tokens for " + word);
  return {word, tokens.front(), tokens.back(), tokens.size() == 1};
}

/// The first n elements in an order of their own.
template <class T>
std::vector<T> draw(std::vector<T> from, std::size_t n, std::mt19937_64& random,
                    const std::string& what) {
  if (n > from.size())
    throw transformer::model_error(what + ": " + std::to_string(n) +
                                   " needed, but there are only " + std::to_string(from.size()));
  for (std::size_t i = 0; i < n; ++i) std::swap(from[i], from[i + below(random, from.size() - i)]);
  from.resize(n);
  return from;
}

/// The tokens that are left for a text beside the longest of its questions, the answer included.
std::size_t room_for_text(const std::string& task, std::size_t n_tokens, std::size_t n_asked) {
  if (n_asked >= n_tokens)
    throw transformer::model_error(task + ": a question does not fit into " +
                                   std::to_string(n_tokens) + " tokens");
  return n_tokens - n_asked;
}

/// Tasks of one text and independent questions; words() says of what.
class haystack_task : public task {
 public:
  haystack_task(std::string name, const needle_material& material, std::size_t n_needles)
      : task(std::move(name)), material_(material), n_needles_(n_needles) {}

  [[nodiscard]] std::size_t n_questions() const override { return n_needles_; }

  [[nodiscard]] prompt make(std::size_t n_tokens, std::size_t i, std::uint64_t seed) override {
    std::mt19937_64 random(prompt_seed(name(), n_tokens, i, seed));
    const auto chosen = words(random);
    const std::size_t n_text = room_for_text(name(), n_tokens, longest_question(chosen));
    const auto hay = material_.maker.make(n_text, chosen, random());
    turn only{hay.tokens, {}};
    for (const needle& needle : hay.needles) only.questions.push_back(ask(needle));
    prompt made;
    made.turns.push_back(std::move(only));
    return made;
  }

 protected:
  [[nodiscard]] virtual std::vector<std::string> words(std::mt19937_64& random) const {
    return draw(material_.words, n_needles_, random, "words for needles");
  }
  [[nodiscard]] question ask(const needle& needle) const {
    return {
        material_.maker.question(needle.word), {needle.number}, n_digits, scoring::leading_number};
  }
  // Of the words' questions, their answers included.
  [[nodiscard]] std::size_t longest_question(const std::vector<std::string>& chosen) const {
    std::size_t longest = 0;
    for (const std::string& word : chosen)
      longest = std::max(longest, material_.maker.question(word).size() + n_digits);
    return longest;
  }

  needle_material material_;
  std::size_t n_needles_;
};

class near_miss_task final : public haystack_task {
 public:
  static constexpr std::size_t family_size = 4;
  static constexpr std::size_t n_families = 5;

  explicit near_miss_task(const needle_material& material)
      : haystack_task("near_miss", material, family_size * n_families),
        families_(near_miss_families(material.tokenizer, material.words, family_size)) {}

 protected:
  [[nodiscard]] std::vector<std::string> words(std::mt19937_64& random) const override {
    std::vector<std::string> chosen;
    for (auto& family : draw(families_, n_families, random, "families of near misses"))
      std::ranges::move(family, std::back_inserter(chosen));
    return chosen;
  }

 private:
  std::vector<std::vector<std::string>> families_;
};

class growing_task final : public haystack_task {
 public:
  static constexpr std::size_t n_turns = 25;
  static constexpr std::size_t needles_per_turn = 3;  // more than are asked for: some grow old
  static constexpr std::size_t questions_per_turn = 2;

  explicit growing_task(const needle_material& material)
      : haystack_task("growing", material, n_turns * needles_per_turn) {}

  [[nodiscard]] std::size_t n_questions() const override { return n_turns * questions_per_turn; }
  [[nodiscard]] bool grows() const override { return true; }

  [[nodiscard]] prompt make(std::size_t n_tokens, std::size_t i, std::uint64_t seed) override {
    std::mt19937_64 random(prompt_seed(name(), n_tokens, i, seed));
    const auto chosen = words(random);
    const std::size_t n_asked = questions_per_turn * longest_question(chosen);
    const std::size_t n_front = material_.tokenizer.prefix().size();
    prompt made;
    std::vector<needle> old;
    std::size_t n_left = n_tokens;
    for (std::size_t t = 0; t < n_turns; ++t) {
      const std::size_t share = n_left / (n_turns - t);
      if (n_asked >= share)
        throw transformer::model_error(name() + ": " + std::to_string(n_turns) +
                                       " turns do not fit into " + std::to_string(n_tokens) +
                                       " tokens");
      const std::span<const std::string> here(chosen.data() + t * needles_per_turn,
                                              needles_per_turn);
      const std::size_t n_skipped = t == 0 ? 0 : n_front;  // only the first turn begins a context
      auto hay = material_.maker.make(share - n_asked + n_skipped, here, random());
      turn& now = made.turns.emplace_back();
      now.text.assign(hay.tokens.begin() + static_cast<std::ptrdiff_t>(n_skipped),
                      hay.tokens.end());
      now.questions.push_back(ask(take_one(hay.needles, random)));
      now.questions.push_back(ask(take_one(t == 0 ? hay.needles : old, random)));
      std::ranges::move(hay.needles, std::back_inserter(old));
      n_left -= now.text.size();
      for (const question& asked : now.questions) n_left -= asked.tokens.size() + n_digits;
    }
    return made;
  }

 private:
  static needle take_one(std::vector<needle>& from, std::mt19937_64& random) {
    const auto at = from.begin() + static_cast<std::ptrdiff_t>(below(random, from.size()));
    needle taken = *at;
    from.erase(at);
    return taken;
  }
};

/// Questions about what several sentences of a text say.
class sentences_task : public task {
 public:
  sentences_task(std::string name, needle_material material)
      : task(std::move(name)), material_(std::move(material)) {}

  [[nodiscard]] prompt make(std::size_t n_tokens, std::size_t i, std::uint64_t seed) override {
    std::mt19937_64 random(prompt_seed(name(), n_tokens, i, seed));
    std::vector<std::string> sentences;
    turn only;
    write(random, sentences, only.questions);
    std::size_t n_asked = 0;
    for (const question& asked : only.questions)
      n_asked = std::max(n_asked, asked.tokens.size() + asked.max_new_tokens);
    only.text = material_.maker.hide(room_for_text(name(), n_tokens, n_asked), sentences, random());
    prompt made;
    made.turns.push_back(std::move(only));
    return made;
  }

 protected:
  /// The sentences in their order, and what is asked about them.
  virtual void write(std::mt19937_64& random, std::vector<std::string>& sentences,
                     std::vector<question>& questions) const = 0;

  [[nodiscard]] std::vector<std::string> words(std::size_t n, std::mt19937_64& random) const {
    return draw(material_.words, n, random, "words for needles");
  }
  [[nodiscard]] question ask(const std::string& text, std::vector<std::string> expected,
                             const std::string& longest_answer) const {
    return {material_.tokenizer.encode(text), std::move(expected),
            material_.tokenizer.encode(longest_answer).size(), scoring::recall};
  }

 private:
  needle_material material_;
};

class list_task final : public sentences_task {
 public:
  static constexpr std::size_t n_lists = 10;
  static constexpr std::array<const char*, 5> places = {"first", "second", "third", "fourth",
                                                        "fifth"};

  explicit list_task(const needle_material& material) : sentences_task("list", material) {}

  [[nodiscard]] std::size_t n_questions() const override { return n_lists; }

 protected:
  void write(std::mt19937_64& random, std::vector<std::string>& sentences,
             std::vector<question>& questions) const override {
    std::vector<std::pair<std::string, std::vector<std::string>>> lists;
    std::vector<std::size_t> turns;  // the list of which each sentence tells the next number
    for (const std::string& word : words(n_lists, random)) {
      auto& list = lists.emplace_back(word, std::vector<std::string>());
      const std::size_t n = 2 + below(random, 3);
      while (list.second.size() < n) {
        const std::string number = random_number(random);
        if (std::ranges::find(list.second, number) == list.second.end())
          list.second.push_back(number);
      }
      turns.insert(turns.end(), n, lists.size() - 1);
    }
    std::vector<std::size_t> n_told(n_lists, 0);
    for (const std::size_t i : draw(turns, turns.size(), random, "turns")) {
      const auto& [word, numbers] = lists[i];
      const std::size_t place = n_told[i]++;
      sentences.push_back(" The " + nth_of(place, word) + " " + numbers[place] + ".");
    }
    for (const auto& [word, numbers] : lists) {
      std::string answer;
      for (std::size_t place = 0; place < numbers.size(); ++place)
        answer += " " + numbers[place] + ", the " + nth_of(place + 1, word);
      questions.push_back(ask("\nQuestion: what are the magic numbers of " + word +
                                  "? Answer: the " + nth_of(0, word),
                              numbers, answer + " none."));
    }
  }

 private:
  static std::string nth_of(std::size_t place, const std::string& word) {
    return std::string(places.at(place)) + " magic number of " + word + " is";
  }
};

class trace_task final : public sentences_task {
 public:
  static constexpr std::size_t n_traces = 10;

  explicit trace_task(const needle_material& material) : sentences_task("trace", material) {}

  [[nodiscard]] std::size_t n_questions() const override { return n_traces; }

 protected:
  void write(std::mt19937_64& random, std::vector<std::string>& sentences,
             std::vector<question>& questions) const override {
    std::vector<std::string> left = words(n_traces * 5 / 2, random);
    for (std::size_t i = 0; i < n_traces; ++i) {
      std::string asked = left.back();
      left.pop_back();
      std::string word = asked;
      std::string answer;
      for (std::size_t hop = 0; hop < 1 + i % 2; ++hop) {
        sentences.push_back(of(word) + " " + left.back() + ".");
        word = left.back();
        left.pop_back();
        answer += " " + word + " is";
      }
      const std::string number = random_number(random);
      sentences.push_back(of(word) + " " + number + ".");
      questions.push_back(ask("\nQuestion: what is the magic number of " + asked +
                                  "? Answer: the magic number of " + asked + " is",
                              {number}, answer + " " + number + "."));
    }
    sentences = draw(sentences, sentences.size(), random, "sentences");
  }

 private:
  static std::string of(const std::string& word) { return " The magic number of " + word + " is"; }
};

}  // namespace

bool is_near_miss(const spelling& a, const spelling& b) noexcept {
  if (a.word == b.word) return false;
  // Words of a single token share none.
  if (!a.is_whole && !b.is_whole && (a.first == b.first || a.last == b.last)) return true;
  const std::size_t half = (std::max(a.word.size(), b.word.size()) + 1) / 2;
  const std::size_t enough = std::max<std::size_t>(half, 3);
  return common_prefix(a.word, b.word) >= enough || common_suffix(a.word, b.word) >= enough;
}

std::vector<std::vector<std::string>> near_miss_families(transformer::tokenizer& tokenizer,
                                                         const std::vector<std::string>& words,
                                                         std::size_t family_size) {
  std::vector<spelling> spelt;
  spelt.reserve(words.size());
  for (const std::string& word : words) spelt.push_back(spell(tokenizer, word));
  std::vector<bool> taken(words.size(), false);
  std::vector<std::vector<std::string>> families;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (taken[i]) continue;
    std::vector<std::size_t> members = {i};
    for (std::size_t j = 0; j < words.size() && members.size() < family_size; ++j)
      if (!taken[j] && is_near_miss(spelt[i], spelt[j])) members.push_back(j);
    if (members.size() < family_size) continue;
    auto& family = families.emplace_back();
    for (const std::size_t member : members) {
      taken[member] = true;
      family.push_back(words[member]);
    }
  }
  return families;
}

std::unique_ptr<task> single_needle(const needle_material& material) {
  return std::make_unique<haystack_task>("single", material, 1);
}
std::unique_ptr<task> many_needles(const needle_material& material) {
  return std::make_unique<haystack_task>("many", material, 20);
}
std::unique_ptr<task> near_miss_needles(const needle_material& material) {
  return std::make_unique<near_miss_task>(material);
}
std::unique_ptr<task> number_lists(const needle_material& material) {
  return std::make_unique<list_task>(material);
}
std::unique_ptr<task> traced_words(const needle_material& material) {
  return std::make_unique<trace_task>(material);
}
std::unique_ptr<task> growing_context(const needle_material& material) {
  return std::make_unique<growing_task>(material);
}

}  // namespace wavekv_bench
