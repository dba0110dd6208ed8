// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

#include <fcntl.h>
#include <unistd.h>

namespace fuzz {

/// @brief Ends the program, which the fuzzer takes for a finding.
[[noreturn]] inline void fail(const char* what, std::string_view detail = {}) {
  std::fprintf(stderr, "fuzz: %s%s%.*s\n", what, detail.empty() ? "" : ": ",
               static_cast<int>(detail.size()), detail.data());
  std::abort();
}

/// @brief What must hold whatever the input is.
inline void expect(bool holds, const char* what, std::string_view detail = {}) {
  if (!holds) fail(what, detail);
}

/// @brief An error is one line that a terminal can show, and no copy of the file.
inline void expect_clear_message(std::string_view message) {
  constexpr std::size_t longest = 2000;
  expect(!message.empty() && message.size() <= longest, "message of a strange length", message);
  for (const char c : message) {
    const auto byte = static_cast<unsigned char>(c);
    expect(byte >= 0x20 && byte != 0x7F, "control character in a message", message);
  }
}

/// @brief Takes the text up to the next NUL byte, or all of it, from the front of `input`.
inline std::string_view take_part(std::string_view& input) {
  const auto end = input.find('\0');
  const auto part = input.substr(0, end);
  input.remove_prefix(end == std::string_view::npos ? input.size() : end + 1);
  return part;
}

/// @brief A directory of small files for readers that take paths; in memory where the system has
/// such a place. Removed at exit; TMPDIR says where it is made.
class input_files {
 public:
  input_files() {
    std::error_code error;
    const bool in_memory =
        std::getenv("TMPDIR") == nullptr && std::filesystem::is_directory("/dev/shm", error);
    const auto parent = in_memory ? "/dev/shm" : std::filesystem::temp_directory_path();
    std::string name = (parent / "wavekv_fuzz_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) fail("cannot make a directory", std::strerror(errno));
    path_ = name;
  }
  ~input_files() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  input_files(const input_files&) = delete;
  input_files& operator=(const input_files&) = delete;

  const std::filesystem::path& path() const noexcept { return path_; }

  /// @brief Makes the file, or puts new content into it.
  void write(const char* name, std::string_view content) const {
    const int file = ::open((path_ / name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) fail("cannot write", std::strerror(errno));
    while (!content.empty()) {
      const auto n = ::write(file, content.data(), content.size());
      if (n <= 0) fail("cannot write", std::strerror(errno));
      content.remove_prefix(static_cast<std::size_t>(n));
    }
    ::close(file);
  }

  /// @brief Deletes the file if it is there.
  void remove(const char* name) const { ::unlink((path_ / name).c_str()); }

 private:
  std::filesystem::path path_;
};

}  // namespace fuzz
