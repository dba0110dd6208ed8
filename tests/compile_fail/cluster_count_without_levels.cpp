// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_index: ClusterCount must model wavekv::cluster_count .*n_levels 1 to 3.*see <wavekv/index/concepts.hpp>
#include <cstddef>

#include <wavekv/index/wave_index.hpp>

struct pairs {
#ifdef WAVEKV_COMPILE_PASS
  static constexpr std::size_t n_levels = 1;
#endif
  static constexpr std::size_t tokens_at(std::size_t /*level*/) { return 2; }
};

wavekv::wave_index<>::with_cluster_count<pairs> chosen;
