// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: kv_cache: Index must be a wavekv::wave_index .*see <wavekv/index/wave_index.hpp>
#include <wavekv/cache/kv_cache.hpp>

#ifdef WAVEKV_COMPILE_PASS
using cache = wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::wave_buffer<>>;
#else
using cache = wavekv::kv_cache<wavekv::bf16, wavekv::wave_buffer<>, wavekv::wave_index<>>;
#endif

std::size_t length(cache& from) { return from.length(from.create()); }
