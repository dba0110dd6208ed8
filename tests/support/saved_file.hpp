// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <ios>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <wavekv/file/sequence_file.hpp>

#include "support/scratch_folder.hpp"

/// @file saved_file.hpp
/// @brief Saved sequences as bytes: where their parts lie, and what happens to them.

namespace wavekv_test {

using file_bytes = std::vector<std::byte>;

inline file_bytes bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  file_bytes bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

inline void write_bytes(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

/// @brief A part of a file, the header and the table among them.
struct file_part {
  std::string name;
  std::size_t offset = 0;
  std::size_t n_bytes = 0;
  std::size_t entry = SIZE_MAX;  ///< of the table of parts
};

inline wavekv::detail::file_header header_of(std::span<const std::byte> file) {
  wavekv::detail::file_header header;
  std::memcpy(&header, file.data(), sizeof header);
  return header;
}

inline std::vector<wavekv::detail::table_entry> table_of(std::span<const std::byte> file) {
  const auto header = header_of(file);
  std::vector<wavekv::detail::table_entry> table(header.table_bytes /
                                                 sizeof(wavekv::detail::table_entry));
  std::memcpy(table.data(), file.data() + header.table_offset, header.table_bytes);
  return table;
}

/// @brief All parts of a file that is whole.
inline std::vector<file_part> parts_of(std::span<const std::byte> file) {
  const auto header = header_of(file);
  std::vector<file_part> parts{
      {"header", 0, sizeof header, SIZE_MAX},
      {"table of parts", header.table_offset, header.table_bytes, SIZE_MAX}};
  const auto table = table_of(file);
  for (std::size_t i = 0; i < table.size(); ++i) {
    const wavekv::part_id id{static_cast<wavekv::part_kind>(table[i].kind), table[i].layer,
                             table[i].segment};
    parts.push_back({id.name(), table[i].offset, table[i].n_bytes, i});
  }
  return parts;
}

/// @brief Makes all checksums of a file right again but those of blocks: what somebody would do who changes it on purpose.
/// Offsets of table and parts are those of the file before it was changed.
inline void mend_checksums(std::span<std::byte> file, const std::vector<file_part>& parts) {
  auto header = header_of(file);
  const file_part& table_part = parts[1];
  std::vector<wavekv::detail::table_entry> table(table_part.n_bytes /
                                                 sizeof(wavekv::detail::table_entry));
  std::memcpy(table.data(), file.data() + table_part.offset, table_part.n_bytes);
  for (const file_part& part : parts) {
    if (part.entry != SIZE_MAX &&
        table[part.entry].kind != static_cast<std::uint32_t>(wavekv::part_kind::rows)) {
      table[part.entry].checksum =
          wavekv::checksum(std::span<const std::byte>(file).subspan(part.offset, part.n_bytes));
    }
  }
  std::memcpy(file.data() + table_part.offset, table.data(), table_part.n_bytes);
  header.table_checksum = wavekv::checksum(
      std::span<const std::byte>(file).subspan(table_part.offset, table_part.n_bytes));
  header.checksum = header.checksum_due();
  std::memcpy(file.data(), &header, sizeof header);
}

}  // namespace wavekv_test
