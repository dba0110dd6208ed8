// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include <doctest/doctest.h>

#include <wavekv/core/scalar.hpp>

using wavekv::bf16;
using wavekv::f16;
using wavekv::from_float;
using wavekv::to_float;

namespace {

/// What 16 bits stand for, from the definition: sign, exponent, fraction.
double value_of(std::uint32_t bits, int n_fraction_bits, int bias) {
  const double sign = (bits & 0x8000U) != 0 ? -1.0 : 1.0;
  const std::uint32_t magnitude = bits & 0x7FFFU;
  const std::uint32_t fraction = magnitude & ((1U << n_fraction_bits) - 1U);
  const int exponent = static_cast<int>(magnitude >> n_fraction_bits);
  const int largest = (1 << (15 - n_fraction_bits)) - 1;
  if (exponent == largest) return fraction != 0 ? NAN : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - n_fraction_bits);
  return sign * std::ldexp((1U << n_fraction_bits) + fraction, exponent - bias - n_fraction_bits);
}

template <class S>
void check_all_bits(int n_fraction_bits, int bias) {
  std::size_t n_wrong = 0;
  const std::uint32_t infinity = ((1U << (15 - n_fraction_bits)) - 1U) << n_fraction_bits;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = value_of(bits, n_fraction_bits, bias);
    const float seen = to_float(S{static_cast<std::uint16_t>(bits)});
    if (std::isnan(expected)) {
      n_wrong += std::isnan(seen) && std::isnan(to_float(from_float<S>(seen))) ? 0 : 1;
      continue;
    }
    n_wrong += static_cast<double>(seen) == expected && std::signbit(seen) == std::signbit(expected)
                   ? 0
                   : 1;
    n_wrong += from_float<S>(seen).bits == bits ? 0 : 1;
    // The way to the next larger magnitude: below the middle down, above it up, the middle to even.
    if ((bits & 0x7FFFU) >= infinity - 1) continue;
    const double next = value_of(bits + 1, n_fraction_bits, bias);
    const auto middle = static_cast<float>((expected + next) / 2);
    const float toward = static_cast<float>(expected);
    const float away = static_cast<float>(next);
    n_wrong += from_float<S>(middle).bits == (bits % 2 == 0 ? bits : bits + 1) ? 0 : 1;
    n_wrong += from_float<S>(std::nextafter(middle, toward)).bits == bits ? 0 : 1;
    n_wrong += from_float<S>(std::nextafter(middle, away)).bits == bits + 1 ? 0 : 1;
  }
  CHECK(n_wrong == 0);
}

}  // namespace

TEST_CASE("bf16 and f16: every bit pattern, and every step between two") {
  check_all_bits<bf16>(7, 127);
  check_all_bits<f16>(10, 15);
}

TEST_CASE("overflow gives an infinity, from the middle of the last step on") {
  CHECK(to_float(from_float<f16>(65504.0F)) == 65504.0F);
  CHECK(to_float(from_float<f16>(std::nextafter(65520.0F, 0.0F))) == 65504.0F);
  CHECK(std::isinf(to_float(from_float<f16>(65520.0F))));
  CHECK(std::isinf(to_float(from_float<f16>(-1e30F))));
  CHECK(std::signbit(to_float(from_float<f16>(-1e30F))));
  const float largest = std::numeric_limits<float>::max();
  CHECK(std::isinf(to_float(from_float<bf16>(largest))));
  CHECK(to_float(from_float<bf16>(0x1.FEp127F)) == 0x1.FEp127F);
  CHECK(std::isinf(to_float(from_float<bf16>(std::numeric_limits<float>::infinity()))));
}

TEST_CASE("a NaN stays one, whatever its bits") {
  std::mt19937 random(1);
  for (int i = 0; i < 10000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random()) | 0x7F800000U;
    if ((bits & 0x007FFFFFU) == 0) continue;
    const float nan = std::bit_cast<float>(bits);
    REQUIRE(std::isnan(to_float(from_float<bf16>(nan))));
    REQUIRE(std::isnan(to_float(from_float<f16>(nan))));
  }
}

TEST_CASE("traits") {
  CHECK(wavekv::scalar_traits<float>::name == "float");
  CHECK(wavekv::scalar_traits<bf16>::name == "bf16");
  CHECK(wavekv::scalar_traits<f16>::name == "f16");
  static_assert(from_float<f16>(1.0F) == f16{0x3C00});  // usable in constant expressions
  static_assert(to_float(bf16{0x3F80}) == 1.0F);
}
