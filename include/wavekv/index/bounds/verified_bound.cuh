// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>

#include <wavekv/cuda/block.hpp>
#include <wavekv/index/bounds/error_bound.cuh>
#include <wavekv/index/bounds/verified_bound.hpp>
#include <wavekv/index/frontier.cuh>

/// @file verified_bound.cuh
/// @brief verified_bound on the device; error_sampler.cuh has the check.

namespace wavekv::device {

/// @brief verified_bound::plan on the device.
template <class Block, class Ranking>
WAVEKV_DEVICE void plan_on_device(Block& b, const verified_bound<Ranking>& bound,
                                  const frontier_view& nodes, zone* zones,
                                  const plan_memory& memory) {
  plan_on_device(b, bound.rule, nodes, zones, memory);
  // What a column's thread does to its zone it does in order: there is no meeting between.
  const float log_share = std::log(bound.hidden_share());
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

}  // namespace wavekv::device
