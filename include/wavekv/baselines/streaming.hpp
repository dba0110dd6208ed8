// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>

#include <wavekv/attention/query_rows.hpp>
#include <wavekv/index/consecutive.hpp>
#include <wavekv/index/frontier.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/summary.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/wave_index.hpp>

/// @file streaming.hpp
/// @brief StreamingLLM: the first tokens and the newest ones, nothing between.

namespace wavekv::baselines {

/// @brief Keeps nothing and finds nothing; models cluster_summary.
struct no_summary {
  struct kept {
    std::size_t n_clusters = 0;
  };

  [[nodiscard]] kept keep(const cluster_rows& clusters) const noexcept {
    return {clusters.n_clusters()};
  }
  /// @return 0: nothing is read
  std::size_t score(const kept& of, const query_rows& queries, float* scores,
                    std::size_t stride) const noexcept {
    for (std::size_t g = 0; g < queries.n; ++g) {
      std::fill_n(scores + g * stride, of.n_clusters, -std::numeric_limits<float>::infinity());
    }
    return 0;
  }
};

/// @brief Drops all that lies between sink and window; models estimation_bound. Its budget is the cache's: sink_tokens and window_tokens,
/// 4 and 2,044 in the paper.
/// Unlike the paper's, positions stay what they were: keys come with their rotation.
/// Complexity: O(clusters), no row is read. Allocates: nothing.
/// Source: StreamingLLM, arXiv 2309.17453, section 3.2.
struct streaming {
  static constexpr bool drops = true;
  void plan(const frontier& /*nodes*/, std::span<zone> zones) const noexcept {
    std::ranges::fill(zones, zone::dropped);
  }
};

/// @brief An index that is never asked.
using streaming_index =
    wave_index<segment_size<>, tokens_per_cluster<128>, consecutive, streaming, no_summary>;

}  // namespace wavekv::baselines
