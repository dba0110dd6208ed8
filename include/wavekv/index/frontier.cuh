// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/cuda/block.hpp>
#include <wavekv/index/frontier.hpp>

/// @file frontier.cuh
/// @brief What an estimation bound sees of a search on the device: the twin of frontier.hpp.
///
/// A bound plans on the device when there is
///
/// | expression                                       | semantics                                                       |
/// |--------------------------------------------------|-----------------------------------------------------------------|
/// | `plan_on_device(b, bound, nodes, zones, memory)` | *block*: as bound.plan(nodes, zones); found by argument-dependent lookup in wavekv or in the bound's own namespace |
///
/// Zones come in as `zone::estimation`, written by all threads and seen by all; what is written into them is seen once the
/// call has returned. `memory` is the plan's alone while it lasts. What a kernel asks a bound besides (`scaled_error`, `meets`, `accepts`)
/// must be constexpr, so that nvcc lets a kernel call it.

namespace wavekv::device {

/// @brief Shared memory of a plan.
struct plan_memory {
  static constexpr unsigned n_bins = 256;
  static constexpr unsigned n_heads = 8;  ///< whose histograms are made at once
  static constexpr unsigned n_sums = 14;  ///< of a query head that are made at once, by turns

  unsigned* histogram = nullptr;  ///< [n_heads, n_bins]
  unsigned* found = nullptr;      ///< [n_heads, 2]
  unsigned* of_warps = nullptr;   ///< [n_warps]
  float* sums = nullptr;          ///< [n_sums, n_warps, group_size]

  /// @brief Takes its parts from an arena.
  WAVEKV_HOST_DEVICE static plan_memory take(shared_arena& arena, unsigned n_warps,
                                             unsigned group_size) {
    plan_memory memory;
    memory.histogram = arena.take<unsigned>(n_heads * n_bins);
    memory.found = arena.take<unsigned>(n_heads * 2);
    memory.of_warps = arena.take<unsigned>(n_warps);
    memory.sums = arena.take<float>(std::size_t{group_size} * n_sums * n_warps);
    return memory;
  }
};

/// @brief The nodes of one level that await a verdict, for one query group. Nodes stand in columns; a column of size 0 is
/// empty, and its zone means nothing.
struct frontier_view {
  unsigned level = 0;            ///< 0: clusters
  unsigned n_columns = 0;        ///< columns, the empty ones included
  unsigned n_nodes = 0;          ///< nodes
  unsigned group_size = 1;       ///< query heads judged together
  unsigned n_clusters = 0;       ///< clusters in the whole index of this head
  unsigned n_tokens = 0;         ///< tokens in the whole index of this head
  unsigned n_steady_tokens = 0;  ///< tokens of the steady zone
  unsigned stride = 0;           ///< floats from one head's numbers to the next's

  const float* sizes = nullptr;            ///< [n_columns]
  const float* shares = nullptr;           ///< [group_size, stride] see frontier
  const float* errors = nullptr;           ///< [group_size, stride]
  const float* nearnesses = nullptr;       ///< [group_size, stride]
  const float* ranked_shares = nullptr;    ///< [n_columns]
  const float* ranked_errors = nullptr;    ///< [n_columns]
  const float* settled = nullptr;          ///< [group_size] squared errors that coarser levels left
  const float* log_normalizers = nullptr;  ///< [group_size] see frontier

  /// @brief Whether there is a node in a column.
  [[nodiscard]] WAVEKV_DEVICE bool is_node(unsigned column) const { return sizes[column] > 0.0F; }
};

/// @brief Whether a bound plans on the device.
template <class Bound, class Block>
concept plans_on_device =
    requires(Block& b, const Bound& bound, const frontier_view& nodes, zone* zones,
             const plan_memory& memory) { plan_on_device(b, bound, nodes, zones, memory); };

}  // namespace wavekv::device
