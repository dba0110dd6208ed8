// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: kv_cache: an optional argument is a device_view<float, 2>, a bound, a workspace that is not const, or the cache's stream_type
#include <wavekv/cache/kv_cache.cuh>

#include "cuda/emulated_runtime.hpp"

using cache = wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::wave_buffer<>,
                               wavekv::basic_cuda<wavekv::testing::emulated_runtime>>;

#ifdef WAVEKV_COMPILE_PASS
using view = wavekv::device_view<float, 2>;
#else
using view = wavekv::tensor_view<float, 2>;
#endif

void attend(cache& in, wavekv::sequence_id sequence, wavekv::device_view<const float, 3> queries,
            wavekv::device_view<float, 3> out, view lse) {
  in.attend(sequence, 0, queries, out, wavekv::exact{}, lse);
}
