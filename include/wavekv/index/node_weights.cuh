// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>

#include <wavekv/attention/node_formulas.hpp>
#include <wavekv/attention/row_tile.cuh>
#include <wavekv/cuda/block.hpp>
#include <wavekv/index/search_space.cuh>
#include <wavekv/index/zone_planner.cuh>

/// @file node_weights.cuh
/// @brief What the estimated nodes of a search are drawn by, and which of them a number between 0 and 1 names.

namespace wavekv::device {

/// @brief The weights of a search's nodes, which stand in the columns of all levels behind each other, the finest level's
/// first: the order in which the CPU sums them up. Place i is the i-th of these columns.
///
/// Running sums are in double, each block's of its own part of the places, warp by warp: they differ from the CPU's, which are
/// summed one by one, by their last bits alone.
template <class T>
class node_weights {
 public:
  /// @brief Shared memory.
  struct scratch {
    float* log_normalizers;  ///< [group_size]
    double* ends;            ///< [n_splits] running sums of the blocks' weights
    double* of_warps;        ///< [n_warps]

    /// @brief Takes its parts from an arena.
    WAVEKV_HOST_DEVICE static scratch take(shared_arena& arena, const search_space<T>& space,
                                           unsigned n_warps) {
      scratch memory;
      memory.log_normalizers = arena.take<float>(space.shape.group_size);
      memory.ends = arena.take<double>(space.n_splits);
      memory.of_warps = arena.take<double>(n_warps);
      return memory;
    }
  };

  WAVEKV_DEVICE node_weights(const search_space<T>& space, const search_view<T>& search,
                             unsigned number, const scratch& memory)
      : space_(space), search_(search), number_(number), memory_(memory) {
    for (unsigned level = 0; level < space.shape.n_levels; ++level) {
      n_ += search.state->n_runs[level] * run_rows;
    }
  }

  /// @brief *block*: sums up this block's part. Expects: what is known of the answer is merged.
  template <class Block>
  WAVEKV_DEVICE void weigh(Block& b) const {
    for (unsigned g = b.thread(); g < space_.shape.group_size; g += b.n_threads()) {
      memory_.log_normalizers[g] =
          detail::log_sum_exp(search_.merged + g * state_floats(space_.shape.value_dim));
    }
    b.sync();
    const unsigned stretch = per_warp(b.n_warps());
    const unsigned first = (b.block_x() * b.n_warps() + b.warp()) * stretch;
    const unsigned end = first + stretch < n_ ? first + stretch : n_;
    double sum = 0.0;
    for (unsigned chunk = first; chunk < end; chunk += warp_size) {
      const unsigned i = chunk + b.lane();
      double running = i < end ? weight(i) : 0.0;
      for (unsigned step = 1; step < warp_size; step *= 2) {
        const double before = b.shuffle(running, b.lane() >= step ? b.lane() - step : b.lane());
        running += b.lane() >= step ? before : 0.0;
      }
      if (i < end) {
        search_.cumulative[i] = sum + running;
      }
      sum += b.shuffle(running, warp_size - 1);
    }
    if (b.lane() == 0) {
      memory_.of_warps[b.warp()] = sum;
    }
    b.sync();
    double before = 0.0;
    for (unsigned w = 0; w < b.warp(); ++w) {
      before += memory_.of_warps[w];
    }
    for (unsigned i = first + b.lane(); i < end; i += warp_size) {
      search_.cumulative[i] += before;
    }
    if (b.warp() == b.n_warps() - 1 && b.lane() == 0) {
      search_.part_totals[b.block_x()] = before + sum;
    }
  }

  /// @brief *block*: adds up the parts, once all blocks have weighed theirs.
  template <class Block>
  WAVEKV_DEVICE void sum_parts(Block& b) const {
    for (unsigned x = b.thread(); x < space_.n_splits; x += b.n_threads()) {
      memory_.ends[x] = search_.part_totals[x];
    }
    b.sync();
    if (b.thread() == 0) {
      for (unsigned x = 1; x < space_.n_splits; ++x) {
        memory_.ends[x] += memory_.ends[x - 1];
      }
    }
    b.sync();
  }

  /// @brief The sum of all weights, after sum_parts.
  [[nodiscard]] WAVEKV_DEVICE double total() const { return memory_.ends[space_.n_splits - 1]; }

  /// @brief The first place whose running sum lies above `at`, which is below the total; there must be one.
  [[nodiscard]] WAVEKV_DEVICE unsigned find(double at, unsigned n_warps) const {
    unsigned part = 0;
    while (part + 1 < space_.n_splits && !(memory_.ends[part] > at)) {
      ++part;
    }
    const double before = part == 0 ? 0.0 : memory_.ends[part - 1];
    const unsigned per_part = per_warp(n_warps) * n_warps;
    unsigned low = part * per_part;
    unsigned high = low + per_part < n_ ? low + per_part : n_;
    low = low < n_ ? low : n_ - 1;  // only where sums are no numbers
    while (low + 1 < high) {
      const unsigned middle = low + (high - low) / 2;
      (before + search_.cumulative[middle - 1] > at ? high : low) = middle;
    }
    return low;
  }

  /// @brief What the node in a place is drawn by: the group's share·√(e^σ² - 1), summed; 0 where nothing is estimated.
  [[nodiscard]] WAVEKV_DEVICE double weight(unsigned place) const {
    unsigned level = 0;
    const unsigned column = column_of(place, level);
    const frontier_columns<T> columns = of_level(level);
    const float size = columns.sizes[column];
    if (!(size > 0.0F) || columns.zones[column] != zone::estimation) {
      return 0.0;
    }
    const unsigned group = space_.shape.group_size;
    const float dispersion = columns.dispersions[column];
    double weight = 0.0;
    for (unsigned g = 0; g < group; ++g) {
      const float logit = columns.logits[std::size_t{g} * columns.n_columns + column];
      const float variance =
          expected_variance(search_.variances[level * group + g], dispersion, space_.shape.softcap);
      const float share = size * std::exp(logit - memory_.log_normalizers[g]);
      weight += static_cast<double>(share * std::sqrt(std::expm1(variance)));
    }
    return weight;
  }

  /// @brief The column of a place, and its level.
  [[nodiscard]] WAVEKV_DEVICE unsigned column_of(unsigned place, unsigned& level) const {
    for (level = 0; level + 1 < space_.shape.n_levels; ++level) {
      const unsigned n_here = search_.state->n_runs[level] * run_rows;
      if (place < n_here) {
        break;
      }
      place -= n_here;
    }
    return place;
  }

  /// @brief A level's columns.
  [[nodiscard]] WAVEKV_DEVICE frontier_columns<T> of_level(unsigned level) const {
    return frontier_columns<T>(space_, search_, number_, level);
  }

 private:
  // Places of each warp of each block, one stretch behind the other.
  [[nodiscard]] WAVEKV_DEVICE unsigned per_warp(unsigned n_warps) const {
    const unsigned n_chunks = (n_ + warp_size - 1) / warp_size;
    const unsigned n_all_warps = space_.n_splits * n_warps;
    return (n_chunks + n_all_warps - 1) / n_all_warps * warp_size;
  }

  const search_space<T>& space_;
  const search_view<T>& search_;
  unsigned number_;
  const scratch& memory_;
  unsigned n_ = 0;
};

}  // namespace wavekv::device
