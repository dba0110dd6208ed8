// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include <wavekv/cache/layer_kernels.cuh>
#include <wavekv/cache/layer_memory.cuh>
#include <wavekv/cache/layer_state.cuh>
#include <wavekv/cache/layer_state.hpp>
#include <wavekv/cache/layer_view.cuh>
#include <wavekv/cuda/device_block.hpp>
#include <wavekv/cuda/errors.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/query_metric.cuh>
#include <wavekv/index/sealer.cuh>
#include <wavekv/index/segment.cuh>

/// @file layer_writer.cuh
/// @brief How a layer in device memory grows, when it is sealed, how it is cut. The twin of layer_writer.hpp.
///
/// The host never asks the device anything here: how many tokens there are follows from the calls, and how many clusters
/// they form only kernels want to know.

namespace wavekv::device {

/// @brief Makes, grows, cuts and seals layers. All its functions enqueue work and return: none waits for the device.
/// @tparam T      storage scalar
/// @tparam Index  a wave_index
template <scalar T, class Index, device_runtime Runtime>
class layer_writer {
 public:
  using stream_type = typename Runtime::stream_type;
  using layer_type = layer_state<T, Runtime>;
  using sealed_type = sealed_segment<T, Runtime>;
  using memory_type = layer_memory<T, Index, Runtime>;
  using segment_size_type = typename Index::segment_size_type;
  using cluster_count_type = typename Index::cluster_count_type;
  static constexpr bool wants_queries = memory_type::wants_queries;

  /// @brief Tokens that are decoded while a segment is sealed beside them, so that nobody waits for it.
  static constexpr std::size_t seal_lag = (segment_size_type::decode + 7) / 8;

  layer_writer(Runtime runtime, const model_shape& shape, std::size_t n_layers,
               std::size_t sink_tokens, std::size_t window_tokens)
      : runtime_(std::move(runtime)),
        shape_(shape),
        n_layers_(n_layers),
        sink_tokens_(sink_tokens),
        window_tokens_(window_tokens),
        memory_(runtime_, shape, sink_tokens, least_tail(window_tokens)),
        sealer_(runtime_, shape) {}

  /// @brief An empty layer.  @throw cuda_error
  layer_type make(stream_type stream) { return memory_.make(stream); }

  /// @brief A layer with the same tokens: segments are shared, all else is copied. A seal in progress is begun again.
  /// @throw cuda_error
  layer_type forked(const layer_type& from, stream_type stream) {
    layer_type layer = memory_.copied(from, stream);
    if (from.sealing) {
      const seal_plan plan{
          {from.sealing->segment->view.first_token, from.sealing->segment->view.n_tokens},
          from.sealing->due_length};
      layer.sealing = begin(layer, plan, stream);
      layer.sealing->publish_length = from.sealing->publish_length;
    }
    return layer;
  }

  /// @brief Room for n tokens more in the tail.  @throw cuda_error, nothing changed
  void reserve(layer_type& layer, std::size_t n, stream_type stream) {
    memory_.reserve_tail(layer, layer.n_tail() + n, stream);
  }

  /// @brief Tokens of an append that may be taken at once: more would make the tail longer than a segment.
  [[nodiscard]] std::size_t piece(const layer_type& layer, std::size_t n) const noexcept {
    const std::size_t pending = pending_tokens(layer);
    const std::size_t room =
        segment_size_type::prefill - std::min(pending, segment_size_type::prefill - std::size_t{1});
    return std::min(n, room);
  }

  /// @brief Teaches the layer's metric the queries of n tokens.
  template <scalar Q>
  void teach(layer_type& layer, const query_rows<Q>& queries, std::size_t n, float scale,
             stream_type stream) {
    if constexpr (wants_queries) {
      layer.schedule.advance(n, [&](const metric_stretch& stretch) {
        add_queries<Q> kernel;
        kernel.queries = queries;
        kernel.metric = layer.view.metric;
        kernel.key_dim = shape_.key_dim;
        kernel.group_size = shape_.group_size;
        kernel.stretch = stretch;
        kernel.scale = scale;
        runtime_.launch(stream, grid{kernel.n_blocks(shape_.key_dim), shape_.n_kv_heads}, kernel);
      });
    }
  }

  /// @brief Books n tokens that the device has appended, or will have.
  static void book(layer_type& layer, std::size_t n) noexcept {
    layer.view.length += static_cast<std::uint32_t>(n);
  }

  /// @brief Seals what is due at the length that is booked: a prompt's segments in this stream, a decode segment beside it.
  /// However decoded tokens are split over calls, the same segments are sealed, and published at the same lengths.
  /// @param decoding  whether the newest tokens are decoded ones, not a prompt's
  /// @throw cuda_error; then what is due is sealed by the next call
  void settle(layer_type& layer, std::size_t index, bool decoding, stream_type stream) {
    std::size_t earliest = layer.settled_length + 1;  // that the next seal may be due
    for (;;) {
      if (layer.sealing && layer.length() >= layer.sealing->publish_length) {
        earliest = std::max(earliest, layer.sealing->publish_length);
        publish(layer, std::exchange(layer.sealing, std::nullopt).value(), stream);
        memory_.shrink_tail(layer, stream);
      }
      if (layer.sealing) {
        break;
      }
      while (pending_tokens(layer) >= segment_size_type::prefill) {
        seal_now(layer, segment_size_type::prefill, stream);
      }
      const std::size_t pending = pending_tokens(layer);
      const std::size_t size =
          decoding ? wavekv::detail::decode_seal_size<segment_size_type>(
                         layer.view.tail_begin - sink_tokens_, pending, index, n_layers_)
                   : 0;
      if (size == 0) {
        break;
      }
      const std::size_t due = std::max(earliest, layer.length() - (pending - size));
      layer.sealing = begin(layer, {{layer.view.tail_begin, size}, due}, stream);
    }
    layer.settled_length = layer.length();
  }

  /// @brief Seals what waits beyond the window, in this stream; nothing when that is less than a node of the top level.
  void seal_rest(layer_type& layer, stream_type stream) {
    drop_sealing(layer, stream);
    std::size_t pending = pending_tokens(layer);
    if (pending < cluster_count_type::tokens_at(cluster_count_type::n_levels - 1)) {
      return;
    }
    for (; pending > 0; pending = pending_tokens(layer)) {
      seal_now(layer, std::min<std::size_t>(pending, segment_size_type::prefill), stream);
    }
    memory_.shrink_tail(layer, stream);
  }

  /// @brief Room for what truncate(layer, n) puts back into the tail.  @throw cuda_error, nothing changed
  void reserve_cut(layer_type& layer, std::size_t n, stream_type stream) {
    const cut_place cut = cut_at(layer, n);
    memory_.reserve_tail(layer, n > cut.begin ? n - cut.begin : 0, stream);
  }

  /// @brief Keeps the first n tokens; a segment that is cut is opened again, its tokens go back to the tail.
  /// @throw cuda_error, nothing changed; for want of memory not after reserve_cut
  void truncate(layer_type& layer, std::size_t n, stream_type stream) {
    if (n >= layer.length()) {
      return;
    }
    layer.settled_length = std::min(layer.settled_length, n);
    if (n < layer.view.tail_begin) {
      reserve_cut(layer, n, stream);
      drop_sealing(layer, stream);
      const cut_place cut = cut_at(layer, n);
      if (cut.opens) {
        const segment_view<T>& opened = layer.segments[cut.n_segments]->view;
        reopen_kernel<T> kernel{opened, layer.view.tail, static_cast<std::uint32_t>(n - cut.begin),
                                shape_.width()};
        const auto blocks = static_cast<unsigned>((opened.n_tokens + kernel.rows_per_block - 1) /
                                                  kernel.rows_per_block);
        runtime_.launch(stream, grid{blocks, shape_.n_kv_heads}, kernel);
      }
      leave_segments(layer, cut.n_segments, stream);
      layer.view.n_segments = static_cast<std::uint32_t>(cut.n_segments);
      layer.view.tail_begin = static_cast<std::uint32_t>(cut.begin);
      layer.view.length = static_cast<std::uint32_t>(n);
      memory_.set(layer, stream);
      runtime_.launch(stream, grid{shape_.n_kv_heads, 1}, refit_kernel<T>{shape_, layer.on_device});
      return;
    }
    if (layer.sealing && n < layer.sealing->due_length) {
      drop_sealing(layer, stream);  // it would not have begun
    }
    layer.view.length = static_cast<std::uint32_t>(n);
    memory_.set(layer, stream);
  }

  /// @brief Makes a whole segment part of a layer, behind the others; the layer learns nothing from it.  @throw cuda_error
  void adopt(layer_type& layer, std::shared_ptr<sealed_type> segment, stream_type stream) {
    memory_.reserve_segment(layer, segment->view.n_tokens, stream);
    seal_in_progress<T, Runtime> whole;
    whole.segment = std::move(segment);
    publish(layer, std::move(whole), stream);
  }

  /// @brief Says that the layer holds n tokens, whose rows have been written.
  void set_length(layer_type& layer, std::size_t n, stream_type stream) {
    layer.view.length = static_cast<std::uint32_t>(n);
    memory_.set(layer, stream);
  }

  /// @brief Lets go of a layer's memory in this stream, after what still reads it.
  void release(layer_type& layer, stream_type stream) {
    drop_sealing(layer, stream);
    leave_segments(layer, 0, stream);
    layer.follow(stream);
  }

  /// @brief Tokens beyond sink and window.
  [[nodiscard]] std::size_t pending_tokens(const layer_type& layer) const noexcept {
    return layer.n_tail() > window_tokens_ ? layer.n_tail() - window_tokens_ : 0;
  }

  [[nodiscard]] Runtime& runtime() noexcept { return runtime_; }
  [[nodiscard]] memory_type& memory() noexcept { return memory_; }
  [[nodiscard]] const model_shape& shape() const noexcept { return shape_; }

 private:
  struct token_range {
    std::size_t first = 0;  // position
    std::size_t n = 0;
  };
  struct seal_plan {
    token_range tokens;
    std::size_t due_length = 0;
  };

  // Where a layer is cut that keeps n tokens: whole segments, and from `begin` on the tail.
  struct cut_place {
    std::size_t n_segments = 0;
    std::size_t begin = 0;
    bool opens = false;  // whether the next segment's first tokens go back to the tail
  };
  [[nodiscard]] cut_place cut_at(const layer_type& layer, std::size_t n) const noexcept {
    cut_place cut{layer.segments.size(), layer.view.tail_begin};
    while (cut.n_segments > 0 && cut.begin > n) {
      const segment_view<T>& last = layer.segments[--cut.n_segments]->view;
      cut.begin = last.first_token;
      cut.opens = cut.begin < n;
    }
    return cut;
  }

  // What decoding needs: the window, a segment and a half that waits, and what comes while it is sealed.
  [[nodiscard]] static std::size_t least_tail(std::size_t window_tokens) noexcept {
    return std::min<std::size_t>(window_tokens + 2 * segment_size_type::decode + seal_lag, 4096);
  }

  // Begins to seal tokens beside the stream.
  seal_in_progress<T, Runtime> begin(layer_type& layer, const seal_plan& plan, stream_type stream) {
    memory_.reserve_segment(layer, plan.tokens.n, stream);
    seal_in_progress<T, Runtime> sealing = make_seal(plan.tokens, stream);
    metric_view metric = layer.view.metric;
    if (layer.metric.data() != nullptr) {
      sealing.metric_memory = device_block<Runtime>(runtime_, layer.metric.bytes(), stream);
      runtime_.copy(sealing.metric_memory.data(), layer.metric.data(), layer.metric.bytes(),
                    stream);
      metric.weights =
          sealing.metric_memory.template as<float>() + (metric.weights - metric.products);
      metric.products = sealing.metric_memory.template as<float>();
    }
    sealing.due_length = plan.due_length;
    sealing.publish_length = plan.due_length + seal_lag;
    const stream_type side = runtime_.side_stream();
    typename Runtime::event_type rows_are_there;
    runtime_.record(rows_are_there, stream);
    runtime_.wait(side, rows_are_there);
    follow(sealing, side);
    try {
      run_seal(layer, sealing, metric, side);
    } catch (...) {
      runtime_.record(sealing.done, side);
      runtime_.wait(stream, sealing.done);  // what was launched reads from the ring
      throw;
    }
    runtime_.record(sealing.done, side);
    return sealing;
  }

  static void follow(seal_in_progress<T, Runtime>& sealing, stream_type stream) noexcept {
    sealing.segment->memory.follow(stream);
    sealing.learnt_memory.follow(stream);
    sealing.metric_memory.follow(stream);
  }

  void seal_now(layer_type& layer, std::size_t n, stream_type stream) {
    memory_.reserve_segment(layer, n, stream);
    seal_in_progress<T, Runtime> sealing = make_seal({layer.view.tail_begin, n}, stream);
    run_seal(layer, sealing, layer.view.metric, stream);
    publish(layer, std::move(sealing), stream);
  }

  seal_in_progress<T, Runtime> make_seal(const token_range& tokens, stream_type stream) {
    seal_in_progress<T, Runtime> sealing;
    sealing.segment = memory_.make_segment(tokens.first, tokens.n, stream);
    std::tie(sealing.learnt_memory, sealing.learnt) = memory_.make_lesson(stream);
    return sealing;
  }

  void run_seal(const layer_type& layer, const seal_in_progress<T, Runtime>& sealing,
                const metric_view& metric, stream_type stream) {
    seal_item<T> item;
    item.ring = layer.view.tail;
    item.first_position = sealing.segment->view.first_token;
    item.n_tokens = sealing.segment->view.n_tokens;
    item.segment = sealing.segment->view;
    item.learnt = sealing.learnt;
    item.metric = metric;
    const device_block<Runtime> workspace(
        runtime_, sealer_type::workspace_bytes(shape_, item.n_tokens, 1), stream);
    sealer_.seal(std::span<const seal_item<T>>(&item, 1), workspace.data(), stream);
  }

  void publish(layer_type& layer, seal_in_progress<T, Runtime> sealing, stream_type stream) {
    runtime_.wait(stream, sealing.done);
    follow(sealing, stream);
    const segment_view<T>& segment = sealing.segment->view;
    runtime_.launch(stream, grid{shape_.n_kv_heads, 1},
                    publish_kernel<T>{shape_, layer.on_device, segment, sealing.learnt});
    layer.segments.push_back(std::move(sealing.segment));
    ++layer.view.n_segments;
    layer.view.tail_begin = segment.first_token + segment.n_tokens;
  }

  // Forgets a seal in progress; what it reads and writes stays until it is done.
  void drop_sealing(layer_type& layer, stream_type stream) {
    if (layer.sealing) {
      runtime_.wait(stream, layer.sealing->done);
      follow(*layer.sealing, stream);
      layer.sealing.reset();
    }
  }

  // Keeps the first n segments of a layer. Those of other sequences that share the others may be read in other streams: who
  // comes last gives the memory back, after all of them.
  void leave_segments(layer_type& layer, std::size_t n, stream_type stream) {
    for (std::size_t s = n; s < layer.segments.size(); ++s) {
      sealed_type& segment = *layer.segments[s];
      const std::lock_guard lock(segment.leaving);
      runtime_.wait(stream, segment.all_left);
      segment.memory.follow(stream);
      if (layer.segments[s].use_count() > 1) {
        runtime_.record(segment.all_left, stream);
      }
    }
    layer.segments.resize(n);
  }

  using sealer_type = sealer<T, Index, Runtime>;

  Runtime runtime_;
  model_shape shape_;
  std::size_t n_layers_;
  std::size_t sink_tokens_;
  std::size_t window_tokens_;
  memory_type memory_;
  sealer_type sealer_;
};

}  // namespace wavekv::device
