// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "regex_splitter.hpp"

#include <array>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "error.hpp"
#include "unicode.hpp"

namespace transformer {
namespace {

/// Unicode White_Space, as the inside of a character class. PCRE2's \s has U+180E besides, which
/// Unicode took out.
constexpr std::string_view white_space =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// Writes \s and \S out. \S inside a class has no such form and is left to PCRE2.
std::string spell_out_white_space(std::string_view expression) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < expression.size(); ++i) {
    const char c = expression[i];
    if (c != '\\' || i + 1 == expression.size()) {
      if (c == '[') in_class = true;
      if (c == ']') in_class = false;
      out += c;
      continue;
    }
    const char escaped = expression[++i];
    if (escaped == 's') {
      out += in_class ? std::string(white_space) : "[" + std::string(white_space) + "]";
    } else if (escaped == 'S' && !in_class) {
      out += "[^" + std::string(white_space) + "]";
    } else {
      out += {c, escaped};
    }
  }
  return out;
}

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

struct match_data_delete {
  void operator()(pcre2_match_data* data) const noexcept { pcre2_match_data_free(data); }
};

}  // namespace

struct regex_splitter::compiled {
  explicit compiled(const std::string& expression) {
    const std::string pattern = spell_out_white_space(expression);
    int error = 0;
    PCRE2_SIZE at = 0;
    // \C would cut characters, and what comes after it relies on pieces of valid UTF-8.
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                         PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
    if (code == nullptr)
      throw model_error("regular expression \"" + one_line(expression) +
                        "\": " + message_of(error));
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without a JIT, matching is interpreted
  }
  ~compiled() { pcre2_code_free(code); }
  compiled(const compiled&) = delete;
  compiled& operator=(const compiled&) = delete;

  pcre2_code* code = nullptr;
};

regex_splitter::regex_splitter(const std::string& expression, split_behavior behavior)
    : compiled_(std::make_shared<const compiled>(expression)), behavior_(behavior) {}

void regex_splitter::split(std::string_view text, std::vector<std::string_view>& out) const {
  const std::unique_ptr<pcre2_match_data, match_data_delete> match(
      pcre2_match_data_create_from_pattern(compiled_->code, nullptr));
  const auto keep = [&out](bool wanted, std::string_view piece) {
    if (wanted && !piece.empty()) out.push_back(piece);
  };
  std::size_t gap = 0;    // end of the last match
  std::size_t start = 0;  // where to look for the next
  while (start < text.size()) {
    const int result = pcre2_match(compiled_->code, reinterpret_cast<PCRE2_SPTR>(text.data()),
                                   text.size(), start, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) throw model_error("pre-tokenizer: " + message_of(result));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get());
    // PCRE2 refuses \K inside of lookarounds, but not in a group that they call.
    if (ends[0] < start || ends[1] < ends[0])
      throw model_error("pre-tokenizer: a match that ends before it begins");
    if (ends[1] == ends[0]) {  // an empty match: step over one character
      start = ends[1] + 1;
      while (start < text.size() && (static_cast<unsigned char>(text[start]) & 0xC0U) == 0x80U)
        ++start;
      continue;
    }
    keep(behavior_ != split_behavior::matches, text.substr(gap, ends[0] - gap));
    keep(behavior_ != split_behavior::gaps, text.substr(ends[0], ends[1] - ends[0]));
    gap = start = ends[1];
  }
  keep(behavior_ != split_behavior::matches, text.substr(gap));
}

}  // namespace transformer
