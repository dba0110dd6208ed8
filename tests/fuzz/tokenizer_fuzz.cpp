// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Tokenizer files. An input is tokenizer.json; after a NUL byte, if there is one,
// tokenizer_config.json; after a second one a text to encode.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"
#include "input_files.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace {

using transformer::token_id;

/// White space of several kinds, digits, letters that NFC composes, characters of two to four bytes
/// and a byte that is no UTF-8.
constexpr std::string_view usual_text =
    "It's 1234 <|bos|> o'clock,\r\n\t e\xCC\x81 \xC3\xA9t\xC3\xA9  \xE2\x80\x83"
    "\xE4\xB8\x96\xE7\x95\x8C \xF0\x9F\x98\x80\xFF he said.  ";

void expect_text(const transformer::tokenizer& tokenizer, const std::vector<token_id>& ids) {
  const auto decoded = tokenizer.decode(ids);
  fuzz::expect(transformer::valid_utf8(decoded) == decoded, "decoded text is not UTF-8");
  const auto special = tokenizer.decode(ids, true);
  fuzz::expect(transformer::valid_utf8(special) == special, "decoded text is not UTF-8");
  transformer::utf8_stream stream;
  std::string streamed;
  for (const token_id id : ids) streamed += stream.push(tokenizer.bytes(id));
  streamed += stream.finish();
  fuzz::expect(streamed == decoded, "streamed text is not the decoded text");
}

void encode(transformer::tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.encode(text);
  for (const token_id id : ids)
    fuzz::expect(id >= 0 && static_cast<std::size_t>(id) < tokenizer.n_ids(), "an unknown id");
  fuzz::expect(tokenizer.encode(text) == ids, "a second encoding that differs");
  expect_text(tokenizer, ids);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static const fuzz::input_files files;
  std::string_view text(reinterpret_cast<const char*>(bytes), size);
  files.write("tokenizer.json", fuzz::take_part(text));
  if (const auto config = fuzz::take_part(text); config.empty()) {
    files.remove("tokenizer_config.json");
  } else {
    files.write("tokenizer_config.json", config);
  }
  try {
    transformer::tokenizer tokenizer(files.path());
    for (const token_id id : tokenizer.prefix())
      fuzz::expect(id >= 0 && static_cast<std::size_t>(id) < tokenizer.n_ids(),
                   "an unknown id in the prefix");
    expect_text(tokenizer, tokenizer.prefix());
    const auto n_ids = static_cast<token_id>(tokenizer.n_ids());
    expect_text(tokenizer, {-1, 0, n_ids / 2, n_ids - 1, n_ids, n_ids + 1});
    encode(tokenizer, usual_text);
    encode(tokenizer, text);
  } catch (const transformer::model_error& e) {
    fuzz::expect_clear_message(e.what());
  }
  return 0;
}
