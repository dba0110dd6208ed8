// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

/// @file counting_new.hpp
/// @brief Replaces operator new of a whole program: counts allocations, and lets a chosen one fail.
/// Include it in one file of a test program.

namespace wavekv_test {

inline std::atomic<std::size_t> n_allocations{0};
inline std::atomic<std::ptrdiff_t> allocations_until_failure{-1};  ///< below 0: none fails

namespace detail {

inline void* allocate(std::size_t size, std::size_t alignment) {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  if (allocations_until_failure.load(std::memory_order_relaxed) >= 0 &&
      allocations_until_failure.fetch_sub(1, std::memory_order_relaxed) == 0) {
    throw std::bad_alloc();
  }
  const std::size_t rounded = (size == 0 ? 1 : size + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace detail
}  // namespace wavekv_test

void* operator new(std::size_t size) {
  return wavekv_test::detail::allocate(size, alignof(std::max_align_t));
}
void* operator new[](std::size_t size) {
  return wavekv_test::detail::allocate(size, alignof(std::max_align_t));
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return wavekv_test::detail::allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return wavekv_test::detail::allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
