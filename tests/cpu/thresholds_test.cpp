// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cpu/thresholds.hpp>

#include "reference/fresh_seed.hpp"

// The leaves of selection against plain loops, for every remainder of a vector's length.

TEST_CASE("counts, sums and visits at a threshold") {
  auto random = wavekv_test::generator("thresholds");
  for (std::size_t n = 0; n < 70; ++n) {
    std::vector<float> x(n);
    std::vector<float> y(n);
    for (std::size_t i = 0; i < n; ++i) {
      x[i] = static_cast<float>(random() % 9) - 4.0F;
      y[i] = static_cast<float>(random() % 100);
    }
    if (n > 3) x[n / 2] = std::numeric_limits<float>::quiet_NaN();  // lies below everything
    for (const float threshold : {-HUGE_VALF, -4.0F, 0.0F, 2.5F, 4.0F, HUGE_VALF}) {
      std::size_t count = 0;
      float sum = 0.0F;
      float squares = 0.0F;
      std::vector<std::size_t> reached;
      for (std::size_t i = 0; i < n; ++i) {
        if (x[i] >= threshold) {
          ++count;
          sum += y[i];
          reached.push_back(i);
        } else if (x[i] < threshold) {
          squares += y[i] * y[i];
        }
      }
      std::vector<std::size_t> visited;
      wavekv::simd::for_at_least(x.data(), n, threshold,
                                 [&](std::size_t i) { visited.push_back(i); });
      CHECK(visited == reached);
      // whole numbers: sums are exact in any order
      CHECK(wavekv::simd::count_at_least(x.data(), n, threshold) == count);
      CHECK(wavekv::simd::sum_at_least(x.data(), y.data(), n, threshold) == sum);
      CHECK(wavekv::simd::squares_below(x.data(), y.data(), n, threshold) == squares);
    }
  }
}

TEST_CASE("block_maxima: the largest of each block, a shorter last one too") {
  auto random = wavekv_test::generator("maxima");
  for (const std::size_t n : {0U, 1U, 15U, 16U, 17U, 100U}) {
    for (const std::size_t block : {1U, 7U, 16U}) {
      std::vector<float> x(n);
      for (float& number : x) number = static_cast<float>(random() % 1000) - 500.0F;
      std::vector<float> maxima((n + block - 1) / block + 1, 12345.0F);
      wavekv::simd::block_maxima(x.data(), n, block, maxima.data());
      CHECK(maxima.back() == 12345.0F);
      for (std::size_t b = 0; b + 1 < maxima.size(); ++b) {
        float largest = -HUGE_VALF;
        for (std::size_t i = b * block; i < std::min(n, (b + 1) * block); ++i)
          largest = std::max(largest, x[i]);
        CHECK(maxima[b] == largest);
      }
    }
  }
}
