// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <wavekv/index/cluster_request.hpp>

namespace wavekv {

/// @brief Pages: tokens that follow each other share a cluster, whatever their keys; models wavekv::clusterer.
///
/// Sizes differ by at most one: a segment whose length is a multiple of the tokens per cluster has pages of exactly that.
/// Complexity: O(n_tokens). Allocates nothing.
struct consecutive {
  /// @brief Writes a page number per token and returns the number of pages.
  /// @param assignment  [n_tokens], written
  std::size_t cluster(const cluster_request& request, std::span<std::uint32_t> assignment,
                      clustering_scratch& /*scratch*/) const noexcept {
    const std::size_t n = std::min(request.n_clusters, request.n_tokens);
    for (std::size_t token = 0; token < request.n_tokens; ++token) {
      assignment[token] = static_cast<std::uint32_t>(token * n / request.n_tokens);
    }
    return n;
  }

  /// @brief Always equal: the type is the whole choice.
  friend bool operator==(const consecutive&, const consecutive&) = default;
};

}  // namespace wavekv
