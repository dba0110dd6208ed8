// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: tokens_per_cluster: at most three levels; see <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>

#ifdef WAVEKV_COMPILE_PASS
template struct wavekv::tokens_per_cluster<16, 128, 1024>;
#else
template struct wavekv::tokens_per_cluster<16, 128, 1024, 8192>;
#endif
