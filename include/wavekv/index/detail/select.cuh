// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/cuda/block.hpp>
#include <wavekv/index/detail/order_key.hpp>
#include <wavekv/index/frontier.cuh>

/// @file select.cuh
/// @brief Selection by a block, without sorting: a histogram of eight bits at a time in shared memory leads to the threshold.

namespace wavekv::device {

/// @brief An integer that orders as the float does; -0 equals 0.
WAVEKV_HOST_DEVICE std::uint32_t order_key(float value) {
  return wavekv::detail::order_key(value + 0.0F);
}

using wavekv::detail::from_order_key;

/// @brief What was selected: all above a threshold, and of those that equal it the ones before a column.
struct selection {
  std::uint32_t key = 0;  ///< order_key of the threshold; 0: everything was
  unsigned limit = 0;     ///< where equal ones stop

  /// @brief Whether a candidate was.
  [[nodiscard]] WAVEKV_DEVICE bool holds(float value, unsigned column) const {
    const std::uint32_t of_this = order_key(value);
    return of_this > key || (of_this == key && column < limit);
  }
};

/// @brief *block*: the largest x of the block's threads, none negative, known to all. Needs n_warps floats of shared memory.
template <class Block>
WAVEKV_DEVICE float block_max(Block& b, float x, float* of_warps) {
  const float of_warp = b.warp_max(x);
  if (b.lane() == 0) {
    of_warps[b.warp()] = of_warp;
  }
  b.sync();
  float most = 0.0F;
  for (unsigned w = 0; w < b.n_warps(); ++w) {
    most = of_warps[w] > most ? of_warps[w] : most;
  }
  return most;
}

namespace detail {

/// *warp*: from the largest bin down, the first that does not fit into `left` as a whole; `left` shrinks by the ones above.
template <class Block>
WAVEKV_DEVICE unsigned find_bin(Block& b, const unsigned* histogram, unsigned& left) {
  constexpr unsigned per_lane = plan_memory::n_bins / warp_size;
  const unsigned top = plan_memory::n_bins - 1 - per_lane * b.lane();
  unsigned mine = 0;
  for (unsigned i = 0; i < per_lane; ++i) {
    mine += histogram[top - i];
  }
  unsigned running = mine;
  for (unsigned step = 1; step < warp_size; step *= 2) {
    const unsigned from = b.shuffle(running, b.lane() >= step ? b.lane() - step : b.lane());
    running += b.lane() >= step ? from : 0;
  }
  unsigned before = running - mine;
  unsigned bin = top;
  const bool here = before <= left && running > left;
  while (here && before + histogram[bin] <= left) {
    before += histogram[bin--];
  }
  // At most one lane is. (Not std::countr_zero: what nvcc 13 makes of it for a device is always 32.)
  const unsigned lane = warp_size - 1 - b.warp_sum(here ? warp_size - 1 - b.lane() : 0U);
  left -= b.shuffle(before, lane);
  return b.shuffle(bin, lane);
}

}  // namespace detail

/// @brief *block*: selects, from each of a few rows, the largest values as long as their costs fit a budget; of equal
/// values the first come first.
///
/// The same on any number of threads and in any order, as only integers are added. Five passes over values and costs.
/// @param n_rows  at most plan_memory::n_heads; row r's selection is selected(memory, r) afterwards
/// @param value   value(row, i) -> float
/// @param cost    cost(i) -> unsigned; 0: no candidate
template <class Block, class Value, class Cost>
WAVEKV_DEVICE void select_largest(Block& b, unsigned n_rows, unsigned n, const Value& value,
                                  const Cost& cost, unsigned budget, const plan_memory& memory) {
  constexpr unsigned at_once =
      4;  // columns whose numbers a thread loads together: one block has only latency to hide
  unsigned mine = 0;
  for (unsigned first = b.thread(); first < n; first += at_once * b.n_threads()) {
    WAVEKV_UNROLL
    for (unsigned k = 0; k < at_once; ++k) {
      const unsigned i = first + k * b.n_threads();
      const unsigned of_this = cost(or_last(i, n));
      mine += i < n ? of_this : 0;
    }
  }
  const bool fits = block_count(b, mine, memory.of_warps) <= budget;
  for (unsigned i = b.thread(); i < n_rows * plan_memory::n_bins; i += b.n_threads()) {
    memory.histogram[i] = 0;
  }
  for (unsigned row = b.thread(); row < n_rows; row += b.n_threads()) {
    memory.found[2 * row] = 0;
    memory.found[2 * row + 1] = fits ? 0 : budget;
  }
  b.sync();
  if (fits) {
    return;
  }
  std::uint32_t known = 0;  // mask of the bits of the keys that are
  for (unsigned shift = 32; shift > 0;) {
    shift -= 8;
    for (unsigned first = b.thread(); first < n; first += at_once * b.n_threads()) {
      unsigned costs[at_once];
      WAVEKV_UNROLL
      for (unsigned k = 0; k < at_once; ++k) {
        const unsigned i = first + k * b.n_threads();
        const unsigned of_this = cost(or_last(i, n));
        costs[k] = i < n ? of_this : 0;
      }
      for (unsigned row = 0; row < n_rows; ++row) {
        float values[at_once];
        WAVEKV_UNROLL
        for (unsigned k = 0; k < at_once; ++k) {
          const unsigned i = first + k * b.n_threads();
          values[k] = value(row, or_last(i, n));
        }
        const std::uint32_t found = memory.found[2 * row];
        WAVEKV_UNROLL
        for (unsigned k = 0; k < at_once; ++k) {
          const std::uint32_t key = order_key(values[k]);
          if (costs[k] != 0 && (key & known) == found) {
            b.atomic_add(&memory.histogram[row * plan_memory::n_bins + (key >> shift & 0xFFU)],
                         costs[k]);
          }
        }
      }
    }
    b.sync();
    for (unsigned row = b.warp(); row < n_rows; row += b.n_warps()) {
      unsigned* const histogram = memory.histogram + row * plan_memory::n_bins;
      unsigned left = memory.found[2 * row + 1];
      const unsigned bin = detail::find_bin(b, histogram, left);
      b.sync_warp();
      for (unsigned i = b.lane(); i < plan_memory::n_bins; i += warp_size) {
        histogram[i] = 0;  // for the next eight bits
      }
      if (b.lane() == 0) {
        memory.found[2 * row] |= bin << shift;
        memory.found[2 * row + 1] = left;
      }
    }
    b.sync();
    known |= 0xFFU << shift;
  }
  // What equals a threshold may fit in part: up to which column?
  for (unsigned row = 0; row < n_rows; ++row) {
    const std::uint32_t key = memory.found[2 * row];
    const unsigned left = memory.found[2 * row + 1];
    unsigned taken = 0;
    for (unsigned first = 0; left != 0 && first < n && taken <= left; first += b.n_threads()) {
      const unsigned i = first + b.thread();
      const unsigned of_this = i < n && order_key(value(row, i)) == key ? cost(i) : 0;
      unsigned total = 0;
      const unsigned before = taken + block_scan(b, of_this, memory.of_warps, total);
      if (before <= left && before + of_this > left) {
        memory.found[2 * row + 1] = i;
      }
      taken += total;
    }
  }
  b.sync();
}

/// @brief What select_largest found in a row.
WAVEKV_DEVICE selection selected(const plan_memory& memory, unsigned row) {
  return {memory.found[2 * row], memory.found[2 * row + 1]};
}

/// @brief *block*: calls chosen(first, n) for query heads [first, first + n) once their n_each nearest nodes are selected:
/// selected(memory, i) is head first + i's then, over `nodes.nearnesses` of the columns that have a node. chosen is *block*.
template <class Block, class Chosen>
WAVEKV_DEVICE void for_nearest_of_heads(Block& b, const frontier_view& nodes, unsigned n_each,
                                        const plan_memory& memory, const Chosen& chosen) {
  const auto one = [&](unsigned i) -> unsigned { return nodes.is_node(i) ? 1U : 0U; };
  for (unsigned first = 0; first < nodes.group_size; first += plan_memory::n_heads) {
    const unsigned left = nodes.group_size - first;
    const unsigned n = left < plan_memory::n_heads ? left : plan_memory::n_heads;
    const auto nearness = [&](unsigned row, unsigned i) {
      return nodes.nearnesses[std::size_t{first + row} * nodes.stride + i];
    };
    select_largest(b, n, nodes.n_columns, nearness, one, n_each, memory);
    chosen(first, n);
    b.sync();  // the selections may still be read
  }
}

}  // namespace wavekv::device
