// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: kv_cache: save and load need an index of mean_summary
#include <wavekv/baselines/block_mean.hpp>
#include <wavekv/cache/kv_cache.hpp>

using cache = wavekv::kv_cache<wavekv::bf16, wavekv::baselines::block_mean_index>;

void keep(cache& of, wavekv::sequence_id sequence) {
#ifdef WAVEKV_COMPILE_PASS
  of.release(sequence);
#else
  of.save(sequence, "sequence.wkv");
#endif
}
