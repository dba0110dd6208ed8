// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <wavekv/cuda/block.hpp>
#include <wavekv/index/bounds/error_bound.hpp>
#include <wavekv/index/detail/select.cuh>
#include <wavekv/index/frontier.cuh>

/// @file error_bound.cuh
/// @brief error_bound on the device.

namespace wavekv::device {

/// @brief What an error_bound allows on a frontier: its run-time numbers, worked out once.
struct error_budgets {
  float allowed_part = 1.0F;  ///< of what is left of epsilon²
  unsigned budget = 0;        ///< in nodes at a coarse level, in tokens at the finest
  unsigned n_nearest = 0;     ///< nodes that each query head gets whatever is predicted

  /// @brief The numbers for a frontier; those of error_bound::plan.
  template <class Ranking>
  WAVEKV_HOST_DEVICE static error_budgets of(const error_bound<Ranking>& bound,
                                             const frontier_view& nodes) {
    error_budgets budgets;
    budgets.allowed_part = nodes.level > 0 ? bound.coarse_share : 1.0F;
    const float budget = bound.budget(nodes);
    budgets.budget = budget < 4e9F ? static_cast<unsigned>(budget) : 4'000'000'000U;
    budgets.n_nearest = static_cast<unsigned>(bound.n_nearest(nodes));
    return budgets;
  }
};

/// @brief *block*: whether every head keeps its part of epsilon² when all nodes below a threshold stay estimated, for three
/// thresholds: one bit each.
/// @param sums  shared memory, [3, n_warps, group_size]; by turns one of two, so that one meeting is enough
template <class Block>
WAVEKV_DEVICE unsigned keep_epsilon(Block& b, const frontier_view& nodes, float epsilon,
                                    float allowed_part, const float (&thresholds)[3], float* sums) {
  constexpr unsigned heads = 4;  // whose errors are read beside the ranked ones
  const unsigned group = nodes.group_size;
  for (unsigned first = 0; first < group; first += heads) {
    float squares[heads][3] = {};
    for (unsigned i = b.thread(); i < nodes.n_columns; i += b.n_threads()) {
      const float ranked = nodes.ranked_errors[i];
      WAVEKV_UNROLL
      for (unsigned q = 0; q < heads; ++q) {
        const float error =
            first + q < group ? nodes.errors[std::size_t{first + q} * nodes.stride + i] : 0.0F;
        WAVEKV_UNROLL
        for (unsigned t = 0; t < 3; ++t) {
          squares[q][t] += ranked < thresholds[t] ? error * error : 0.0F;
        }
      }
    }
    WAVEKV_UNROLL
    for (unsigned q = 0; q < heads; ++q) {
      WAVEKV_UNROLL
      for (unsigned t = 0; t < 3; ++t) {
        const float of_warp = b.warp_sum(squares[q][t]);
        if (b.lane() == 0 && first + q < group) {
          sums[(t * b.n_warps() + b.warp()) * group + first + q] = of_warp;
        }
      }
    }
  }
  b.sync();
  unsigned keep = 7;
  for (unsigned first = 0; first < group; first += warp_size) {
    const unsigned g = first + b.lane();
    const float left = g < group ? allowed_part * (epsilon * epsilon - nodes.settled[g]) : 0.0F;
    WAVEKV_UNROLL
    for (unsigned t = 0; t < 3; ++t) {
      float sum = 0.0F;
      for (unsigned w = 0; g < group && w < b.n_warps(); ++w) {
        sum += sums[(t * b.n_warps() + w) * group + g];
      }
      keep &= b.ballot(!(sum <= (left > 0.0F ? left : 0.0F))) != 0 ? ~(1U << t) : ~0U;
    }
  }
  return keep;
}

/// @brief error_bound::plan on the device.
template <class Block, class Ranking>
WAVEKV_DEVICE void plan_on_device(Block& b, const error_bound<Ranking>& bound,
                                  const frontier_view& nodes, zone* zones,
                                  const plan_memory& memory) {
  const error_budgets budgets = error_budgets::of(bound, nodes);
  unsigned turn = 0;
  const auto within = [&](float one, float two, float three) {
    float* const sums = memory.sums + turn * 3 * b.n_warps() * nodes.group_size;
    turn = 1 - turn;
    return keep_epsilon(b, nodes, bound.epsilon, budgets.allowed_part, {one, two, three}, sums);
  };
  constexpr float infinity = std::numeric_limits<float>::infinity();
  if (within(infinity, infinity, infinity) == 0) {
    const auto ranked = [&](unsigned /*row*/, unsigned i) { return nodes.ranked_errors[i]; };
    const auto cost = [&](unsigned i) -> unsigned {
      return nodes.is_node(i) && nodes.ranked_errors[i] > 0.0F
                 ? (nodes.level > 0 ? 1U : static_cast<unsigned>(nodes.sizes[i]))
                 : 0U;
    };
    select_largest(b, 1, nodes.n_columns, ranked, cost, budgets.budget, memory);
    const selection chosen = selected(memory, 0);
    float most = 0.0F;
    for (unsigned i = b.thread(); i < nodes.n_columns; i += b.n_threads()) {
      const float error = nodes.ranked_errors[i];
      most = error > most ? error : most;
      if (cost(i) != 0 && chosen.holds(error, i)) {
        zones[i] = zone::retrieval;
      }
    }
    // Less than the caps allow may be enough. Errors 0.4 % apart are not told apart.
    const float capped = chosen.key == 0 ? 0.0F : from_order_key(chosen.key);
    if (!(capped > 0.0F) || within(capped, capped, capped) != 0) {
      most = block_max(b, most, memory.sums + turn * 3 * b.n_warps() * nodes.group_size);
      turn = 1 - turn;
      std::uint32_t fit = order_key(capped);  // here it is kept, at `over` no longer
      std::uint32_t over = order_key(most) + 1;
      constexpr std::uint32_t resolution = 1U << 15U;
      while (over - fit > resolution) {  // two halvings at a time
        const std::uint32_t middle = fit + (over - fit) / 2;
        const std::uint32_t lower = fit + (middle - fit) / 2;
        const std::uint32_t upper = middle + (over - middle) / 2;
        const unsigned kept =
            within(from_order_key(lower), from_order_key(middle), from_order_key(upper));
        (kept >> 1U & 1U ? fit : over) = middle;
        if (over - fit > resolution) {
          const bool further = fit == middle;
          ((further ? kept >> 2U : kept) & 1U ? fit : over) = further ? upper : lower;
        }
      }
      const float enough = from_order_key(fit);
      for (unsigned i = b.thread(); i < nodes.n_columns; i += b.n_threads()) {
        if (nodes.ranked_errors[i] < enough) {
          zones[i] = zone::estimation;
        }
      }
    }
  }
  // From here on, what a column's thread does to its zone it does in order: there is no meeting between.
  if (budgets.n_nearest > 0) {
    for_nearest_of_heads(b, nodes, budgets.n_nearest, memory, [&](unsigned first, unsigned n) {
      for (unsigned i = b.thread(); i < nodes.n_columns; i += b.n_threads()) {
        for (unsigned row = 0; nodes.is_node(i) && row < n; ++row) {
          const float nearness = nodes.nearnesses[std::size_t{first + row} * nodes.stride + i];
          if (selected(memory, row).holds(nearness, i)) {
            zones[i] = zone::retrieval;
            break;
          }
        }
      }
    });
  }
  if (bound.hidden_share > 0.0F) {
    const float log_share = std::log(bound.hidden_share);
    for (unsigned i = b.thread(); i < nodes.n_columns; i += b.n_threads()) {
      for (unsigned g = 0; nodes.is_node(i) && g < nodes.group_size; ++g) {
        const float nearness = nodes.nearnesses[std::size_t{g} * nodes.stride + i];
        if (nearness >= nodes.log_normalizers[g] + log_share) {
          zones[i] = zone::retrieval;
          break;
        }
      }
    }
  }
}

}  // namespace wavekv::device
