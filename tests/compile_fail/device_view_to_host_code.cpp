// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: (could not convert|no viable conversion|cannot convert|no matching function)
#include <wavekv/core/tensor_view.hpp>

struct device_space {};

float first_of(wavekv::tensor_view<const float, 3> host);

#ifdef WAVEKV_COMPILE_PASS
using space = wavekv::host_space;
#else
using space = device_space;
#endif

float hand_over(wavekv::tensor_view<float, 3, space> view) { return first_of(view); }
