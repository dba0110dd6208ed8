// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/core/dlpack.hpp>

// Tensors as DLPack hands them over. The structs below are laid out as in dlpack.h.

using wavekv::bf16;
using wavekv::f16;
using wavekv::from_dlpack;
using wavekv::tensor_layout;

namespace {

enum device_kind : std::int32_t { cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13 };
struct tensor_device {
  device_kind device_type;
  std::int32_t device_id;
};
struct data_type {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct tensor {
  void* data;
  tensor_device device;
  std::int32_t ndim;
  data_type dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
static_assert(wavekv::dlpack_tensor<tensor>);
static_assert(!wavekv::dlpack_tensor<tensor_device>);

struct fixture {
  fixture() : memory(2 * 3 * 4 + 5) { std::iota(memory.begin(), memory.end(), 0.0F); }
  std::vector<float> memory;
  std::vector<std::int64_t> shape{2, 3, 4};
  std::vector<std::int64_t> strides{12, 4, 1};
  tensor given{memory.data(), {cpu, 0}, 3, {2, 32, 1}, shape.data(), nullptr, 0};
};

template <class Error>
std::string message_of(const tensor& given) {
  try {
    (void)from_dlpack<const float>(given);
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace

TEST_CASE("a packed tensor, with strides and without, from any memory of the host") {
  fixture f;
  for (const bool with_strides : {false, true}) {
    for (const device_kind kind : {cpu, cuda_host, cuda_managed}) {
      f.given.strides = with_strides ? f.strides.data() : nullptr;
      f.given.device.device_type = kind;
      const auto view = from_dlpack<const float>(f.given);
      CHECK(view.extents() == std::array<std::size_t, 3>{2, 3, 4});
      CHECK(view(1U, 2U, 3U) == 23.0F);
      CHECK(view(0U, 1U, 0U) == 4.0F);
    }
  }
}

TEST_CASE("an offset in bytes, strides that skip, heads first, and writing") {
  fixture f;
  f.given.byte_offset = 5 * sizeof(float);
  CHECK(from_dlpack<const float>(f.given)(0U, 0U, 0U) == 5.0F);
  f.given.byte_offset = 0;
  const auto heads_first = from_dlpack<float>(f.given, tensor_layout::head_token_dim);
  CHECK(heads_first.extents() == std::array<std::size_t, 3>{3, 2, 4});
  CHECK(heads_first(2U, 1U, 3U) == 23.0F);  // token 2 of head 1
  heads_first(0U, 0U, 0U) = -1.0F;
  CHECK(f.memory[0] == -1.0F);
  f.shape = {2, 2, 4};
  f.strides = {12, 8, 1};
  f.given.strides = f.strides.data();
  CHECK(from_dlpack<const float>(f.given)(1U, 1U, 2U) == 22.0F);
}

TEST_CASE("sixteen-bit elements") {
  fixture f;
  f.given.dtype = {4, 16, 1};
  CHECK_NOTHROW((void)from_dlpack<const bf16>(f.given));
  CHECK_THROWS_AS((void)from_dlpack<const f16>(f.given), wavekv::config_error);
  f.given.dtype = {2, 16, 1};
  CHECK_NOTHROW((void)from_dlpack<const f16>(f.given));
  CHECK_THROWS_AS((void)from_dlpack<const bf16>(f.given), wavekv::config_error);
}

TEST_CASE("a tensor that will not do is named, with what would") {
  using wavekv::config_error;
  using wavekv::shape_error;
  const auto says = [](const std::string& message, const std::string& part) {
    INFO(message);
    CHECK(message.find(part) != std::string::npos);
  };
  fixture f;
  f.given.device.device_type = cuda;
  says(message_of<config_error>(f.given), "device type is 2; allowed: 1");
  f.given.device.device_type = cpu;
  f.given.dtype = {2, 64, 1};
  says(message_of<config_error>(f.given), "code 2, 64 bits, 1 lanes; allowed: code 2, 32 bits");
  f.given.dtype = {2, 32, 4};
  says(message_of<config_error>(f.given), "4 lanes");
  f.given.dtype = {2, 32, 1};
  f.given.ndim = 4;
  says(message_of<shape_error>(f.given), "4 dimensions; allowed: 3");
  f.given.ndim = 3;
  f.shape[1] = -3;
  says(message_of<shape_error>(f.given), "dimension 1 has extent -3");
  f.shape[1] = 3;
  f.strides = {1, 2, 6};
  f.given.strides = f.strides.data();
  says(message_of<shape_error>(f.given), "stride of dimension 2 is 6; allowed: 1");
  f.strides = {-12, 4, 1};
  says(message_of<shape_error>(f.given), "stride -12");
}

TEST_CASE("an empty tensor is an empty view") {
  fixture f;
  f.given.data = nullptr;
  f.shape[0] = 0;
  CHECK(from_dlpack<const float>(f.given).empty());
  CHECK(from_dlpack<const float>(f.given).extent(0) == 0);
}
