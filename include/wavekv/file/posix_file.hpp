// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <wavekv/core/errors.hpp>

/// @file posix_file.hpp
/// @brief A file that is read, and a file that takes another's place once it is whole.

namespace wavekv {

namespace detail {

/// An open file; closes itself.
class descriptor {
 public:
  descriptor() = default;
  explicit descriptor(int opened) noexcept : number_(opened) {}
  descriptor(descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  descriptor& operator=(descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  descriptor(const descriptor&) = delete;
  descriptor& operator=(const descriptor&) = delete;
  ~descriptor() {
    if (number_ >= 0) {
      ::close(number_);
    }
  }
  [[nodiscard]] int number() const noexcept { return number_; }

 private:
  int number_ = -1;
};

[[noreturn]] inline void fail_at(const std::filesystem::path& path, std::string_view what) {
  throw io_error(message(path.string(), ": cannot ", what, ": ",
                         errno == 0 ? "the file ends before" : std::strerror(errno)));
}

}  // namespace detail

/// @brief A file that exists, to read from. Several threads may read at once.
class input_file {
 public:
  /// @throw io_error
  explicit input_file(std::filesystem::path path)
      : path_(std::move(path)), file_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
    struct stat about{};
    if (file_.number() < 0 || ::fstat(file_.number(), &about) != 0) {
      detail::fail_at(path_, "open");
    }
    if (!S_ISREG(about.st_mode)) {
      throw io_error(detail::message(path_.string(), " is no ordinary file; allowed: one"));
    }
    size_ = static_cast<std::uint64_t>(about.st_size);
  }

  /// @brief Bytes, when it was opened.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

  /// @brief Reads bytes [offset, offset + to.size()).
  /// @param what  is read, for messages
  /// @throw io_error when not all can be read
  void read(std::uint64_t offset, std::span<std::byte> to, std::string_view what) const {
    for (std::size_t done = 0; done < to.size();) {
      errno = 0;
      const ssize_t some = ::pread(file_.number(), to.data() + done, to.size() - done,
                                   static_cast<off_t>(offset + done));
      if (some > 0) {
        done += static_cast<std::size_t>(some);
      } else if (errno != EINTR) {
        detail::fail_at(path_, detail::message("read ", what, ", bytes ", offset + done, " to ",
                                               offset + to.size()));
      }
    }
  }

 private:
  std::filesystem::path path_;
  detail::descriptor file_;
  std::uint64_t size_ = 0;
};

/// @brief A file that is written beside the one it is to replace, and takes its name once all of it is on the disk: whoever
/// opens that name finds the old file or the new one, never a part, whenever the process ends.
///
/// Until then its name has ".saving" behind it. What a process that was killed leaves there is overwritten by the next.
class replacing_file {
 public:
  /// @throw io_error when it cannot be made, or another process or thread is writing it
  explicit replacing_file(std::filesystem::path path)
      : path_(std::move(path)), temporary_(path_.string() + ".saving") {
    // The lock is taken before anything is cut off. Whoever had it before may have given the file its final name meanwhile.
    for (;;) {
      file_ = detail::descriptor(::open(temporary_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
      if (file_.number() < 0) {
        detail::fail_at(temporary_, "make");
      }
      if (::flock(file_.number(), LOCK_EX | LOCK_NB) != 0) {
        throw io_error(detail::message(
            temporary_.string(), " is being written by another save; allowed: one at a time"));
      }
      struct stat mine{};
      struct stat named{};
      if (::fstat(file_.number(), &mine) == 0 && ::stat(temporary_.c_str(), &named) == 0 &&
          mine.st_ino == named.st_ino && mine.st_dev == named.st_dev) {
        break;
      }
    }
    if (::ftruncate(file_.number(), 0) != 0) {
      detail::fail_at(temporary_, "empty");
    }
  }
  replacing_file(const replacing_file&) = delete;
  replacing_file& operator=(const replacing_file&) = delete;
  replacing_file(replacing_file&&) = delete;
  replacing_file& operator=(replacing_file&&) = delete;

  /// @brief Removes what was written, unless commit came.
  ~replacing_file() {
    if (!committed_) {
      ::unlink(temporary_.c_str());
    }
  }

  /// @brief Writes at an offset.  @throw io_error
  void write(std::uint64_t offset, std::span<const std::byte> from, std::string_view what) {
    for (std::size_t done = 0; done < from.size();) {
      errno = 0;
      const ssize_t some = ::pwrite(file_.number(), from.data() + done, from.size() - done,
                                    static_cast<off_t>(offset + done));
      if (some > 0) {
        done += static_cast<std::size_t>(some);
      } else if (errno != EINTR) {
        detail::fail_at(temporary_, detail::message("write ", what));
      }
    }
  }

  /// @brief Puts the file, n_bytes long, in the other's place. Blocks: until it is on the disk.  @throw io_error
  void commit(std::uint64_t n_bytes) {
    if (::ftruncate(file_.number(), static_cast<off_t>(n_bytes)) != 0 ||
        ::fsync(file_.number()) != 0) {
      detail::fail_at(temporary_, "flush");
    }
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
      detail::fail_at(path_, "replace");
    }
    committed_ = true;
    const std::filesystem::path folder =
        path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
    const detail::descriptor opened(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (opened.number() < 0 || ::fsync(opened.number()) != 0) {
      detail::fail_at(folder, "flush");
    }
  }

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  detail::descriptor file_;
  bool committed_ = false;
};

}  // namespace wavekv
