// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include <nlohmann/json.hpp>

/// @file json_lines.hpp
/// @brief Files of one JSON object a line, which a run that was cut short goes on with.

namespace wavekv_bench {

/// @brief Reads what a file holds, if there is one; a line that was cut short is passed by.
/// @param take  take(object) is called for each line
/// @return whether the last line is a whole one
template <class Take>
bool read_json_lines(const std::filesystem::path& path, Take&& take) {
  bool ends_line = true;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    ends_line = !file.eof();
    const auto row = nlohmann::json::parse(line, nullptr, false);
    if (row.is_object()) take(row);
  }
  return ends_line;
}

/// @brief Opens a file to be added to, behind the line that was cut short where there is one.
inline std::ofstream continue_json_lines(const std::filesystem::path& path, bool ends_line) {
  std::ofstream file(path, std::ios::app);
  if (!ends_line) file << '\n';
  return file;
}

}  // namespace wavekv_bench
