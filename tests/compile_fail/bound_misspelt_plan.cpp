// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_index: Bound must model wavekv::estimation_bound .*plan.*see <wavekv/index/concepts.hpp>
#include <algorithm>
#include <span>

#include <wavekv/index/wave_index.hpp>

struct read_all {
#ifdef WAVEKV_COMPILE_PASS
  void plan(const wavekv::frontier& /*nodes*/, std::span<wavekv::zone> zones) const {
#else
  void planned(const wavekv::frontier& /*nodes*/, std::span<wavekv::zone> zones) const {
#endif
      std::ranges::fill(zones, wavekv::zone::retrieval);
}
}
;

wavekv::wave_index<>::with_bound<read_all> chosen;
