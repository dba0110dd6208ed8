// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <type_traits>

#include <wavekv/core/host_device.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/device_view.hpp>

/// @file caller_rows.cuh
/// @brief Callers' arrays in kernels, which are compiled once for all of their element types.

namespace wavekv::device {

/// @brief How elements of a caller's array are stored.
enum class element_kind : unsigned { float32, bf16, f16 };

/// @brief The kind of a scalar.
template <class T>
inline constexpr element_kind kind_of = element_kind::float32;
template <>
inline constexpr element_kind kind_of<bf16> = element_kind::bf16;
template <>
inline constexpr element_kind kind_of<f16> = element_kind::f16;

/// @brief Bytes of an element.
WAVEKV_HOST_DEVICE std::size_t size_of(element_kind kind) {
  return kind == element_kind::float32 ? sizeof(float) : sizeof(bf16);
}

/// @brief A caller's array of rows in device memory, [n, n_heads, dim] with any strides and contiguous rows.
struct caller_rows {
  void* data = nullptr;
  element_kind kind = element_kind::float32;
  unsigned long long row_stride = 0;   ///< elements from token to token
  unsigned long long head_stride = 0;  ///< elements from head to head

  /// @brief An element as a float.
  [[nodiscard]] WAVEKV_DEVICE float load(unsigned long long row, unsigned head, unsigned i) const {
    const unsigned long long at = row * row_stride + head * head_stride + i;
    switch (kind) {
    case element_kind::bf16:
      return to_float(static_cast<const bf16*>(data)[at]);
    case element_kind::f16:
      return to_float(static_cast<const f16*>(data)[at]);
    default:
      return static_cast<const float*>(data)[at];
    }
  }

  /// @brief Writes a float, rounded to the array's kind.
  WAVEKV_DEVICE void store(unsigned long long row, unsigned head, unsigned i, float x) const {
    const unsigned long long at = row * row_stride + head * head_stride + i;
    switch (kind) {
    case element_kind::bf16:
      static_cast<bf16*>(data)[at] = from_float<bf16>(x);
      break;
    case element_kind::f16:
      static_cast<f16*>(data)[at] = from_float<f16>(x);
      break;
    default:
      static_cast<float*>(data)[at] = x;
    }
  }

  /// @brief The array from a row on.
  [[nodiscard]] caller_rows from(std::size_t row) const {
    caller_rows rest = *this;
    if (data != nullptr) {
      rest.data = static_cast<std::byte*>(data) + row * row_stride * size_of(kind);
    }
    return rest;
  }
};

/// @brief A view as kernels take it.
template <class T>
caller_rows rows_of(const device_view<T, 3>& view) {
  using element = std::remove_const_t<T>;
  static_assert(std::is_same_v<element, float> || std::is_same_v<element, bf16> ||
                    std::is_same_v<element, f16>,
                "kv_cache: device views are of float, wavekv::bf16 or wavekv::f16");
  return {const_cast<element*>(view.data()), kind_of<element>, view.stride(0), view.stride(1)};
}

}  // namespace wavekv::device
