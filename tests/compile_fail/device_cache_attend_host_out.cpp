// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: (no matching (member )?function|cannot convert|could not convert|no viable conversion)
#include <wavekv/cache/kv_cache.cuh>

#include "cuda/emulated_runtime.hpp"

using cache = wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::wave_buffer<>,
                               wavekv::basic_cuda<wavekv::testing::emulated_runtime>>;

#ifdef WAVEKV_COMPILE_PASS
using view = wavekv::device_view<float, 3>;
#else
using view = wavekv::tensor_view<float, 3>;
#endif

void attend(cache& in, wavekv::sequence_id sequence, wavekv::device_view<const float, 3> queries,
            view out) {
  in.attend(sequence, 0, queries, out, wavekv::exact{});
}
