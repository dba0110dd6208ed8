// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <array>
#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include "sampler.hpp"

using transformer::token_id;

TEST_CASE("greedy takes the largest, the first of equals") {
  CHECK(transformer::greedy(std::array{1.0F, 3.0F, 3.0F, 2.0F}) == 1);
  CHECK(transformer::greedy({}) == -1);
  transformer::sampler sampler({.temperature = 0});
  CHECK(sampler.choose(std::array{0.0F, -1.0F, 5.0F}) == 2);
}

TEST_CASE("frequencies follow the softmax at the temperature") {
  const std::array logits = {0.0F, 1.0F, 2.0F};
  constexpr float temperature = 0.7F;
  transformer::sampler sampler({.temperature = temperature, .top_p = 1, .seed = 3});
  std::array<int, 3> counts{};
  constexpr int n = 100'000;
  for (int i = 0; i < n; ++i) ++counts[static_cast<std::size_t>(sampler.choose(logits))];
  double total = 0;
  for (const float logit : logits) total += std::exp(double{logit} / temperature);
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(counts[i] / double{n} ==
          doctest::Approx(std::exp(double{logits[i]} / temperature) / total).epsilon(0.05));
}

TEST_CASE("top_p keeps the smallest set that reaches it") {
  const std::array logits = {std::log(0.5F), std::log(0.1F), std::log(0.3F), std::log(0.1F)};
  transformer::sampler narrow({.temperature = 1, .top_p = 0.49F, .seed = 1});
  transformer::sampler wide({.temperature = 1, .top_p = 0.75F, .seed = 1});
  bool saw_second = false;
  for (int i = 0; i < 1000; ++i) {
    CHECK(narrow.choose(logits) == 0);
    const token_id token = wide.choose(logits);
    CHECK((token == 0 || token == 2));
    saw_second = saw_second || token == 2;
  }
  CHECK(saw_second);
}

TEST_CASE("a seed repeats itself") {
  std::array<float, 50> logits{};
  transformer::sampler a({.temperature = 1, .top_p = 0.9F, .seed = 9});
  transformer::sampler b({.temperature = 1, .top_p = 0.9F, .seed = 9});
  transformer::sampler other({.temperature = 1, .top_p = 0.9F, .seed = 10});
  int n_different = 0;
  for (int i = 0; i < 100; ++i) {
    const token_id token = a.choose(logits);
    CHECK(token == b.choose(logits));
    n_different += token != other.choose(logits);
  }
  CHECK(n_different > 50);
}
