// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Linear layers of every stored type, for one token, a few and many, against sums in double precision.
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>
#include <omp.h>

#include <wavekv/core/scalar.hpp>

#include "linear.hpp"
#include "reference/fresh_seed.hpp"
#include "reference/guarded_array.hpp"
#include "row_dots.hpp"

using wavekv::bf16;
using wavekv::f16;
using wavekv_test::guarded_array;

namespace {

constexpr float poison = std::numeric_limits<float>::quiet_NaN();

template <class S>
constexpr transformer::dtype type_of() {
  if constexpr (std::is_same_v<S, float>) return transformer::dtype::f32;
  return std::is_same_v<S, f16> ? transformer::dtype::f16 : transformer::dtype::bf16;
}

template <class S>
void fill(S* data, std::size_t n, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < n; ++i) data[i] = wavekv::from_float<S>(normal(random));
}

/// Whether y is row · x up to n roundings of the running magnitude.
template <class S>
bool is_dot(float y, const S* row, const float* x, std::size_t n) {
  double expected = 0.0;
  double magnitude = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    const double term = static_cast<double>(wavekv::to_float(row[i])) * static_cast<double>(x[i]);
    expected += term;
    magnitude += std::abs(term);
  }
  return std::abs(static_cast<double>(y) - expected) <=
         static_cast<double>(n + 1) * 0x1p-24 * 1.01 * magnitude;
}

}  // namespace

TEST_CASE_TEMPLATE("a linear layer, for all shapes", S, float, f16, bf16) {
  auto random = wavekv_test::generator("linear");
  for (const std::size_t n_out : {1, 5, 64, 199}) {
    for (const std::size_t n_in : {1, 17, 256, 530}) {
      guarded_array<S> weights(n_out * n_in);
      fill(weights.data(), weights.size(), random);
      transformer::linear layer{
          {type_of<S>(), reinterpret_cast<const std::byte*>(weights.data()), n_out, n_in}, {}};
      for (const std::size_t n_tokens : {1, 2, 8, 9, 16, 37, 70, 520}) {
        CAPTURE(n_out);
        CAPTURE(n_in);
        CAPTURE(n_tokens);
        guarded_array<float> x(n_tokens * n_in);
        fill(x.data(), x.size(), random);
        guarded_array<float> y(n_tokens * n_out);
        std::fill(y.begin(), y.end(), poison);
        transformer::apply(layer, x.data(), n_tokens, y.data());
        for (std::size_t t = 0; t < n_tokens; ++t) {
          for (std::size_t r = 0; r < n_out; ++r) {
            const bool right =
                is_dot(y[t * n_out + r], weights.data() + r * n_in, x.data() + t * n_in, n_in);
            if (!right) REQUIRE_MESSAGE(right, "token " << t << ", row " << r);
          }
        }
      }
    }
  }
}

TEST_CASE("a linear layer does the same on any number of threads") {
  auto random = wavekv_test::generator("linear threads");
  constexpr std::size_t n_out = 700;
  constexpr std::size_t n_in = 300;
  std::vector<bf16> weights(n_out * n_in);
  fill(weights.data(), weights.size(), random);
  const transformer::linear layer{
      {transformer::dtype::bf16, reinterpret_cast<const std::byte*>(weights.data()), n_out, n_in},
      std::vector<float>(n_out, 0.25F)};
  const int n_threads = omp_get_max_threads();
  for (const std::size_t n_tokens : {1, 4, 100}) {
    std::vector<float> x(n_tokens * n_in);
    fill(x.data(), x.size(), random);
    std::vector<float> alone(n_tokens * n_out, poison);
    omp_set_num_threads(1);
    transformer::apply(layer, x.data(), n_tokens, alone.data());
    for (const int n : {2, 3}) {
      std::vector<float> together(n_tokens * n_out, poison);
      omp_set_num_threads(n);
      transformer::apply(layer, x.data(), n_tokens, together.data());
      CHECK(together == alone);
    }
  }
  omp_set_num_threads(n_threads);
}

TEST_CASE("dot_rows: a row's product is the same bits wherever the row lies") {
  auto random = wavekv_test::generator("dot_rows");
  for (const std::size_t n : {1, 2, 31, 64, 257}) {
    guarded_array<bf16> rows(11 * n);
    guarded_array<float> x(n);
    fill(rows.data(), rows.size(), random);
    fill(x.data(), x.size(), random);
    const transformer::split_vector split(x.data(), n);
    guarded_array<float> together(11);
    transformer::dot_rows(split, rows.data(), 11, together.data());
    for (std::size_t r = 0; r < 11; ++r) {
      float alone = poison;
      transformer::dot_rows(split, rows.data() + r * n, 1, &alone);
      CHECK(alone == together[r]);
    }
  }
}
