// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/simd.hpp>

#include "reference/fresh_seed.hpp"
#include "reference/guarded_array.hpp"

using wavekv::bf16;
using wavekv::f16;
using wavekv_test::guarded_array;

namespace {

template <class S>
void fill(S* data, std::size_t n, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < n; ++i) data[i] = wavekv::from_float<S>(normal(random));
}

}  // namespace

TEST_CASE("tile_product and its transposed form, for all shapes") {
  auto random = wavekv_test::generator("tile_product");
  for (const std::size_t m : {0, 1, 2, 5, 6, 7, 12, 17}) {
    for (const std::size_t n : {0, 1, 15, 16, 17, 63, 64, 80, 100}) {
      for (const std::size_t k : {0, 1, 17, 64}) {
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(k);
        guarded_array<float> a(m * k);
        guarded_array<float> b(k * n);
        fill(a.data(), a.size(), random);
        fill(b.data(), b.size(), random);
        guarded_array<float> transposed(m * k);
        wavekv::simd::pack_transposed(a.data(), m, k, k, transposed.data(), m);

        guarded_array<float> c(m * n);
        std::fill(c.begin(), c.end(), std::numeric_limits<float>::quiet_NaN());
        wavekv::simd::tile_product(a.data(), m, k, b.data(), k, n, c.data(), n, false);
        guarded_array<float> same(m * n);
        wavekv::simd::tile_product_transposed(transposed.data(), m, m, b.data(), k, n, same.data(),
                                              n, true);
        for (std::size_t i = 0; i < m; ++i) {
          for (std::size_t j = 0; j < n; ++j) {
            double expected = 0.0;
            double magnitude = 0.0;
            for (std::size_t p = 0; p < k; ++p) {
              const double term =
                  static_cast<double>(a[i * k + p]) * static_cast<double>(b[p * n + j]);
              expected += term;
              magnitude += std::abs(term);
            }
            // k roundings of at most 2^-24 of the running magnitude each
            const double bound = static_cast<double>(k) * 0x1p-24 * 1.01 * magnitude;
            const double error = std::abs(expected - static_cast<double>(c[i * n + j]));
            if (!(error <= bound)) CHECK(error <= bound);
            if (c[i * n + j] != same[i * n + j]) CHECK(c[i * n + j] == same[i * n + j]);
          }
        }
      }
    }
  }
}

TEST_CASE("tile_product: strides, accumulation, and the order of the sum") {
  auto random = wavekv_test::generator("tile_product strides");
  constexpr std::size_t m = 13;
  constexpr std::size_t n = 70;
  constexpr std::size_t k = 31;
  constexpr std::size_t lda = k + 3;
  constexpr std::size_t ldc = n + 5;
  std::vector<float> a(m * lda);
  std::vector<float> b(k * n);
  std::vector<float> c(m * ldc);
  fill(a.data(), a.size(), random);
  fill(b.data(), b.size(), random);
  fill(c.data(), c.size(), random);
  const std::vector<float> before = c;
  wavekv::simd::tile_product(a.data(), m, lda, b.data(), k, n, c.data(), ldc, true);
  for (std::size_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      double expected = static_cast<double>(before[i * ldc + j]);
      for (std::size_t p = 0; p < k; ++p)
        expected += static_cast<double>(a[i * lda + p]) * static_cast<double>(b[p * n + j]);
      CHECK(static_cast<double>(c[i * ldc + j]) ==
            doctest::Approx(expected).epsilon(1e-5).scale(1.0));
    }
    for (std::size_t j = n; j < ldc; ++j) CHECK(c[i * ldc + j] == before[i * ldc + j]);
  }
  // A row's products are the same bits in a tile of any height.
  std::vector<float> alone = before;
  for (std::size_t i = 0; i < m; ++i)
    wavekv::simd::tile_product(a.data() + i * lda, 1, lda, b.data(), k, n, alone.data() + i * ldc,
                               ldc, true);
  CHECK(alone == c);
}

TEST_CASE_TEMPLATE("pack_rows and pack_transposed", S, float, bf16, f16) {
  auto random = wavekv_test::generator("pack");
  for (const std::size_t n : {0, 1, 15, 16, 17, 40}) {
    for (const std::size_t dim : {1, 3, 16, 33, 64}) {
      const std::size_t stride = dim + 3;
      guarded_array<S> rows(n == 0 ? 0 : (n - 1) * stride + dim);
      fill(rows.data(), rows.size(), random);
      guarded_array<float> panel(n * dim);
      guarded_array<float> transposed(n * dim);
      wavekv::simd::pack_rows(rows.data(), n, dim, stride, panel.data(), dim, 0.5F);
      wavekv::simd::pack_transposed(rows.data(), n, dim, stride, transposed.data(), n, 0.5F);
      for (std::size_t r = 0; r < n; ++r) {
        for (std::size_t c = 0; c < dim; ++c) {
          const float expected = 0.5F * wavekv::to_float(rows[r * stride + c]);
          if (panel[r * dim + c] != expected) CHECK(panel[r * dim + c] == expected);
          if (transposed[c * n + r] != expected) CHECK(transposed[c * n + r] == expected);
        }
      }
    }
  }
}
