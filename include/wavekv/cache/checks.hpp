// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <type_traits>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/core/tensor_view.hpp>
#include <wavekv/cpu/simd.hpp>

/// @file checks.hpp
/// @brief Checks of what a caller hands over, before anything changes.

namespace wavekv::detail {

/// @brief Checks a [n_tokens, n_heads, dim] view: extents as asked, rows contiguous, memory present.
/// @throw shape_error naming the view, what was seen and what is allowed
template <class T, class Space>
void check_shape(std::string_view name, const tensor_view<T, 3, Space>& view, std::size_t n_tokens,
                 std::size_t n_heads, std::size_t dim) {
  if (view.extent(0) != n_tokens || view.extent(1) != n_heads || view.extent(2) != dim) {
    throw shape_error(message(name, " is [", view.extent(0), ", ", view.extent(1), ", ",
                              view.extent(2), "]; allowed: [", n_tokens, ", ", n_heads, ", ", dim,
                              "]"));
  }
  if (n_tokens != 0 && view.stride(2) != 1 && dim > 1) {
    throw shape_error(
        message(name, " has stride ", view.stride(2), " in its last dimension; allowed: 1"));
  }
  if (n_tokens != 0 && view.data() == nullptr) {
    throw shape_error(message(name, " has no memory; allowed: memory for every element"));
  }
}

/// @brief Checks an optional [n_tokens, n_heads] view; an empty one is fine.  @throw shape_error
template <class T, class Space>
void check_optional_shape(std::string_view name, const tensor_view<T, 2, Space>& view,
                          std::size_t n_tokens, std::size_t n_heads) {
  if (!view.empty() && (view.extent(0) != n_tokens || view.extent(1) != n_heads)) {
    throw shape_error(message(name, " is [", view.extent(0), ", ", view.extent(1), "]; allowed: [",
                              n_tokens, ", ", n_heads, "] or no view at all"));
  }
}

/// @brief Checks that every element is finite.  @throw value_error naming the first that is not, and its place
template <class T>
void check_finite(std::string_view name, const tensor_view<T, 3>& view) {
  for (std::size_t token = 0; token < view.extent(0); ++token) {
    for (std::size_t head = 0; head < view.extent(1); ++head) {
      const auto* row = &view(token, head, 0U);
      const std::size_t bad = simd::all_finite(row, view.extent(2));
      if (bad != view.extent(2)) {
        throw value_error(message(name, "[", token, ", ", head, ", ", bad, "] is ",
                                  to_float(row[bad]), "; allowed: finite numbers"));
      }
    }
  }
}

/// @brief Writes a row of one scalar as a row of another.
template <scalar To, scalar From>
void convert_row(To* to, const From* from, std::size_t n) noexcept {
  if constexpr (std::is_same_v<To, From>) {
    std::copy_n(from, n, to);
  } else if constexpr (std::is_same_v<To, float>) {
    simd::to_float(to, from, n);
  } else if constexpr (std::is_same_v<From, float>) {
    simd::from_float(to, from, n);
  } else {
    for (std::size_t i = 0; i < n; ++i) {
      to[i] = from_float<To>(to_float(from[i]));
    }
  }
}

}  // namespace wavekv::detail
