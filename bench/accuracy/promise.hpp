// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <vector>

#include "accuracy/rule.hpp"

/// @file promise.hpp
/// @brief How often verified_bound keeps what it promises, and what that costs.

namespace wavekv_bench {

/// @brief What verified_bound did when it was asked for an error of ε at a confidence of 1 - δ.
struct promise_point {
  float epsilon = 0.0F;
  float delta = 0.0F;
  std::vector<double> within;  ///< [n_query_heads] part of the questions whose error was at most ε
  measured_point measured;
};

/// @brief Asks all questions for each ε of 1, 2, 5 and 10 % and δ of 1, 5 and 10 %.
std::vector<promise_point> measure_promise(const asked_layer& layer);

}  // namespace wavekv_bench
