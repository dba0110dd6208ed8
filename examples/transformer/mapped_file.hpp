// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace transformer {

/// @brief A file mapped read-only into memory. Pages come in when they are first read and can be
/// dropped again by the system, so that a checkpoint larger than the free memory still loads.
/// @throw model_error when the file cannot be opened or mapped
class mapped_file {
 public:
  explicit mapped_file(const std::filesystem::path& path);
  ~mapped_file();
  mapped_file(mapped_file&& other) noexcept;
  mapped_file& operator=(mapped_file&& other) noexcept;
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;

  /// @brief All bytes of the file; valid as long as this object lives, also after it was moved.
  std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace transformer
