// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "generation.hpp"
#include "wave_attention.hpp"

namespace transformer {

/// @brief One side of a comparison: what was generated and what it read.
struct side {
  std::string name;
  std::string answer;
  generation generated;
  decode_record record;
};

/// @brief Value at quantile q of the numbers, 0 when there are none.
float quantile(std::vector<float> values, double q);

/// @brief The two sides as a table, one line a quantity.
std::string comparison_table(const side& full, const side& wave, double prefill_seconds,
                             std::size_t n_prompt);

/// @brief The same numbers for programs to read.
nlohmann::json to_json(const side& side);

}  // namespace transformer
