// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

#include <wavekv/core/tensor_view.hpp>

/// @file device_view.hpp
/// @brief Views of memory that only the device reads and writes.

namespace wavekv {

/// @brief Memory space tag: device memory. Views of it and of host memory do not convert into each other.
struct device_space {};

/// @brief A view of somebody else's tensor in device memory. Its elements may not be touched by the host.
template <class T, std::size_t Rank>
using device_view = tensor_view<T, Rank, device_space>;

/// @brief A view of packed device memory laid out [token, head, dim].
template <class T>
constexpr device_view<T, 3> device_nhd(T* data, std::size_t n_tokens, std::size_t n_heads,
                                       std::size_t dim) noexcept {
  return {data, {n_tokens, n_heads, dim}};
}

/// @brief A view of packed device memory laid out [head, token, dim]; indexed (token, head, dim) as every view.
template <class T>
constexpr device_view<T, 3> device_hnd(T* data, std::size_t n_heads, std::size_t n_tokens,
                                       std::size_t dim) noexcept {
  return {data, {n_tokens, n_heads, dim}, {dim, n_tokens * dim, 1}};
}

}  // namespace wavekv
