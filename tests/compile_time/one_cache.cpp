// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <wavekv/wavekv.hpp>

// Every member that is no template, then the three verbs of a transformer's loop.
template class wavekv::kv_cache<>;

void one_step(wavekv::kv_cache<>& cache, wavekv::sequence_id sequence,
              wavekv::tensor_view<const float, 3> queries, wavekv::tensor_view<const float, 3> keys,
              wavekv::tensor_view<const float, 3> values, wavekv::tensor_view<float, 3> out);

void one_step(wavekv::kv_cache<>& cache, wavekv::sequence_id sequence,
              wavekv::tensor_view<const float, 3> queries, wavekv::tensor_view<const float, 3> keys,
              wavekv::tensor_view<const float, 3> values, wavekv::tensor_view<float, 3> out) {
  cache.prefill(sequence, 0, queries, keys, values, out);
  cache.append(sequence, 0, keys, values);
  cache.attend(sequence, 0, queries, out);
}
