// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_index: Clusterer must model wavekv::clusterer .*see <wavekv/index/concepts.hpp>
#include <wavekv/index/wave_index.hpp>

#ifdef WAVEKV_COMPILE_PASS
wavekv::wave_index<>::with_clusterer<wavekv::spherical_kmeans<5>> chosen;
#else
wavekv::wave_index<>::with_clusterer<wavekv::exact> chosen;
#endif
