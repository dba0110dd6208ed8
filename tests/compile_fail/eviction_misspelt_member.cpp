// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: wave_buffer: Eviction must model wavekv::eviction_policy .*victim.*see <wavekv/buffer/concepts.hpp>
#include <cstddef>

#include <wavekv/buffer/wave_buffer.hpp>

struct always_first {
  explicit always_first(std::size_t /*n_slots*/) {}
  void insert(std::size_t /*slot*/) noexcept {}
  void touch(std::size_t /*slot*/) noexcept {}
  void erase(std::size_t /*slot*/) noexcept {}
#ifdef WAVEKV_COMPILE_PASS
  std::size_t victim() noexcept { return 0; }
#else
  std::size_t victm() noexcept { return 0; }
#endif
};

template struct wavekv::wave_buffer<wavekv::placement::resident, always_first>;
