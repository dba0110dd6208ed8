// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/errors.hpp>

/// @file memory_store.hpp
/// @brief A slow tier in memory.

namespace wavekv {

/// @brief Keeps bytes in memory; models block_store. For tests, and for machines whose second tier is memory, too.
class memory_store {
 public:
  /// @brief Nothing to choose.
  struct options_type {
    void validate() const noexcept {}
  };

  /// @brief Bytes that were written.
  class region {
   public:
    region() = default;
    [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }

   private:
    friend class memory_store;
    explicit region(aligned_storage<std::byte> bytes) noexcept : bytes_(std::move(bytes)) {}
    aligned_storage<std::byte> bytes_;
  };

  /// @brief A store that holds nothing.
  explicit memory_store(const options_type& /*options*/ = {}) noexcept {}

  /// @brief Copies bytes into the store.  @throw std::bad_alloc
  region write(std::span<const std::byte> from) const {
    aligned_storage<std::byte> bytes(from.size());
    if (!from.empty()) {
      std::memcpy(bytes.data(), from.data(), from.size());
    }
    return region(std::move(bytes));
  }

  /// @brief Copies bytes [offset, offset + to.size()) of a region.  @throw io_error when they reach past its end
  void read(const region& from, std::uint64_t offset, std::span<std::byte> to) const {
    if (offset > from.size() || to.size() > from.size() - offset) {
      throw io_error(detail::message("memory_store: bytes ", offset, " to ", offset + to.size(),
                                     " of a region; allowed: 0 to ", from.size()));
    }
    std::copy_n(from.bytes_.data() + offset, to.size(), to.data());
  }

  /// @brief 1: memory has no preference.
  [[nodiscard]] static constexpr std::size_t alignment() noexcept { return 1; }

  /// @brief Nothing waits.
  void flush() const noexcept {}
};

static_assert(block_store<memory_store>);

}  // namespace wavekv
