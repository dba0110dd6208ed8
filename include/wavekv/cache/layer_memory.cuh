// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include <wavekv/cache/layer_kernels.cuh>
#include <wavekv/cache/layer_state.cuh>
#include <wavekv/cache/layer_view.cuh>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/device_block.hpp>
#include <wavekv/cuda/errors.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/query_metric.cuh>
#include <wavekv/index/segment.cuh>

/// @file layer_memory.cuh
/// @brief The blocks of device memory that a layer consists of: made, copied, grown and given back, in the order of a stream.

namespace wavekv::device {

/// @brief Makes and grows layers' memory. All its functions enqueue work and return; one that throws cuda_error for want of memory has
/// changed nothing.
/// @tparam T      storage scalar
/// @tparam Index  a wave_index
template <scalar T, class Index, device_runtime Runtime>
class layer_memory {
 public:
  using stream_type = typename Runtime::stream_type;
  using layer_type = layer_state<T, Runtime>;
  using sealed_type = sealed_segment<T, Runtime>;
  using cluster_count_type = typename Index::cluster_count_type;
  static constexpr bool wants_queries =
      wavekv::detail::uses_queries<typename Index::clusterer_type>();

  /// @param least_tail  tokens that a tail has room for, at least
  layer_memory(Runtime runtime, const model_shape& shape, std::size_t sink_tokens,
               std::size_t least_tail)
      : runtime_(std::move(runtime)),
        shape_(shape),
        sink_tokens_(sink_tokens),
        least_tail_(least_tail) {}

  /// @brief An empty layer.  @throw cuda_error
  layer_type make(stream_type stream) {
    layer_type layer;
    layer.schedule = metric_schedule(shape_.group_size);
    make_fixed(layer, stream);
    layer.view.sink_capacity = layer.view.tail_begin = static_cast<std::uint32_t>(sink_tokens_);
    if constexpr (wants_queries) {
      make_metric(layer, stream);
      runtime_.fill(layer.metric.data(), 0, layer.metric.bytes(), stream);
    }
    set(layer, stream);
    return layer;
  }

  /// @brief A layer with the same tokens: segments are shared, all else is copied; nothing is being sealed.
  /// @throw cuda_error
  layer_type copied(const layer_type& from, stream_type stream) {
    layer_type layer;
    layer.schedule = from.schedule;
    layer.settled_length = from.settled_length;
    layer.view = from.view;
    make_fixed(layer, stream);
    exchange_tail(layer, from.view.tail.capacity, stream);
    layer.segments = from.segments;
    layer.segment_capacity = from.segment_capacity;
    const auto copy = [&](device_block<Runtime>& to, const device_block<Runtime>& of) {
      if (of.data() != nullptr) {
        to = device_block<Runtime>(runtime_, of.bytes(), stream);
        runtime_.copy(to.data(), of.data(), of.bytes(), stream);
      }
    };
    copy(layer.segment_table, from.segment_table);
    copy(layer.top_runs, from.top_runs);
    copy(layer.learnt, from.learnt);
    copy(layer.metric, from.metric);
    point_at_blocks(layer);
    runtime_.copy(layer.view.facts, from.view.facts, shape_.n_kv_heads * sizeof(index_facts),
                  stream);
    runtime_.copy(layer.view.sink, from.view.sink, sink_bytes(), stream);
    copy_tail(from.view.tail, layer.view.tail, from.view.tail_begin,
              static_cast<std::uint32_t>(from.n_tail()), stream);
    set(layer, stream);
    return layer;
  }

  /// @brief Room for a tail of n tokens.  @throw cuda_error
  void reserve_tail(layer_type& layer, std::size_t n, stream_type stream) {
    const std::size_t needed = n + run_rows;
    const std::size_t old = layer.view.tail.capacity;
    if (needed > old) {
      replace_tail(layer, std::max({needed, old + old / 2, least_tail_}), stream);
    }
  }

  /// @brief Gives back what of a tail is beyond need: a prompt's is far longer than decoding's. Where there is no memory to do so,
  /// nothing is lost but room.
  void shrink_tail(layer_type& layer, stream_type stream) {
    const std::size_t needed = std::max(layer.n_tail() + run_rows, least_tail_);
    if (layer.view.tail.capacity > 2 * needed) {
      try {
        replace_tail(layer, needed, stream);
      } catch (const cuda_error&) {
      } catch (const std::bad_alloc&) {}
    }
  }

  /// @brief Room for one more segment of n tokens in the layer's tables, and for what it teaches.  @throw cuda_error
  void reserve_segment(layer_type& layer, std::size_t n, stream_type stream) {
    const auto runs_of = [](std::size_t n_tokens) {
      return (most_nodes<cluster_count_type>(n_tokens, cluster_count_type::n_levels - 1) +
              run_rows - 1) /
             run_rows;
    };
    std::size_t n_runs = runs_of(n);
    for (const auto& segment : layer.segments) {
      n_runs += runs_of(segment->view.n_tokens);
    }
    // All memory first: where it fails the device still has the tables that it knows.
    layer.segments.reserve(layer.segments.size() + 1);
    make_learnt(layer, stream);
    const std::size_t n_segments = layer.segments.size();
    std::size_t segment_capacity = layer.segment_capacity;
    device_block<Runtime> table;
    if (n_segments == segment_capacity) {
      segment_capacity = std::max<std::size_t>(16, 2 * segment_capacity);
      table = device_block<Runtime>(runtime_, segment_capacity * sizeof(segment_view<T>), stream);
    }
    const std::size_t old = layer.view.top_capacity;
    std::size_t top_capacity = old;
    device_block<Runtime> runs;
    if (n_runs > old) {
      top_capacity = std::max({n_runs, 2 * old, std::size_t{64}});
      runs = device_block<Runtime>(runtime_, shape_.n_kv_heads * top_capacity * sizeof(node_run<T>),
                                   stream);
    }
    if (table.data() == nullptr && runs.data() == nullptr) {
      return;
    }
    if (table.data() != nullptr) {
      runtime_.copy(table.data(), layer.segment_table.data(), n_segments * sizeof(segment_view<T>),
                    stream);
      layer.segment_table.follow(stream);
      layer.segment_table = std::move(table);
      layer.segment_capacity = segment_capacity;
    }
    if (runs.data() != nullptr) {
      for (std::size_t head = 0; head < shape_.n_kv_heads; ++head) {
        runtime_.copy(runs.template as<node_run<T>>() + head * top_capacity,
                      layer.top_runs.template as<node_run<T>>() + head * old,
                      old * sizeof(node_run<T>), stream);
      }
      layer.top_runs.follow(stream);
      layer.top_runs = std::move(runs);
      layer.view.top_capacity = static_cast<std::uint32_t>(top_capacity);
    }
    point_at_blocks(layer);
    set(layer, stream);
  }

  /// @brief Memory for a segment of n tokens, to be filled and adopted.  @throw cuda_error
  std::shared_ptr<sealed_type> make_segment(std::size_t first, std::size_t n, stream_type stream) {
    auto segment = std::make_shared<sealed_type>();
    segment->memory =
        device_block<Runtime>(runtime_, segment_bytes<T, cluster_count_type>(shape_, n), stream);
    device_arena arena(segment->memory.data());
    segment->view = lay_out_segment<T, cluster_count_type>(arena, shape_, first, n);
    return segment;
  }

  /// @brief Memory for what the layer learns from its segments, zero; nothing where there is some.  @throw cuda_error
  void make_learnt(layer_type& layer, stream_type stream) {
    if (layer.learnt.data() == nullptr) {
      layer.learnt = device_block<Runtime>(runtime_, learnt_bytes(), stream);
      runtime_.fill(layer.learnt.data(), 0, layer.learnt.bytes(), stream);
      point_at_blocks(layer);
      set(layer, stream);
    }
  }

  /// @brief Memory for what one segment teaches.  @throw cuda_error
  std::pair<device_block<Runtime>, learnt_view> make_lesson(stream_type stream) const {
    device_block<Runtime> block(runtime_, learnt_bytes(), stream);
    const learnt_view lesson = learnt_in(block);
    return {std::move(block), lesson};
  }

  /// @brief Tells the device what the layer's view says.
  void set(const layer_type& layer, stream_type stream) {
    runtime_.launch(stream, grid{}, set_layer_kernel<T>{layer.on_device, layer.view});
  }

 private:
  [[nodiscard]] std::size_t sink_bytes() const noexcept {
    return std::size_t{shape_.n_kv_heads} * sink_tokens_ * shape_.width() * sizeof(T);
  }

  [[nodiscard]] std::size_t learnt_bytes() const noexcept {
    return (learnt_view::n_products(shape_) + std::size_t{shape_.n_kv_heads} * shape_.n_levels) *
           sizeof(float);
  }

  void make_fixed(layer_type& layer, stream_type stream) {
    const auto lay_out = [&](device_arena arena) {
      layer.on_device = arena.take<layer_view<T>>(1);
      layer.view.counter = arena.take<unsigned>(1);
      layer.view.facts = arena.take<index_facts>(shape_.n_kv_heads);
      layer.view.sink = arena.take<T>(sink_bytes() / sizeof(T));
      return arena.used();
    };
    layer.fixed = device_block<Runtime>(runtime_, lay_out(device_arena(nullptr)), stream);
    (void)lay_out(device_arena(layer.fixed.data()));
    runtime_.fill(layer.view.counter, 0, sizeof(unsigned), stream);
    runtime_.fill(layer.view.facts, 0, shape_.n_kv_heads * sizeof(index_facts), stream);
  }

  void make_metric(layer_type& layer, stream_type stream) {
    const std::size_t products =
        std::size_t{shape_.n_kv_heads} * shape_.key_dim * shape_.key_dim * sizeof(float);
    layer.metric =
        device_block<Runtime>(runtime_, products + shape_.n_kv_heads * sizeof(float), stream);
    point_at_blocks(layer);
  }

  // What is learnt, in a block of learnt_bytes; nothing without one.
  [[nodiscard]] learnt_view learnt_in(const device_block<Runtime>& block) const noexcept {
    learnt_view view;
    view.products = block.template as<float>();
    view.weights =
        block.data() == nullptr ? nullptr : view.products + learnt_view::n_products(shape_);
    return view;
  }

  // What the view says of memory whose sizes follow from the shape.
  void point_at_blocks(layer_type& layer) const noexcept {
    layer.view.segments = layer.segment_table.template as<segment_view<T>>();
    layer.view.top_runs = layer.top_runs.template as<node_run<T>>();
    layer.view.learnt = learnt_in(layer.learnt);
    layer.view.metric.products = layer.metric.template as<float>();
    layer.view.metric.weights = layer.metric.data() == nullptr
                                    ? nullptr
                                    : layer.view.metric.products + std::size_t{shape_.n_kv_heads} *
                                                                       shape_.key_dim *
                                                                       shape_.key_dim;
  }

  // A ring of at least n tokens; gives back the one it replaces. Rows are not copied.
  device_block<Runtime> exchange_tail(layer_type& layer, std::size_t n, stream_type stream) {
    n = (n + run_rows - 1) / run_rows * run_rows;
    device_block<Runtime> tail(runtime_, n * shape_.n_kv_heads * shape_.width() * sizeof(T),
                               stream);
    layer.view.tail = {tail.template as<T>(), static_cast<std::uint32_t>(n)};
    return std::exchange(layer.tail, std::move(tail));
  }

  // Moves the tail to a ring of at least n tokens.
  void replace_tail(layer_type& layer, std::size_t n, stream_type stream) {
    const token_ring<T> before = layer.view.tail;
    device_block<Runtime> replaced = exchange_tail(layer, n, stream);
    replaced.follow(stream);
    copy_tail(before, layer.view.tail, layer.view.tail_begin,
              static_cast<std::uint32_t>(layer.n_tail()), stream);
    if (layer.sealing) {
      runtime_.wait(stream, layer.sealing->done);  // it reads from the ring that goes now
    }
    set(layer, stream);
  }

  void copy_tail(const token_ring<T>& from, const token_ring<T>& to, std::uint32_t first,
                 std::uint32_t n, stream_type stream) {
    runtime_.launch(stream, grid{n, 1},
                    copy_ring_kernel<T>{from, to, first, shape_.n_kv_heads, shape_.width()});
  }

  Runtime runtime_;
  model_shape shape_;
  std::size_t sink_tokens_;
  std::size_t least_tail_;
};

}  // namespace wavekv::device
