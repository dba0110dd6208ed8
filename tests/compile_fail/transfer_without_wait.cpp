// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_buffer: Transfer must model wavekv::transfer_engine .*wait.*see <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/wave_buffer.hpp>

struct fire_and_forget {
  template <class Fetch>
  void start(Fetch fetch) {
    fetch();
  }
#ifdef WAVEKV_COMPILE_PASS
  void wait() {}
#endif
};

template struct wavekv::wave_buffer<wavekv::placement::resident, wavekv::eviction::lru,
                                    fire_and_forget>;
