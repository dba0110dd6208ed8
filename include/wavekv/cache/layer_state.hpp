// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include <wavekv/cache/checks.hpp>
#include <wavekv/cache/statistics.hpp>
#include <wavekv/cache/token_rows.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/core/tensor_view.hpp>
#include <wavekv/index/cluster_covariance.hpp>
#include <wavekv/index/query_metric.hpp>

/// @file layer_state.hpp
/// @brief What one layer of one sequence holds: sink, sealed segments, tail.

namespace wavekv {

/// @brief One (sequence, layer). Tokens in order: the sink's, the segments', the tail's.
/// Copying shares the segments and copies sink and tail: what a fork does.
template <scalar T, class Segment>
struct layer_state {
  token_rows<T> sink;
  std::vector<std::shared_ptr<const Segment>> segments;
  token_rows<T> tail;
  std::vector<query_metric>
      metrics;  ///< [n_kv_heads], or empty when the clusterer does not ask for queries
  /// [n_kv_heads] how keys and values vary inside clusters, learnt from every segment sealed so far; null before the first
  std::shared_ptr<const std::vector<head_covariances>> covariances;
  step_stats last;        ///< what the last attend did
  step_stats total;       ///< what all of them did
  std::size_t steps = 0;  ///< attend calls

  /// @brief Tokens held by sealed segments.
  [[nodiscard]] std::size_t n_sealed() const noexcept {
    return segments.empty()
               ? 0
               : segments.back()->first_token() + segments.back()->n_tokens() - sink.size();
  }

  /// @brief Bytes of what was learnt from queries and sealed tokens.
  [[nodiscard]] std::size_t learnt_bytes() const noexcept {
    std::size_t sum = 0;
    for (const query_metric& metric : metrics) {
      sum += metric.bytes();
    }
    if (covariances != nullptr) {
      for (const head_covariances& head : *covariances) {
        for (const cluster_covariance& level : head) {
          sum += level.bytes();
        }
      }
    }
    return sum;
  }

  /// @brief Tokens held.
  [[nodiscard]] std::size_t length() const noexcept {
    return sink.size() + n_sealed() + tail.size();
  }
};

namespace detail {

/// @brief Writes the rows of new tokens behind the end of the tail, where they are not part of it yet.
/// Converts to the storage scalar.
/// @throw value_error when a finite input does not fit the scalar; std::bad_alloc. The tail's tokens are unchanged.
template <scalar T, class K, class V>
void stage_rows(token_rows<T>& tail, const tensor_view<K, 3>& keys,
                const tensor_view<V, 3>& values) {
  const std::size_t n = keys.extent(0);
  tail.reserve(tail.size() + n);
  const auto stage = [&](std::string_view name, const auto& rows, auto&& target) {
    const std::size_t dim = rows.extent(2);
    for (std::size_t head = 0; head < rows.extent(1); ++head) {
      T* to = target(head) + tail.size() * dim;
      for (std::size_t token = 0; token < n; ++token, to += dim) {
        const auto* from = &rows(token, head, 0U);
        convert_row(to, from, dim);
        const std::size_t bad = simd::all_finite(to, dim);
        if (bad != dim) {
          throw value_error(message(name, "[", token, ", ", head, ", ", bad, "] is ",
                                    to_float(from[bad]), "; allowed: finite numbers that fit ",
                                    scalar_traits<T>::name));
        }
      }
    }
  };
  stage("keys", keys, [&](std::size_t head) { return tail.keys(head); });
  stage("values", values, [&](std::size_t head) { return tail.values(head); });
}

/// @brief How many of the tokens beyond the window are sealed now, as sizes of segments.
///
/// While a prompt is read only whole prefill segments are sealed. When decoding begins, what waits is
/// sealed as one segment in multiples of the decode size; from then on every decode size. Layers take
/// turns: each waits for its own share of a segment more, so that no step seals all of them.
/// @param pending   tokens beyond sink and window
/// @param decoding  whether this append is part of decoding
template <class SegmentSize>
std::vector<std::size_t> seal_sizes(std::size_t pending, bool decoding, std::size_t layer,
                                    std::size_t n_layers) {
  std::vector<std::size_t> sizes;
  for (; pending >= SegmentSize::prefill; pending -= SegmentSize::prefill) {
    sizes.push_back(SegmentSize::prefill);
  }
  const std::size_t turn = SegmentSize::decode * layer / n_layers;
  if (decoding && pending >= SegmentSize::decode + turn) {
    sizes.push_back((pending - turn) / SegmentSize::decode * SegmentSize::decode);
  }
  return sizes;
}

}  // namespace detail
}  // namespace wavekv
