// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace transformer {

/// @brief Which pieces of a text a pre-tokenizer keeps.
enum class split_behavior : std::uint8_t {
  matches_and_gaps,  ///< every match and everything between matches
  matches,           ///< matches only
  gaps,              ///< what lies between matches only
};

/// @brief Splits text by a regular expression (PCRE2, UTF-8, Unicode properties, just-in-time
/// compiled). Tokenizers are written for Oniguruma; its `\s` differs from PCRE2's in one character,
/// which is smoothed over.
class regex_splitter {
 public:
  /// @throw model_error when the expression does not compile
  regex_splitter(const std::string& expression, split_behavior behavior);

  /// @brief Appends the pieces of `text` to `out`; they view into `text`.
  /// @param text valid UTF-8  @throw model_error when matching exceeds PCRE2's limits
  void split(std::string_view text, std::vector<std::string_view>& out) const;

 private:
  struct compiled;
  std::shared_ptr<const compiled> compiled_;
  split_behavior behavior_;
};

}  // namespace transformer
