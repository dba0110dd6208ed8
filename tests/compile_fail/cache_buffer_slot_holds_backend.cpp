// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: kv_cache: Buffer must be a wavekv::wave_buffer .*see <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/cache/kv_cache.hpp>

#ifdef WAVEKV_COMPILE_PASS
using cache =
    wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::wave_buffer<>, wavekv::cpu<>>;
#else
using cache = wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::cpu<>>;
#endif

std::size_t length(cache& from) { return from.length(from.create()); }
