// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>

#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/cpu/simd.hpp>

/// @file partial_softmax.hpp
/// @brief The state of attention over a part of the keys, and its merge: the seam between zones,
/// tasks, threads and ranks.
///
/// For logits s and values v the state is max >= every s, denominator = sum of e^(s - max) and
/// numerator = sum of e^(s - max) · v. It stands for the pair of sums e^max · (denominator, numerator);
/// states that stand for the same sums under another max are equal.
///
/// The empty state is max = -inf, denominator = 0, numerator = 0, and is what reset() writes. Merging it
/// into a state, or a state into it, gives that state bit for bit; finished it is zeros, with an lse of
/// -inf. merge is associative and commutative up to rounding. Nothing overflows whatever the logits, as
/// every factor e^(s - max) is at most 1; a sum of values must fit a float.

namespace wavekv {

/// @brief Partial softmaxes of several queries, in the caller's memory; T is float or const float.
template <class T>
struct basic_partial_softmax_view {
  static_assert(std::is_same_v<std::remove_const_t<T>, float>);

  T* max = nullptr;                  ///< [n_queries], -inf: empty
  T* denominator = nullptr;          ///< [n_queries]
  T* numerator = nullptr;            ///< [n_queries, value_dim] with numerator_stride
  std::size_t n_queries = 0;         ///< independent states
  std::size_t value_dim = 0;         ///< elements of one numerator
  std::size_t numerator_stride = 0;  ///< floats from one numerator to the next

  /// @brief The numerator of query i.
  [[nodiscard]] T* numerator_of(std::size_t i) const noexcept {
    return numerator + i * numerator_stride;
  }

  /// @brief Queries [first, first + n) of this view.
  [[nodiscard]] basic_partial_softmax_view part(std::size_t first, std::size_t n) const noexcept {
    return {max + first, denominator + first, numerator_of(first), n, value_dim, numerator_stride};
  }

  /// @brief Whether query i has seen nothing yet.
  [[nodiscard]] bool is_empty(std::size_t i) const noexcept {
    return max[i] == -std::numeric_limits<float>::infinity();
  }

  /// @brief A view that may be written is one that may be read.
  operator basic_partial_softmax_view<const float>() const noexcept
    requires(!std::is_const_v<T>)
  {
    return {max, denominator, numerator, n_queries, value_dim, numerator_stride};
  }
};

using partial_softmax_view = basic_partial_softmax_view<float>;
using const_partial_softmax_view = basic_partial_softmax_view<const float>;

/// @brief Makes every state empty.
inline void reset(const partial_softmax_view& state) noexcept {
  for (std::size_t i = 0; i < state.n_queries; ++i) {
    state.max[i] = -std::numeric_limits<float>::infinity();
    state.denominator[i] = 0.0F;
    std::fill_n(state.numerator_of(i), state.value_dim, 0.0F);
  }
}

/// @brief Expresses state i under a max of at least new_max, scaling its sums. new_max must not be NaN.
inline void raise_max(const partial_softmax_view& state, std::size_t i, float new_max) noexcept {
  if (!(new_max > state.max[i])) return;
  if (!state.is_empty(i)) {
    const float factor = std::exp(state.max[i] - new_max);
    state.denominator[i] *= factor;
    simd::scale(state.numerator_of(i), state.value_dim, factor);
  }
  state.max[i] = new_max;
}

namespace detail {

/// into += sign · from, the sign being 1 or -1.
inline void add_states(const partial_softmax_view& into, const const_partial_softmax_view& from,
                       float sign) noexcept {
  for (std::size_t i = 0; i < into.n_queries; ++i) {
    if (from.is_empty(i)) continue;
    raise_max(into, i, from.max[i]);
    const float factor = sign * std::exp(from.max[i] - into.max[i]);
    into.denominator[i] += factor * from.denominator[i];
    simd::add_scaled(from.numerator_of(i), into.value_dim, factor, into.numerator_of(i));
  }
}

}  // namespace detail

/// @brief Adds the keys that `from` has seen to `into`, query by query. Associative and commutative up to
/// rounding, the empty state its identity.
/// Complexity: O(n_queries · value_dim). Both views must have the same n_queries and value_dim and not overlap.
inline void merge(const partial_softmax_view& into,
                  const const_partial_softmax_view& from) noexcept {
  detail::add_states(into, from, 1.0F);
}

/// @brief Takes the keys that `from` has seen out of `into` again; what is left is exact up to rounding
/// relative to what `into` held before.
///
/// When nearly everything is taken out, what is left may be all rounding (its denominator even a little
/// negative). That is harmless where, as with clusters that are read after they were estimated, a mass
/// at least as large is added in its place; finish() takes a denominator <= 0 as empty.
inline void subtract(const partial_softmax_view& into,
                     const const_partial_softmax_view& from) noexcept {
  detail::add_states(into, from, -1.0F);
}

/// @brief Adds a learned sink to query i: e^sink_logit in the denominator, no value.
inline void add_sink_logit(const partial_softmax_view& state, std::size_t i,
                           float sink_logit) noexcept {
  raise_max(state, i, sink_logit);
  state.denominator[i] += std::exp(sink_logit - state.max[i]);
}

/// @brief Natural-log log-sum-exp of the logits that query i has seen; -inf when it has seen nothing.
inline float log_sum_exp(const const_partial_softmax_view& state, std::size_t i) noexcept {
  if (!(state.denominator[i] > 0.0F)) return -std::numeric_limits<float>::infinity();
  return state.max[i] + std::log(state.denominator[i]);
}

/// @brief The attention output: numerator / denominator, zeros for an empty state.
/// @param out  [n_queries, value_dim] with out_stride floats from row to row; may be the numerators themselves
/// @param lse  [n_queries] or null: receives log_sum_exp of each query
inline void finish(const const_partial_softmax_view& state, float* out, std::size_t out_stride,
                   float* lse = nullptr) noexcept {
  for (std::size_t i = 0; i < state.n_queries; ++i) {
    const float denominator = state.denominator[i];
    const float* numerator = state.numerator_of(i);
    float* row = out + i * out_stride;
    if (lse != nullptr) lse[i] = log_sum_exp(state, i);
    if (denominator > 0.0F) {
      const float inverse = 1.0F / denominator;
      for (std::size_t c = 0; c < state.value_dim; ++c) row[c] = numerator[c] * inverse;
    } else {
      std::fill_n(row, state.value_dim, 0.0F);
    }
  }
}

/// @brief Partial softmaxes that own their memory; starts empty. Allocates once, in the constructor.
class partial_softmax {
 public:
  partial_softmax() = default;

  /// @throw std::bad_alloc
  partial_softmax(std::size_t n_queries, std::size_t value_dim)
      : storage_(n_queries * (value_dim + 2)), n_queries_(n_queries), value_dim_(value_dim) {
    reset(view());
  }

  [[nodiscard]] partial_softmax_view view() noexcept { return view_of<float>(storage_.data()); }
  [[nodiscard]] const_partial_softmax_view view() const noexcept {
    return view_of<const float>(storage_.data());
  }

 private:
  template <class T>
  [[nodiscard]] basic_partial_softmax_view<T> view_of(T* data) const noexcept {
    // The numerators first: they are what SIMD reads, and the storage is aligned for it.
    T* scalars = data + n_queries_ * value_dim_;
    return {scalars, scalars + n_queries_, data, n_queries_, value_dim_, value_dim_};
  }

  aligned_storage<float> storage_;
  std::size_t n_queries_ = 0;
  std::size_t value_dim_ = 0;
};

}  // namespace wavekv
