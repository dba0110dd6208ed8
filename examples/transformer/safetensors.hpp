// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "mapped_file.hpp"

namespace transformer {

/// @brief Element types that weights may be stored in.
enum class dtype : std::uint8_t { f32, f16, bf16 };

/// @brief Size of one element in bytes.
std::size_t size_of(dtype type) noexcept;

/// @brief A tensor inside a mapped file: row-major, not owned, left in its stored type.
struct stored_tensor {
  dtype type = dtype::f32;
  std::vector<std::size_t> shape;
  const std::byte* data = nullptr;
  std::size_t n_elements = 0;
};

/// @brief A weight matrix in its stored type, row-major [n_rows, n_cols], not owned.
struct matrix_ref {
  dtype type = dtype::f32;
  const std::byte* data = nullptr;
  std::size_t n_rows = 0;
  std::size_t n_cols = 0;

  const std::byte* row(std::size_t r) const noexcept { return data + r * n_cols * size_of(type); }
};

/// @brief One .safetensors file: eight bytes of header length, a JSON header, then the data.
/// Everything in the header is checked when the file is opened: a tensor that is handed out lies
/// inside the file, has as many bytes as its shape says, overlaps no other tensor and is aligned to
/// its element.
/// @throw model_error for anything else
class safetensors_file {
 public:
  explicit safetensors_file(const std::filesystem::path& path);

  /// @brief All tensors by name.
  const std::unordered_map<std::string, stored_tensor>& tensors() const noexcept {
    return tensors_;
  }

 private:
  mapped_file file_;
  std::unordered_map<std::string, stored_tensor> tensors_;
};

/// @brief All weights of a model directory: model.safetensors, or the shards that
/// model.safetensors.index.json names. Nothing is copied but vectors; matrices stay in the mapped
/// files, which live as long as the checkpoint.
class checkpoint {
 public:
  explicit checkpoint(const std::filesystem::path& directory);

  /// @brief True when a tensor of this name exists.
  bool contains(const std::string& name) const { return tensors_.contains(name); }

  /// @brief A matrix of exactly this shape. @throw model_error when it is missing or has another
  /// shape
  matrix_ref matrix(const std::string& name, std::size_t n_rows, std::size_t n_cols) const;

  /// @brief A vector of exactly this length, widened to float. @throw model_error as matrix()
  std::vector<float> vector(const std::string& name, std::size_t n) const;

 private:
  const stored_tensor& find(const std::string& name, const std::vector<std::size_t>& shape) const;
  void add_shard(const std::filesystem::path& path);

  std::filesystem::path directory_;
  std::vector<safetensors_file> files_;
  std::unordered_map<std::string, stored_tensor> tensors_;
};

}  // namespace transformer
