// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: kv_cache: an index whose Summary scores clusters has one level .with_cluster_count
#include <wavekv/baselines/block_mean.hpp>
#include <wavekv/cache/kv_cache.hpp>

using two_levels = wavekv::wave_index<>::with_summary<wavekv::baselines::block_mean>;
#ifdef WAVEKV_COMPILE_PASS
using chosen = two_levels::with_cluster_count<wavekv::tokens_per_cluster<128>>;
#else
using chosen = two_levels;
#endif
static_assert(sizeof(wavekv::kv_cache<wavekv::bf16, chosen>) != 0);
