// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <utility>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/device_block.hpp>
#include <wavekv/index/search_space.cuh>

/// @file attend_workspace.cuh
/// @brief The device memory that an attend works in.

namespace wavekv {

/// @brief Memory for attends of up to so many query tokens over sequences of up to so many tokens; made by
/// kv_cache::make_workspace. One attend uses it at a time, in the order of a stream: one workspace serves all layers of a model.
template <scalar T, device::device_runtime Runtime>
class attend_workspace {
 public:
  using stream_type = typename Runtime::stream_type;

  /// @brief Bytes of a workspace.
  static std::size_t bytes(const device::model_shape& shape, const device::search_room& room) {
    device::device_arena count(nullptr);
    (void)device::lay_out_searches<T>(count, shape, room);
    return count.used();
  }

  /// @brief In memory of its own.  @throw cuda_error
  attend_workspace(Runtime runtime, const device::model_shape& shape,
                   const device::search_room& room, std::size_t n_tokens, stream_type stream)
      : own_(runtime, bytes(shape, room), stream), room_(room), n_tokens_(n_tokens) {
    lay_out(runtime, shape, own_.data(), stream);
  }

  /// @brief In the caller's memory, which outlives it.  @throw capacity_error when it is too small
  attend_workspace(Runtime runtime, const device::model_shape& shape,
                   const device::search_room& room, std::size_t n_tokens, void* memory,
                   std::size_t n_bytes, stream_type stream)
      : room_(room), n_tokens_(n_tokens) {
    if (n_bytes < bytes(shape, room)) {
      throw capacity_error(detail::message("workspace of ", n_bytes, " bytes; allowed: at least ",
                                           bytes(shape, room), " (workspace_bytes)"));
    }
    lay_out(runtime, shape, memory, stream);
  }

  /// @brief Query tokens it has room for.
  [[nodiscard]] std::size_t n_queries() const noexcept { return room_.n_queries; }
  /// @brief Tokens that a sequence may have.
  [[nodiscard]] std::size_t n_tokens() const noexcept { return n_tokens_; }

  /// @brief Whether a step fits.  @throw capacity_error
  void check(std::size_t n_queries, std::size_t n_tokens) const {
    if (n_queries > room_.n_queries || n_tokens > n_tokens_) {
      throw capacity_error(detail::message("attend of ", n_queries, " queries over ", n_tokens,
                                           " tokens; allowed: ", room_.n_queries, " queries and ",
                                           n_tokens_, " tokens (make_workspace)"));
    }
  }

  /// @brief The space for a step of n query tokens, n <= n_queries().
  [[nodiscard]] device::search_space<T> space(std::size_t n, device::step_counts* report) const {
    device::search_space<T> of_step = space_;
    of_step.n_searches = static_cast<unsigned>(n) * of_step.shape.n_kv_heads;
    of_step.report = report;
    return of_step;
  }

 private:
  void lay_out(Runtime& runtime, const device::model_shape& shape, void* memory,
               stream_type stream) {
    device::device_arena arena(memory);
    space_ = device::lay_out_searches<T>(arena, shape, room_);
    runtime.fill(space_.counters, 0, space_.n_searches * sizeof(unsigned), stream);
  }

  device::device_block<Runtime> own_;
  device::search_room room_;
  std::size_t n_tokens_;
  device::search_space<T> space_;
};

}  // namespace wavekv
