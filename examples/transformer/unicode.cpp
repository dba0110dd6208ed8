// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "unicode.hpp"

#include <cstdlib>
#include <new>

#include <utf8proc.h>

namespace transformer {
namespace {

constexpr std::string_view replacement = "\xEF\xBF\xBD";  // U+FFFD

/// Bytes of the valid character at the front of `text`, or 0.
std::size_t valid_length(std::string_view text) {
  utf8proc_int32_t code = 0;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const auto n = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size()), &code);
  return n > 0 ? static_cast<std::size_t>(n) : 0;
}

struct beginning {
  std::size_t n_bytes;   // how far `text` agrees with some valid character; at least 1
  std::size_t n_needed;  // bytes of that character; 1 when no character begins so
};

/// How far a text that begins with no valid character begins like one (Unicode, table 3-7).
beginning ill_formed_beginning(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto lead = byte(0);
  if (lead < 0xC2 || lead > 0xF4) return {1, 1};
  const std::size_t needed = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  const unsigned char lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char highest = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  std::size_t n = 1;
  if (n < text.size() && (byte(n) < lowest || byte(n) > highest)) return {n, needed};
  while (n < text.size() && n < needed && (byte(n) & 0xC0U) == 0x80U) ++n;
  return {n, needed};
}

/// Appends the valid characters of `text` to `out`; returns how many bytes were taken.
std::size_t take_valid(std::string_view text, std::string& out, bool hold_incomplete) {
  std::size_t at = 0;
  while (at < text.size()) {
    const auto rest = text.substr(at);
    if (const std::size_t n = valid_length(rest); n > 0) {
      out.append(rest.substr(0, n));
      at += n;
      continue;
    }
    const auto [n_bytes, n_needed] = ill_formed_beginning(rest);
    if (hold_incomplete && n_bytes == rest.size() && n_bytes < n_needed) break;
    out.append(replacement);
    at += n_bytes;
  }
  return at;
}

}  // namespace

std::string valid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  take_valid(text, out, false);
  return out;
}

std::string one_line(std::string_view text) {
  constexpr std::size_t longest = 300;
  std::string out;
  // Cut first: a name may be as long as a file.
  for (std::string_view rest = text.substr(0, longest); !rest.empty();) {
    utf8proc_int32_t code = 0;
    const auto n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(rest.data()),
                                    static_cast<utf8proc_ssize_t>(rest.size()), &code);
    const std::size_t length = n > 0 ? static_cast<std::size_t>(n) : 1;
    const auto category = n > 0 ? utf8proc_category(code) : UTF8PROC_CATEGORY_CC;
    const bool shown = category != UTF8PROC_CATEGORY_CC && category != UTF8PROC_CATEGORY_ZL &&
                       category != UTF8PROC_CATEGORY_ZP;
    out.append(shown ? rest.substr(0, length) : replacement);
    rest.remove_prefix(length);
  }
  if (text.size() > longest) out += "...";
  return out;
}

std::string to_nfc(const std::string& text) {
  utf8proc_uint8_t* composed = nullptr;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const auto n = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                              static_cast<utf8proc_ssize_t>(text.size()), &composed, options);
  if (n < 0) throw std::bad_alloc();  // the only failure that is left for valid UTF-8
  std::string out(reinterpret_cast<const char*>(composed), static_cast<std::size_t>(n));
  std::free(composed);
  return out;
}

std::string utf8_stream::push(std::string_view bytes) {
  held_.append(bytes);
  std::string out;
  held_.erase(0, take_valid(held_, out, true));
  return out;
}

std::string utf8_stream::finish() {
  std::string out = held_.empty() ? std::string() : std::string(replacement);
  held_.clear();
  return out;
}

}  // namespace transformer
