// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: kv_cache: Backend must be wavekv::cpu<Executor>; see <wavekv/cpu/backend.hpp>
#include <wavekv/cache/kv_cache.hpp>

#ifdef WAVEKV_COMPILE_PASS
using backend = wavekv::cpu<wavekv::serial_executor>;
#else
using backend = wavekv::serial_executor;
#endif

using cache = wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::wave_buffer<>, backend>;

std::size_t length(cache& from) { return from.length(from.create()); }
