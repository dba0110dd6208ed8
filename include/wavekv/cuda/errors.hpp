// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <string_view>

#include <wavekv/core/errors.hpp>

/// @file errors.hpp
/// @brief What the CUDA backend throws when CUDA refuses. Needs no CUDA header.

namespace wavekv {

/// @brief A call of CUDA (or of a library on top of it) failed; the message says which, with CUDA's code and text:
/// "cudaMallocAsync: code 2 (out of memory)". A kernel that failed is told by a later call: CUDA reports it where it next can.
struct cuda_error : error {
  /// @brief The call's name, the code it returned, and what CUDA says the code means.
  cuda_error(std::string_view call, int code, std::string_view text)
      : error(detail::message(call, ": code ", code, " (", text, ")")),
        call_length_(call.size()),
        code_(code) {}

  /// @brief Name of the call that failed; valid as long as this error.
  [[nodiscard]] std::string_view call() const noexcept { return {what(), call_length_}; }

  /// @brief The code it returned, a cudaError_t as a number unless call() names another library.
  [[nodiscard]] int code() const noexcept { return code_; }

 private:
  std::size_t
      call_length_;  // the message begins with it: an error that is copied must not allocate
  int code_;
};

}  // namespace wavekv
