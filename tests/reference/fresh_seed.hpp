// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>

#include <doctest/doctest.h>

/// @file fresh_seed.hpp
/// @brief A new seed on every run, shown when a test fails; WAVEKV_TEST_SEED repeats a run.

namespace wavekv_test {

/// @brief The seed of this run.
inline std::uint64_t run_seed() {
  static const std::uint64_t seed = [] {
    if (const char* fixed = std::getenv("WAVEKV_TEST_SEED")) return std::stoull(fixed);
    std::random_device device;
    const unsigned long long fresh = (static_cast<unsigned long long>(device()) << 32U) |
                                     static_cast<unsigned long long>(device());
    MESSAGE("WAVEKV_TEST_SEED=", fresh);
    return fresh;
  }();
  return seed;
}

/// @brief A generator for one test case, the same for the same run seed and name.
inline std::mt19937_64 generator(const std::string& name) {
  std::seed_seq sequence(name.begin(), name.end());
  std::uint32_t mix[2];
  sequence.generate(mix, mix + 2);
  return std::mt19937_64(run_seed() ^ ((static_cast<std::uint64_t>(mix[0]) << 32U) | mix[1]));
}

}  // namespace wavekv_test
