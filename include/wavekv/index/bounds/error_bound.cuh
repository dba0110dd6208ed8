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

/// @brief Thresholds that keep_epsilon tries together: three halvings of what they lie in. One block plans, and what its threads wait
/// for costs more than what they add up.
inline constexpr unsigned n_thresholds = 7;

/// @brief *block*: whether every head keeps its part of epsilon² when all nodes below a threshold stay estimated: bit t for the
/// t-th threshold.
/// @param sums  shared memory, [n_thresholds, n_warps, group_size]; by turns one of two, so that one meeting is enough
template <class Block>
WAVEKV_DEVICE unsigned keep_epsilon(Block& b, const frontier_view& nodes, float epsilon,
                                    float allowed_part, const float (&thresholds)[n_thresholds],
                                    float* sums) {
  constexpr unsigned heads = 4;    // whose errors are read beside the ranked ones
  constexpr unsigned at_once = 4;  // columns whose errors are loaded together
  const unsigned group = nodes.group_size;
  for (unsigned first = 0; first < group; first += heads) {
    float squares[heads][n_thresholds] = {};
    for (unsigned column = b.thread(); column < nodes.n_columns;
         column += at_once * b.n_threads()) {
      float ranked[at_once];
      float errors[at_once][heads];
      WAVEKV_UNROLL
      for (unsigned k = 0; k < at_once; ++k) {
        const unsigned i = column + k * b.n_threads();
        const unsigned at = or_last(i, nodes.n_columns);
        const float ranked_error = nodes.ranked_errors[at];
        ranked[k] = i < nodes.n_columns ? ranked_error : std::numeric_limits<float>::infinity();
        WAVEKV_UNROLL
        for (unsigned q = 0; q < heads; ++q) {
          const unsigned g = or_last(first + q, group);
          errors[k][q] = nodes.errors[std::size_t{g} * nodes.stride + at];
        }
      }
      WAVEKV_UNROLL
      for (unsigned k = 0; k < at_once; ++k) {
        WAVEKV_UNROLL
        for (unsigned q = 0; q < heads; ++q) {
          WAVEKV_UNROLL
          for (unsigned t = 0; t < n_thresholds; ++t) {
            squares[q][t] += ranked[k] < thresholds[t] ? errors[k][q] * errors[k][q] : 0.0F;
          }
        }
      }
    }
    WAVEKV_UNROLL
    for (unsigned q = 0; q < heads; ++q) {
      WAVEKV_UNROLL
      for (unsigned t = 0; t < n_thresholds; ++t) {
        const float of_warp = b.warp_sum(squares[q][t]);
        if (b.lane() == 0 && first + q < group) {
          sums[(t * b.n_warps() + b.warp()) * group + first + q] = of_warp;
        }
      }
    }
  }
  b.sync();
  // Every warp works it out for itself: a lane has one threshold of one head.
  unsigned missed = 0;
  for (unsigned i = b.lane(); i < n_thresholds * group; i += warp_size) {
    const unsigned t = i / group;
    const unsigned g = i % group;
    const float left = allowed_part * (epsilon * epsilon - nodes.settled[g]);
    float sum = 0.0F;
    for (unsigned w = 0; w < b.n_warps(); ++w) {
      sum += sums[(t * b.n_warps() + w) * group + g];
    }
    missed |= !(sum <= (left > 0.0F ? left : 0.0F)) ? 1U << t : 0U;
  }
  unsigned keep = 0;
  WAVEKV_UNROLL
  for (unsigned t = 0; t < n_thresholds; ++t) {
    keep |= b.ballot((missed >> t & 1U) != 0) == 0 ? 1U << t : 0U;
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
  const auto turn_sums = [&] {
    float* const sums = memory.sums + turn * n_thresholds * b.n_warps() * nodes.group_size;
    turn = 1 - turn;
    return sums;
  };
  const auto within = [&](const float(&thresholds)[n_thresholds]) {
    return keep_epsilon(b, nodes, bound.summaries_epsilon(), budgets.allowed_part, thresholds,
                        turn_sums());
  };
  const auto is_within = [&](float threshold) {
    float thresholds[n_thresholds];
    WAVEKV_UNROLL
    for (float& t : thresholds) {
      t = threshold;
    }
    return within(thresholds) != 0;
  };
  if (!is_within(std::numeric_limits<float>::infinity())) {
    const auto ranked = [&](unsigned /*row*/, unsigned i) { return nodes.ranked_errors[i]; };
    const auto cost = [&](unsigned i) -> unsigned {
      const float size = nodes.sizes[i];
      const float error = nodes.ranked_errors[i];
      const unsigned n = nodes.level > 0 ? 1U : static_cast<unsigned>(size);
      return size > 0.0F && error > 0.0F ? n : 0U;
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
    if (!(capped > 0.0F) || is_within(capped)) {
      most = block_max(b, most, turn_sums());
      std::uint32_t fit = order_key(capped);  // here it is kept, at `over` no longer
      std::uint32_t over = order_key(most) + 1;
      constexpr std::uint32_t resolution = 1U << 15U;
      while (over - fit > resolution) {
        const std::uint32_t step = (over - fit) / (n_thresholds + 1);
        float thresholds[n_thresholds];
        WAVEKV_UNROLL
        for (unsigned t = 0; t < n_thresholds; ++t) {
          thresholds[t] = from_order_key(fit + (t + 1) * step);
        }
        // The sums only grow with the threshold: those that are kept come first.
        const unsigned kept = within(thresholds);
        unsigned n_kept = 0;
        while (n_kept < n_thresholds && (kept >> n_kept & 1U) != 0) {
          ++n_kept;
        }
        over = n_kept < n_thresholds ? fit + (n_kept + 1) * step : over;
        fit += n_kept * step;
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
