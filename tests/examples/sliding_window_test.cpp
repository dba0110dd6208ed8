// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "sliding_window.hpp"

namespace {

constexpr transformer::attention_shape shape{4, 2, 6};
constexpr std::size_t query_width = shape.n_query_heads * shape.head_dim;
constexpr std::size_t kv_width = shape.n_kv_heads * shape.head_dim;

struct tokens {
  std::vector<float> queries, keys, values;
};

tokens random_tokens(std::size_t n) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  tokens t{std::vector<float>(n * query_width), std::vector<float>(n * kv_width),
           std::vector<float>(n * kv_width)};
  for (auto* part : {&t.queries, &t.keys, &t.values})
    for (float& x : *part) x = normal(random);
  return t;
}

/// The definition, in double precision.
std::vector<double> expected_output(const tokens& t, std::size_t p, std::size_t head,
                                    std::size_t window) {
  const std::size_t kv_head = head / 2;
  const std::size_t first = p + 1 > window ? p + 1 - window : 0;
  std::vector<double> out(shape.head_dim);
  double total = 0;
  for (std::size_t k = first; k <= p; ++k) {
    double logit = 0;
    for (std::size_t c = 0; c < shape.head_dim; ++c)
      logit += double{t.queries[p * query_width + head * shape.head_dim + c]} *
               double{t.keys[k * kv_width + kv_head * shape.head_dim + c]};
    const double weight = std::exp(logit / std::sqrt(double{shape.head_dim}));
    total += weight;
    for (std::size_t c = 0; c < shape.head_dim; ++c)
      out[c] += weight * double{t.values[k * kv_width + kv_head * shape.head_dim + c]};
  }
  for (double& x : out) x /= total;
  return out;
}

}  // namespace

TEST_CASE("every query sees its window and no more, however the tokens arrive") {
  constexpr std::size_t n = 300;
  const auto t = random_tokens(n);
  for (const std::size_t window : {1, 2, 24, 64, 299, 300, 5000}) {
    for (const std::size_t chunk : {1, 7, 64, 100, 300}) {
      CAPTURE(window);
      CAPTURE(chunk);
      transformer::sliding_window layer(shape, window);
      std::vector<float> out(n * query_width);
      for (std::size_t at = 0; at < n; at += chunk) {
        const std::size_t size = std::min(chunk, n - at);
        layer.append_and_attend(size, t.queries.data() + at * query_width,
                                t.keys.data() + at * kv_width, t.values.data() + at * kv_width,
                                out.data() + at * query_width);
      }
      double largest = 0;
      for (std::size_t p = 0; p < n; ++p) {
        for (std::size_t head = 0; head < shape.n_query_heads; ++head) {
          const auto expected = expected_output(t, p, head, window);
          for (std::size_t c = 0; c < shape.head_dim; ++c)
            largest = std::max(
                largest, std::abs(out[p * query_width + head * shape.head_dim + c] - expected[c]));
        }
      }
      CHECK(largest < 1e-5);
    }
  }
}

TEST_CASE("a copy is a fork") {
  const auto t = random_tokens(20);
  transformer::sliding_window a(shape, 8);
  std::vector<float> out(20 * query_width);
  a.append(10, t.keys.data(), t.values.data());
  auto b = a;
  a.append_and_attend(1, t.queries.data(), t.keys.data() + 10 * kv_width, t.values.data(),
                      out.data());
  b.append_and_attend(1, t.queries.data(), t.keys.data() + 10 * kv_width, t.values.data(),
                      out.data() + query_width);
  for (std::size_t i = 0; i < query_width; ++i) CHECK(out[i] == out[query_width + i]);
}
