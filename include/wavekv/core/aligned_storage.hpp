// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

/// @file aligned_storage.hpp
/// @brief Raw memory for rows and summaries: aligned for SIMD, on huge pages where the system gives them.

namespace wavekv {

/// @brief A fixed-size array of trivial elements; movable, not copyable, contents indeterminate.
///
/// Arrays of 2 MiB and more are aligned to a huge page and marked for transparent huge pages (on Linux):
/// a step touches runs of 4 KB all over the index, and page walks cost more than the reads otherwise.
template <class T>
class aligned_storage {
  static_assert(std::is_trivially_copyable_v<T>,
                "aligned_storage holds trivially copyable elements only");

 public:
  static constexpr std::size_t alignment = 64;  ///< a cache line and the widest SIMD vector
  static constexpr std::size_t huge_page_bytes = 2U * 1024U * 1024U;

  aligned_storage() = default;

  /// @brief Allocates n elements, uninitialised.  @throw std::bad_alloc
  explicit aligned_storage(std::size_t n) : size_(n) {
    if (n == 0) {
      return;
    }
    if (n > (SIZE_MAX - huge_page_bytes) / sizeof(T)) {
      throw std::bad_array_new_length();
    }
    const bool huge = n * sizeof(T) >= huge_page_bytes;
    const std::size_t align = huge ? huge_page_bytes : alignment;
    const std::size_t bytes = (n * sizeof(T) + alignment - 1) / alignment * alignment;
    data_.reset(static_cast<T*>(::operator new(bytes, std::align_val_t{align})));
    data_.get_deleter().align = align;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (huge) {
      // Advice only: smaller pages are correct, too. Whole pages: of one that is used in part, all would be taken.
      (void)madvise(data_.get(), bytes / huge_page_bytes * huge_page_bytes, MADV_HUGEPAGE);
    }
#endif
  }

  [[nodiscard]] T* data() noexcept { return data_.get(); }
  [[nodiscard]] const T* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return size_ * sizeof(T); }
  T& operator[](std::size_t i) noexcept { return data_.get()[i]; }
  const T& operator[](std::size_t i) const noexcept { return data_.get()[i]; }

  aligned_storage(aligned_storage&& other) noexcept
      : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}
  aligned_storage& operator=(aligned_storage&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  aligned_storage(const aligned_storage&) = delete;
  aligned_storage& operator=(const aligned_storage&) = delete;
  ~aligned_storage() = default;

 private:
  struct release {
    std::size_t align = alignment;
    void operator()(T* data) const noexcept { ::operator delete(data, std::align_val_t{align}); }
  };
  std::unique_ptr<T, release> data_;
  std::size_t size_ = 0;
};

}  // namespace wavekv
