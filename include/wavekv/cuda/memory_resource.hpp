// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

/// @file memory_resource.hpp
/// @brief Where device memory comes from, for engines that have an allocator of their own.

namespace wavekv::device {

/// @brief A source of device memory that follows streams; derive from it to give the cache an engine's own allocator.
///
/// A stream is passed as the `void*` that a cudaStream_t is, so that neither this header nor an engine's need CUDA's.
///
/// | expression                     | semantics                                                                       |
/// |--------------------------------|---------------------------------------------------------------------------------|
/// | `m.allocate(bytes, stream)`    | device memory, bytes > 0, aligned to 256 bytes or more, that work given to the stream from now on may use; throws where there is none (wavekv::cuda_error, std::bad_alloc or an error of its own, which reaches the caller as it is) |
/// | `m.deallocate(p, bytes, stream)` | takes back what allocate gave for so many bytes; work that the stream was given before may still use it. Does not throw |
///
/// Neither may wait for the device: both are called between launches. The stream of deallocate may be another than the one
/// of allocate; the caller has then ordered the two. Both may be called from several threads at once.
class memory_resource {
 public:
  memory_resource() = default;
  memory_resource(const memory_resource&) = delete;
  memory_resource& operator=(const memory_resource&) = delete;
  memory_resource(memory_resource&&) = delete;
  memory_resource& operator=(memory_resource&&) = delete;
  virtual ~memory_resource() = default;

  /// @brief Device memory for work that the stream is given from now on; see the table.
  [[nodiscard]] virtual void* allocate(std::size_t bytes, void* stream) = 0;

  /// @brief Gives it back once the stream has come here; see the table.
  virtual void deallocate(void* p, std::size_t bytes, void* stream) noexcept = 0;
};

}  // namespace wavekv::device
