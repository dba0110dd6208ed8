// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

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
  plan_on_device(b, bound.planning_rule(), nodes, zones, memory);
}

}  // namespace wavekv::device
