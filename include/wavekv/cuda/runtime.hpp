// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <concepts>
#include <cstddef>

#include <wavekv/cuda/block.hpp>

/// @file runtime.hpp
/// @brief What the host side of the CUDA backend asks of a device: memory, copies, launches, order.
///
/// The library's own is <wavekv/cuda/cuda_runtime.cuh>; the tests have one that runs kernels on the CPU, so that all host
/// logic is tested without a GPU.

namespace wavekv::device {

/// @brief A device as the host sees it; a small copyable value. All work goes to a stream and is done in that stream's
/// order; no function waits for the device unless it says so.
///
/// | expression                           | semantics                                                                 |
/// |--------------------------------------|---------------------------------------------------------------------------|
/// | `R::stream_type`                     | a copyable handle; value-initialised: the device's default stream          |
/// | `R::event_type`                      | a movable mark in a stream, made empty by its default constructor           |
/// | `r.allocate(bytes, stream)`          | device memory, aligned to 256 bytes, usable by what follows in the stream; throws cuda_error |
/// | `r.deallocate(p, bytes, stream)`     | gives it back once the stream has come here; does not throw                 |
/// | `r.copy_in(to, from, bytes, stream)` | host to device; `from` may be reused at once                                |
/// | `r.copy_out(to, from, bytes, stream)`| device to host; blocks until done                                          |
/// | `r.copy(to, from, bytes, stream)`    | device to device                                                          |
/// | `r.fill(p, byte, bytes, stream)`     | sets bytes                                                                |
/// | `r.launch(stream, grid, kernel)`     | launches a kernel (see block.hpp)                                          |
/// | `r.with_policy(stream, work)`        | calls work(policy), policy an execution policy of Thrust; nothing in it may wait for the device |
/// | `r.record(event, stream)`            | the event marks what the stream was given so far                           |
/// | `r.wait(stream, event)`              | what follows in the stream waits for the event; the host does not            |
/// | `r.synchronize(stream)`              | blocks the host until the stream is done                                  |
/// | `r.side_stream()`                    | a stream of the runtime's own, for work beside the caller's                 |
/// | `r.n_multiprocessors()`              | of the device                                                             |
template <class R>
concept device_runtime =
    std::copyable<R> && requires(R& r, typename R::stream_type stream, typename R::event_type event,
                                 void* p, const void* q, std::size_t bytes) {
      { r.allocate(bytes, stream) } -> std::same_as<void*>;
      { r.deallocate(p, bytes, stream) } noexcept;
      r.copy_in(p, q, bytes, stream);
      r.copy_out(p, q, bytes, stream);
      r.copy(p, q, bytes, stream);
      r.fill(p, 0, bytes, stream);
      r.record(event, stream);
      r.wait(stream, event);
      r.synchronize(stream);
      { r.side_stream() } -> std::same_as<typename R::stream_type>;
      { r.n_multiprocessors() } -> std::same_as<unsigned>;
    };

}  // namespace wavekv::device
