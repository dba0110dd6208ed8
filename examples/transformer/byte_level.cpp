// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "byte_level.hpp"

#include <array>

namespace transformer {
namespace {

constexpr unsigned n_bytes = 256;

constexpr bool is_printable(unsigned byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

/// Code point of every byte: itself when printable, else the next one from U+0100 on. All are below
/// U+0800.
constexpr std::array<unsigned, n_bytes> make_code_points() {
  std::array<unsigned, n_bytes> code{};
  unsigned next = n_bytes;
  for (unsigned byte = 0; byte < n_bytes; ++byte) code[byte] = is_printable(byte) ? byte : next++;
  return code;
}

constexpr auto code_points = make_code_points();

std::array<std::string, n_bytes> make_texts() {
  std::array<std::string, n_bytes> texts;
  for (unsigned byte = 0; byte < n_bytes; ++byte) {
    const unsigned code = code_points[byte];
    if (code < 0x80) {
      texts[byte].push_back(static_cast<char>(code));
    } else {
      texts[byte].push_back(static_cast<char>(0xC0U | (code >> 6U)));
      texts[byte].push_back(static_cast<char>(0x80U | (code & 0x3FU)));
    }
  }
  return texts;
}

/// Byte of a code point, or -1.
constexpr std::array<int, 512> make_inverse() {
  std::array<int, 512> inverse{};
  inverse.fill(-1);
  for (unsigned byte = 0; byte < n_bytes; ++byte)
    inverse[code_points[byte]] = static_cast<int>(byte);
  return inverse;
}

constexpr auto byte_of_code = make_inverse();

}  // namespace

std::string_view byte_to_unicode(unsigned char byte) noexcept {
  static const auto texts = make_texts();
  return texts[byte];
}

std::string bytes_of_token(std::string_view token) {
  std::string out;
  for (std::size_t i = 0; i < token.size(); ++i) {
    const auto lead = static_cast<unsigned char>(token[i]);
    if (lead < 0x80) {
      out += byte_of_code[lead] >= 0 ? static_cast<char>(byte_of_code[lead]) : token[i];
      continue;
    }
    const bool two_bytes = (lead & 0xE0U) == 0xC0U && i + 1 < token.size();
    const unsigned code =
        two_bytes ? ((lead & 0x1FU) << 6U) | (static_cast<unsigned char>(token[i + 1]) & 0x3FU)
                  : 0xFFFFU;
    if (code < byte_of_code.size() && byte_of_code[code] >= 0) {
      out += static_cast<char>(byte_of_code[code]);
      ++i;
    } else {
      out += token[i];
    }
  }
  return out;
}

}  // namespace transformer
