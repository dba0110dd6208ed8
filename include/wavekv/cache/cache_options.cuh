// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/cache/cache_options.hpp>

/// @file cache_options.cuh
/// @brief Run-time choices of a cache on a device. The twin of cache_options.hpp.

namespace wavekv {

/// @brief Run-time choices of a cache on a device; those of cache_options, and the device.
template <class Bound, class Runtime>
struct device_cache_options {
  std::size_t sink_tokens = 4;        ///< first tokens of a sequence, always read exactly
  std::size_t window_tokens = 64;     ///< newest tokens, always read exactly
  Bound bound{};                      ///< used by attend unless the call names another
  Runtime runtime{};                  ///< the device, and where its memory comes from
  std::uint64_t seed = 0;             ///< of everything that is sampled
  std::size_t max_sequences = 65536;  ///< sequences alive at once, at least 1
  std::size_t max_tokens = std::size_t{1}
                           << 31U;  ///< tokens a sequence may hold per layer, at least 1
  /// @brief Blocks that share a search, at most; 0: as many as fill the device together with the batch's other searches.
  /// The answer depends on it by the rounding of sums.
  unsigned n_splits = 0;

  /// @brief Checks every field.  @throw config_error
  void validate() const {
    cache_options<Bound, int> same;
    same.sink_tokens = sink_tokens;
    same.window_tokens = window_tokens;
    same.bound = bound;
    same.max_sequences = max_sequences;
    same.max_tokens = max_tokens;
    same.validate();
  }
};

}  // namespace wavekv
