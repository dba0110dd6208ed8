// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <optional>
#include <utility>

#include <wavekv/cuda/runtime.hpp>

namespace wavekv::device {

/// @brief A piece of device memory; movable, contents indeterminate. It is given back in stream order: in the stream that it
/// was made for, or that it follows since.
template <device_runtime Runtime>
class device_block {
 public:
  using stream_type = typename Runtime::stream_type;

  /// @brief No memory.
  device_block() = default;

  /// @brief Memory for what follows in the stream.  @throw cuda_error
  device_block(Runtime runtime, std::size_t bytes, stream_type stream)
      : runtime_(std::move(runtime)), stream_(stream), bytes_(bytes) {
    memory_ = runtime_->allocate(bytes, stream);
  }

  device_block(device_block&& other) noexcept
      : runtime_(std::move(other.runtime_)),
        stream_(other.stream_),
        bytes_(std::exchange(other.bytes_, 0)),
        memory_(std::exchange(other.memory_, nullptr)) {}
  device_block& operator=(device_block&& other) noexcept {
    if (this != &other) {
      release();
      runtime_ = std::move(other.runtime_);
      stream_ = other.stream_;
      bytes_ = std::exchange(other.bytes_, 0);
      memory_ = std::exchange(other.memory_, nullptr);
    }
    return *this;
  }
  device_block(const device_block&) = delete;
  device_block& operator=(const device_block&) = delete;
  ~device_block() { release(); }

  /// @brief From now on it is given back in this stream.
  void follow(stream_type stream) noexcept { stream_ = stream; }

  /// @brief It is not given back before the event, either.
  void outlive(const typename Runtime::event_type& event) {
    if (memory_ != nullptr) {
      runtime_->wait(stream_, event);
    }
  }

  [[nodiscard]] void* data() const noexcept { return memory_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  template <class T>
  [[nodiscard]] T* as() const noexcept {
    return static_cast<T*>(memory_);
  }

 private:
  void release() noexcept {
    if (memory_ != nullptr) {
      runtime_->deallocate(memory_, bytes_, stream_);
      memory_ = nullptr;
    }
  }

  std::optional<Runtime> runtime_;
  stream_type stream_{};
  std::size_t bytes_ = 0;
  void* memory_ = nullptr;
};

}  // namespace wavekv::device
