// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "needle.hpp"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <random>
#include <sstream>
#include <utility>

#include "error.hpp"
#include "json_file.hpp"

namespace transformer {
namespace {

namespace fs = std::filesystem;

bool is_text_file(const fs::path& path) {
  const auto extension = path.extension();
  return extension == ".md" || extension == ".hpp" || extension == ".cpp" || extension == ".txt";
}

/// Files of a directory in a stable order; what a build or git leaves there is skipped.
std::vector<fs::path> text_files(const fs::path& directory) {
  std::vector<fs::path> files;
  for (auto it = fs::recursive_directory_iterator(directory,
                                                  fs::directory_options::skip_permission_denied);
       it != fs::recursive_directory_iterator(); ++it) {
    const auto name = it->path().filename().string();
    if (it->is_directory() && (name.starts_with(".") || name == "build"))
      it.disable_recursion_pending();
    if (it->is_regular_file() && is_text_file(it->path())) files.push_back(it->path());
  }
  std::ranges::sort(files);
  return files;
}

void append_file(const fs::path& path, std::string& text) {
  std::ifstream in(path, std::ios::binary);
  for (std::string line; std::getline(in, line);)
    if (line.find("magic number") == std::string::npos) text += line + "\n";
}

std::string statement(const needle& needle) {
  return " The magic number of " + needle.word + " is " + needle.number + ".";
}

double random_depth(std::mt19937_64& random) {
  return static_cast<double>(below(random, 1'000'000)) / 1e6;
}

std::vector<needle> random_needles(std::span<const std::string> words, std::size_t n,
                                   std::mt19937_64& random) {
  std::vector<std::string> shuffled(words.begin(), words.end());
  for (std::size_t i = 0; i < n; ++i)
    std::swap(shuffled[i], shuffled[i + below(random, shuffled.size() - i)]);
  std::vector<needle> needles(n);
  for (std::size_t i = 0; i < n; ++i) {
    needles[i].word = shuffled[i];
    needles[i].number = random_number(random);
    needles[i].depth = random_depth(random);
  }
  std::ranges::sort(needles, {}, &needle::depth);
  return needles;
}

}  // namespace

std::size_t below(std::mt19937_64& random, std::size_t n) {
  return static_cast<std::size_t>((random() >> 11U) % std::max<std::size_t>(n, 1));
}

std::string random_number(std::mt19937_64& random) {
  return std::to_string(10'000 + below(random, 90'000));
}

std::string haystack_text(const fs::path& path) {
  std::string text;
  if (!fs::is_directory(path)) {
    if (!fs::exists(path)) throw model_error(path.string() + ": cannot open");
    append_file(path, text);
  } else {
    for (const auto& file : text_files(path)) append_file(file, text);
  }
  if (text.empty()) throw model_error(path.string() + ": no text for a haystack");
  return text;
}

std::vector<std::string> needle_words(const fs::path& model_directory) {
  const auto path = model_directory / "words.json";
  if (!fs::exists(path))
    return {"river",  "harbour", "lantern", "mountain", "window", "garden",  "silver", "thunder",
            "bridge", "orchard", "pepper",  "compass",  "anchor", "meadow",  "candle", "falcon",
            "castle", "marble",  "violin",  "winter",   "copper", "feather", "island", "kitchen",
            "ladder", "mirror",  "needle",  "ocean",    "parrot", "quarry"};
  try {
    return read_json(path).at("heldout").get<std::vector<std::string>>();
  } catch (const nlohmann::json::exception& e) {
    throw model_error(path.string() + ": " + e.what());
  }
}

needle_maker::needle_maker(tokenizer& tokenizer, const std::string& text,
                           std::vector<std::string> words)
    : tokenizer_(tokenizer), text_(tokenizer.encode(text)), words_(std::move(words)) {
  if (text_.empty()) throw model_error("the haystack has no text");
}

bool needle_maker::ends_sentence(std::size_t i) const {
  const auto last = tokenizer_.bytes(text_[i % text_.size()]);
  const auto next = tokenizer_.bytes(text_[(i + 1) % text_.size()]);
  if (last.empty() || next.empty()) return false;
  return std::string_view(".!?").find(last.back()) != std::string_view::npos &&
         (next.front() == ' ' || next.front() == '\n');
}

/// The number of text tokens, at least `at`, after which a sentence ends; `at` itself when none
/// does.
std::size_t needle_maker::sentence_end_after(std::size_t first, std::size_t n_text,
                                             std::size_t at) const {
  for (std::size_t n = std::max<std::size_t>(at, 1); n <= n_text; ++n)
    if (ends_sentence(first + n - 1)) return n;
  return at;
}

haystack needle_maker::make(std::size_t n_tokens, std::size_t n_needles, std::uint64_t seed) {
  if (n_needles > words_.size())
    throw model_error(std::to_string(n_needles) + " needles, but only " +
                      std::to_string(words_.size()) + " words");
  std::mt19937_64 random(seed);
  auto needles = random_needles(words_, n_needles, random);
  return hide_needles(n_tokens, std::move(needles), random);
}

haystack needle_maker::make(std::size_t n_tokens, std::span<const std::string> words,
                            std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto needles = random_needles(words, words.size(), random);
  return hide_needles(n_tokens, std::move(needles), random);
}

haystack needle_maker::hide_needles(std::size_t n_tokens, std::vector<needle> needles,
                                    std::mt19937_64& random) {
  std::vector<std::string> sentences;
  std::vector<double> depths;
  for (const auto& needle : needles) {
    sentences.push_back(statement(needle));
    depths.push_back(needle.depth);
  }
  haystack hay{hide_at(n_tokens, sentences, depths, random), std::move(needles)};
  for (std::size_t i = 0; i < depths.size(); ++i) hay.needles[i].depth = depths[i];
  return hay;
}

std::vector<token_id> needle_maker::hide(std::size_t n_tokens,
                                         std::span<const std::string> sentences,
                                         std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<double> depths(sentences.size());
  for (double& depth : depths) depth = random_depth(random);
  std::ranges::sort(depths);
  return hide_at(n_tokens, sentences, depths, random);
}

/// Depths, rising: where sentences should go, and then where they went.
std::vector<token_id> needle_maker::hide_at(std::size_t n_tokens,
                                            std::span<const std::string> sentences,
                                            std::span<double> depths, std::mt19937_64& random) {
  std::vector<std::vector<token_id>> hidden;
  std::size_t n_hidden = 0;
  for (const auto& sentence : sentences) {
    hidden.push_back(tokenizer_.encode(sentence));
    n_hidden += hidden.back().size();
  }
  std::vector<token_id> tokens = tokenizer_.prefix();
  if (tokens.size() + n_hidden > n_tokens)
    throw model_error(std::to_string(sentences.size()) + " needles do not fit into " +
                      std::to_string(n_tokens) + " tokens");
  const std::size_t n_text = n_tokens - tokens.size() - n_hidden;
  const std::size_t first = below(random, text_.size());

  std::size_t n_done = 0;
  const auto add_text = [&](std::size_t until) {
    for (; n_done < until; ++n_done) tokens.push_back(text_[(first + n_done) % text_.size()]);
  };
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    const auto at = static_cast<std::size_t>(depths[i] * static_cast<double>(n_text));
    add_text(sentence_end_after(first, n_text, at));
    depths[i] = static_cast<double>(tokens.size()) / static_cast<double>(n_tokens);
    tokens.insert(tokens.end(), hidden[i].begin(), hidden[i].end());
  }
  add_text(n_text);
  return tokens;
}

std::vector<token_id> needle_maker::question(const std::string& word) {
  return tokenizer_.encode("\nQuestion: what is the magic number of " + word +
                           "? Answer: the magic number of " + word + " is ");
}

std::size_t default_needles(std::size_t n_tokens) noexcept {
  if (n_tokens >= 16'384) return 20;
  if (n_tokens >= 4'096) return 10;
  return n_tokens >= 1'024 ? 5 : 1;
}

std::string leading_number(const std::string& text) {
  const auto first = text.find_first_not_of(' ');
  if (first == std::string::npos) return {};
  auto last = first;
  while (last < text.size() && std::isdigit(static_cast<unsigned char>(text[last])) != 0) ++last;
  return text.substr(first, last - first);
}

}  // namespace transformer
