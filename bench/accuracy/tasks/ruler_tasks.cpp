// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "accuracy/tasks/ruler_tasks.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "error.hpp"

namespace wavekv_bench {
namespace {

using transformer::model_error;

/// Numbers that are the same on every machine.
class draws {
 public:
  explicit draws(std::uint64_t seed) : random_(seed) {}

  std::size_t below(std::size_t n) { return static_cast<std::size_t>((random_() >> 11U) % n); }
  std::string digits(std::size_t n) {
    std::string number(1, static_cast<char>('1' + below(9)));
    while (number.size() < n) number += static_cast<char>('0' + below(10));
    return number;
  }
  std::string letters(std::size_t n, char first) {
    std::string word;
    while (word.size() < n) word += static_cast<char>(first + static_cast<char>(below(26)));
    return word;
  }
  std::string uuid() {
    std::string id;
    for (const std::size_t n : {8, 4, 4, 4, 12}) {
      if (!id.empty()) id += '-';
      for (std::size_t i = 0; i < n; ++i) id += "0123456789abcdef"[below(16)];
    }
    return id;
  }
  template <class T>
  void shuffle(std::vector<T>& all) {
    for (std::size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[below(i)]);
  }

 private:
  std::mt19937_64 random_;
};

/// Words that are not used twice: those of a list in a random order, then pairs of them.
class word_source {
 public:
  word_source(std::vector<std::string> words, bool pairs, draws& random)
      : words_(std::move(words)), pairs_(pairs), random_(random) {
    random_.shuffle(words_);
  }

  std::string next() {
    if (!pairs_ && n_used_ < words_.size()) return words_[n_used_++];
    for (;;) {
      const std::string& first = words_[random_.below(words_.size())];
      std::string pair = first + "-" + words_[random_.below(words_.size())];
      if (given_.insert(pair).second) return pair;
    }
  }

 private:
  std::vector<std::string> words_;
  bool pairs_;
  draws& random_;
  std::size_t n_used_ = 0;
  std::set<std::string> given_;
};

/// A prompt as text. The answer's beginning is given, as in the paper: it keeps a model from refusing or explaining.
struct ruler_text {
  std::string user;    ///< instruction, context and question
  std::string answer;  ///< beginning of the answer
  std::vector<std::string> expected;
};

/// What a task does with a number of units (words, sentences, …) of context.
class ruler_task : public task {
 public:
  ruler_task(std::string name, const ruler_material& material, std::size_t max_new_tokens,
             std::size_t least_units)
      : task(std::move(name)),
        material_(material),
        max_new_tokens_(max_new_tokens),
        least_units_(least_units) {}

  [[nodiscard]] std::size_t n_questions() const override { return 1; }

  [[nodiscard]] prompt make(std::size_t n_tokens, std::size_t i, std::uint64_t seed) override {
    const std::uint64_t own_seed = prompt_seed(name(), n_tokens, i, seed);
    const auto text_of = [&](std::size_t n_units) {
      draws random(own_seed);
      return write(n_units, random);
    };
    if (max_new_tokens_ >= n_tokens)
      throw model_error(name() + ": an answer of " + std::to_string(max_new_tokens_) +
                        " tokens does not fit into " + std::to_string(n_tokens));
    std::size_t n_units = 0;
    try {
      n_units = largest_fit(least_units_, n_tokens - max_new_tokens_,
                            [&](std::size_t n) { return encode(text_of(n)).size(); });
    } catch (const model_error& e) {
      throw model_error(name() + " of " + std::to_string(n_tokens) + " tokens: " + e.what());
    }
    ruler_text text = text_of(n_units);
    auto tokens = encode(text);
    // The context ends where the question could begin; what is asked is the last tokens.
    const std::size_t n_last = std::min<std::size_t>(n_asked_tokens, tokens.size() - 1);
    question asked;
    asked.tokens.assign(tokens.end() - static_cast<std::ptrdiff_t>(n_last), tokens.end());
    asked.expected = std::move(text.expected);
    asked.max_new_tokens = max_new_tokens_;
    tokens.resize(tokens.size() - n_last);
    prompt made;
    made.turns.push_back({std::move(tokens), {}});
    made.turns.back().questions.push_back(std::move(asked));
    return made;
  }

 protected:
  /// The prompt of so many units.
  [[nodiscard]] virtual ruler_text write(std::size_t n_units, draws& random) const = 0;

  [[nodiscard]] const ruler_material& material() const noexcept { return material_; }
  [[nodiscard]] word_source words(bool pairs, draws& random) const {
    return {material_.words, pairs, random};
  }

 private:
  // Tokens that are read after the prompt has been sealed: about a question.
  static constexpr std::size_t n_asked_tokens = 32;

  [[nodiscard]] std::vector<transformer::token_id> encode(const ruler_text& text) const {
    std::vector<transformer::token_id> tokens = material_.tokenizer.prefix();
    const chat_template& chat = material_.chat;
    std::string_view answer = text.answer;
    if (!chat.after.empty()) answer.remove_prefix(1);  // the space after a question
    const auto rest =
        material_.tokenizer.encode(chat.before + text.user + chat.after + std::string(answer));
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    return tokens;
  }

  ruler_material material_;
  std::size_t max_new_tokens_;
  std::size_t least_units_;
};

/// Sentences that say nothing, as in the passkey task of Mohtashami and Jaggi.
constexpr std::array<std::string_view, 5> idle_sentences = {
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.",
    "There and back again."};

/// Where needles hide.
enum class hay { noise, essay, needles };

struct needle_kind {
  hay in = hay::essay;
  bool uuid_keys = false;
  bool uuid_values = false;
  std::size_t n_keys =
      1;  ///< with needles, those asked for included; of a hay of needles, the asked ones
  std::size_t n_asked = 1;   ///< of the keys
  std::size_t n_values = 1;  ///< of a key
};

class needle_in_haystack final : public ruler_task {
 public:
  needle_in_haystack(std::string name, const ruler_material& material, needle_kind kind)
      : ruler_task(std::move(name), material, 128, kind.in == hay::needles ? 1 : 0), kind_(kind) {}

 protected:
  [[nodiscard]] ruler_text write(std::size_t n_units, draws& random) const override {
    word_source keys = words(!material().as_example_model, random);
    std::vector<std::string> needles;
    std::vector<std::string> asked;
    ruler_text text;
    for (std::size_t k = 0; k < kind_.n_keys; ++k) {
      const std::string key = new_key(keys, random);
      const bool is_asked = k < kind_.n_asked;
      if (is_asked) asked.push_back(key);
      for (std::size_t v = 0; v < kind_.n_values; ++v) {
        const std::string value = new_value(random);
        if (is_asked) text.expected.push_back(value);
        needles.push_back(statement(key, value));
      }
    }
    std::vector<double> depths;
    for (std::size_t i = 0; i < needles.size(); ++i)
      depths.push_back(static_cast<double>(random.below(1'000'000)) / 1e6);
    std::ranges::sort(depths);
    random.shuffle(needles);
    const auto sentences = context(n_units, keys, random);
    text.user = "Some magic " + thing(true) +
                " are hidden in the text below. Read it carefully: you will be asked for " +
                (text.expected.size() > 1 ? "them" : "one of them") + " afterwards.\n" +
                hide(needles, depths, sentences) + "\n" + ask(asked);
    text.answer = begin_answer(asked);
    return text;
  }

 private:
  [[nodiscard]] std::string thing(bool several) const {
    const std::string one = kind_.uuid_values ? "UUID" : "number";
    return several ? one + "s" : one;
  }
  [[nodiscard]] std::string new_key(word_source& keys, draws& random) const {
    return kind_.uuid_keys ? random.uuid() : keys.next();
  }
  [[nodiscard]] std::string new_value(draws& random) const {
    if (kind_.uuid_values) return random.uuid();
    return random.digits(material().as_example_model ? 5 : 7);
  }
  [[nodiscard]] std::string statement(const std::string& key, const std::string& value) const {
    if (kind_.n_values > 1)
      return " One magic " + thing(false) + " of " + key + " is " + value + ".";
    return " The magic " + thing(false) + " of " + key + " is " + value + ".";
  }

  /// Pieces of context in their order; needles go between them, where the one before ends a sentence.
  [[nodiscard]] std::vector<std::string> context(std::size_t n_units, word_source& keys,
                                                 draws& random) const {
    std::vector<std::string> pieces;
    pieces.reserve(n_units);
    const std::size_t first = random.below(material().text.size());
    for (std::size_t i = 0; i < n_units; ++i) {
      if (kind_.in == hay::needles) {
        const std::string key = new_key(keys, random);
        pieces.push_back(statement(key, new_value(random)));
      } else if (kind_.in == hay::noise) {
        pieces.push_back(" " + std::string(idle_sentences[i % idle_sentences.size()]));
      } else {
        pieces.push_back(" " + material().text[(first + i) % material().text.size()]);
      }
    }
    return pieces;
  }

  static bool ends_sentence(const std::string& piece) {
    return std::string_view(".!?").find(piece.back()) != std::string_view::npos;
  }

  static std::string hide(const std::vector<std::string>& needles,
                          const std::vector<double>& depths,
                          const std::vector<std::string>& pieces) {
    std::string text;
    std::size_t n_done = 0;
    for (std::size_t i = 0; i < needles.size(); ++i) {
      const auto at = static_cast<std::size_t>(depths[i] * static_cast<double>(pieces.size()));
      while (n_done < at) text += pieces[n_done++];
      while (n_done > 0 && n_done < pieces.size() && !ends_sentence(pieces[n_done - 1]))
        text += pieces[n_done++];
      text += needles[i];
    }
    while (n_done < pieces.size()) text += pieces[n_done++];
    return text;
  }

  static std::string list(const std::vector<std::string>& keys) {
    std::string all = keys.front();
    for (std::size_t i = 1; i < keys.size(); ++i)
      all += (i + 1 == keys.size() ? " and " : ", ") + keys[i];
    return all;
  }
  [[nodiscard]] bool asks_for_one() const { return kind_.n_asked * kind_.n_values == 1; }
  [[nodiscard]] std::string ask(const std::vector<std::string>& keys) const {
    if (asks_for_one())
      return "Question: what is the magic " + thing(false) + " of " + keys[0] + "?";
    return "Question: what are all the magic " + thing(true) + " of " + list(keys) +
           " that the text names?";
  }
  [[nodiscard]] std::string begin_answer(const std::vector<std::string>& keys) const {
    if (asks_for_one())
      return " Answer: the magic " + thing(false) + " of " + keys[0] + " is" +
             (material().as_example_model ? " " : "");
    return " Answer: the magic " + thing(true) + " of " + list(keys) + " are";
  }

  needle_kind kind_;
};

/// A name of a value goes from variable to variable; all of them are asked for.
class variable_tracking final : public ruler_task {
 public:
  explicit variable_tracking(const ruler_material& material)
      : ruler_task("vt", material, 30, n_hops + 1) {}

 protected:
  [[nodiscard]] ruler_text write(std::size_t n_units, draws& random) const override {
    const chain shown = make_chain(n_hops + 2, random);
    chain asked = make_chain(n_units, random);
    ruler_text text;
    text.user =
        "Follow the assignments of variables that are hidden in a text. First an example.\n" +
        shown.text + "\n" + ask(shown) + begin_answer(shown);
    for (const std::string& name : shown.names) text.user += " " + name;
    text.user += ".\n\nNow the text that matters.\n" + asked.text + "\n" + ask(asked);
    text.answer = begin_answer(asked);
    text.expected = std::move(asked.names);
    return text;
  }

 private:
  static constexpr std::size_t n_hops = 4;

  struct chain {
    std::string value;
    std::vector<std::string> names;
    std::string text;
  };

  static chain make_chain(std::size_t n_sentences, draws& random) {
    chain made;
    made.value = random.digits(5);
    std::set<std::string> names;
    while (made.names.size() < n_hops + 1) {
      std::string name = random.letters(5, 'A');
      if (names.insert(name).second) made.names.push_back(std::move(name));
    }
    std::vector<double> depths;
    for (std::size_t i = 0; i <= n_hops; ++i)
      depths.push_back(static_cast<double>(random.below(1'000'000)) / 1e6);
    std::ranges::sort(depths);  // each after the one that it takes its value from
    std::size_t n_done = 0;
    const auto add_noise = [&](std::size_t until) {
      for (; n_done < until; ++n_done) {
        if (!made.text.empty()) made.text += ' ';
        made.text += idle_sentences[n_done % idle_sentences.size()];
      }
    };
    for (std::size_t i = 0; i <= n_hops; ++i) {
      add_noise(static_cast<std::size_t>(depths[i] * static_cast<double>(n_sentences)));
      if (!made.text.empty()) made.text += ' ';
      made.text +=
          "VAR " + made.names[i] + " = " + (i == 0 ? made.value : "VAR " + made.names[i - 1]) + ".";
    }
    add_noise(n_sentences);
    return made;
  }

  static std::string ask(const chain& of) {
    return "Question: which variables have the value " + of.value +
           ", directly or by way of other variables?";
  }
  static std::string begin_answer(const chain& of) {
    return " Answer: the " + std::to_string(of.names.size()) + " variables with the value " +
           of.value + " are:";
  }
};

/// Ten words stand thirty times in a list, the others three times.
class common_words final : public ruler_task {
 public:
  explicit common_words(const ruler_material& material) : ruler_task("cwe", material, 120, 1) {}

 protected:
  [[nodiscard]] ruler_text write(std::size_t n_units, draws& random) const override {
    word_source source = words(false, random);
    const listed shown = make_list(source, 6, 20, 1, random);
    listed asked = make_list(source, 30, n_units, 3, random);
    ruler_text text;
    text.user =
        "Below are numbered lists of words in which some words stand more often than others. "
        "First an example.\n" +
        shown.text + "\n" + ask() + begin_answer();
    for (std::size_t i = 0; i < shown.common.size(); ++i)
      text.user += " " + std::to_string(i + 1) + ". " + shown.common[i];
    text.user += "\n\nNow the list that matters.\n" + asked.text + "\n" + ask();
    text.answer = begin_answer();
    text.expected = std::move(asked.common);
    return text;
  }

 private:
  static constexpr std::size_t n_common = 10;

  struct listed {
    std::vector<std::string> common;
    std::string text;
  };

  static listed make_list(word_source& source, std::size_t n_times, std::size_t n_rare,
                          std::size_t n_times_rare, draws& random) {
    listed made;
    std::vector<std::string> all;
    const auto add = [&](const std::string& word, std::size_t n) {
      all.insert(all.end(), n, word);
    };
    for (std::size_t i = 0; i < n_common; ++i) {
      made.common.push_back(source.next());
      add(made.common.back(), n_times);
    }
    for (std::size_t i = 0; i < n_rare; ++i) add(source.next(), n_times_rare);
    random.shuffle(all);
    for (std::size_t i = 0; i < all.size(); ++i)
      made.text += (i == 0 ? "" : " ") + std::to_string(i + 1) + ". " + all[i];
    return made;
  }

  static std::string ask() { return "Question: which ten words stand in the list most often?"; }
  static std::string begin_answer() { return " Answer: the ten most common words are:"; }
};

/// Made-up words, the k-th most frequent one about k^-2 / zeta(2) of all; the first is noise.
class frequent_words final : public ruler_task {
 public:
  explicit frequent_words(const ruler_material& material)
      : ruler_task("fwe", material, 50, least_words) {}

 protected:
  [[nodiscard]] ruler_text write(std::size_t n_units, draws& random) const override {
    constexpr double zeta_2 = 1.6449340668482264;
    std::vector<std::string> all;
    std::set<std::string> names;
    ruler_text text;
    for (std::size_t rank = 1; all.size() < n_units; ++rank) {
      std::string word = rank == 1 ? "..." : random.letters(6, 'a');
      if (!names.insert(word).second) continue;
      const auto square = static_cast<double>(rank * rank);
      const auto n = static_cast<std::size_t>(static_cast<double>(n_units) / (square * zeta_2));
      all.insert(all.end(), std::min(std::max<std::size_t>(n, 1), n_units - all.size()), word);
      if (rank > 1 && text.expected.size() < n_asked) text.expected.push_back(std::move(word));
    }
    random.shuffle(all);
    text.user =
        "The text below is written in a code. Mind how often each word stands in it; the dots "
        "'...' are no words.\n";
    for (std::size_t i = 0; i < all.size(); ++i) text.user += (i == 0 ? "" : " ") + all[i];
    text.user += "\nQuestion: which three words of the code stand in the text most often?";
    text.answer = " Answer: the three most frequent words of the code are:";
    return text;
  }

 private:
  static constexpr std::size_t n_asked = 3;
  static constexpr std::size_t least_words = 100;  // fewer, and ranks have equal counts
};

}  // namespace

const std::vector<std::string>& ruler_task_names() {
  static const std::vector<std::string> names = {"niah_single_1",
                                                 "niah_single_2",
                                                 "niah_single_3",
                                                 "niah_multikey_1",
                                                 "niah_multikey_2",
                                                 "niah_multikey_3",
                                                 "niah_multivalue",
                                                 "niah_multiquery",
                                                 "vt",
                                                 "cwe",
                                                 "fwe"};
  return names;
}

std::unique_ptr<task> make_ruler_task(const std::string& name, const ruler_material& material) {
  if (material.text.empty() || material.words.empty())
    throw model_error("RULER's tasks need a text and words");
  const auto needles = [&](const needle_kind& kind) {
    return std::make_unique<needle_in_haystack>(name, material, kind);
  };
  if (name == "niah_single_1") return needles({.in = hay::noise});
  if (name == "niah_single_2") return needles({});
  if (name == "niah_single_3") return needles({.uuid_values = true});
  if (name == "niah_multikey_1") return needles({.n_keys = 4});
  if (name == "niah_multikey_2") return needles({.in = hay::needles});
  if (name == "niah_multikey_3")
    return needles({.in = hay::needles, .uuid_keys = true, .uuid_values = true});
  if (name == "niah_multivalue") return needles({.n_values = 4});
  if (name == "niah_multiquery") return needles({.n_keys = 4, .n_asked = 4});
  if (name == "vt") return std::make_unique<variable_tracking>(material);
  if (name == "cwe") return std::make_unique<common_words>(material);
  if (name == "fwe") return std::make_unique<frequent_words>(material);
  throw std::invalid_argument("no task has the name " + name);
}

std::vector<std::string> split_words(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

std::size_t largest_fit(std::size_t least, std::size_t most,
                        const std::function<std::size_t(std::size_t)>& tokens_of) {
  std::size_t fits = least;
  std::size_t n_tokens = tokens_of(least);
  if (n_tokens > most)
    throw model_error("what there is to say takes " + std::to_string(n_tokens) + " tokens, but " +
                      std::to_string(most) + " are left");
  const std::size_t n_least = n_tokens;
  // Where the line through the last point says, inside what is known.
  std::size_t too_many = 0;  // 0: none is known
  double per_unit = 1.0;
  for (int n_probes = 0; too_many == 0 || too_many - fits > 1; ++n_probes) {
    const auto room = static_cast<double>(most) - static_cast<double>(n_tokens);
    std::size_t next =
        fits + std::max<std::size_t>(static_cast<std::size_t>(std::max(room, 0.0) / per_unit), 1);
    if (too_many != 0)
      next = n_probes > 8 ? fits + (too_many - fits) / 2 : std::clamp(next, fits + 1, too_many - 1);
    const std::size_t n = tokens_of(next);
    if (n > most) {
      too_many = next;
    } else {
      fits = next;
      n_tokens = n;
    }
    per_unit = std::max(static_cast<double>(n) - static_cast<double>(n_least), 1.0) /
               static_cast<double>(next - least);
  }
  return fits;
}

}  // namespace wavekv_bench
