// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include <wavekv/cpu/detail/vectors.hpp>
#include <wavekv/cpu/elementwise.hpp>

/// @file thresholds.hpp
/// @brief Leaves of selection without sorting: what lies at or above a threshold, how many, and what it costs.
/// None allocates; all take any n >= 0 and unaligned pointers. A NaN lies below every threshold.

namespace wavekv::simd {

namespace detail {

/// Sums up whole vectors of an array in four sums, which hides the latency of an addition; i is left at the first element
/// that no whole vector holds.
/// @param add  add(sums, first element) -> sums
template <class Add>
HWY_INLINE float sum_of_four(std::size_t n, std::size_t& i, const Add& add) {
  constexpr float_tag d{};
  auto a = hn::Zero(d);
  auto b = hn::Zero(d);
  auto c = hn::Zero(d);
  auto e = hn::Zero(d);
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    a = add(a, i);
    b = add(b, i + lanes);
    c = add(c, i + 2 * lanes);
    e = add(e, i + 3 * lanes);
  }
  for (; i + lanes <= n; i += lanes) a = add(a, i);
  return sum(hn::Add(hn::Add(a, b), hn::Add(c, e)));
}

}  // namespace detail

/// @brief How many of n floats are at least the threshold.
inline std::size_t count_at_least(const float* x, std::size_t n, float threshold) noexcept {
  namespace hn = detail::hn;
  constexpr detail::float_tag d{};
  const auto least = hn::Set(d, threshold);
  std::size_t count = 0;
  std::size_t i = 0;
  for (; i + detail::lanes <= n; i += detail::lanes)
    count += hn::CountTrue(d, hn::Ge(hn::LoadU(d, x + i), least));
  for (; i < n; ++i) count += x[i] >= threshold ? 1 : 0;
  return count;
}

/// @brief The sum of weight[i] over all x[i] that are at least the threshold, in float.
inline float sum_at_least(const float* x, const float* weight, std::size_t n,
                          float threshold) noexcept {
  namespace hn = detail::hn;
  constexpr detail::float_tag d{};
  const auto least = hn::Set(d, threshold);
  std::size_t i = 0;
  float sum = detail::sum_of_four(n, i, [&](auto sums, std::size_t at) HWY_ATTR {
    const auto reaches = hn::Ge(hn::LoadU(d, x + at), least);
    return hn::Add(sums, hn::IfThenElseZero(reaches, hn::LoadU(d, weight + at)));
  });
  for (; i < n; ++i) sum += x[i] >= threshold ? weight[i] : 0.0F;
  return sum;
}

/// @brief The sum of y[i]² over all x[i] below the threshold, in float.
inline float squares_below(const float* x, const float* y, std::size_t n,
                           float threshold) noexcept {
  namespace hn = detail::hn;
  constexpr detail::float_tag d{};
  const auto limit = hn::Set(d, threshold);
  std::size_t i = 0;
  float sum = detail::sum_of_four(n, i, [&](auto sums, std::size_t at) HWY_ATTR {
    const auto below = hn::Lt(hn::LoadU(d, x + at), limit);
    const auto kept = hn::IfThenElseZero(below, hn::LoadU(d, y + at));
    return hn::MulAdd(kept, kept, sums);
  });
  for (; i < n; ++i) sum += x[i] < threshold ? y[i] * y[i] : 0.0F;
  return sum;
}

/// @brief Calls visit(i), i ascending, for every x[i] that is at least the threshold; cheap where few are.
template <class Visit>
void for_at_least(const float* x, std::size_t n, float threshold, Visit&& visit) {
  namespace hn = detail::hn;
  constexpr detail::float_tag d{};
  const auto least = hn::Set(d, threshold);
  std::size_t i = 0;
  for (; i + detail::lanes <= n; i += detail::lanes) {
    if (hn::AllFalse(d, hn::Ge(hn::LoadU(d, x + i), least))) continue;
    for (std::size_t lane = i; lane < i + detail::lanes; ++lane) {
      if (x[lane] >= threshold) visit(lane);
    }
  }
  for (; i < n; ++i) {
    if (x[i] >= threshold) visit(i);
  }
}

/// @brief The largest of each block of `block` floats; the last block may be shorter.
/// @param maxima  [ceil(n / block)], written
inline void block_maxima(const float* x, std::size_t n, std::size_t block, float* maxima) noexcept {
  for (std::size_t i = 0; i < n; i += block) *maxima++ = reduce_max(x + i, std::min(block, n - i));
}

}  // namespace wavekv::simd
