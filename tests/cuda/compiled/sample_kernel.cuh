// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

#include <wavekv/cuda/block.hpp>

namespace wavekv::testing {

/// @brief A kernel whose result a test knows: to[i] = sum of the four numbers of the i-th sixteen bytes, by way of as much
/// shared memory as it is told to take. Says that it overlaps, so that launches with and without are compiled.
template <bool Overlaps>
struct sample_kernel {
  static constexpr unsigned n_threads = 128;
  static constexpr bool overlaps = Overlaps;

  const float* from;
  float* to;
  unsigned n;
  unsigned shared_words4;

  [[nodiscard]] std::size_t shared_bytes() const {
    device::shared_arena arena;
    arena.take<device::words4>(shared_words4);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    device::shared_arena arena(b.shared());
    auto* const staged = arena.template take<device::words4>(shared_words4);
    b.await_previous();
    const unsigned i = b.block_x() * b.n_threads() + b.thread();
    if (i < n) {
      staged[shared_words4 - 1 - b.thread()] = b.load16(from + 4 * std::size_t{i});
    }
    b.sync();
    if (i < n) {
      const auto* const numbers =
          reinterpret_cast<const float*>(&staged[shared_words4 - 1 - b.thread()]);
      to[i] = numbers[0] + numbers[1] + numbers[2] + numbers[3];
    }
    b.release_next();
  }
};

}  // namespace wavekv::testing
