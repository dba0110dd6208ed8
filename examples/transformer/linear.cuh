// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include <wavekv/core/host_device.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/device_block.hpp>

#include "error.hpp"
#include "linear.hpp"
#include "safetensors.hpp"

/// @file linear.cuh
/// @brief Linear layers on a device: the twin of linear.hpp. Weights stay in their stored type and activations are floats,
/// as on the CPU.
///
/// Matrix products want both factors of one type. So a float of the activations enters a product with 16-bit weights as
/// two such numbers, which together say 16 bits of it (f16: 22); products, of 2 n_tokens columns, have float sums. While
/// decoding that costs nothing: weights are read once, and reading them is what takes the time.

namespace transformer {

/// @brief A weight matrix in device memory, row-major [n_rows, n_cols], not owned.
struct device_matrix {
  dtype type = dtype::f32;
  const void* data = nullptr;
  std::size_t n_rows = 0;
  std::size_t n_cols = 0;
};

/// @brief Columns that one token's activations take in a product with weights of a type.
inline unsigned terms_of(dtype type) noexcept { return type == dtype::f32 ? 1 : 2; }

/// @brief Calls f with a value of the type that a dtype stands for.
template <class F>
decltype(auto) visit_type(dtype type, F&& f) {
  switch (type) {
  case dtype::f16:
    return std::forward<F>(f)(wavekv::f16{});
  case dtype::bf16:
    return std::forward<F>(f)(wavekv::bf16{});
  case dtype::f32:
    break;
  }
  return std::forward<F>(f)(float{});
}

/// @brief Blocks of `size` that n elements take.
inline unsigned n_blocks_of(std::size_t n, unsigned size) noexcept {
  return static_cast<unsigned>((n + size - 1) / size);
}

/// @brief Floats as the right factor of a product with 16-bit weights. Block x: the x-th row.
///
/// A row is multiplied by the power of two that brings its largest element just below 2^15, so that f16 has exponents for
/// all of it; join_kernel divides again.
template <class T>
struct split_kernel {
  static constexpr unsigned n_threads = 256;

  const float* x = nullptr;  ///< [n_rows, n_cols]
  unsigned n_cols = 0;       ///< even
  T* upper = nullptr;        ///< [n_rows, n_cols], written: rounded
  T* lower = nullptr;        ///< likewise: what that leaves
  float* scales = nullptr;   ///< [n_rows], written

  [[nodiscard]] std::size_t shared_bytes() const {
    return n_threads / wavekv::device::warp_size * sizeof(float);
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    const std::size_t first = std::size_t{b.block_x()} * n_cols;
    const float scale = scale_for(largest(b, x + first));
    for (unsigned i = b.thread() * 2; i < n_cols; i += n_threads * 2) {
      const float even = x[first + i] * scale;
      const float odd = x[first + i + 1] * scale;
      const std::uint32_t rounded = b.template pack<T>(even, odd);
      float seen_even = 0.0F;
      float seen_odd = 0.0F;
      b.template unpack<T>(rounded, seen_even, seen_odd);
      reinterpret_cast<std::uint32_t*>(upper + first)[i / 2] = rounded;
      reinterpret_cast<std::uint32_t*>(lower + first)[i / 2] =
          b.template pack<T>(even - seen_even, odd - seen_odd);
    }
    if (b.thread() == 0) {
      scales[b.block_x()] = scale;
    }
  }

 private:
  template <class Block>
  WAVEKV_DEVICE float largest(Block& b, const float* row) const {
    float* const of_warps = reinterpret_cast<float*>(b.shared());
    float most = 0.0F;
    for (unsigned i = b.thread(); i < n_cols; i += n_threads) {
      most = std::fmax(most, std::fabs(row[i]));
    }
    most = b.warp_max(most);
    if (b.lane() == 0) {
      of_warps[b.warp()] = most;
    }
    b.sync();
    for (unsigned w = 0; w < b.n_warps(); ++w) {
      most = std::fmax(most, of_warps[w]);
    }
    return most;
  }

  WAVEKV_DEVICE static float scale_for(float most) {
    const unsigned exponent = std::bit_cast<std::uint32_t>(most) >> 23U;  // biased
    if (exponent < 27 || exponent == 255) {  // 0, or as good as it; not finite
      return 1.0F;
    }
    return std::bit_cast<float>((127U + 14U + 127U - exponent) << 23U);
  }
};

/// @brief What becomes of a product: its terms added up, and a bias. Block (x, y): the x-th row, columns from
/// 2 n_threads y on.
struct join_kernel {
  static constexpr unsigned n_threads = 256;
  static constexpr unsigned n_columns = 2 * n_threads;

  const float* products = nullptr;  ///< [n_terms, n_rows, n_cols]
  const float* scales = nullptr;    ///< [n_rows] that a row is divided by; null: 1
  const float* bias = nullptr;      ///< [n_cols] or null
  float* y = nullptr;               ///< [n_rows, n_cols]; may be the products
  unsigned n_terms = 1;
  unsigned n_cols = 0;
  bool adds = false;  ///< y += instead of y =

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    const std::size_t row = std::size_t{b.block_x()} * n_cols;
    const std::size_t term = std::size_t{b.n_blocks_x()} * n_cols;
    const float factor = scales == nullptr ? 1.0F : 1.0F / scales[b.block_x()];
    const unsigned end =
        n_columns < n_cols - b.block_y() * n_columns ? (b.block_y() + 1) * n_columns : n_cols;
    for (unsigned i = b.block_y() * n_columns + b.thread(); i < end; i += n_threads) {
      float sum = 0.0F;
      for (unsigned t = n_terms; t-- > 0;) {
        sum += products[t * term + row + i];
      }
      sum = sum * factor + (bias == nullptr ? 0.0F : bias[i]);
      y[row + i] = adds ? y[row + i] + sum : sum;
    }
  }
};

/// @brief Rows of a matrix by token, widened: the twin of copy_row. Block x: the x-th token.
template <class T>
struct embed_kernel {
  static constexpr unsigned n_threads = 256;

  const T* rows = nullptr;               ///< [vocabulary, n_cols]
  const std::int32_t* tokens = nullptr;  ///< [n_blocks_x]
  unsigned n_cols = 0;
  float* y = nullptr;  ///< [n_blocks_x, n_cols], written

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    const T* const from = rows + static_cast<std::size_t>(tokens[b.block_x()]) * n_cols;
    float* const to = y + std::size_t{b.block_x()} * n_cols;
    for (unsigned i = b.thread(); i < n_cols; i += n_threads) {
      to[i] = wavekv::to_float(from[i]);
    }
  }
};

/// @brief Device memory that only grows; what it holds does not survive that.
template <class Runtime>
class growing_block {
 public:
  /// @brief At least so many elements.
  template <class T>
  T* reserve(Runtime& runtime, std::size_t n, typename Runtime::stream_type stream) {
    if (block_.bytes() < n * sizeof(T))
      block_ = wavekv::device::device_block<Runtime>(runtime, n * sizeof(T), stream);
    return block_.template as<T>();
  }
  template <class T>
  [[nodiscard]] T* as() const noexcept {
    return block_.template as<T>();
  }

 private:
  wavekv::device::device_block<Runtime> block_;
};

/// @brief A linear layer whose weights lie in device memory, or several of the same input, one's rows below the other's.
template <class Runtime>
class device_linear {
 public:
  using stream_type = typename Runtime::stream_type;

  device_linear() = default;

  /// @brief Copies the weights to the device.
  /// @param name  of the layer, for messages
  /// @throw model_error for layers of different types, and for an input width that no product takes
  device_linear(Runtime& runtime, stream_type stream, std::span<const linear> layers,
                const std::string& name) {
    matrix_.type = layers.front().weight.type;
    matrix_.n_cols = layers.front().weight.n_cols;
    bool has_bias = false;
    for (const linear& layer : layers) {
      if (layer.weight.type != matrix_.type)
        throw model_error(name + ": matrices of one input are stored in different types; "
                                 "--device cuda takes one type");
      matrix_.n_rows += layer.weight.n_rows;
      has_bias = has_bias || !layer.bias.empty();
    }
    if (matrix_.n_cols % 8 != 0)
      throw model_error(name + ": has " + std::to_string(matrix_.n_cols) +
                        " inputs; --device cuda takes multiples of 8");
    const std::size_t row_bytes = matrix_.n_cols * size_of(matrix_.type);
    weight_ = {runtime, matrix_.n_rows * row_bytes, stream};
    matrix_.data = weight_.data();
    if (has_bias) {
      bias_ = {runtime, matrix_.n_rows * sizeof(float), stream};
      runtime.fill(bias_.data(), 0, bias_.bytes(), stream);
    }
    std::size_t row = 0;
    for (const linear& layer : layers) {
      runtime.copy_in(weight_.template as<std::byte>() + row * row_bytes, layer.weight.data,
                      layer.weight.n_rows * row_bytes, stream);
      if (!layer.bias.empty())
        runtime.copy_in(bias_.template as<float>() + row, layer.bias.data(),
                        layer.bias.size() * sizeof(float), stream);
      row += layer.weight.n_rows;
    }
  }

  [[nodiscard]] const device_matrix& matrix() const noexcept { return matrix_; }
  /// @brief [n_rows], null where there is none.
  [[nodiscard]] const float* bias() const noexcept { return bias_.template as<const float>(); }

 private:
  device_matrix matrix_;
  wavekv::device::device_block<Runtime> weight_;
  wavekv::device::device_block<Runtime> bias_;
};

/// @brief Memory that products work in.
template <class Runtime>
struct product_scratch {
  growing_block<Runtime> terms, scales, products;

  /// @brief Makes room for n_tokens tokens and layers of up to so many inputs and outputs.
  void reserve(Runtime& runtime, std::size_t n_tokens, std::size_t n_in, std::size_t n_out,
               typename Runtime::stream_type stream) {
    terms.template reserve<std::uint32_t>(runtime, n_tokens * n_in, stream);  // two of 16 bits
    scales.template reserve<float>(runtime, n_tokens, stream);
    products.template reserve<float>(runtime, 2 * n_tokens * n_out, stream);
  }
};

/// @brief Applies a linear layer to some tokens: y = W x + b, or y += W x + b. Blocks: no. Allocates: nothing.
/// @param multiply  multiply(stream, W, columns, n_columns, products): products[c, r] = W[r] · columns[c], columns of
///                  W's type and products floats
/// @param scratch   with room for this layer and these tokens
/// @param x         [n_tokens, n_in]  @param y [n_tokens, n_out]
template <class Runtime, class Product>
void apply(Runtime& runtime, Product& multiply, const device_linear<Runtime>& layer,
           product_scratch<Runtime>& scratch, const float* x, std::size_t n_tokens, float* y,
           bool adds, typename Runtime::stream_type stream) {
  const device_matrix& w = layer.matrix();
  const auto n_rows = static_cast<unsigned>(n_tokens);
  const auto n_cols = static_cast<unsigned>(w.n_cols);
  join_kernel join;
  join.products = scratch.products.template as<float>();
  join.bias = layer.bias();
  join.y = y;
  join.n_terms = terms_of(w.type);
  join.n_cols = static_cast<unsigned>(w.n_rows);
  join.adds = adds;
  visit_type(w.type, [&]<class T>(T) {
    if constexpr (std::is_same_v<T, float>) {
      const bool is_all = join.bias == nullptr && !adds;
      multiply(stream, w, x, n_tokens, is_all ? y : scratch.products.template as<float>());
      if (is_all) return;
    } else {
      split_kernel<T> split;
      split.x = x;
      split.n_cols = n_cols;
      split.upper = scratch.terms.template as<T>();
      split.lower = split.upper + n_tokens * w.n_cols;
      split.scales = scratch.scales.template as<float>();
      runtime.launch(stream, {n_rows, 1}, split);
      multiply(stream, w, split.upper, 2 * n_tokens, scratch.products.template as<float>());
      join.scales = split.scales;
    }
    runtime.launch(stream, {n_rows, n_blocks_of(w.n_rows, join_kernel::n_columns)}, join);
  });
}

}  // namespace transformer
