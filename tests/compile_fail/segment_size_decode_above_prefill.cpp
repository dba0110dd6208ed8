// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_index: SegmentSize must model wavekv::segment_sizes .*decode <= prefill.*see <wavekv/index/concepts.hpp>
#include <cstddef>

#include <wavekv/index/wave_index.hpp>

struct backwards {
  static constexpr std::size_t prefill = 1024;
#ifdef WAVEKV_COMPILE_PASS
  static constexpr std::size_t decode = 512;
#else
  static constexpr std::size_t decode = 8192;
#endif
};

wavekv::wave_index<>::with_segment_size<backwards> chosen;
