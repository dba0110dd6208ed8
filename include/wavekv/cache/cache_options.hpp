// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/buffer/placement.hpp>
#include <wavekv/core/errors.hpp>
#include <wavekv/index/concepts.hpp>

namespace wavekv {

/// @brief Run-time choices of one cache.
/// @tparam Bound      the cache's default estimation bound
/// @tparam Executor   who runs the tasks
/// @tparam Placement  its options are the buffer's
template <class Bound, class Executor, class Placement = placement::resident>
struct cache_options {
  std::size_t sink_tokens = 4;  ///< first tokens of a sequence, always read exactly
  std::size_t window_tokens =
      64;               ///< newest tokens, always read exactly; also the most a query may trail
  Bound bound{};        ///< used by attend unless the call names another
  Executor executor{};  ///< runs the tasks
  typename Placement::options_type placement{};  ///< budgets of the tiers, where there are two
  std::uint64_t seed = 0;                        ///< of everything that is sampled
  std::size_t max_sequences = 65536;             ///< sequences alive at once, at least 1
  std::size_t max_tokens = std::size_t{1}
                           << 31U;  ///< tokens a sequence may hold per layer, at least 1

  /// @brief Checks every field.  @throw config_error
  void validate() const {
    if (window_tokens < 1 || window_tokens > (std::size_t{1} << 20U)) {
      throw config_error(detail::message("cache_options: window_tokens is ", window_tokens,
                                         "; allowed: 1 to 1048576"));
    }
    if (sink_tokens > (std::size_t{1} << 20U)) {
      throw config_error(detail::message("cache_options: sink_tokens is ", sink_tokens,
                                         "; allowed: 0 to 1048576"));
    }
    if (max_sequences < 1 || max_sequences > UINT32_MAX - 1) {
      throw config_error(detail::message("cache_options: max_sequences is ", max_sequences,
                                         "; allowed: 1 to ", UINT32_MAX - 1));
    }
    if (max_tokens < 1 || max_tokens > UINT32_MAX) {
      throw config_error(detail::message("cache_options: max_tokens is ", max_tokens,
                                         "; allowed: 1 to ", UINT32_MAX));
    }
    detail::validate_bound(bound);
    placement.validate();
  }
};

}  // namespace wavekv
