// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/detail/order_key.hpp>
#include <wavekv/index/frontier.hpp>

/// @file select.hpp
/// @brief Selection without sorting: thresholds are found by halving the range of floats, or among few candidates.

namespace wavekv::detail {

/// @brief Two thresholds beside each other, between which a condition changes.
struct threshold_step {
  float unfit;  ///< does not fit
  float fit;    ///< fits, and so does all above
};

/// @brief Finds where thresholds begin to fit, by halving: `low` does not fit, just above `high` does.
/// Complexity: at most 32 calls of fits. Allocates: nothing.
/// @param fits  fits(threshold) -> bool, true from some threshold on
/// @param resolution  floats that may lie between the two
template <class Fits>
threshold_step narrow(float low, float high, Fits&& fits, std::uint32_t resolution = 1) {
  std::uint32_t unfit = order_key(low);
  std::uint32_t fit = order_key(high) + 1;
  while (fit - unfit > resolution) {
    const std::uint32_t middle = unfit + (fit - unfit) / 2;
    (fits(from_order_key(middle)) ? fit : unfit) = middle;
  }
  return {from_order_key(unfit), from_order_key(fit)};
}

/// @brief Calls chosen(i), i ascending, for the values above 0 in falling order as long as their costs fit the budget;
/// of equal values the smaller index comes first.
/// Complexity: some 30 passes over values and costs. Allocates: nothing.
/// @param cost  [n] above 0, or null: 1 each
/// @return the threshold above which all values were chosen, and none below; 0: everything fitted
template <class Chosen>
float for_largest_within(std::span<const float> values, const float* cost, float budget,
                         Chosen&& chosen) {
  const std::size_t n = values.size();
  const float* x = values.data();
  const auto cost_from = [&](float threshold) {
    return cost != nullptr ? simd::sum_at_least(x, cost, n, threshold)
                           : static_cast<float>(simd::count_at_least(x, n, threshold));
  };
  const auto fits = [&](float threshold) { return cost_from(threshold) <= budget; };
  constexpr float least = std::numeric_limits<float>::denorm_min();
  const float largest = simd::reduce_max(x, n);
  if (!(largest > 0.0F) || fits(least)) {
    simd::for_at_least(x, n, least, chosen);
    return 0.0F;
  }
  const threshold_step step = narrow(least, largest, fits);
  // What equals the one that does not fit as a whole may fit in part.
  float left = budget - cost_from(step.fit);
  simd::for_at_least(x, n, step.unfit, [&](std::size_t i) {
    if (x[i] < step.fit) {
      left -= cost != nullptr ? cost[i] : 1.0F;
      if (left < 0.0F) {
        return;  // and stays so: nothing smaller slips in behind
      }
    }
    chosen(i);
  });
  return step.unfit;
}

/// @brief The k-th largest of n floats, 0 < k <= n.  Complexity: O(n). Allocates: nothing.
inline float kth_largest(const float* x, std::size_t n, std::size_t k) {
  // Each block's largest is one of its floats, so at least k floats reach the k-th largest of those: candidates.
  constexpr std::size_t max_blocks = 512;
  constexpr std::size_t max_candidates = 1024;
  const std::size_t block = std::max<std::size_t>(16, (n + max_blocks - 1) / max_blocks);
  const std::size_t n_blocks = (n + block - 1) / block;
  std::array<float, max_candidates> found;
  // The lowest threshold that fewer than k exceed; `low` is at most that. Counts cost less than branches that nobody foresees.
  const auto kth = [k](const float* first, std::size_t count, float low, float high) {
    const auto few_exceed = [&](float threshold) {
      return simd::count_at_least(first, count, from_order_key(order_key(threshold) + 1)) < k;
    };
    return few_exceed(low) ? low : narrow(low, high, few_exceed).fit;
  };
  const float largest = simd::reduce_max(x, n);
  constexpr float least = -std::numeric_limits<float>::infinity();
  if (k > n_blocks) {
    return kth(x, n, least, largest);
  }
  simd::block_maxima(x, n, block, found.data());
  const float low = kth(found.data(), n_blocks, least, largest);
  if (simd::count_at_least(x, n, low) > max_candidates) {
    return kth(x, n, low, largest);
  }
  std::size_t count = 0;
  simd::for_at_least(x, n, low, [&](std::size_t i) { found[count++] = x[i]; });
  return kth(found.data(), count, low, largest);
}

/// @brief Calls chosen(i), i ascending, for the k largest; of equal values the smaller index comes first.
/// Complexity: O(n). Allocates: nothing.
template <class Chosen>
void for_largest(std::span<const float> values, std::size_t k, Chosen&& chosen) {
  const std::size_t n = values.size();
  if (k == 0 || n == 0) {
    return;
  }
  if (k >= n) {
    for (std::size_t i = 0; i < n; ++i) {
      chosen(i);
    }
    return;
  }
  const float last = kth_largest(values.data(), n, k) + 0.0F;  // never -0, whose next float is 0
  std::size_t n_ties =
      k - simd::count_at_least(values.data(), n, from_order_key(order_key(last) + 1));
  simd::for_at_least(values.data(), n, last, [&](std::size_t i) {
    if (values[i] > last) {
      chosen(i);
    } else if (n_ties > 0) {
      --n_ties;
      chosen(i);
    }
  });
}

/// @brief Calls chosen(i) for the n_each nodes nearest to each query head of the group; a node may be named by
/// several.  Complexity: O(n_nodes · group_size). Allocates: nothing.
template <class Chosen>
void for_nearest_by_turns(const frontier& nodes, std::size_t n_each, Chosen&& chosen) {
  for (std::size_t g = 0; g < nodes.group_size; ++g) {
    for_largest(nodes.nearness(g), n_each, chosen);
  }
}

/// @brief Has query heads name their nearest nodes in turns until a budget is used. Heads often name the same nodes: turns go on.
/// @param n_more  n_more(): nodes that each head may still name; 0: the budget is used
/// @param chosen  chosen(i), as above; a node that is not found (its nearness is -infinity) is not named
template <class More, class Chosen>
void for_nearest_until(const frontier& nodes, More&& n_more, Chosen&& chosen) {
  std::size_t n_each = 0;
  for (std::size_t more = n_more(); more != 0 && n_each < nodes.n_nodes; more = n_more()) {
    // Longer turns where many were needed: heads that agree would otherwise take one pass a node.
    n_each += std::max(more, n_each / 16);
    for (std::size_t g = 0; g < nodes.group_size; ++g) {
      const std::span<const float> nearness = nodes.nearness(g);
      for_largest(nearness, n_each, [&](std::size_t i) {
        if (nearness[i] > -std::numeric_limits<float>::infinity()) {
          chosen(i);
        }
      });
    }
  }
}

}  // namespace wavekv::detail
