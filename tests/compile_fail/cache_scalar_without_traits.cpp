// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: kv_cache: Scalar must model wavekv::scalar .*scalar_traits.*see <wavekv/core/scalar.hpp>
#include <wavekv/cache/kv_cache.hpp>

#ifdef WAVEKV_COMPILE_PASS
using stored = wavekv::f16;
#else
using stored = double;
#endif

template class wavekv::kv_cache<stored>;
