// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_index: Summary must be wavekv::mean_summary or model wavekv::cluster_summary .*bytes read.*see <wavekv/index/concepts.hpp>
#include <cstddef>

#include <wavekv/index/wave_index.hpp>

struct first_lengths {
  struct kept {};
#ifdef WAVEKV_COMPILE_PASS
  using answer = std::size_t;
#else
  using answer = void;
#endif
  [[nodiscard]] kept keep(const wavekv::cluster_rows& /*clusters*/) const { return {}; }
  answer score(const kept& /*of*/, const wavekv::query_rows& /*queries*/, float* /*scores*/,
               std::size_t /*stride*/) const {
    return answer(0);
  }
};

wavekv::wave_index<>::with_cluster_count<wavekv::tokens_per_cluster<16>>::with_summary<
    first_lengths>
    chosen;
