// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: (no matching function for call|invalid reference to function).*flush
#include <wavekv/buffer/tiered.hpp>
#include <wavekv/cache/kv_cache.hpp>

#ifdef WAVEKV_COMPILE_PASS
using placement = wavekv::placement::tiered;
#else
using placement = wavekv::placement::resident;
#endif

using cache =
    wavekv::kv_cache<float, wavekv::wave_index<>, wavekv::wave_buffer<>::with_placement<placement>>;

void write_all(cache& of) { of.flush(); }
