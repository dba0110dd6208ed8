// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <wavekv/cuda/device_block.hpp>

#include "support/rows.hpp"

/// @file device_rows.hpp
/// @brief Numbers in device memory, for tests.

namespace wavekv_test {

/// @brief Memory of n numbers; write copies in, read waits for the stream.
template <class Runtime, class T = float>
class device_rows {
 public:
  using stream_type = typename Runtime::stream_type;

  device_rows(Runtime runtime, std::size_t n, stream_type stream)
      : runtime_(std::move(runtime)), memory_(runtime_, n * sizeof(T), stream), n_(n) {}
  device_rows(Runtime runtime, const std::vector<T>& numbers, stream_type stream)
      : device_rows(std::move(runtime), numbers.size(), stream) {
    write(numbers, stream);
  }

  [[nodiscard]] T* data() const { return memory_.template as<T>(); }
  void write(const std::vector<T>& numbers, stream_type stream) {
    runtime_.copy_in(memory_.data(), numbers.data(), numbers.size() * sizeof(T), stream);
  }
  [[nodiscard]] std::vector<T> read(stream_type stream) {
    std::vector<T> numbers(n_);
    runtime_.copy_out(numbers.data(), memory_.data(), n_ * sizeof(T), stream);
    return numbers;
  }

 private:
  Runtime runtime_;
  wavekv::device::device_block<Runtime> memory_;
  std::size_t n_;
};

}  // namespace wavekv_test
