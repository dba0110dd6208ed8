// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: attend: a bound that checks its answers needs an index of mean_summary
#include <wavekv/baselines/block_mean.hpp>
#include <wavekv/cache/kv_cache.hpp>
#include <wavekv/index/bounds/verified_bound.hpp>

using cache = wavekv::kv_cache<wavekv::bf16, wavekv::baselines::block_mean_index>;
#ifdef WAVEKV_COMPILE_PASS
using bound = wavekv::baselines::top_k;
#else
using bound = wavekv::verified_bound<>;
#endif

void step(cache& of, wavekv::sequence_id sequence, wavekv::tensor_view<const float, 3> queries,
          wavekv::tensor_view<float, 3> out) {
  of.attend(sequence, 0, queries, out, wavekv::tensor_view<float, 2>{}, bound{});
}
