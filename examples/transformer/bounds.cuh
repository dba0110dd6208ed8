// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/core/host_device.hpp>
#include <wavekv/index/frontier.cuh>

#include "bounds.hpp"

namespace transformer {

/// @brief window_only::plan on the device: all that a bound of one's own needs to be there.
template <class Block>
WAVEKV_DEVICE void plan_on_device(Block& b, const window_only& /*bound*/,
                                  const wavekv::device::frontier_view& nodes, wavekv::zone* zones,
                                  const wavekv::device::plan_memory& /*memory*/) {
  for (unsigned i = b.thread(); i < nodes.n_columns; i += b.n_threads()) {
    zones[i] = wavekv::zone::dropped;
  }
}

}  // namespace transformer
