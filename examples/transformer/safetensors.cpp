// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include <wavekv/core/scalar.hpp>

#include "error.hpp"
#include "json_file.hpp"
#include "unicode.hpp"

namespace transformer {
namespace {

constexpr std::size_t length_field_bytes = 8;
constexpr std::uint64_t max_header_bytes =
    100'000'000;  // the limit of the reference implementation

std::optional<dtype> parse_dtype(const std::string& name) {
  if (name == "F32") return dtype::f32;
  if (name == "F16") return dtype::f16;
  if (name == "BF16") return dtype::bf16;
  return std::nullopt;
}

std::string show(const std::vector<std::size_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return one_line(text + "]");
}

std::uint64_t read_little_endian(const std::byte* bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < length_field_bytes; ++i)
    value |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  return value;
}

nlohmann::json parse_header(std::span<const std::byte> file) {
  if (file.size() < length_field_bytes) throw model_error("truncated: no header");
  const std::uint64_t length = read_little_endian(file.data());
  if (length > max_header_bytes || length > file.size() - length_field_bytes)
    throw model_error("header of " + std::to_string(length) + " bytes does not fit a file of " +
                      std::to_string(file.size()) +
                      " bytes (truncated, or not a safetensors file)");
  const auto* text = reinterpret_cast<const char*>(file.data() + length_field_bytes);
  nlohmann::json header;
  try {
    header = parse_json({text, static_cast<std::size_t>(length)});
  } catch (const model_error& e) {
    throw model_error(std::string("bad header: ") + e.what());
  }
  if (!header.is_object()) throw model_error("header is not a JSON object");
  return header;
}

std::size_t checked_product(const std::vector<std::size_t>& shape) {
  std::size_t product = 1;
  for (const std::size_t extent : shape) {
    if (extent != 0 && product > std::numeric_limits<std::size_t>::max() / 8 / extent)
      throw model_error("shape " + show(shape) + " is too large");
    product *= extent;
  }
  return product;
}

/// A non-negative integer; nlohmann would convert 1.5 and -1 silently.
std::size_t parse_size(const nlohmann::json& value) {
  if (!value.is_number_unsigned())
    throw model_error("expected a non-negative integer, found " + one_line(value.dump()));
  return value.get<std::size_t>();
}

struct extent_in_file {
  std::size_t begin;
  std::size_t end;
};

extent_in_file parse_offsets(const nlohmann::json& entry, std::size_t n_data_bytes) {
  const auto& offsets = entry.at("data_offsets");
  if (!offsets.is_array() || offsets.size() != 2) throw model_error("data_offsets is not a pair");
  const extent_in_file extent{parse_size(offsets[0]), parse_size(offsets[1])};
  if (extent.begin > extent.end || extent.end > n_data_bytes)
    throw model_error("bytes " + std::to_string(extent.begin) + " to " +
                      std::to_string(extent.end) + " are outside the " +
                      std::to_string(n_data_bytes) + " data bytes of the file (truncated?)");
  return extent;
}

stored_tensor parse_tensor(const nlohmann::json& entry, std::span<const std::byte> data,
                           extent_in_file extent) {
  stored_tensor tensor;
  const auto type = parse_dtype(entry.at("dtype").get<std::string>());
  if (!type)
    throw model_error("unsupported dtype " + one_line(entry.at("dtype").dump()) +
                      " (F32, F16 and BF16 are supported)");
  tensor.type = *type;
  const auto& shape = entry.at("shape");
  if (!shape.is_array()) throw model_error("shape is not an array");
  for (const auto& value : shape) tensor.shape.push_back(parse_size(value));
  tensor.n_elements = checked_product(tensor.shape);
  if (extent.end - extent.begin != tensor.n_elements * size_of(tensor.type))
    throw model_error("shape " + show(tensor.shape) + " does not match its " +
                      std::to_string(extent.end - extent.begin) + " bytes");
  tensor.data = data.data() + extent.begin;
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % size_of(tensor.type) != 0)
    throw model_error(
        "data is not aligned to its element; save the file again with a current safetensors");
  return tensor;
}

void check_overlaps(std::vector<std::pair<extent_in_file, std::string>> extents) {
  std::ranges::sort(extents, {},
                    [](const auto& e) { return std::pair(e.first.begin, e.first.end); });
  for (std::size_t i = 1; i < extents.size(); ++i)
    if (extents[i].first.begin < extents[i - 1].first.end)
      throw model_error("tensors " + one_line(extents[i - 1].second) + " and " +
                        one_line(extents[i].second) + " overlap");
}

template <class Scalar>
std::vector<float> widen(const stored_tensor& tensor) {
  const auto* values = reinterpret_cast<const Scalar*>(tensor.data);
  std::vector<float> out(tensor.n_elements);
  std::ranges::transform(values, values + out.size(), out.begin(),
                         [](Scalar x) { return wavekv::to_float(x); });
  return out;
}

}  // namespace

std::size_t size_of(dtype type) noexcept { return type == dtype::f32 ? 4 : 2; }

safetensors_file::safetensors_file(const std::filesystem::path& path) : file_(path) {
  std::string where = path.string() + ": ";
  try {
    const auto file = file_.bytes();
    const auto header = parse_header(file);
    const auto data = file.subspan(length_field_bytes + read_little_endian(file.data()));
    std::vector<std::pair<extent_in_file, std::string>> extents;
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      where = path.string() + ": tensor " + one_line(name) + ": ";
      const auto extent = parse_offsets(entry, data.size());
      tensors_.emplace(name, parse_tensor(entry, data, extent));
      extents.emplace_back(extent, name);
    }
    where = path.string() + ": ";
    check_overlaps(std::move(extents));
  } catch (const nlohmann::json::exception& e) {
    throw model_error(where + "bad header: " + one_line(e.what()));
  } catch (const model_error& e) {
    throw model_error(where + e.what());
  }
}

checkpoint::checkpoint(const std::filesystem::path& directory) : directory_(directory) {
  const auto index_path = directory / "model.safetensors.index.json";
  std::error_code error;
  if (!std::filesystem::exists(index_path, error)) {
    add_shard(directory / "model.safetensors");
    return;
  }
  const auto index = read_json(index_path);
  try {
    std::set<std::string> names;
    const auto& shards = index.at("weight_map");
    if (!shards.is_object())
      throw model_error(index_path.string() + ": weight_map is not an object");
    for (const auto& [tensor, shard] : shards.items()) names.insert(shard.get<std::string>());
    for (const auto& name : names) {
      if (std::filesystem::path(name).has_parent_path() || one_line(name) != name)
        throw model_error(index_path.string() + ": shard " + one_line(name) +
                          " is not a plain file name");
      add_shard(directory / name);
    }
  } catch (const nlohmann::json::exception& e) {
    throw model_error(index_path.string() + ": " + one_line(e.what()));
  }
}

void checkpoint::add_shard(const std::filesystem::path& path) {
  files_.emplace_back(path);
  for (const auto& [name, tensor] : files_.back().tensors())
    if (!tensors_.emplace(name, tensor).second)
      throw model_error(path.string() + ": tensor " + one_line(name) + " is in two shards");
}

const stored_tensor& checkpoint::find(const std::string& name,
                                      const std::vector<std::size_t>& shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end())
    throw model_error(directory_.string() + ": tensor " + one_line(name) + " is missing");
  if (found->second.shape != shape)
    throw model_error(directory_.string() + ": tensor " + one_line(name) + " has shape " +
                      show(found->second.shape) + ", config.json asks for " + show(shape));
  return found->second;
}

matrix_ref checkpoint::matrix(const std::string& name, std::size_t n_rows,
                              std::size_t n_cols) const {
  const auto& tensor = find(name, {n_rows, n_cols});
  return {tensor.type, tensor.data, n_rows, n_cols};
}

std::vector<float> checkpoint::vector(const std::string& name, std::size_t n) const {
  const auto& tensor = find(name, {n});
  switch (tensor.type) {
  case dtype::f16:
    return widen<wavekv::f16>(tensor);
  case dtype::bf16:
    return widen<wavekv::bf16>(tensor);
  case dtype::f32:
    break;
  }
  return widen<float>(tensor);
}

}  // namespace transformer
