// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <wavekv/index/concepts.hpp>

/// @file clusterers.hpp
/// @brief A clusterer that looks at no key: the smallest use of the concept.

namespace wavekv_test {

/// @brief All tokens in one cluster, whatever was asked for.
struct one_cluster {
  std::size_t cluster(const wavekv::cluster_request& /*request*/, std::span<std::uint32_t> ids,
                      wavekv::clustering_scratch& /*scratch*/) const {
    std::ranges::fill(ids, 0U);
    return 1;
  }
};

}  // namespace wavekv_test
