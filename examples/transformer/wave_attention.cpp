// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "wave_attention.hpp"

namespace transformer {

template class wave_attention<wavekv::kv_cache<>>;
template class error_probe<wavekv::kv_cache<>>;

template class wave_attention<tiered_cache>;
template class error_probe<tiered_cache>;

}  // namespace transformer
