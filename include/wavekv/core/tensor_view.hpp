// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstddef>
#include <type_traits>

/// @file tensor_view.hpp
/// @brief Non-owning views of the caller's memory: pointer, extents, strides.

namespace wavekv {

/// @brief Memory space tag: memory the host may read and write.
struct host_space {};

/// @brief A view of somebody else's tensor. Trivially copyable; owns nothing; checks nothing on access.
/// @tparam T      element type, const for inputs
/// @tparam Rank   number of dimensions
/// @tparam Space  where the memory lies; a view of another space does not convert, so that a device
///                pointer handed to host code does not compile
template <class T, std::size_t Rank, class Space = host_space>
class tensor_view {
 public:
  using element_type = T;
  using space_type = Space;
  using extents_type = std::array<std::size_t, Rank>;
  static constexpr std::size_t rank = Rank;

  /// @brief The empty view: no memory, all extents 0.
  constexpr tensor_view() = default;

  /// @brief A view with any strides, in elements.
  constexpr tensor_view(T* data, extents_type extents, extents_type strides) noexcept
      : data_(data), extents_(extents), strides_(strides) {}

  /// @brief A row-major, packed view.
  constexpr tensor_view(T* data, extents_type extents) noexcept : data_(data), extents_(extents) {
    std::size_t stride = 1;
    for (std::size_t i = Rank; i-- > 0;) {
      strides_[i] = stride;
      stride *= extents[i];
    }
  }

  /// @brief A view to const from a view to non-const of the same space.
  template <class U>
    requires std::is_same_v<const U, T>
  constexpr tensor_view(
      tensor_view<U, Rank, Space> other) noexcept  // NOLINT(google-explicit-constructor)
      : data_(other.data()), extents_(other.extents()), strides_(other.strides()) {}

  [[nodiscard]] constexpr T* data() const noexcept { return data_; }
  [[nodiscard]] constexpr const extents_type& extents() const noexcept { return extents_; }
  [[nodiscard]] constexpr const extents_type& strides() const noexcept { return strides_; }
  [[nodiscard]] constexpr std::size_t extent(std::size_t i) const noexcept { return extents_[i]; }
  [[nodiscard]] constexpr std::size_t stride(std::size_t i) const noexcept { return strides_[i]; }
  [[nodiscard]] constexpr bool empty() const noexcept { return data_ == nullptr; }

  /// @brief The element at the given indices; undefined outside the extents.
  template <class... Index>
    requires(sizeof...(Index) == Rank)
  constexpr T& operator()(Index... index) const noexcept {
    std::size_t dimension = 0;
    std::size_t offset = 0;
    ((offset += static_cast<std::size_t>(index) * strides_[dimension++]), ...);
    return data_[offset];
  }

  /// @brief The part [first, first + count) of dimension 0.
  [[nodiscard]] constexpr tensor_view slice(std::size_t first, std::size_t count) const noexcept {
    tensor_view part = *this;
    part.data_ = data_ == nullptr ? nullptr : data_ + first * strides_[0];
    part.extents_[0] = count;
    return part;
  }

 private:
  T* data_ = nullptr;
  extents_type extents_{};
  extents_type strides_{};
};

/// @brief A view of packed memory laid out [token, head, dim].
template <class T>
constexpr tensor_view<T, 3> nhd(T* data, std::size_t n_tokens, std::size_t n_heads,
                                std::size_t dim) noexcept {
  return {data, {n_tokens, n_heads, dim}};
}

/// @brief A view of packed memory laid out [head, token, dim]; indexed (token, head, dim) as every view.
template <class T>
constexpr tensor_view<T, 3> hnd(T* data, std::size_t n_heads, std::size_t n_tokens,
                                std::size_t dim) noexcept {
  return {data, {n_tokens, n_heads, dim}, {dim, n_tokens * dim, 1}};
}

}  // namespace wavekv
