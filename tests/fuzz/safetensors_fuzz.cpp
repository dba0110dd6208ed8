// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Weight files. An input is model.safetensors; one that begins like a JSON object is
// model.safetensors.index.json and, after a NUL byte, the shard one.safetensors (two.safetensors is
// always the same).
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "input_files.hpp"
#include "linear.hpp"
#include "safetensors.hpp"

namespace {

using transformer::stored_tensor;

constexpr std::string_view second_shard{
    "\x40\0\0\0\0\0\0\0"
    R"({"second":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}    )"
    "\x80\x3F\0\xC0",
    8 + 64 + 4};

std::size_t n_bytes(const stored_tensor& tensor) {
  return tensor.n_elements * transformer::size_of(tensor.type);
}

/// What the header says about a tensor, read without the reader's code, and the bytes it names.
void expect_as_written(const stored_tensor& tensor, const nlohmann::json& entry,
                       std::string_view data) {
  const auto& shape = entry.at("shape");
  fuzz::expect(shape.is_array() && shape.size() == tensor.shape.size(), "another rank");
  std::size_t n_elements = 1;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    fuzz::expect(shape[i].is_number_unsigned() && shape[i] == tensor.shape[i], "another shape");
    n_elements *= tensor.shape[i];
  }
  fuzz::expect(n_elements == tensor.n_elements, "not as many elements as the shape says");
  const auto begin = entry.at("data_offsets").at(0).get<std::size_t>();
  const auto end = entry.at("data_offsets").at(1).get<std::size_t>();
  fuzz::expect(begin <= end && end <= data.size(), "a tensor outside the file");
  fuzz::expect(end - begin == n_bytes(tensor), "not as many bytes as the shape says");
  fuzz::expect(std::memcmp(data.data() + begin, tensor.data, end - begin) == 0, "other bytes");
}

/// What safetensors.hpp promises of every tensor that is handed out.
void expect_sound(const transformer::safetensors_file& file, std::string_view input) {
  std::uint64_t length = 0;
  for (unsigned i = 0; i < 8; ++i)
    length |= std::uint64_t{static_cast<unsigned char>(input.at(i))} << (8 * i);
  fuzz::expect(length <= input.size() - 8, "a header longer than the file");
  const auto header = nlohmann::json::parse(input.substr(8, length));
  const auto data = input.substr(8 + length);
  fuzz::expect(header.size() == file.tensors().size() + header.count("__metadata__"),
               "tensors are missing");
  std::vector<const stored_tensor*> in_order;
  for (const auto& [name, tensor] : file.tensors()) {
    expect_as_written(tensor, header.at(name), data);
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
    fuzz::expect(address % transformer::size_of(tensor.type) == 0, "an unaligned tensor");
    if (n_bytes(tensor) > 0) in_order.push_back(&tensor);
  }
  std::ranges::sort(in_order, {}, &stored_tensor::data);
  for (std::size_t i = 1; i < in_order.size(); ++i)
    fuzz::expect(in_order[i - 1]->data + n_bytes(*in_order[i - 1]) <= in_order[i]->data,
                 "two tensors overlap");
}

/// Reads a tensor as the model does: vectors whole, matrices row by row.
void read(const transformer::checkpoint& weights, const std::string& name,
          const stored_tensor& tensor) {
  fuzz::expect(weights.contains(name), "a tensor of the file is not in the checkpoint");
  if (tensor.shape.size() == 1) {
    const auto values = weights.vector(name, tensor.shape[0]);
    fuzz::expect(values.size() == tensor.n_elements, "a vector of another length");
  } else if (tensor.shape.size() == 2 && tensor.n_elements > 0) {
    const auto matrix = weights.matrix(name, tensor.shape[0], tensor.shape[1]);
    std::vector<float> row(matrix.n_cols);
    for (std::size_t r = 0; r < matrix.n_rows; ++r) transformer::copy_row(matrix, r, row.data());
  }
}

/// Another shape than the stored one, and a name that is not there: errors, not reads.
void expect_refused(const transformer::checkpoint& weights, const std::string& name,
                    const stored_tensor& tensor) {
  const auto refuses = [](const auto& read) {
    try {
      read();
    } catch (const transformer::model_error& e) {
      fuzz::expect_clear_message(e.what());
      return true;
    }
    return false;
  };
  fuzz::expect(refuses([&] { weights.vector(name, tensor.n_elements + 1); }), "a longer vector");
  fuzz::expect(refuses([&] { weights.matrix(name, tensor.n_elements, 2); }) ||
                   (tensor.shape == std::vector<std::size_t>{tensor.n_elements, 2}),
               "a larger matrix");
  const std::string absent = name + "?";
  if (!weights.contains(absent))
    fuzz::expect(refuses([&] { weights.matrix(absent, 1, 1); }), "a tensor that is not there");
}

void read_single_file(const fuzz::input_files& files, std::string_view input) {
  files.remove("model.safetensors.index.json");
  files.write("model.safetensors", input);
  const transformer::safetensors_file file(files.path() / "model.safetensors");
  expect_sound(file, input);
  const transformer::checkpoint weights(files.path());
  for (const auto& [name, tensor] : file.tensors()) {
    read(weights, name, tensor);
    expect_refused(weights, name, tensor);
  }
}

void read_shards(const fuzz::input_files& files, std::string_view input) {
  files.remove("model.safetensors");
  files.write("model.safetensors.index.json", fuzz::take_part(input));
  files.write("one.safetensors", input);
  files.write("two.safetensors", second_shard);
  const transformer::checkpoint weights(files.path());
  if (!weights.contains("second")) return;
  try {
    const auto second = weights.vector("second", 2);
    fuzz::expect(weights.vector("second", 2) == second, "a vector that changes");
  } catch (const transformer::model_error& e) {  // the other shard's
    fuzz::expect_clear_message(e.what());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static const fuzz::input_files files;
  const std::string_view input(reinterpret_cast<const char*>(bytes), size);
  // A header of 123 bytes begins with '{' too, but the byte after it is zero.
  const bool sharded = input.size() > 1 && input[0] == '{' && input[1] != '\0';
  try {
    if (sharded) {
      read_shards(files, input);
    } else {
      read_single_file(files, input);
    }
  } catch (const transformer::model_error& e) {
    fuzz::expect_clear_message(e.what());
  }
  return 0;
}
