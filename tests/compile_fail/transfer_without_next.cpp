// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_buffer: Transfer must model wavekv::transfer_engine .*next.*failure.*see <wavekv/buffer/concepts.hpp>
#include <cstddef>
#include <exception>

#include <wavekv/buffer/wave_buffer.hpp>

struct fire_and_forget {
  void start(const wavekv::slow_read& read, std::size_t /*tag*/) { read(); }
#ifdef WAVEKV_COMPILE_PASS
  std::size_t next() { return 0; }
#endif
  std::exception_ptr failure() const noexcept { return nullptr; }
};

template struct wavekv::wave_buffer<wavekv::placement::resident, wavekv::eviction::lru,
                                    fire_and_forget>;
