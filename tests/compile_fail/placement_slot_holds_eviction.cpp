// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_buffer: Placement must model wavekv::placement_policy .*see <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/wave_buffer.hpp>

#ifdef WAVEKV_COMPILE_PASS
template struct wavekv::wave_buffer<wavekv::placement::resident>;
#else
template struct wavekv::wave_buffer<wavekv::eviction::lru>;
#endif
