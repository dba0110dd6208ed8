// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: spherical_kmeans: Iterations must be at least 1
#include <wavekv/index/spherical_kmeans.hpp>

#ifdef WAVEKV_COMPILE_PASS
template struct wavekv::spherical_kmeans<1>;
#else
template struct wavekv::spherical_kmeans<0>;
#endif
