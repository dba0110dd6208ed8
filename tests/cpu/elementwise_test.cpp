// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
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

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

template <class S>
S from_bits(std::uint32_t bits) {
  if constexpr (std::is_same_v<S, float>) {
    return std::bit_cast<float>(bits);
  } else {
    return {static_cast<std::uint16_t>(bits)};
  }
}

bool same_float(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

}  // namespace

TEST_CASE("the vector target") {
  MESSAGE("leaves compiled for ", std::string(wavekv::simd::target_name()), ", ",
          wavekv::simd::n_lanes, " floats a vector");
  CHECK(wavekv::simd::n_lanes >= 1);
}

TEST_CASE_TEMPLATE("to_float: every pattern of 16 bits", S, bf16, f16) {
  for (std::size_t first = 0; first < 65536; first += 251) {
    const std::size_t n = std::min<std::size_t>(251, 65536 - first);
    guarded_array<S> from(n);
    guarded_array<float> to(n);
    for (std::size_t i = 0; i < n; ++i) from[i].bits = static_cast<std::uint16_t>(first + i);
    wavekv::simd::to_float(to.data(), from.data(), n);
    for (std::size_t i = 0; i < n; ++i) {
      if (!same_float(to[i], wavekv::to_float(from[i])))
        FAIL_CHECK("pattern ", first + i, " gives ", to[i]);
    }
    wavekv::simd::to_float_scaled(to.data(), from.data(), n, -0.5F);
    for (std::size_t i = 0; i < n; ++i) {
      if (!same_float(to[i], -0.5F * wavekv::to_float(from[i])))
        FAIL_CHECK("pattern ", first + i, " scaled gives ", to[i]);
    }
  }
}

TEST_CASE_TEMPLATE("from_float: rounds to nearest even as the scalar conversion", S, float, bf16,
                   f16) {
  auto random = wavekv_test::generator("from_float");
  std::vector<float> x = {0.0F,      -0.0F,        infinity,  -infinity, not_a_number, 65504.0F,
                          65519.0F,  65520.0F,     1e-8F,     0x1p-24F,  0x1p-25F,     0x1.8p-25F,
                          0x1p-14F,  0x1.fffp-15F, 3.4e38F,   -3.4e38F,  1.0F,         0x1.01p0F,
                          0x1.03p0F, 0x1.002p0F,   0x1.006p0F};
  for (int i = 0; i < 20000; ++i)
    x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  for (const std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{15}, x.size()}) {
    guarded_array<float> from(n);
    std::copy_n(x.begin(), n, from.begin());
    guarded_array<S> to(n);
    wavekv::simd::from_float(to.data(), from.data(), n);
    for (std::size_t i = 0; i < n; ++i) {
      if (!same_float(wavekv::to_float(to[i]), wavekv::to_float(wavekv::from_float<S>(x[i]))))
        FAIL_CHECK(x[i], " gives ", wavekv::to_float(to[i]));
    }
  }
}

TEST_CASE_TEMPLATE("all_finite: the first bad element, wherever it is", S, float, bf16, f16) {
  const std::uint32_t bad_bits[] = {std::is_same_v<S, float>  ? 0x7F80'0000U
                                    : std::is_same_v<S, bf16> ? 0x7F80U
                                                              : 0x7C00U,
                                    std::is_same_v<S, float>  ? 0xFFC0'0001U
                                    : std::is_same_v<S, bf16> ? 0xFFC1U
                                                              : 0xFC01U};
  for (const std::size_t n : {0, 1, 5, 16, 31, 64, 100}) {
    guarded_array<S> x(n);
    std::fill(x.begin(), x.end(), wavekv::from_float<S>(60000.0F));
    CHECK(wavekv::simd::all_finite(x.data(), n) == n);
    for (const std::uint32_t bits : bad_bits) {
      for (std::size_t i = n; i-- > 0;) {  // from the back, so that the first is the newest
        x[i] = from_bits<S>(bits);
        CHECK(wavekv::simd::all_finite(x.data(), n) == i);
      }
      std::fill(x.begin(), x.end(), wavekv::from_float<S>(-1.0F));
    }
  }
}

TEST_CASE("exp_below: within two units in the last place, and its sum") {
  auto random = wavekv_test::generator("exp");
  std::uniform_real_distribution<float> uniform(-87.0F, 0.0F);
  double worst = 0.0;
  for (const std::size_t n : {1, 7, 16, 33, 5000}) {
    guarded_array<float> x(n);
    for (float& v : x) v = uniform(random);
    guarded_array<float> y(n);
    const float sum = wavekv::simd::exp_below(x.data(), y.data(), n, 0.0F);
    double expected_sum = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      const double expected = std::exp(static_cast<double>(x[i]));
      worst = std::max(worst, std::abs(static_cast<double>(y[i]) - expected) / expected);
      expected_sum += expected;
    }
    CHECK(static_cast<double>(sum) == doctest::Approx(expected_sum).epsilon(1e-6));
    wavekv::simd::exp_below(x.data(), x.data(), n, 0.0F);
    CHECK(std::equal(x.begin(), x.end(), y.begin()));
  }
  CHECK(worst <= 2.0 * 0x1p-23);
}

TEST_CASE("exp_below: the ends of the range") {
  float x[] = {-infinity, -1e30F, -1e4F, -104.0F, -87.4F, 0.0F, -0.0F, -0x1p-130F};
  const float sum = wavekv::simd::exp_below(x, x, 8, 0.0F);
  for (int i = 0; i < 5; ++i) CHECK(x[i] == 0.0F);
  for (int i = 5; i < 8; ++i) CHECK(x[i] == 1.0F);
  CHECK(sum == 3.0F);
  CHECK(wavekv::simd::exp_below(nullptr, nullptr, 0, 0.0F) == 0.0F);
  float shifted[] = {1e4F, 1e4F - 1.0F};
  wavekv::simd::exp_below(shifted, shifted, 2, 1e4F);
  CHECK(shifted[0] == 1.0F);
  CHECK(static_cast<double>(shifted[1]) == doctest::Approx(std::exp(-1.0)).epsilon(1e-6));
}

TEST_CASE("softcap: cap * tanh(x / cap), odd, monotone and within its cap") {
  for (const float cap : {1.0F, 5.0F, 50.0F}) {
    guarded_array<float> x(4001);
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = cap * (static_cast<float>(i) - 2000.0F) / 200.0F;
    guarded_array<float> y(x.size());
    std::copy(x.begin(), x.end(), y.begin());
    wavekv::simd::softcap(y.data(), y.size(), cap);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = static_cast<double>(cap) *
                              std::tanh(static_cast<double>(x[i]) / static_cast<double>(cap));
      // Quotients of exponentials: a few roundings, relative to the result.
      CHECK(static_cast<double>(y[i]) == doctest::Approx(expected).epsilon(6.0 * 0x1p-23));
      CHECK(y[i] == -y[x.size() - 1 - i]);
      CHECK(std::abs(y[i]) <= cap);
      if (i > 0) CHECK(y[i] >= y[i - 1] - cap * 0x1p-22F);
    }
  }
  float extreme[] = {1e30F, -1e30F, infinity, -infinity, 0x1p-140F, -0.0F};
  wavekv::simd::softcap(extreme, 6, 30.0F);
  CHECK(extreme[0] == 30.0F);
  CHECK(extreme[1] == -30.0F);
  CHECK(extreme[2] == 30.0F);
  CHECK(extreme[3] == -30.0F);
  CHECK(std::abs(extreme[4]) <= 0x1p-126F);
  CHECK(extreme[5] == 0.0F);
}

TEST_CASE("reduce_max, scale and add_scaled") {
  auto random = wavekv_test::generator("reduce");
  std::normal_distribution<float> normal;
  CHECK(wavekv::simd::reduce_max(nullptr, 0) == -infinity);
  for (std::size_t n = 1; n < 80; ++n) {
    guarded_array<float> x(n);
    for (float& v : x) v = normal(random) - 10.0F;
    CHECK(wavekv::simd::reduce_max(x.data(), n) == *std::max_element(x.begin(), x.end()));
    guarded_array<float> y(n);
    std::copy(x.begin(), x.end(), y.begin());
    wavekv::simd::add_scaled(x.data(), n, 2.0F, y.data());
    for (std::size_t i = 0; i < n; ++i) CHECK(y[i] == doctest::Approx(3.0F * x[i]).epsilon(1e-6));
    wavekv::simd::scale(x.data(), n, -2.0F);
    for (std::size_t i = 0; i < n; ++i) CHECK(y[i] == doctest::Approx(-1.5F * x[i]).epsilon(1e-6));
    std::fill(x.begin(), x.end(), -infinity);
    CHECK(wavekv::simd::reduce_max(x.data(), n) == -infinity);
  }
}

TEST_CASE("expm1 and log: relative to the true values, near zero and one too") {
  auto random = wavekv_test::generator("expm1 log");
  namespace detail = wavekv::simd::detail;
  std::uniform_real_distribution<float> exponent(-30.0F, 3.2F);
  std::vector<float> x(1003);
  for (float& number : x) number = std::exp(exponent(random));
  x[0] = 0.0F;
  x[1] = 0.5F;
  std::vector<float> y(x.size());
  detail::transform(x.data(), y.data(), x.size(), [](auto v) HWY_ATTR { return detail::expm1(v); });
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = std::expm1(static_cast<double>(x[i]));
    // Three units in the last place: at 0.5, where the series ends, e^x - 1 has lost one bit and a half.
    CHECK(std::abs(static_cast<double>(y[i]) - expected) <= 3.0 * 0x1p-23 * expected);
  }
  x[0] = 1.0F;
  x[2] = 1e-38F * 2.0F;
  x[3] = 3e38F;
  detail::transform(x.data(), y.data(), x.size(), [](auto v) HWY_ATTR { return detail::log(v); });
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = std::log(static_cast<double>(x[i]));
    CHECK(std::abs(static_cast<double>(y[i]) - expected) <=
          2.0 * 0x1p-23 * std::max(1.0, std::abs(expected)));
  }
}

TEST_CASE("weighted_exp_sum") {
  auto random = wavekv_test::generator("weighted_exp_sum");
  std::uniform_real_distribution<float> uniform(-20.0F, 0.0F);
  for (std::size_t n = 0; n < 40; ++n) {
    guarded_array<float> x(n);
    guarded_array<float> weight(n);
    double expected = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      x[i] = uniform(random);
      weight[i] = -uniform(random);
      expected += static_cast<double>(weight[i]) * std::exp(static_cast<double>(x[i]) + 3.0);
    }
    CHECK(static_cast<double>(wavekv::simd::weighted_exp_sum(x.data(), weight.data(), n, -3.0F)) ==
          doctest::Approx(expected).epsilon(1e-6).scale(1e-30));
  }
}
