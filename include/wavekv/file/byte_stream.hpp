// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <wavekv/core/errors.hpp>

/// @file byte_stream.hpp
/// @brief Numbers and arrays as the bytes of a part of a saved file: little-endian, arrays at multiples of 16 bytes.

namespace wavekv {

static_assert(
    std::endian::native == std::endian::little,
    "saved files are little-endian, and written as memory is: big-endian machines are not "
    "supported");

/// @brief Puts a part together.
class byte_writer {
 public:
  static constexpr std::size_t array_alignment = 16;

  /// @brief Appends a number. Sizes go as 64 bits.
  template <class Number>
    requires std::is_arithmetic_v<Number>
  void put(Number number) {
    append(&number, sizeof number);
  }

  /// @brief Appends elements, after what aligns them. How many there are is for others to say.
  template <class Element>
    requires std::is_trivially_copyable_v<Element>
  void put_array(std::span<const Element> elements) {
    if (elements.empty()) {
      return;
    }
    bytes_.resize((bytes_.size() + array_alignment - 1) / array_alignment * array_alignment);
    append(elements.data(), elements.size_bytes());
  }

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  void append(const void* from, std::size_t n) {
    if (n != 0) {
      const std::size_t at = bytes_.size();
      bytes_.resize(at + n);
      std::memcpy(bytes_.data() + at, from, n);
    }
  }

  std::vector<std::byte> bytes_;
};

/// @brief Takes a part apart. Never reads past its end, whatever the bytes are.
class byte_reader {
 public:
  /// @param name  of the part, for messages
  byte_reader(std::span<const std::byte> bytes, std::string name)
      : bytes_(bytes), name_(std::move(name)) {}

  /// @brief The next number.  @throw format_error at the end
  template <class Number>
    requires std::is_arithmetic_v<Number>
  Number get() {
    Number number{};
    std::memcpy(&number, take(sizeof number, 1), sizeof number);
    return number;
  }

  /// @brief The next elements, as many as there is room for.  @throw format_error when there are less
  template <class Element>
    requires std::is_trivially_copyable_v<Element>
  void get_array(std::span<Element> to) {
    const std::size_t n = require<Element>(to.size());
    if (n != 0) {
      std::memcpy(to.data(), take(n, byte_writer::array_alignment), n);
    }
  }

  /// @brief Bytes of n elements, once it is sure that so many are left: ask before memory is made for them.
  /// @throw format_error when there are less
  template <class Element>
  std::size_t require(std::uint64_t n) const {
    if (n > bytes_.size() / sizeof(Element)) {
      fail(detail::message("names ", n, " elements of ", sizeof(Element),
                           " bytes; allowed: what its ", bytes_.size(), " bytes hold"));
    }
    return static_cast<std::size_t>(n) * sizeof(Element);
  }

  /// @brief Stops with the part's name before what is wrong.
  [[noreturn]] void fail(std::string_view what) const {
    throw format_error(detail::message(name_, " ", what));
  }

 private:
  const std::byte* take(std::size_t n, std::size_t alignment) {
    const std::size_t at = (at_ + alignment - 1) / alignment * alignment;
    if (at > bytes_.size() || n > bytes_.size() - at) {
      fail(detail::message("ends at byte ", bytes_.size(), "; allowed: at least ", at + n));
    }
    at_ = at + n;
    return bytes_.data() + at;
  }

  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
  std::string name_;
};

}  // namespace wavekv
