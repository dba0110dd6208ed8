// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include <nlohmann/json.hpp>

#include "error.hpp"

namespace transformer {

/// @brief Reads a JSON file. @throw model_error with the file's name when it is missing or not JSON
inline nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw model_error(path.string() + ": cannot open");
  try {
    return nlohmann::json::parse(in);
  } catch (const nlohmann::json::exception& e) {
    throw model_error(path.string() + ": not valid JSON: " + e.what());
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
