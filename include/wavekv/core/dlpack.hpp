// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/core/tensor_view.hpp>

/// @file dlpack.hpp
/// @brief Views of tensors that other libraries hand over as DLPack's DLTensor.
///
/// wavekv needs no DLPack header: any struct with DLTensor's members will do, of any of its versions.
/// Source: DLPack, https://dmlc.github.io/dlpack, dlpack.h.

namespace wavekv {

/// @brief A struct with the members of DLPack's DLTensor.
template <class Tensor>
concept dlpack_tensor = requires(const Tensor& tensor) {
  { static_cast<std::int64_t>(tensor.device.device_type) };
  { tensor.data } -> std::convertible_to<void*>;
  { static_cast<std::int64_t>(tensor.ndim) };
  { tensor.shape[0] } -> std::convertible_to<std::int64_t>;
  { tensor.strides[0] } -> std::convertible_to<std::int64_t>;
  { tensor.byte_offset } -> std::convertible_to<std::uint64_t>;
  { static_cast<std::int64_t>(tensor.dtype.code) };
  { static_cast<std::int64_t>(tensor.dtype.bits) };
  { static_cast<std::int64_t>(tensor.dtype.lanes) };
};

/// @brief What the dimensions of a handed-over tensor are, in order.
enum class tensor_layout : std::uint8_t {
  token_head_dim,  ///< [token, head, dim] (NHD)
  head_token_dim,  ///< [head, token, dim] (HND)
};

namespace detail {

/// What DLPack calls an element type: DLDataTypeCode (2: float, 4: bfloat) and bits.
template <class T>
struct dlpack_type;
template <>
struct dlpack_type<float> {
  static constexpr std::int64_t code = 2;
  static constexpr std::int64_t bits = 32;
};
template <>
struct dlpack_type<f16> {
  static constexpr std::int64_t code = 2;
  static constexpr std::int64_t bits = 16;
};
template <>
struct dlpack_type<bf16> {
  static constexpr std::int64_t code = 4;
  static constexpr std::int64_t bits = 16;
};

}  // namespace detail

/// @brief A view of a DLPack tensor's memory, indexed (token, head, dim). The tensor stays its producer's; keep it
/// alive as long as the view.
///
/// Complexity: O(1). Allocates: nothing but an error's message.
/// @tparam T      element type expected: float, f16 or bf16; const for inputs
/// @param tensor  of three dimensions in host memory (device types 1 CPU, 3 CUDA host, 13 CUDA managed); strides of
///                null mean row-major and packed
/// @param layout  what its dimensions are
/// @throw config_error  another element type, or memory that the host may not read
/// @throw shape_error   not three dimensions, or a negative extent or stride, or rows of dim that are not contiguous
template <class T, dlpack_tensor Tensor>
tensor_view<T, 3> from_dlpack(const Tensor& tensor,
                              tensor_layout layout = tensor_layout::token_head_dim) {
  using type = detail::dlpack_type<std::remove_const_t<T>>;
  const auto device = static_cast<std::int64_t>(tensor.device.device_type);
  if (device != 1 && device != 3 && device != 13) {
    throw config_error(detail::message("from_dlpack: device type is ", device,
                                       "; allowed: 1 (CPU), 3 (CUDA host), 13 (CUDA managed)"));
  }
  const auto code = static_cast<std::int64_t>(tensor.dtype.code);
  const auto bits = static_cast<std::int64_t>(tensor.dtype.bits);
  const auto lanes = static_cast<std::int64_t>(tensor.dtype.lanes);
  if (code != type::code || bits != type::bits || lanes != 1) {
    throw config_error(detail::message("from_dlpack: element type is code ", code, ", ", bits,
                                       " bits, ", lanes, " lanes; allowed: code ", type::code, ", ",
                                       type::bits, " bits, 1 lane, which is ",
                                       scalar_traits<std::remove_const_t<T>>::name));
  }
  const auto n_dimensions = static_cast<std::int64_t>(tensor.ndim);
  if (n_dimensions != 3) {
    throw shape_error(detail::message("from_dlpack: ", n_dimensions,
                                      " dimensions; allowed: 3 (token, head, dim)"));
  }
  std::array<std::size_t, 3> extents{};
  std::array<std::size_t, 3> strides{};
  std::int64_t packed = 1;
  for (std::size_t i = 3; i-- > 0;) {
    const std::int64_t extent = tensor.shape[i];
    const std::int64_t stride = tensor.strides != nullptr ? tensor.strides[i] : packed;
    if (extent < 0 || stride < 0) {
      throw shape_error(detail::message("from_dlpack: dimension ", i, " has extent ", extent,
                                        " and stride ", stride, "; allowed: 0 and above"));
    }
    extents[i] = static_cast<std::size_t>(extent);
    strides[i] = static_cast<std::size_t>(stride);
    packed *= extent;
  }
  if (strides[2] != 1 && extents[2] > 1) {
    throw shape_error(detail::message("from_dlpack: stride of dimension 2 is ", strides[2],
                                      "; allowed: 1, contiguous rows"));
  }
  strides[2] = 1;
  T* data = nullptr;
  if (tensor.data != nullptr) {  // the offset counts bytes, from a pointer without type
    data = reinterpret_cast<T*>(static_cast<std::byte*>(tensor.data) + tensor.byte_offset);
  }
  if (layout == tensor_layout::head_token_dim) {
    return {data, {extents[1], extents[0], extents[2]}, {strides[1], strides[0], strides[2]}};
  }
  return {data, extents, strides};
}

}  // namespace wavekv
