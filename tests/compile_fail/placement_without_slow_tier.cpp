// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_buffer: Placement must model wavekv::placement_policy .*unless always_fast.*see <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/wave_buffer.hpp>

// Who says that blocks may be missing must say how they are fetched.
struct sometimes_slow : wavekv::placement::resident {
  template <wavekv::scalar T, wavekv::eviction_policy Eviction>
  struct tiers : wavekv::placement::resident::tiers<T, Eviction> {
    using wavekv::placement::resident::tiers<T, Eviction>::tiers;
#ifndef WAVEKV_COMPILE_PASS
    static constexpr bool always_fast = false;
#endif
  };
};

template struct wavekv::wave_buffer<sometimes_slow>;
