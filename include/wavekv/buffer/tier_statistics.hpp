// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>

namespace wavekv {

/// @brief What a cache's two tiers hold and did, of all sequences together.
struct tier_statistics {
  std::uint64_t cache_bytes = 0;    ///< memory of the block cache, used or not
  std::uint64_t waiting_bytes = 0;  ///< sealed rows in memory that wait to be written
  std::uint64_t written_bytes = 0;  ///< rows written to the slow tier so far
  std::uint64_t write_failures =
      0;  ///< writes of a segment's rows that failed, and were or will be tried again
  std::uint64_t evictions = 0;  ///< blocks that left the block cache for others
  std::uint64_t refusals = 0;   ///< blocks not admitted, since all that could have left was in use
};

}  // namespace wavekv
