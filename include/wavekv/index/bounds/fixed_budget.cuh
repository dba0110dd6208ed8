// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <type_traits>

#include <wavekv/cuda/block.hpp>
#include <wavekv/index/bounds/fixed_budget.hpp>
#include <wavekv/index/detail/select.cuh>
#include <wavekv/index/frontier.cuh>

/// @file fixed_budget.cuh
/// @brief basic_fixed_budget on the device.

namespace wavekv::device {

namespace detail {

/// A zone that is filled node by node, as long as there is room in it.
template <class Block>
class zone_filler {
 public:
  WAVEKV_DEVICE zone_filler(const frontier_view& nodes, zone* zones, const plan_memory& memory)
      : nodes_(nodes), zones_(zones), memory_(memory) {}

  /// *block*: puts the best of the nodes still dropped into a zone, until n in all are not dropped.
  template <class Ranking>
  WAVEKV_DEVICE void fill(Block& b, unsigned n, zone into) {
    unsigned n_kept = 0;
    for (unsigned i = b.thread(); i < nodes_.n_columns; i += b.n_threads()) {
      n_kept += nodes_.is_node(i) && !is_left(i) ? 1U : 0U;
    }
    n_kept = block_count(b, n_kept, memory_.of_warps);
    into_ = into;
    n_left_ = n > n_kept ? n - n_kept : 0;
    if constexpr (std::is_same_v<Ranking, rank_by_turns>) {
      // Heads often name the same nodes: turns go on until the budget is used.
      unsigned n_each = 0;
      while (n_left_ != 0) {
        const unsigned part = (n_left_ + nodes_.group_size - 1) / nodes_.group_size;
        n_each += part > n_each / 16 ? part : n_each / 16;
        for_nearest_of_heads(b, nodes_, n_each, memory_, [&](unsigned first, unsigned n_heads) {
          take_turns(b, first, n_heads);
        });
      }
    } else {
      take_largest_shares(b);
    }
  }

 private:
  // Whether a column's node is in no zone yet.
  WAVEKV_DEVICE bool is_left(unsigned i) const {
    return nodes_.is_node(i) && zones_[i] == zone::dropped;
  }

  // What query heads [first, first + n) have selected: all of it at once if there is room, or head after head.
  WAVEKV_DEVICE void take_turns(Block& b, unsigned first, unsigned n) {
    const auto named = [&](unsigned row, unsigned i) {
      return selected(memory_, row)
          .holds(nodes_.nearnesses[std::size_t{first + row} * nodes_.stride + i], i);
    };
    const auto by_any = [&](unsigned i) {
      bool any = false;
      for (unsigned row = 0; row < n && !any; ++row) {
        any = named(row, i);
      }
      return any;
    };
    unsigned n_new = 0;
    for (unsigned i = b.thread(); i < nodes_.n_columns; i += b.n_threads()) {
      n_new += is_left(i) && by_any(i) ? 1U : 0U;
    }
    n_new = block_count(b, n_new, memory_.of_warps);
    if (n_new <= n_left_) {
      for (unsigned i = b.thread(); i < nodes_.n_columns; i += b.n_threads()) {
        if (is_left(i) && by_any(i)) {
          zones_[i] = into_;
        }
      }
      n_left_ -= n_new;
      return;
    }
    for (unsigned row = 0; row < n; ++row) {
      take_first(b, [&](unsigned i) { return named(row, i); });
    }
  }

  // In the order of columns, as far as there is room.
  template <class Wanted>
  WAVEKV_DEVICE void take_first(Block& b, const Wanted& wanted) {
    for (unsigned first = 0; n_left_ != 0 && first < nodes_.n_columns; first += b.n_threads()) {
      const unsigned i = first + b.thread();
      const bool takes = i < nodes_.n_columns && is_left(i) && wanted(i);
      unsigned total = 0;
      const unsigned before = block_scan(b, takes ? 1U : 0U, memory_.of_warps, total);
      if (takes && before < n_left_) {
        zones_[i] = into_;
      }
      n_left_ -= total < n_left_ ? total : n_left_;
    }
  }

  // The largest shares per token.
  WAVEKV_DEVICE void take_largest_shares(Block& b) {
    const auto share = [&](unsigned /*row*/, unsigned i) {
      return nodes_.ranked_shares[i] / nodes_.sizes[i];
    };
    const auto one = [&](unsigned i) { return is_left(i) ? 1U : 0U; };
    select_largest(b, 1, nodes_.n_columns, share, one, n_left_, memory_);
    const selection chosen = selected(memory_, 0);
    for (unsigned i = b.thread(); i < nodes_.n_columns; i += b.n_threads()) {
      if (is_left(i) && chosen.holds(share(0, i), i)) {
        zones_[i] = into_;
      }
    }
  }

  const frontier_view& nodes_;
  zone* zones_;
  const plan_memory& memory_;
  zone into_ = zone::dropped;
  unsigned n_left_ = 0;  // how many it has room for
};

}  // namespace detail

/// @brief basic_fixed_budget::plan on the device.
template <class Block, class Ranking>
WAVEKV_DEVICE void plan_on_device(Block& b, const basic_fixed_budget<Ranking>& bound,
                                  const frontier_view& nodes, zone* zones,
                                  const plan_memory& memory) {
  const auto n_of = [&](float fraction, unsigned n) {
    const auto part = static_cast<unsigned>(std::ceil(fraction * static_cast<float>(n)));
    return part < nodes.n_nodes ? part : nodes.n_nodes;
  };
  for (unsigned i = b.thread(); i < nodes.n_columns; i += b.n_threads()) {
    zones[i] = zone::dropped;
  }
  detail::zone_filler<Block> filler(nodes, zones, memory);
  const float both = bound.retrieve + bound.estimate;
  if (nodes.level > 0) {
    filler.template fill<Ranking>(b, n_of(both, nodes.n_nodes), zone::retrieval);
    return;
  }
  unsigned least = 0;
  if (std::is_same_v<Ranking, rank_by_turns> && bound.retrieve > 0.0F) {
    const std::size_t n = bound.least_per_head * nodes.group_size;
    least = n < nodes.n_nodes ? static_cast<unsigned>(n) : nodes.n_nodes;
  }
  const unsigned n_read = n_of(bound.retrieve, nodes.n_clusters);
  const unsigned n_in_all = n_of(both, nodes.n_clusters);
  filler.template fill<Ranking>(b, least > n_read ? least : n_read, zone::retrieval);
  filler.template fill<Ranking>(b, least > n_in_all ? least : n_in_all, zone::estimation);
}

}  // namespace wavekv::device
