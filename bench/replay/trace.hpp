// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

/// @file trace.hpp
/// @brief Which blocks a run of decode steps read, as a text file.

namespace wavekv_bench {

/// @brief One block of a reading.
struct block_use {
  std::uint32_t block = 0;     ///< its number: the same block, the same number
  std::uint32_t n_tokens = 0;  ///< how large it is
};

/// @brief Readings in their order; each a search of one KV head at one step.
struct block_trace {
  std::size_t n_warm_up = 0;  ///< readings before those that count
  std::size_t n_tokens = 0;   ///< of all blocks that exist, used or not
  std::size_t key_dim = 0;
  std::size_t value_dim = 0;
  std::vector<std::vector<block_use>> readings;
};

/// @brief Writes a trace: a line of sizes, then a line of block:tokens pairs for every reading.
/// @throw std::runtime_error
inline void write_trace(const std::string& path, const block_trace& trace) {
  std::ofstream file(path);
  file << "trace " << trace.n_warm_up << ' ' << trace.n_tokens << ' ' << trace.key_dim << ' '
       << trace.value_dim << '\n';
  for (const auto& reading : trace.readings) {
    for (const block_use& use : reading) file << use.block << ':' << use.n_tokens << ' ';
    file << '\n';
  }
  if (!file.flush()) throw std::runtime_error(path + ": cannot write");
}

/// @brief Reads what write_trace wrote.  @throw std::runtime_error
inline block_trace read_trace(const std::string& path) {
  std::ifstream file(path);
  block_trace trace;
  std::string line;
  std::string word;
  if (!std::getline(file, line) ||
      !(std::istringstream(line) >> word >> trace.n_warm_up >> trace.n_tokens >> trace.key_dim >>
        trace.value_dim) ||
      word != "trace") {
    throw std::runtime_error(path + ": no trace");
  }
  while (std::getline(file, line)) {
    std::istringstream uses(line);
    auto& reading = trace.readings.emplace_back();
    block_use use;
    char colon = ' ';
    while (uses >> use.block >> colon >> use.n_tokens) {
      if (colon != ':') throw std::runtime_error(path + ": \"" + line + "\" is no reading");
      reading.push_back(use);
    }
  }
  return trace;
}

}  // namespace wavekv_bench
