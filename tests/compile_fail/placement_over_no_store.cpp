// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: constraint(s not satisfied| failure) for
#include <cstddef>

#include <wavekv/buffer/memory_store.hpp>
#include <wavekv/buffer/tiered.hpp>

struct store : wavekv::memory_store {
  using memory_store::memory_store;
#ifndef WAVEKV_COMPILE_PASS
  std::size_t alignment() const = delete;
#endif
};

wavekv::placement::tiered_over<store>::options_type options;
