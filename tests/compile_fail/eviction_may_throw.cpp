// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_buffer: Eviction must model wavekv::eviction_policy .*all noexcept.*see <wavekv/buffer/concepts.hpp>
#include <cstddef>

#include <wavekv/buffer/wave_buffer.hpp>

#ifdef WAVEKV_COMPILE_PASS
#define PROMISE noexcept
#else
#define PROMISE
#endif

struct always_first {
  explicit always_first(std::size_t /*n_slots*/) {}
  void insert(std::size_t /*slot*/) noexcept {}
  void touch(std::size_t /*slot*/) PROMISE {}
  void erase(std::size_t /*slot*/) noexcept {}
  std::size_t victim() noexcept { return 0; }
};

using buffer = wavekv::wave_buffer<>::with_eviction<always_first>;
template struct wavekv::wave_buffer<buffer::placement_type, buffer::eviction_type,
                                    buffer::transfer_type>;
