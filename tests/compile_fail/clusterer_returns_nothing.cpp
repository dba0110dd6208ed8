// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_index: Clusterer must model wavekv::clusterer .*std::size_t.*see <wavekv/index/concepts.hpp>
#include <algorithm>
#include <cstdint>
#include <span>

#include <wavekv/index/wave_index.hpp>

struct one_heap {
#ifdef WAVEKV_COMPILE_PASS
  using answer = std::size_t;
#else
  using answer = void;
#endif
  answer cluster(const wavekv::cluster_request& /*request*/, std::span<std::uint32_t> assignment,
                 wavekv::clustering_scratch& /*scratch*/) const {
    std::ranges::fill(assignment, 0U);
    return answer(1);
  }
  friend bool operator==(one_heap, one_heap) = default;
};

wavekv::wave_index<>::with_clusterer<one_heap> chosen;
