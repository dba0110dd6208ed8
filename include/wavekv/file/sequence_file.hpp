// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/checksum.hpp>
#include <wavekv/core/errors.hpp>
#include <wavekv/file/byte_stream.hpp>
#include <wavekv/file/posix_file.hpp>

/// @file sequence_file.hpp
/// @brief A saved sequence as a file of parts: header, parts, table of parts. docs/file_format.md describes it.

namespace wavekv {

/// @brief What a part of a saved sequence holds.
enum class part_kind : std::uint32_t {
  fingerprint = 1,  ///< what the sequence belongs to, as text
  layer = 2,        ///< sink, tail, and what a layer has learnt
  index = 3,        ///< a segment without its rows; the checksums of its blocks
  rows = 4,         ///< K and V of a segment, in tree order
  engine = 5,       ///< whatever the caller keeps of a sequence himself
};

/// @brief Which part.
struct part_id {
  part_kind kind{};
  std::uint32_t layer = 0;
  std::uint32_t segment = 0;

  friend auto operator<=>(const part_id&, const part_id&) = default;

  /// @brief Its name in messages.
  [[nodiscard]] std::string name() const {
    switch (kind) {
    case part_kind::fingerprint:
      return "fingerprint";
    case part_kind::layer:
      return detail::message("layer ", layer);
    case part_kind::index:
      return detail::message("index of layer ", layer, ", segment ", segment);
    case part_kind::engine:
      return "engine";
    case part_kind::rows:
      return detail::message("rows of layer ", layer, ", segment ", segment);
    }
    return "part of unknown kind";
  }
};

/// @brief Where a part lies.
struct part_place {
  std::uint64_t offset = 0;  ///< of its first byte, a multiple of file_page_bytes
  std::uint64_t n_bytes = 0;
  std::uint64_t checksum = 0;  ///< of its bytes; 0 for rows, whose blocks have theirs in the index
};

/// @brief Parts begin at multiples of it, and the file ends at one, so that rows can be read past the page cache.
inline constexpr std::uint64_t file_page_bytes = 4096;

namespace detail {

inline constexpr std::array<char, 8> file_magic{'w', 'a', 'v', 'e', 'k', 'v', 's', 'q'};
inline constexpr std::uint32_t file_version = 1;

/// The first bytes of a file.
struct file_header {
  std::array<char, 8> magic = file_magic;
  std::uint32_t version = file_version;
  std::uint32_t header_bytes = 64;
  std::uint64_t file_bytes = 0;
  std::uint64_t table_offset = 0;
  std::uint64_t table_bytes = 0;
  std::uint64_t table_checksum = 0;
  std::uint64_t reserved = 0;
  std::uint64_t checksum = 0;  ///< of all before

  [[nodiscard]] std::uint64_t checksum_due() const noexcept {
    return wavekv::checksum(
        std::as_bytes(std::span(this, 1)).first(sizeof(file_header) - sizeof checksum));
  }
};
static_assert(sizeof(file_header) == 64);

/// One line of the table of parts.
struct table_entry {
  std::uint32_t kind = 0;
  std::uint32_t layer = 0;
  std::uint32_t segment = 0;
  std::uint32_t reserved = 0;
  std::uint64_t offset = 0;
  std::uint64_t n_bytes = 0;
  std::uint64_t checksum = 0;
};
static_assert(sizeof(table_entry) == 40);

[[nodiscard]] constexpr std::uint64_t whole_pages(std::uint64_t n_bytes) noexcept {
  return (n_bytes + file_page_bytes - 1) / file_page_bytes * file_page_bytes;
}

}  // namespace detail

/// @brief Writes a saved sequence part by part; it replaces an older file when it is whole.
class sequence_file_writer {
 public:
  /// @throw io_error
  explicit sequence_file_writer(const std::filesystem::path& path) : file_(path) {}

  /// @brief Writes a part.  @throw io_error
  void write(const part_id& id, std::span<const std::byte> bytes) {
    begin(id, checksum(bytes));
    append(bytes);
  }

  /// @brief Begins a part of rows, which append continues.  @throw std::bad_alloc
  void begin_rows(const part_id& id) { begin(id, 0); }

  /// @brief Adds to the part begun last.  @throw io_error
  void append(std::span<const std::byte> bytes) {
    detail::table_entry& part = table_.back();
    file_.write(part.offset + part.n_bytes, bytes, id_of(part).name());
    part.n_bytes += bytes.size();
    end_ = part.offset + detail::whole_pages(part.n_bytes);
  }

  /// @brief Writes the table and the header, and puts the file in its place. Blocks: until it is on the disk.
  /// @throw io_error; the old file, if there is one, is as it was
  void commit() {
    detail::file_header header;
    const auto table = std::as_bytes(std::span(table_));
    header.table_offset = end_;
    header.table_bytes = table.size();
    header.table_checksum = checksum(table);
    header.file_bytes = end_ + detail::whole_pages(table.size());
    header.checksum = header.checksum_due();
    file_.write(end_, table, "table of parts");
    file_.write(0, std::as_bytes(std::span(&header, 1)), "header");
    file_.commit(header.file_bytes);
  }

 private:
  static part_id id_of(const detail::table_entry& part) noexcept {
    return {static_cast<part_kind>(part.kind), part.layer, part.segment};
  }

  void begin(const part_id& id, std::uint64_t sum) {
    table_.push_back({static_cast<std::uint32_t>(id.kind), id.layer, id.segment, 0, end_, 0, sum});
  }

  replacing_file file_;
  std::vector<detail::table_entry> table_;
  std::uint64_t end_ = file_page_bytes;  // of what was written, in whole pages
};

/// @brief Reads a saved sequence. Every function names file and part when something is wrong.
class sequence_file_reader {
 public:
  /// @brief Reads header and table.
  /// @throw io_error when it cannot be read; format_error when it is no such file, of another version, cut short, or changed
  explicit sequence_file_reader(const std::filesystem::path& path) : file_(path) {
    detail::file_header header;
    if (file_.size() < file_page_bytes) {
      fail("header", detail::message("file has ", file_.size(), " bytes; allowed: at least ",
                                     file_page_bytes));
    }
    file_.read(0, std::as_writable_bytes(std::span(&header, 1)), "header");
    if (header.magic != detail::file_magic) {
      fail("header", "does not begin as a saved sequence does");
    }
    if (header.version != detail::file_version) {
      fail("header",
           detail::message("version is ", header.version, "; allowed: ", detail::file_version));
    }
    if (header.checksum != header.checksum_due()) {
      fail("header",
           detail::message("checksum is ", header.checksum, "; allowed: ", header.checksum_due()));
    }
    if (header.file_bytes != file_.size()) {
      fail("header", detail::message("file has ", file_.size(), " bytes; allowed: ",
                                     header.file_bytes, ", which were written"));
    }
    read_table(header);
  }

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return file_.path(); }

  /// @brief Where a part lies.  @throw format_error when there is none such
  [[nodiscard]] const part_place& find(const part_id& id) const {
    const auto found = parts_.find(id);
    if (found == parts_.end()) {
      fail(id.name(), "is missing; allowed: one");
    }
    return found->second;
  }

  /// @brief Parts of a kind that a layer has.
  [[nodiscard]] std::size_t count(part_kind kind, std::uint32_t layer) const noexcept {
    const auto first = parts_.lower_bound(part_id{kind, layer, 0});
    std::size_t n = 0;
    for (auto part = first;
         part != parts_.end() && part->first.kind == kind && part->first.layer == layer; ++part) {
      ++n;
    }
    return n;
  }

  /// @brief Reads a part and compares it with its checksum.
  /// @throw io_error, format_error; std::bad_alloc
  [[nodiscard]] aligned_storage<std::byte> read(const part_id& id) const {
    const part_place& place = find(id);
    aligned_storage<std::byte> bytes(static_cast<std::size_t>(place.n_bytes));
    read_rows(id, 0, std::span(bytes.data(), bytes.size()));
    const std::uint64_t seen = checksum(std::span<const std::byte>(bytes.data(), bytes.size()));
    if (seen != place.checksum) {
      fail(id.name(), detail::message("has checksum ", seen, "; allowed: ", place.checksum,
                                      ", that of what was written"));
    }
    return bytes;
  }

  /// @brief Reads bytes [offset, offset + to.size()) of a part without a look at checksums.
  /// Expects: the part has so many.  @throw io_error
  void read_rows(const part_id& id, std::uint64_t offset, std::span<std::byte> to) const {
    file_.read(find(id).offset + offset, to, id.name());
  }

  /// @brief Stops with a format_error that names the file.
  [[noreturn]] void fail(std::string_view part, std::string_view what) const {
    throw format_error(detail::message(path().string(), ": ", part, ": ", what));
  }

 private:
  void read_table(const detail::file_header& header) {
    constexpr std::uint64_t entry_bytes = sizeof(detail::table_entry);
    if (header.table_offset > file_.size() ||
        header.table_bytes > file_.size() - header.table_offset ||
        header.table_bytes % entry_bytes != 0) {
      fail("table of parts", detail::message("bytes ", header.table_offset, " and ",
                                             header.table_bytes, " on; allowed: in the file"));
    }
    std::vector<detail::table_entry> table(
        static_cast<std::size_t>(header.table_bytes / entry_bytes));
    file_.read(header.table_offset, std::as_writable_bytes(std::span(table)), "table of parts");
    const std::uint64_t seen = checksum(std::as_bytes(std::span(table)));
    if (seen != header.table_checksum) {
      fail("table of parts",
           detail::message("has checksum ", seen, "; allowed: ", header.table_checksum));
    }
    for (const detail::table_entry& entry : table) {
      const part_id id{static_cast<part_kind>(entry.kind), entry.layer, entry.segment};
      if (entry.offset % file_page_bytes != 0 || entry.offset > file_.size() ||
          entry.n_bytes > file_.size() - entry.offset) {
        fail(id.name(), detail::message("lies at byte ", entry.offset, " and has ", entry.n_bytes,
                                        "; allowed: whole pages inside the file's ", file_.size()));
      }
      if (!parts_.emplace(id, part_place{entry.offset, entry.n_bytes, entry.checksum}).second) {
        fail(id.name(), "is there twice; allowed: once");
      }
    }
  }

  input_file file_;
  std::map<part_id, part_place> parts_;
};

}  // namespace wavekv
