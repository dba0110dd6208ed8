// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/cuda/block.hpp>
#include <wavekv/index/frontier.cuh>

#include "archetypes/bounds.hpp"

/// @file bounds.cuh
/// @brief The bounds of bounds.hpp on a device, as a user might write them.

namespace wavekv_test {

/// @brief A zone for each column, by its number.
template <class Block, class Choose>
WAVEKV_DEVICE void set_zones(Block& b, const wavekv::device::frontier_view& nodes,
                             wavekv::zone* zones, Choose choose) {
  for (unsigned i = b.thread(); i < nodes.n_columns; i += b.n_threads()) {
    zones[i] = choose(i);
  }
}

template <class Block>
WAVEKV_DEVICE void plan_on_device(Block& /*b*/, const estimate_all& /*bound*/,
                                  const wavekv::device::frontier_view& /*nodes*/,
                                  wavekv::zone* /*zones*/,
                                  const wavekv::device::plan_memory& /*memory*/) {}

template <class Block>
WAVEKV_DEVICE void plan_on_device(Block& b, const open_all& /*bound*/,
                                  const wavekv::device::frontier_view& nodes, wavekv::zone* zones,
                                  const wavekv::device::plan_memory& /*memory*/) {
  set_zones(b, nodes, zones, [](unsigned /*i*/) { return wavekv::zone::retrieval; });
}

template <class Block>
WAVEKV_DEVICE void plan_on_device(Block& b, const drop_all& /*bound*/,
                                  const wavekv::device::frontier_view& nodes, wavekv::zone* zones,
                                  const wavekv::device::plan_memory& /*memory*/) {
  set_zones(b, nodes, zones, [](unsigned /*i*/) { return wavekv::zone::dropped; });
}

/// Turns go by columns: the empty ones count, too.
template <class Block, bool Drops>
WAVEKV_DEVICE void plan_on_device(Block& b, const alternate<Drops>& bound,
                                  const wavekv::device::frontier_view& nodes, wavekv::zone* zones,
                                  const wavekv::device::plan_memory& /*memory*/) {
  set_zones(b, nodes, zones, [&](unsigned i) {
    const auto turn = (i + static_cast<unsigned>(bound.offset) + nodes.level) % (Drops ? 3U : 2U);
    return turn == 0   ? wavekv::zone::retrieval
           : turn == 1 ? wavekv::zone::estimation
                       : wavekv::zone::dropped;
  });
}

}  // namespace wavekv_test
