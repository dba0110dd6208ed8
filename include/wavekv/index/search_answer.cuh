// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>

#include <wavekv/attention/row_tile.cuh>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/caller_rows.cuh>
#include <wavekv/index/query_leaning.cuh>
#include <wavekv/index/search_space.cuh>

/// @file search_answer.cuh
/// @brief From the merged state of a search to the caller's arrays.

namespace wavekv::device {

/// @brief Where an attend writes.
struct answer_arrays {
  caller_rows
      out;  ///< [n_queries, n_query_heads, value_dim]; data null: a partial softmax is written
  float* lse = nullptr;  ///< [n_queries, n_query_heads] with its strides, or null
  unsigned long long lse_strides[2] = {};
  float* max = nullptr;  ///< of a partial softmax, likewise strided
  unsigned long long max_strides[2] = {};
  float* denominator = nullptr;
  unsigned long long denominator_strides[2] = {};
  caller_rows numerator;               ///< floats
  const float* sink_logits = nullptr;  ///< [n_query_heads] in device memory, or null

  /// @brief Those of the queries from one on.
  [[nodiscard]] answer_arrays from(std::size_t query) const {
    const auto move = [query](float*& to, const unsigned long long(&strides)[2]) {
      to = to == nullptr ? nullptr : to + query * strides[0];
    };
    answer_arrays rest = *this;
    rest.out = out.from(query);
    rest.numerator = numerator.from(query);
    move(rest.lse, lse_strides);
    move(rest.max, max_strides);
    move(rest.denominator, denominator_strides);
    return rest;
  }
};

/// @brief *block*: moves the merged numerators of a search by what the value means of all its estimates lack: query_leaning's
/// add_tilts. Each is moved by the thread that write_answer has write it.
template <class T, class Block>
WAVEKV_DEVICE void add_tilts(Block& b, const search_view<T>& search) {
  const model_shape& shape = search.shape;
  if (shape.softcap > 0.0F) {  // it bends the logits: see query_leaning
    return;
  }
  for (unsigned g = b.warp(); g < shape.group_size; g += b.n_warps()) {
    float* const merged = search.merged + g * state_floats(shape.value_dim);
    const float max = merged[0];
    for (unsigned level = 0; level < shape.n_levels; ++level) {
      const unsigned at = level * shape.group_size + g;
      const float followed = search.followed[at];
      if (followed > 0.0F && max > -std::numeric_limits<float>::infinity()) {
        // Where nearly everything is dropped, shares are tiny and what they refer to is far above the maximum.
        const float factor = std::exp(std::log(followed) + (search.normalizers[at] - max));
        const float* const tilt = search.leanings + std::size_t{at} * shape.width() + shape.key_dim;
        for (unsigned i = b.lane(); i < shape.value_dim; i += warp_size) {
          merged[2 + i] += factor * tilt[i];
        }
      }
    }
  }
}

/// @brief *block*: writes the answer of one search: learned sinks, division.
template <class T, class Block>
WAVEKV_DEVICE void write_answer(Block& b, const search_view<T>& search, unsigned query,
                                const answer_arrays& to) {
  const model_shape& shape = search.shape;
  const unsigned floats = state_floats(shape.value_dim);
  const unsigned group = shape.group_size;
  for (unsigned g = b.warp(); g < group; g += b.n_warps()) {
    const unsigned head = search.head * group + g;
    const float* const merged = search.merged + g * floats;
    const float max = merged[0];
    const bool empty = !(max > -std::numeric_limits<float>::infinity());
    float new_max = max;
    float denominator = merged[1];
    if (to.sink_logits != nullptr && to.out.data != nullptr) {
      const float sink = to.sink_logits[head];
      new_max = sink > max ? sink : max;
      denominator =
          (empty ? 0.0F : denominator * std::exp(max - new_max)) + std::exp(sink - new_max);
    }
    const float factor = empty ? 0.0F : std::exp(max - new_max);
    for (unsigned i = b.lane(); i < shape.value_dim; i += warp_size) {
      const float x = merged[2 + i];
      if (to.out.data == nullptr) {
        to.numerator.store(query, head, i, empty ? 0.0F : x);
      } else {
        to.out.store(query, head, i, denominator > 0.0F ? x * factor / denominator : 0.0F);
      }
    }
    if (b.lane() == 0) {
      if (to.out.data == nullptr) {
        to.max[query * to.max_strides[0] + head * to.max_strides[1]] = max;
        to.denominator[query * to.denominator_strides[0] + head * to.denominator_strides[1]] =
            denominator;
      } else if (to.lse != nullptr) {
        to.lse[query * to.lse_strides[0] + head * to.lse_strides[1]] =
            denominator > 0.0F ? new_max + std::log(denominator)
                               : -std::numeric_limits<float>::infinity();
      }
    }
  }
}

/// @brief Books what an answer that stands was planned to err.
template <class T, class Block, class Bound>
WAVEKV_DEVICE void book_errors(Block& b, const search_space<T>& space, const search_view<T>& search,
                               const Bound& bound) {
  if (b.thread() != 0) {
    return;
  }
  float error = 0.0F;
  float dropped = 0.0F;
  for (unsigned g = 0; g < space.shape.group_size; ++g) {
    error = search.typical[g] > error ? search.typical[g] : error;
    dropped = search.dropped[g] > dropped ? search.dropped[g] : dropped;
  }
  error = std::sqrt(error);
  if constexpr (requires { bound.scaled_error(error); }) {
    error = bound.scaled_error(error);
  }
  b.atomic_max(&space.report->predicted_error, std::bit_cast<unsigned>(error));
  b.atomic_max(&space.report->dropped_mass, std::bit_cast<unsigned>(dropped));
  bool meets = true;
  if constexpr (requires { bound.meets(error); }) {
    meets = bound.meets(error);
  }
  if (!meets) {
    b.atomic_add(&space.report->capped, 1ULL);
  }
}

}  // namespace wavekv::device
