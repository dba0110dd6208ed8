// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_index: Bound must model wavekv::estimation_bound .*const.*see <wavekv/index/concepts.hpp>
#include <span>

#include <wavekv/index/wave_index.hpp>

#ifdef WAVEKV_COMPILE_PASS
#define CONST const
#else
#define CONST
#endif

struct estimate_all {
  void plan(const wavekv::frontier& /*nodes*/, std::span<wavekv::zone> /*zones*/) CONST {}
};

wavekv::wave_index<>::with_bound<estimate_all> chosen;
