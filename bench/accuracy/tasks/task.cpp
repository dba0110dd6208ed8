// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "accuracy/tasks/task.hpp"

#include <algorithm>
#include <cctype>

#include "needle.hpp"

namespace wavekv_bench {
namespace {

std::string lower_case(std::string_view text) {
  std::string lower(text);
  std::ranges::transform(lower, lower.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower;
}

}  // namespace

double score_answer(const question& asked, std::string_view answer) {
  if (asked.how == scoring::leading_number)
    return transformer::leading_number(std::string(answer)) == asked.expected.front() ? 1.0 : 0.0;
  const std::string text = lower_case(answer);
  const auto n_found = std::ranges::count_if(asked.expected, [&](const std::string& expected) {
    return text.find(lower_case(expected)) != std::string::npos;
  });
  return static_cast<double>(n_found) / static_cast<double>(asked.expected.size());
}

std::uint64_t prompt_seed(std::string_view task, std::size_t n_tokens, std::size_t i,
                          std::uint64_t seed) noexcept {
  std::uint64_t hash = 0xCBF2'9CE4'8422'2325ULL;  // FNV-1a
  const auto add = [&hash](std::uint64_t byte) { hash = (hash ^ byte) * 0x100'0000'01B3ULL; };
  for (const char c : task) add(static_cast<unsigned char>(c));
  for (const std::uint64_t number : {std::uint64_t{n_tokens}, std::uint64_t{i}, seed})
    for (unsigned shift = 0; shift < 64; shift += 8) add(number >> shift & 0xFFU);
  return hash;
}

}  // namespace wavekv_bench
