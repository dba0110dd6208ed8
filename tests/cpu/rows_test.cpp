// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <deque>
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

constexpr std::size_t dims[] = {1, 3, 17, 64, 80, 96, 100, 128, 256};
constexpr std::size_t row_counts[] = {0, 1, 2, 3, 4, 5, 8, 15, 33, 67};
constexpr float poison = std::numeric_limits<float>::quiet_NaN();

// A storage scalar of a user's own: takes the path that knows nothing of its bits.
struct eighths {
  signed char n;
};

}  // namespace

template <>
struct wavekv::scalar_traits<eighths> {
  static constexpr std::string_view name = "eighths";
  static constexpr float epsilon = 0.125F;
  static float to_float(eighths x) noexcept { return static_cast<float>(x.n) / 8.0F; }
  static eighths from_float(float x) noexcept {
    return {static_cast<signed char>(std::lround(x * 8.0F))};
  }
};

namespace {

template <class S>
void fill(S* data, std::size_t n, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < n; ++i) data[i] = wavekv::from_float<S>(normal(random));
}

// A sum of n products in any order, each step rounded to nearest, errs by at most n * 2^-24 times the sum of
// the magnitudes (1 + small); the products are exact in the oracle. A conversion of the query to a sum of
// two or three bf16, where a target does that, adds at most 2^-16 of each product.
double tolerance(std::size_t n, double magnitude) {
  return (static_cast<double>(n) * 0x1p-24 * 1.01 + 0x1p-16) * magnitude + 1e-37;
}

}  // namespace

TEST_CASE_TEMPLATE("score_rows: dot products, for all shapes", S, float, bf16, f16, eighths) {
  auto random = wavekv_test::generator("score_rows");
  for (const std::size_t dim : dims) {
    for (std::size_t n_q = 1; n_q <= 9; ++n_q) {
      for (const std::size_t n_rows : row_counts) {
        CAPTURE(dim);
        CAPTURE(n_q);
        CAPTURE(n_rows);
        const std::size_t q_stride = dim + n_q % 3;
        guarded_array<float> q((n_q - 1) * q_stride + dim);
        guarded_array<S> rows(n_rows * dim);
        fill(q.data(), q.size(), random);
        fill(rows.data(), rows.size(), random);
        const std::size_t stride = n_rows + 1;
        guarded_array<float> logits(n_q * stride);
        std::fill(logits.begin(), logits.end(), poison);
        wavekv::simd::score_rows(q.data(), n_q, q_stride, rows.data(), n_rows, dim, logits.data(),
                                 stride);
        for (std::size_t g = 0; g < n_q; ++g) {
          for (std::size_t r = 0; r < n_rows; ++r) {
            double expected = 0.0;
            double magnitude = 0.0;
            for (std::size_t c = 0; c < dim; ++c) {
              const double term = static_cast<double>(q[g * q_stride + c]) *
                                  static_cast<double>(wavekv::to_float(rows[r * dim + c]));
              expected += term;
              magnitude += std::abs(term);
            }
            const double error = std::abs(expected - static_cast<double>(logits[g * stride + r]));
            if (!(error <= tolerance(dim, magnitude))) {
              CHECK(error <= tolerance(dim, magnitude));
              return;
            }
          }
          CHECK(std::isnan(logits[g * stride + n_rows]));  // what lies between rows is left alone
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("score_rows: a logit depends on its query and row alone", S, float, bf16, f16) {
  auto random = wavekv_test::generator("score_rows alone");
  for (const std::size_t dim : dims) {
    constexpr std::size_t n_q = 7;
    constexpr std::size_t n_rows = 23;
    std::vector<float> q(n_q * dim);
    std::vector<S> rows(n_rows * dim);
    fill(q.data(), q.size(), random);
    fill(rows.data(), rows.size(), random);
    std::vector<float> together(n_q * n_rows);
    wavekv::simd::score_rows(q.data(), n_q, dim, rows.data(), n_rows, dim, together.data(), n_rows);
    for (std::size_t g = 0; g < n_q; ++g) {
      for (std::size_t r = 0; r < n_rows; ++r) {
        float alone = poison;
        wavekv::simd::score_rows(q.data() + g * dim, 1, dim, rows.data() + r * dim, 1, dim, &alone,
                                 1);
        CHECK(alone == together[g * n_rows + r]);
      }
    }
  }
}

TEST_CASE_TEMPLATE("add_weighted_rows: weighted sums, for all shapes", S, float, bf16, f16,
                   eighths) {
  auto random = wavekv_test::generator("add_weighted_rows");
  std::uniform_real_distribution<float> uniform(0.0F, 1.0F);
  for (const std::size_t dim : dims) {
    for (std::size_t n_q = 1; n_q <= 9; ++n_q) {
      for (const std::size_t n_rows : row_counts) {
        CAPTURE(dim);
        CAPTURE(n_q);
        CAPTURE(n_rows);
        const std::size_t w_stride = n_rows + n_q % 2;
        guarded_array<float> w((n_q - 1) * w_stride + n_rows);
        guarded_array<S> rows(n_rows * dim);
        for (float& x : w) x = uniform(random);
        fill(rows.data(), rows.size(), random);
        const std::size_t stride = dim + 2;
        guarded_array<float> acc((n_q - 1) * stride + dim);
        fill(acc.data(), acc.size(), random);
        const std::vector<float> before(acc.begin(), acc.end());
        wavekv::simd::add_weighted_rows(w.data(), n_q, w_stride, rows.data(), n_rows, dim,
                                        acc.data(), stride);
        for (std::size_t g = 0; g < n_q; ++g) {
          for (std::size_t c = 0; c < dim; ++c) {
            double expected = static_cast<double>(before[g * stride + c]);
            double magnitude = std::abs(expected);
            for (std::size_t r = 0; r < n_rows; ++r) {
              const double term = static_cast<double>(w[g * w_stride + r]) *
                                  static_cast<double>(wavekv::to_float(rows[r * dim + c]));
              expected += term;
              magnitude += std::abs(term);
            }
            const double error = std::abs(expected - static_cast<double>(acc[g * stride + c]));
            if (!(error <= tolerance(n_rows + 1, magnitude))) {
              CHECK(error <= tolerance(n_rows + 1, magnitude));
              return;
            }
          }
          for (std::size_t c = dim; c < stride && g * stride + c < acc.size(); ++c)
            CHECK(acc[g * stride + c] == before[g * stride + c]);
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("add_weighted_rows: a run may be cut anywhere", S, float, bf16, f16) {
  auto random = wavekv_test::generator("add_weighted_rows cut");
  constexpr std::size_t n_rows = 90;
  constexpr std::size_t n_q = 5;
  for (const std::size_t dim : dims) {
    std::vector<float> w(n_q * n_rows);
    std::vector<S> rows(n_rows * dim);
    fill(w.data(), w.size(), random);
    fill(rows.data(), rows.size(), random);
    std::vector<float> whole(n_q * dim);
    std::vector<float> cut(n_q * dim);
    wavekv::simd::add_weighted_rows(w.data(), n_q, n_rows, rows.data(), n_rows, dim, whole.data(),
                                    dim);
    for (std::size_t r = 0; r < n_rows;) {
      const std::size_t n = std::min<std::size_t>(n_rows - r, 1 + random() % 40);
      wavekv::simd::add_weighted_rows(w.data() + r, n_q, n_rows, rows.data() + r * dim, n, dim,
                                      cut.data(), dim);
      r += n;
    }
    CHECK(whole == cut);
  }
}

TEST_CASE_TEMPLATE("add_weighted_rows_at: rows anywhere, bit for bit as a run of them", S, float,
                   bf16, f16, eighths) {
  auto random = wavekv_test::generator("add_weighted_rows_at");
  for (const std::size_t dim : dims) {
    for (const std::size_t n_q : {1U, 3U, 4U, 9U}) {
      for (const std::size_t n_rows : {0U, 1U, 5U, 64U}) {
        std::vector<float> w(n_q * n_rows);
        std::vector<S> run(n_rows * dim);
        fill(w.data(), w.size(), random);
        fill(run.data(), run.size(), random);
        std::deque<guarded_array<S>> scattered;
        std::vector<const S*> where;
        for (std::size_t r = 0; r < n_rows; ++r) {
          scattered.emplace_back(dim);
          std::copy_n(run.data() + r * dim, dim, scattered.back().data());
          where.push_back(scattered.back().data());
        }
        std::vector<float> expected(n_q * dim, 0.5F);
        std::vector<float> acc = expected;
        wavekv::simd::add_weighted_rows(w.data(), n_q, n_rows, run.data(), n_rows, dim,
                                        expected.data(), dim);
        wavekv::simd::add_weighted_rows_at(w.data(), n_q, n_rows, where.data(), n_rows, dim,
                                           acc.data(), dim);
        CHECK(acc == expected);
      }
    }
  }
}

TEST_CASE("read_ahead: takes every stretch in order, always as far ahead as at the beginning") {
  auto random = wavekv_test::generator("read_ahead");
  constexpr std::size_t lead = wavekv::simd::read_ahead::lead_bytes;
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::vector<char> memory(std::size_t{1} << 20U);
    std::vector<wavekv::simd::stretch> stretches;
    std::vector<std::size_t> before{0};  // bytes of all stretches before one
    for (std::size_t at = 0; at + 40 * 64 < memory.size();
         at += std::size_t{40} * 64 + random() % 999) {
      stretches.push_back({memory.data() + at, random() % 41 * 64});
      before.push_back(before.back() + stretches.back().n_bytes);
    }
    const auto flat = [&](const char* p) {  // the place of an address in the order of reading
      const auto after = std::upper_bound(
          stretches.begin(), stretches.end(), p,
          [](const char* to, const wavekv::simd::stretch& s) { return to < s.first; });
      const auto i = static_cast<std::size_t>(after - stretches.begin()) - 1;
      return before[i] + static_cast<std::size_t>(p - static_cast<const char*>(stretches[i].first));
    };
    std::size_t next = 0;
    auto order = [&](wavekv::simd::stretch& to) {
      if (next == stretches.size()) return false;
      to = stretches[next++];
      return true;
    };
    wavekv::simd::read_ahead then(order);
    std::size_t worked_on = 0;
    while (const char* asked = then.take(512)) {
      CHECK(flat(asked) == lead + worked_on);
      worked_on += 512;
    }
    CHECK(lead + worked_on >= before.back());
    CHECK(lead + worked_on < before.back() + 512);
    CHECK(then.take(64) == nullptr);
  }
  auto nothing = [](wavekv::simd::stretch&) { return false; };
  wavekv::simd::read_ahead then(nothing);
  CHECK(then.take(64) == nullptr);
}

TEST_CASE_TEMPLATE("rows of denormals, zeros and the largest numbers", S, float, bf16, f16) {
  constexpr std::size_t dim = 37;
  const float tiny = std::is_same_v<S, f16> ? 0x1p-24F : 0x1p-130F;
  const float large = std::is_same_v<S, f16> ? 65504.0F : 0x1p120F;
  for (const float value : {0.0F, -0.0F, tiny, -tiny, large, -large}) {
    std::vector<S> rows(5 * dim, wavekv::from_float<S>(value));
    const double stored = static_cast<double>(wavekv::to_float(rows[0]));
    std::vector<float> q(dim, 0.5F);
    float logits[5];
    wavekv::simd::score_rows(q.data(), 1, dim, rows.data(), 5, dim, logits, 5);
    // A target may take denormals as zeros: an absolute error of at most the smallest normal number each.
    const double slack = static_cast<double>(dim) * 0x1p-126;
    for (const float logit : logits) {
      CHECK(static_cast<double>(logit) ==
            doctest::Approx(0.5 * dim * stored).epsilon(1e-5).scale(slack * 1e5));
    }
    std::vector<float> acc(dim, 0.0F);
    const float weight[5] = {1.0F, 1.0F, 0.0F, 0.0F, 1.0F};
    wavekv::simd::add_weighted_rows(weight, 1, 5, rows.data(), 5, dim, acc.data(), dim);
    for (const float sum : acc)
      CHECK(static_cast<double>(sum) ==
            doctest::Approx(3.0 * stored).epsilon(1e-5).scale(slack * 1e5));
  }
}
