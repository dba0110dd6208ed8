// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace transformer {

/// @brief One fact hidden in a long text: "The magic number of <word> is <number>."
struct needle {
  std::string word;
  std::string number;
  double depth = 0;  ///< where it went: 0 the beginning of the text, 1 its end
};

/// @brief A haystack with needles in it, ready to be read.
struct haystack {
  std::vector<token_id> tokens;
  std::vector<needle> needles;
};

/// @brief Uniform in [0, n), the same on every machine.
std::size_t below(std::mt19937_64& random, std::size_t n);

/// @brief A number to hide: five digits, the first not 0.
std::string random_number(std::mt19937_64& random);

/// @brief Text for haystacks: one file, or the Markdown and C++ files of a directory in order of
/// their paths. Lines that speak of magic numbers are left out: they would be needles nobody put
/// there.
/// @throw model_error when nothing can be read
std::string haystack_text(const std::filesystem::path& path);

/// @brief Words to make needles of: those of words.json that the model never saw in training, else
/// a list of our own.
/// @throw model_error for a words.json that is wrong
std::vector<std::string> needle_words(const std::filesystem::path& model_directory);

/// @brief Makes haystacks. The same seed gives the same text, words, numbers and depths.
class needle_maker {
 public:
  /// @throw model_error for a text without tokens or a list without words
  needle_maker(tokenizer& tokenizer, const std::string& text, std::vector<std::string> words);

  /// @brief A haystack of exactly n_tokens tokens, the tokenizer's prefix and all needles included.
  /// The text starts at a random place and goes round when it is shorter than that. Needles go to
  /// sentence ends.
  /// @throw model_error when the needles do not fit
  haystack make(std::size_t n_tokens, std::size_t n_needles, std::uint64_t seed);

  /// @brief The same, its needles of these words.
  haystack make(std::size_t n_tokens, std::span<const std::string> words, std::uint64_t seed);

  /// @brief Text of exactly n_tokens tokens, the tokenizer's prefix included, with sentences in it, each at a sentence end
  /// and all in the order given; they begin with a space.
  /// @throw model_error when they do not fit
  std::vector<token_id> hide(std::size_t n_tokens, std::span<const std::string> sentences,
                             std::uint64_t seed);

  /// @brief Ids of the question about a word; the answer's digits come next.
  std::vector<token_id> question(const std::string& word);

 private:
  haystack hide_needles(std::size_t n_tokens, std::vector<needle> needles, std::mt19937_64& random);
  std::vector<token_id> hide_at(std::size_t n_tokens, std::span<const std::string> sentences,
                                std::span<double> depths, std::mt19937_64& random);
  bool ends_sentence(std::size_t i) const;
  std::size_t sentence_end_after(std::size_t first, std::size_t n_text, std::size_t at) const;

  tokenizer& tokenizer_;
  std::vector<token_id> text_;
  std::vector<std::string> words_;
};

/// @brief How many needles a haystack of this length gets by default.
std::size_t default_needles(std::size_t n_tokens) noexcept;

/// @brief The number at the front of a generated text.
std::string leading_number(const std::string& text);

}  // namespace transformer
