// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

/// @file poisoned_bytes.hpp
/// @brief Device and shared memory of the emulated device.

#if defined(__SANITIZE_ADDRESS__)
#define WAVEKV_TEST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WAVEKV_TEST_ASAN 1
#endif
#endif
#if !defined(WAVEKV_TEST_ASAN)
/// @brief Whether the address sanitizer is compiled in.
#define WAVEKV_TEST_ASAN 0
#endif
#if WAVEKV_TEST_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace wavekv::testing {

/// @brief What indeterminate memory holds: as a float NaN, as an index far outside everything.
inline constexpr int poison = 0xFF;

/// @brief Memory as a GPU hands it out: exactly as many bytes as asked for, poisoned. The address sanitizer sees an
/// access past the end; without it a write shortly past the end is found by overrun().
class poisoned_bytes {
 public:
  poisoned_bytes() = default;
  poisoned_bytes(std::size_t n, std::size_t alignment) : size_(n) {
    if (n == 0) return;
    const std::align_val_t aligned{alignment};
    bytes_ = bytes(static_cast<std::byte*>(::operator new(n + n_after, aligned)), release{aligned});
    std::memset(data(), poison, n + n_after);
  }

  /// @brief The first byte; null where none were asked for.
  [[nodiscard]] std::byte* data() const { return bytes_.get(); }
  /// @brief How many were asked for.
  [[nodiscard]] std::size_t size() const { return size_; }
  /// @brief Makes the contents indeterminate.
  void fill_with_poison() const {
    if (size_ != 0) std::memset(data(), poison, size_);
  }
  /// @brief Whether [p, p + n) lies inside.
  [[nodiscard]] bool contains(const void* p, std::size_t n) const {
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    const auto begin = reinterpret_cast<std::uintptr_t>(data());
    return at >= begin && at - begin <= size_ && n <= size_ - (at - begin);
  }
  /// @brief Whether someone wrote past the end.
  [[nodiscard]] bool overrun() const {
    return size_ != 0 && std::any_of(data() + size_, data() + size_ + n_after,
                                     [](std::byte b) { return b != std::byte{poison}; });
  }

 private:
  static constexpr std::size_t n_after = WAVEKV_TEST_ASAN != 0 ? 0 : 64;  // ASan has its own
  struct release {
    std::align_val_t alignment{1};
    void operator()(std::byte* p) const { ::operator delete(p, alignment); }
  };
  using bytes = std::unique_ptr<std::byte, release>;

  bytes bytes_{nullptr, release{}};
  std::size_t size_ = 0;
};

}  // namespace wavekv::testing
