// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_index: SegmentSize must model wavekv::segment_sizes .*prefill and decode.*see <wavekv/index/concepts.hpp>
#include <cstddef>

#include <wavekv/index/wave_index.hpp>

struct short_segments {
#ifdef WAVEKV_COMPILE_PASS
  static constexpr std::size_t prefill = 2048;
#else
  static constexpr std::size_t prefil = 2048;
#endif
  static constexpr std::size_t decode = 256;
};

wavekv::wave_index<>::with_segment_size<short_segments> composed;
