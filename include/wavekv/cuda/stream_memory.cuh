// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <mutex>
#include <utility>

#include <cuda_runtime.h>

#include <wavekv/cuda/errors.hpp>
#include <wavekv/cuda/memory_resource.hpp>

/// @file stream_memory.cuh
/// @brief What cuda_runtime's memory is made of: events, a pool that follows streams, pinned buffers for copies to the device.

namespace wavekv::device {

namespace detail {

/// @brief Throws cuda_error unless the call succeeded.
inline void check_cuda(cudaError_t code, const char* call) {
  if (code == cudaSuccess) {
    return;
  }
  // CUDA keeps an error until it is asked for it; left there, the caller's next check would take it for its own.
  static_cast<void>(cudaGetLastError());
  throw cuda_error(call, static_cast<int>(code), cudaGetErrorString(code));
}

/// @brief For calls in functions that may not throw, and whose failure leaves nothing to be done.
inline void ignore_cuda(cudaError_t code) noexcept {
  if (code != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
  }
}

}  // namespace detail

/// @brief A mark in a stream; empty until it is first recorded, and movable. Measures no time, which makes it cheap.
class cuda_event {
 public:
  cuda_event() = default;
  cuda_event(cuda_event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  cuda_event& operator=(cuda_event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  cuda_event(const cuda_event&) = delete;
  cuda_event& operator=(const cuda_event&) = delete;
  ~cuda_event() {
    if (handle_ != nullptr) {
      detail::ignore_cuda(cudaEventDestroy(handle_));
    }
  }

  /// @brief CUDA's event; null while empty.
  [[nodiscard]] cudaEvent_t native() const noexcept { return handle_; }

  /// @brief Marks what the stream was given so far; makes CUDA's event the first time. Throws cuda_error.
  void record(cudaStream_t stream) {
    if (handle_ == nullptr) {
      detail::check_cuda(cudaEventCreateWithFlags(&handle_, cudaEventDisableTiming),
                         "cudaEventCreateWithFlags");
    }
    detail::check_cuda(cudaEventRecord(handle_, stream), "cudaEventRecord");
  }

 private:
  cudaEvent_t handle_ = nullptr;
};

/// @brief Device memory from a pool of CUDA's (cudaMallocFromPoolAsync) that keeps what is given back for the next
/// allocation. A pool of its own: the device's default pool, and how much that keeps, is other people's business.
class stream_ordered_pool final : public memory_resource {
 public:
  /// @brief An empty pool on the device. Throws cuda_error.
  explicit stream_ordered_pool(int device) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    detail::check_cuda(cudaMemPoolCreate(&pool_, &properties), "cudaMemPoolCreate");
    // By default a pool hands its memory back to the driver at every synchronisation.
    std::uint64_t kept_bytes = std::numeric_limits<std::uint64_t>::max();
    if (const cudaError_t code =
            cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &kept_bytes);
        code != cudaSuccess) {
      detail::ignore_cuda(cudaMemPoolDestroy(pool_));
      detail::check_cuda(code, "cudaMemPoolSetAttribute");
    }
  }
  stream_ordered_pool(const stream_ordered_pool&) = delete;
  stream_ordered_pool& operator=(const stream_ordered_pool&) = delete;
  stream_ordered_pool(stream_ordered_pool&&) = delete;
  stream_ordered_pool& operator=(stream_ordered_pool&&) = delete;
  ~stream_ordered_pool() override { detail::ignore_cuda(cudaMemPoolDestroy(pool_)); }

  /// @brief Memory of the pool, which grows where it must; throws cuda_error where the device has none left.
  [[nodiscard]] void* allocate(std::size_t bytes, void* stream) override {
    void* p = nullptr;
    detail::check_cuda(cudaMallocFromPoolAsync(&p, bytes, pool_, static_cast<cudaStream_t>(stream)),
                       "cudaMallocFromPoolAsync");
    return p;
  }

  /// @brief Back to the pool once the stream has come here.
  void deallocate(void* p, std::size_t /*bytes*/, void* stream) noexcept override {
    detail::ignore_cuda(cudaFreeAsync(p, static_cast<cudaStream_t>(stream)));
  }

  /// @brief Hands memory beyond kept_bytes that is not in use back to the driver. Throws cuda_error.
  void trim(std::size_t kept_bytes) {
    detail::check_cuda(cudaMemPoolTrimTo(pool_, kept_bytes), "cudaMemPoolTrimTo");
  }

 private:
  cudaMemPool_t pool_ = nullptr;
};

/// @brief Copies from the host to the device that never wait for work in the stream: the bytes go to a pinned buffer at
/// once, and from there when the stream comes to it. (From pageable memory, CUDA's own copy may wait for the stream; from
/// pinned memory it would still read `from` after it returned.) May be used from several threads at once.
///
/// Buffers have sizes of powers of two from 4 KiB to 4 MiB, are made when first needed, and are used again when their copy
/// is done. Together they hold at most 64 MiB (and one of each size); a caller that has more than that under way waits for
/// the oldest of its copies.
class staging_buffers {
 public:
  /// @brief Copies; `from` may be reused at once. Throws cuda_error, also where the stream is being captured into a graph:
  /// what a buffer holds now it will not hold when the graph runs.
  void copy_in(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    detail::check_cuda(cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
    if (capture != cudaStreamCaptureStatusNone) {
      throw cuda_error("copy_in", static_cast<int>(cudaErrorStreamCaptureUnsupported),
                       cudaGetErrorString(cudaErrorStreamCaptureUnsupported));
    }
    const std::lock_guard lock(guard_);
    auto* target = static_cast<std::byte*>(to);
    const auto* source = static_cast<const std::byte*>(from);
    while (bytes > 0) {
      const std::size_t part = std::min(bytes, largest_bytes);
      buffer& staged = take(part);
      std::memcpy(staged.memory, source, part);
      detail::check_cuda(
          cudaMemcpyAsync(target, staged.memory, part, cudaMemcpyHostToDevice, stream),
          "cudaMemcpyAsync");
      staged.copied.record(stream);
      target += part;
      source += part;
      bytes -= part;
    }
  }

 private:
  static constexpr std::size_t smallest_bytes = std::size_t{1} << 12U;
  static constexpr std::size_t largest_bytes = std::size_t{1} << 22U;
  static constexpr std::size_t limit_bytes = std::size_t{1} << 26U;
  static constexpr std::size_t n_sizes =
      std::bit_width(largest_bytes) - std::bit_width(smallest_bytes) + 1;

  struct buffer {
    explicit buffer(std::size_t bytes) {
      detail::check_cuda(cudaMallocHost(&memory, bytes), "cudaMallocHost");
    }
    buffer(buffer&& other) noexcept
        : memory(std::exchange(other.memory, nullptr)), copied(std::move(other.copied)) {}
    buffer& operator=(buffer&& other) noexcept {
      std::swap(memory, other.memory);
      copied = std::move(other.copied);
      return *this;
    }
    buffer(const buffer&) = delete;
    buffer& operator=(const buffer&) = delete;
    ~buffer() {  // waits for a copy that is still under way
      if (memory != nullptr) {
        detail::ignore_cuda(cudaFreeHost(memory));
      }
    }

    void* memory = nullptr;
    cuda_event copied;
  };

  /// @brief A buffer that nothing is copied from, put behind the others of its size.
  buffer& take(std::size_t bytes) {
    const std::size_t size_bytes = std::bit_ceil(std::max(bytes, smallest_bytes));
    std::deque<buffer>& same_size = buffers_[static_cast<std::size_t>(
        std::bit_width(size_bytes) - std::bit_width(smallest_bytes))];
    if (!same_size.empty() &&
        (is_done(same_size.front()) || used_bytes_ + size_bytes > limit_bytes)) {
      if (const cudaEvent_t copied = same_size.front().copied.native(); copied != nullptr) {
        detail::check_cuda(cudaEventSynchronize(copied), "cudaEventSynchronize");
      }
      buffer oldest = std::move(same_size.front());
      same_size.pop_front();
      return same_size.emplace_back(std::move(oldest));
    }
    buffer& made = same_size.emplace_back(size_bytes);
    used_bytes_ += size_bytes;
    return made;
  }

  static bool is_done(const buffer& staged) {
    if (staged.copied.native() == nullptr) {
      return true;
    }
    const cudaError_t code = cudaEventQuery(staged.copied.native());
    if (code == cudaErrorNotReady) {
      static_cast<void>(cudaGetLastError());
      return false;
    }
    detail::check_cuda(code, "cudaEventQuery");
    return true;
  }

  std::mutex guard_;
  std::array<std::deque<buffer>, n_sizes> buffers_;  // of each size, the one used longest ago first
  std::size_t used_bytes_ = 0;
};

}  // namespace wavekv::device
