// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <string>
#include <string_view>

namespace transformer {

/// @brief GPT-2's byte-to-unicode map: vocabularies of byte-level BPE write each byte as a
/// printable character, e.g. a space as U+0120. Returns that character in UTF-8.
std::string_view byte_to_unicode(unsigned char byte) noexcept;

/// @brief The bytes that a vocabulary entry stands for. Characters outside the map stay as they
/// are.
std::string bytes_of_token(std::string_view token);

}  // namespace transformer
