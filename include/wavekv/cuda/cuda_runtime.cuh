// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>

#include <cuda_runtime.h>
#include <thrust/system/cuda/execution_policy.h>
#include <thrust/system_error.h>

#include <wavekv/core/errors.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/errors.hpp>
#include <wavekv/cuda/hardware_block.cuh>
#include <wavekv/cuda/memory_resource.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/cuda/stream_memory.cuh>

/// @file cuda_runtime.cuh
/// @brief The device_runtime of <wavekv/cuda/runtime.hpp> in CUDA's own functions.

namespace wavekv::device {

/// @brief Whether a kernel says, with `static constexpr bool overlaps = true`, that it may start while the launch before it
/// still runs. Such a kernel calls `await_previous()` before it reads what that launch wrote, or writes what that launch reads.
template <class Kernel>
inline constexpr bool kernel_overlaps = [] {
  if constexpr (requires { Kernel::overlaps; }) {
    return static_cast<bool>(Kernel::overlaps);
  } else {
    return false;
  }
}();

/// @brief One CUDA device; models device_runtime. Copies share their memory, their side stream and what else they hold.
///
/// The device is the one that was current when the runtime was made, and must be current in each thread that calls it, as
/// for CUDA's own functions. Only copy_out and synchronize wait for the device; copy_in may, when more than 64 MiB of
/// copies are under way (see staging_buffers). Whatever CUDA refuses throws cuda_error. May be used from several threads.
class cuda_runtime {
 public:
  using stream_type = cudaStream_t;
  using event_type = cuda_event;

  /// @brief The current device, with a pool of its own for memory. Throws cuda_error, and config_error where the device is
  /// older than compute capability 8.0.
  cuda_runtime() : state_(std::make_shared<state>(nullptr)) {}

  /// @brief The current device, with memory from elsewhere. Throws likewise, and config_error for a null pointer.
  explicit cuda_runtime(std::shared_ptr<memory_resource> memory) {
    if (memory == nullptr) {
      throw config_error("cuda_runtime: memory is null; allowed: a memory_resource");
    }
    state_ = std::make_shared<state>(std::move(memory));
  }

  /// @brief CUDA's number of the device.
  [[nodiscard]] int device() const noexcept { return state_->device; }
  /// @brief Multiprocessors of the device.
  [[nodiscard]] unsigned n_multiprocessors() const noexcept { return state_->n_multiprocessors; }

  /// @brief Device memory for what the stream is given from now on, aligned to 256 bytes; null for 0 bytes.
  [[nodiscard]] void* allocate(std::size_t bytes, stream_type stream) const {
    return bytes == 0 ? nullptr : state_->memory->allocate(bytes, stream);
  }
  /// @brief Gives it back once the stream has come here.
  void deallocate(void* p, std::size_t bytes, stream_type stream) const noexcept {
    if (p != nullptr) {
      state_->memory->deallocate(p, bytes, stream);
    }
  }

  /// @brief Host to device; `from` may be reused at once. Not while the stream is captured into a graph.
  void copy_in(void* to, const void* from, std::size_t bytes, stream_type stream) const {
    if (bytes > 0) {
      state_->staging.copy_in(to, from, bytes, stream);
    }
  }
  /// @brief Device to host; blocks until done.
  void copy_out(void* to, const void* from, std::size_t bytes, stream_type stream) const {
    if (bytes > 0) {
      detail::check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream),
                         "cudaMemcpyAsync");
    }
    synchronize(stream);
  }
  /// @brief Device to device; the two do not overlap.
  void copy(void* to, const void* from, std::size_t bytes, stream_type stream) const {
    if (bytes > 0) {
      detail::check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream),
                         "cudaMemcpyAsync");
    }
  }
  /// @brief Sets each byte to the low byte of `byte`.
  void fill(void* p, int byte, std::size_t bytes, stream_type stream) const {
    if (bytes > 0) {
      detail::check_cuda(cudaMemsetAsync(p, byte, bytes, stream), "cudaMemsetAsync");
    }
  }

  /// @brief Launches a kernel (see block.hpp); nothing where the grid is empty. With kernel_overlaps, and from compute
  /// capability 9.0 on, it may start before the launch before it ends.
  template <class Kernel>
  void launch(stream_type stream, grid blocks, const Kernel& kernel) const {
    static_assert(std::is_trivially_copyable_v<Kernel>,
                  "a kernel is copied to the device as it is");
    static_assert(Kernel::n_threads % warp_size == 0 && Kernel::n_threads > 0 &&
                      Kernel::n_threads <= 1024,
                  "Kernel::n_threads: a multiple of 32, at most 1024");
    if (blocks.x == 0 || blocks.y == 0) {
      return;
    }
    const std::size_t shared_bytes = kernel.shared_bytes();
    allow_shared<Kernel>(shared_bytes);

    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t configuration{};
    configuration.gridDim = dim3(blocks.x, blocks.y);
    configuration.blockDim = dim3(Kernel::n_threads);
    configuration.dynamicSmemBytes = shared_bytes;
    configuration.stream = stream;
    configuration.attrs = &overlap;
    configuration.numAttrs = kernel_overlaps<Kernel> && state_->capability_major >= 9 ? 1 : 0;
    void* arguments[] = {const_cast<Kernel*>(&kernel)};  // CUDA only reads it
    detail::check_cuda(cudaLaunchKernelExC(&configuration,
                                           reinterpret_cast<const void*>(&run_kernel<Kernel>),
                                           arguments),
                       "cudaLaunchKernelExC");
  }

  /// @brief Calls work(policy), policy an execution policy of Thrust on this stream that does not wait for it and whose
  /// temporary memory comes from this runtime; returns what work returns. Algorithms that return a number wait all the same.
  template <class Work>
  decltype(auto) with_policy(stream_type stream, Work&& work) const {
    temporary_memory memory{*this, stream};
    try {
      return std::forward<Work>(work)(thrust::cuda::par_nosync(memory).on(stream));
    } catch (const thrust::system_error& failure) {
      static_cast<void>(cudaGetLastError());
      throw cuda_error("thrust", failure.code().value(), failure.what());
    }
  }

  /// @brief The event marks what the stream was given so far.
  void record(event_type& event, stream_type stream) const { event.record(stream); }
  /// @brief What follows in the stream waits for the event; an event never recorded is past.
  void wait(stream_type stream, const event_type& event) const {
    if (event.native() != nullptr) {
      detail::check_cuda(cudaStreamWaitEvent(stream, event.native(), 0), "cudaStreamWaitEvent");
    }
  }
  /// @brief Blocks the host until the stream is done.
  void synchronize(stream_type stream) const {
    detail::check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }

  /// @brief Whether the stream is being captured into a graph.
  [[nodiscard]] bool is_capturing(stream_type stream) const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    detail::check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }

  /// @brief A stream for work beside the caller's, the same one for all copies of this runtime: of the lowest priority, and
  /// ordered with no other stream, the default one included, but through events.
  [[nodiscard]] stream_type side_stream() const noexcept { return state_->side; }

 private:
  struct state {
    explicit state(std::shared_ptr<memory_resource> given) {
      detail::check_cuda(cudaGetDevice(&device), "cudaGetDevice");
      capability_major = attribute(cudaDevAttrComputeCapabilityMajor);
      if (capability_major < 8) {
        throw config_error(wavekv::detail::message(
            "device ", device, " has compute capability ", capability_major, ".",
            attribute(cudaDevAttrComputeCapabilityMinor), "; allowed: 8.0 or above"));
      }
      n_multiprocessors = static_cast<unsigned>(attribute(cudaDevAttrMultiProcessorCount));
      memory = given != nullptr ? std::move(given) : std::make_shared<stream_ordered_pool>(device);
      int lowest_priority = 0;
      detail::check_cuda(cudaDeviceGetStreamPriorityRange(&lowest_priority, nullptr),
                         "cudaDeviceGetStreamPriorityRange");
      detail::check_cuda(
          cudaStreamCreateWithPriority(&side, cudaStreamNonBlocking, lowest_priority),
          "cudaStreamCreateWithPriority");
    }
    state(const state&) = delete;
    state& operator=(const state&) = delete;
    state(state&&) = delete;
    state& operator=(state&&) = delete;
    ~state() { detail::ignore_cuda(cudaStreamDestroy(side)); }

    [[nodiscard]] int attribute(cudaDeviceAttr which) const {
      int value = 0;
      detail::check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
      return value;
    }

    int device = 0;
    int capability_major = 0;
    unsigned n_multiprocessors = 0;
    std::shared_ptr<memory_resource> memory;
    staging_buffers staging;
    cudaStream_t side = nullptr;
  };

  /// @brief What Thrust calls an allocator.
  struct temporary_memory {
    using value_type = std::byte;

    value_type* allocate(std::size_t n) {
      return static_cast<value_type*>(runtime.allocate(n, stream));
    }
    void deallocate(value_type* p, std::size_t n) noexcept { runtime.deallocate(p, n, stream); }

    const cuda_runtime& runtime;
    stream_type stream;
  };

  /// @brief Tells CUDA that the kernel may have so much shared memory, which it grants without being told only up to 48 KiB.
  template <class Kernel>
  void allow_shared(std::size_t bytes) const {
    constexpr std::size_t granted_bytes = 48 * 1024;
    if (bytes <= granted_bytes) {
      return;
    }
    // What was asked for so far, by device: CUDA keeps it for each. Devices past the last are told at every launch.
    static std::array<std::atomic<std::size_t>, 16> allowed_bytes{};
    static std::mutex guard;
    const auto device = static_cast<std::size_t>(state_->device);
    const bool remembered = device < allowed_bytes.size();
    if (remembered && allowed_bytes[device].load(std::memory_order_acquire) >= bytes) {
      return;
    }
    const std::lock_guard lock(guard);  // a smaller number must not come after a larger one
    if (remembered && allowed_bytes[device].load(std::memory_order_relaxed) >= bytes) {
      return;
    }
    detail::check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(&run_kernel<Kernel>),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(bytes)),
                       "cudaFuncSetAttribute");
    if (remembered) {
      allowed_bytes[device].store(bytes, std::memory_order_release);
    }
  }

  std::shared_ptr<state> state_;
};

static_assert(device_runtime<cuda_runtime>);

}  // namespace wavekv::device
