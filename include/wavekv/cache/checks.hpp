// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <type_traits>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/geometry.hpp>
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

/// @brief Checks the number of a layer.  @throw shape_error
inline void check_layer(std::size_t layer, std::size_t n_layers) {
  if (layer >= n_layers) {
    throw shape_error(message("layer is ", layer, "; allowed: 0 to ", n_layers - 1));
  }
}

/// @brief Checks that n tokens may be appended to a layer of this length.  @throw capacity_error
inline void check_room(std::size_t n, std::size_t length, std::size_t max_tokens) {
  if (n > max_tokens - length) {
    throw capacity_error(message("append of ", n, " tokens to ", length, "; allowed: ", max_tokens,
                                 " in all (cache_options::max_tokens)"));
  }
}

/// @brief Checks where an attend_partial of n queries writes.
/// @tparam Output  partial_output or device_partial_output
/// @throw shape_error
template <class Output>
void check_partial_output(const Output& out, std::size_t n, const geometry& sizes) {
  check_shape("numerator", out.numerator, n, sizes.n_query_heads, sizes.value_dim);
  if (out.max.empty() || out.denominator.empty()) {
    throw shape_error("max or denominator has no memory; allowed: [n_queries, n_query_heads] each");
  }
  check_optional_shape("max", out.max, n, sizes.n_query_heads);
  check_optional_shape("denominator", out.denominator, n, sizes.n_query_heads);
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
