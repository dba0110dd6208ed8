// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <string>
#include <string_view>

namespace transformer {

/// @brief The text with every byte that is not part of valid UTF-8 replaced by U+FFFD. Never throws
/// on bad input.
std::string valid_utf8(std::string_view text);

/// @brief Text of unknown origin for a message of one line: valid UTF-8, control characters and line
/// separators as U+FFFD, the rest of a long text as "...".
std::string one_line(std::string_view text);

/// @brief Unicode normalisation form C (composed). @param text valid UTF-8
std::string to_nfc(const std::string& text);

/// @brief Turns a stream of bytes into text that is valid UTF-8 at every moment: the bytes of a
/// character that is not complete yet are held back. A token of a byte-level vocabulary may end in
/// the middle of a character.
class utf8_stream {
 public:
  /// @brief Adds bytes; returns the characters that are complete now. Bytes that cannot become
  /// valid come out as U+FFFD.
  std::string push(std::string_view bytes);

  /// @brief What is still held back, as U+FFFD. Call at the end of the text.
  std::string finish();

 private:
  std::string held_;
};

}  // namespace transformer
