// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "mapped_file.hpp"
#include "unicode.hpp"

namespace transformer {

/// @brief True when arrays and objects are nested deeper in the text than any file of a model is.
/// Copying and printing a value recurse: a small file could use up the stack.
inline bool is_too_deep(std::string_view json) {
  constexpr std::ptrdiff_t deepest = 100;
  std::ptrdiff_t depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (c == '"') in_string = !in_string;
    if (in_string) {
      if (c == '\\') ++i;
      continue;
    }
    if (c == ']' || c == '}') --depth;
    if ((c == '[' || c == '{') && ++depth > deepest) return true;
  }
  return false;
}

/// @brief Parses JSON. @throw model_error when it is not valid, or nested beyond reason
inline nlohmann::json parse_json(std::string_view text) {
  if (is_too_deep(text)) throw model_error("not valid JSON for a model: nested too deep");
  try {
    return nlohmann::json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& e) {
    throw model_error("not valid JSON: " + one_line(e.what()));
  }
}

/// @brief Reads a JSON file. @throw model_error with the file's name when it is missing or not JSON
inline nlohmann::json read_json(const std::filesystem::path& path) {
  const mapped_file file(path);
  const auto bytes = file.bytes();
  try {
    return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  } catch (const model_error& e) {
    throw model_error(path.string() + ": " + e.what());
  }
}

/// @brief The member `key` of `object`, or `fallback` when it is absent or null.
/// @throw nlohmann::json::exception when it has another type; callers turn that into a model_error
/// with the file's name
template <class T>
T value_or(const nlohmann::json& object, const char* key, T fallback) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? fallback : found->get<T>();
}

}  // namespace transformer
