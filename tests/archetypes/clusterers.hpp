// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <wavekv/index/concepts.hpp>

/// @file clusterers.hpp
/// @brief Clusterers that look at no key: the smallest uses of the concept.

namespace wavekv_test {

/// @brief Consecutive tokens share a cluster, as in a paged index.
struct runs_of_tokens {
  std::size_t cluster(const wavekv::cluster_request& request, std::span<std::uint32_t> ids,
                      wavekv::clustering_scratch& /*scratch*/) const {
    const std::size_t n = std::min(request.n_clusters, request.n_tokens);
    for (std::size_t token = 0; token < request.n_tokens; ++token) {
      ids[token] = static_cast<std::uint32_t>(token * n / request.n_tokens);
    }
    return n;
  }
};

/// @brief All tokens in one cluster, whatever was asked for.
struct one_cluster {
  std::size_t cluster(const wavekv::cluster_request& /*request*/, std::span<std::uint32_t> ids,
                      wavekv::clustering_scratch& /*scratch*/) const {
    std::ranges::fill(ids, 0U);
    return 1;
  }
};

}  // namespace wavekv_test
