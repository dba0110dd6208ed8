// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>

#include <sys/mman.h>
#include <unistd.h>

/// @file guarded_array.hpp
/// @brief An array that ends where the mapped memory ends: reading or writing one element past it is a crash.

namespace wavekv_test {

/// @brief n elements, zeroed, the last of them right before a page that may not be touched. Its start
/// is therefore aligned to sizeof(T) only: odd sizes test unaligned access as well.
template <class T>
class guarded_array {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit guarded_array(std::size_t n) : size_(n) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (n * sizeof(T) + page - 1) / page * page + page;
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    char* guard = static_cast<char*>(base_) + mapped_ - page;
    mprotect(guard, page, PROT_NONE);
    data_ = reinterpret_cast<T*>(guard - n * sizeof(T));
  }
  ~guarded_array() { munmap(base_, mapped_); }
  guarded_array(const guarded_array&) = delete;
  guarded_array& operator=(const guarded_array&) = delete;

  [[nodiscard]] T* data() noexcept { return data_; }
  [[nodiscard]] const T* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  T& operator[](std::size_t i) noexcept { return data_[i]; }
  const T& operator[](std::size_t i) const noexcept { return data_[i]; }
  T* begin() noexcept { return data_; }
  T* end() noexcept { return data_ + size_; }

 private:
  void* base_ = nullptr;
  std::size_t mapped_ = 0;
  std::size_t size_ = 0;
  T* data_ = nullptr;
};

}  // namespace wavekv_test
