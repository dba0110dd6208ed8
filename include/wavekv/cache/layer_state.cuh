// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include <wavekv/cache/layer_view.cuh>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/device_block.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/query_metric.cuh>
#include <wavekv/index/segment.cuh>

/// @file layer_state.cuh
/// @brief What one layer of one sequence holds in device memory, as the host sees it. The twin of layer_state.hpp.

namespace wavekv::device {

/// @brief A segment and its memory, shared by forks.
template <scalar T, device_runtime Runtime>
struct sealed_segment {
  device_block<Runtime> memory;
  segment_view<T> view;
  std::mutex leaving;                     ///< forks may be released by several threads
  typename Runtime::event_type all_left;  ///< those that held it, too, in whatever stream
};

/// @brief A segment that is being sealed beside decoding; its tokens stay in the tail until it is published, and its memory is
/// the side stream's.
template <scalar T, device_runtime Runtime>
struct seal_in_progress {
  std::shared_ptr<sealed_segment<T, Runtime>> segment;
  device_block<Runtime> learnt_memory;
  learnt_view learnt;
  device_block<Runtime> metric_memory;  ///< a copy: the layer's own may learn more meanwhile
  typename Runtime::event_type done;
  std::size_t due_length = 0;      ///< tokens of the layer when it was due
  std::size_t publish_length = 0;  ///< tokens of the layer from which on it is part of it
};

/// @brief One (sequence, layer) as the host sees it. `view` is what the device has once the stream has come here.
template <scalar T, device_runtime Runtime>
struct layer_state {
  layer_view<T> view;
  device_block<Runtime> fixed;  ///< the view itself, counter, facts, sink
  layer_view<T>* on_device = nullptr;
  device_block<Runtime> tail;
  device_block<Runtime> segment_table;
  std::size_t segment_capacity = 0;
  device_block<Runtime> top_runs;
  device_block<Runtime> learnt;
  device_block<Runtime> metric;
  metric_schedule schedule;
  std::vector<std::shared_ptr<sealed_segment<T, Runtime>>> segments;
  std::optional<seal_in_progress<T, Runtime>> sealing;
  std::size_t settled_length = 0;  ///< tokens it had when it was last asked what is due

  layer_state() = default;
  layer_state(const layer_state&) = delete;
  layer_state& operator=(const layer_state&) = delete;
  layer_state(layer_state&&) noexcept = default;
  layer_state& operator=(layer_state&&) = delete;
  ~layer_state() {
    if (sealing) {
      try {
        tail.outlive(sealing->done);  // it is read from
      } catch (...) {  // NOLINT(bugprone-empty-catch): the device is lost, and the memory with it
      }
    }
  }

  [[nodiscard]] std::size_t length() const noexcept { return view.length; }
  /// @brief Tokens of the tail.
  [[nodiscard]] std::size_t n_tail() const noexcept {
    return view.length > view.tail_begin ? view.length - view.tail_begin : 0;
  }
  /// @brief Device memory is from now on given back in this stream.
  void follow(typename Runtime::stream_type stream) noexcept {
    for (auto* block : {&fixed, &tail, &segment_table, &top_runs, &learnt, &metric}) {
      block->follow(stream);
    }
  }
};

}  // namespace wavekv::device
