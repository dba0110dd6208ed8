// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <wavekv/cache/layer_state.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/file/byte_stream.hpp>

/// @file layer_part.hpp
/// @brief What a layer holds besides its segments, as a part of a saved sequence: sink, tail, and what was learnt.

namespace wavekv {

namespace detail {

template <scalar T>
void put_rows(byte_writer& to, const token_rows<T>& rows, const geometry& sizes) {
  for (std::size_t head = 0; head < sizes.n_kv_heads; ++head) {
    to.put_array(std::span<const T>(rows.keys(head), rows.size() * sizes.key_dim));
    to.put_array(std::span<const T>(rows.values(head), rows.size() * sizes.value_dim));
  }
}

template <scalar T>
void get_rows(byte_reader& from, token_rows<T>& rows, const geometry& sizes, std::uint64_t n) {
  (void)from.require<T>(n);  // before the product below can pass the largest number
  (void)from.require<T>(n * sizes.n_kv_heads * (sizes.key_dim + sizes.value_dim));
  rows.reserve(static_cast<std::size_t>(n));
  const auto get = [&](T* to, std::size_t dim) {
    const std::span<T> all(to, static_cast<std::size_t>(n) * dim);
    from.get_array(all);
    if (simd::all_finite(all.data(), all.size()) != all.size()) {
      from.fail("holds a key or value that is not finite");
    }
  };
  for (std::size_t head = 0; head < sizes.n_kv_heads; ++head) {
    get(rows.keys(head), sizes.key_dim);
    get(rows.values(head), sizes.value_dim);
  }
  rows.commit(static_cast<std::size_t>(n));
}

}  // namespace detail

/// @brief Puts a layer's own things into a part. A segment in the making is left out: its tokens are in the tail.
template <class Layer>
void put_layer(byte_writer& to, const Layer& layer, const geometry& sizes) {
  to.put(std::uint64_t{layer.sink.size()});
  to.put(std::uint64_t{layer.tail.size()});
  to.put(std::uint64_t{layer.segments.size()});
  to.put(std::uint64_t{layer.metrics.size()});
  to.put(std::uint64_t{layer.covariances == nullptr ? 0 : layer.covariances->size()});
  detail::put_rows(to, layer.sink, sizes);
  detail::put_rows(to, layer.tail, sizes);
  for (const query_metric& metric : layer.metrics) {
    query_metric::visit_state(metric, [&](const auto& state) {
      if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(state)>>) {
        to.put(state);
      } else {
        to.put_array(std::span(state.data(), state.size()));
      }
    });
  }
  if (layer.covariances != nullptr) {
    for (const head_covariances& head : *layer.covariances) {
      for (const cluster_covariance& level : head) {
        to.put(level.weight);
        to.put(std::uint64_t{level.matrix.size()});
        to.put_array(std::span<const float>(level.matrix));
      }
    }
  }
}

/// @brief What put_layer put, into a layer that is empty: a new sequence's.
/// @return segments that the layer has
/// @throw format_error
template <class Layer>
std::size_t get_layer(byte_reader& from, Layer& layer, const geometry& sizes,
                      std::size_t sink_tokens, std::size_t max_tokens) {
  const auto n_sink = from.get<std::uint64_t>();
  const auto n_tail = from.get<std::uint64_t>();
  const auto n_segments = from.get<std::uint64_t>();
  const auto n_metrics = from.get<std::uint64_t>();
  const auto n_covariances = from.get<std::uint64_t>();
  if (n_sink > sink_tokens || n_tail > max_tokens || n_segments > max_tokens ||
      (n_segments != 0 && n_sink != sink_tokens)) {
    from.fail(detail::message("has ", n_sink, " tokens in its sink, ", n_tail, " in its tail, ",
                              n_segments, " segments; allowed: ", sink_tokens, ", ", max_tokens,
                              ", ", max_tokens));
  }
  if (n_metrics != layer.metrics.size() ||
      (n_covariances != 0 && n_covariances != sizes.n_kv_heads)) {
    from.fail(detail::message("has ", n_metrics, " query metrics and ", n_covariances,
                              " covariances; allowed: ", layer.metrics.size(), ", and 0 or ",
                              sizes.n_kv_heads));
  }
  detail::get_rows(from, layer.sink, sizes, n_sink);
  detail::get_rows(from, layer.tail, sizes, n_tail);
  for (query_metric& metric : layer.metrics) {
    query_metric::visit_state(metric, [&](auto& state) {
      using type = std::remove_cvref_t<decltype(state)>;
      if constexpr (std::is_arithmetic_v<type>) {
        state = from.get<type>();
      } else {
        from.get_array(std::span(state.data(), state.size()));
      }
    });
    if (!metric.is_sound()) {
      from.fail("has a query metric that no queries lead to");
    }
  }
  if (n_covariances != 0) {
    const std::size_t n_whole = sizes.key_dim * (sizes.key_dim + sizes.value_dim);
    std::vector<head_covariances> learnt(sizes.n_kv_heads);
    for (head_covariances& head : learnt) {
      for (cluster_covariance& level : head) {
        level.weight = from.get<double>();
        const auto n = from.get<std::uint64_t>();
        if (!(level.weight >= 0.0) || !std::isfinite(level.weight) || (n != 0 && n != n_whole)) {
          from.fail(detail::message("has a covariance of weight ", level.weight, " and ", n,
                                    " elements; allowed: finite, 0 or ", n_whole));
        }
        (void)from.require<float>(n);
        level.matrix.resize(static_cast<std::size_t>(n));
        from.get_array(std::span<float>(level.matrix));
        if (simd::all_finite(level.matrix.data(), level.matrix.size()) != level.matrix.size()) {
          from.fail("has a covariance that is not finite");
        }
      }
    }
    layer.covariances = std::make_shared<const std::vector<head_covariances>>(std::move(learnt));
  }
  return static_cast<std::size_t>(n_segments);
}

}  // namespace wavekv
