// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: (no matching (member )?function|cannot convert|could not convert|no viable conversion)
#include <wavekv/cache/kv_cache.hpp>
#include <wavekv/cuda/device_view.hpp>

#ifdef WAVEKV_COMPILE_PASS
using view = wavekv::tensor_view<const float, 3>;
#else
using view = wavekv::device_view<const float, 3>;
#endif

void append(wavekv::kv_cache<>& to, wavekv::sequence_id sequence, view keys, view values) {
  to.append(sequence, 0, keys, values);
}
