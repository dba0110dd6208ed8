// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/detail/extents.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/errors.hpp>

/// @file file_store.hpp
/// @brief A slow tier in a file, read and written past the page cache where the file system allows it.

namespace wavekv {

/// @brief Keeps bytes in one file; models block_store.
///
/// Regions begin at multiples of 4,096 bytes. Space that a region gives up is used again, and given back to the file
/// system where it can (hole punching). All calls may come from several threads at once; reads and writes of regions do
/// not wait for each other. POSIX only.
class file_store {
 public:
  /// @brief Regions begin at multiples of this many bytes. Reads and writes at multiples of it, to memory at multiples of
  /// it, go straight to the disk.
  static constexpr std::size_t page_bytes = 4096;

  /// @brief Where the file is.
  struct options_type {
    /// A directory: a file without a name is made in it, which is gone when the store is, even after a crash.
    /// Anything else: a new file of that name, removed with the store; one that exists is left alone.
    std::filesystem::path path = std::filesystem::temp_directory_path();
    /// Past the page cache (O_DIRECT), where the file system allows it: what the block cache keeps need not be kept twice.
    bool direct = true;

    /// @throw config_error
    void validate() const {
      if (path.empty()) {
        throw config_error("file_store: path is empty; allowed: a directory, or a new file's name");
      }
    }
  };

  /// @brief Bytes that were written. Giving it up frees their space.
  class region;

  /// @brief Makes the file.  @throw config_error; io_error when it cannot be made
  explicit file_store(const options_type& options) : file_(std::make_shared<file>(options)) {}

  /// @brief Writes bytes where there is room. Blocks: until the system has taken them; flush makes them last.
  /// @throw io_error when they cannot be written (a full disk, say); nothing is held then. std::bad_alloc
  region write(std::span<const std::byte> from);

  /// @brief A file of another's making, which is only read and stays when the store goes. Copyable.
  class outside_file;

  /// @brief Opens a file to adopt parts of it.  @throw io_error
  [[nodiscard]] outside_file open(const std::filesystem::path& path) const;

  /// @brief Takes a part of a file that exists, as a region, without a copy.
  /// @param offset  of the file, a multiple of page_bytes; the file reaches to a multiple of it, too
  /// @throw io_error when the file is too short
  [[nodiscard]] region adopt(const outside_file& from, std::uint64_t offset,
                             std::size_t n_bytes) const;

  /// @brief page_bytes where reads go past the page cache, else 1.
  [[nodiscard]] std::size_t alignment() const noexcept { return file_->direct ? page_bytes : 1; }

  /// @brief Where a region lies, in words, for messages.
  [[nodiscard]] static std::string describe(const region& of);

  /// @brief Where a region lies.
  [[nodiscard]] file_place in_file(const region& of) const noexcept;

  /// @brief Reads bytes [offset, offset + to.size()) of a region. Blocks: until they are here.
  /// @throw io_error when they reach past its end, or cannot be read (a file that was cut short, say)
  void read(const region& from, std::uint64_t offset, std::span<std::byte> to) const;

  /// @brief Blocks until all that was written is on the disk.  @throw io_error
  void flush() const {
    if (::fdatasync(file_->descriptor) != 0) {
      file_->fail("flush", 0, 0);
    }
  }

  /// @brief Whether reads and writes go past the page cache.
  [[nodiscard]] bool is_direct() const noexcept { return file_->direct; }

  /// @brief Bytes of the file, used or not.
  [[nodiscard]] std::uint64_t file_bytes() const noexcept {
    const std::lock_guard lock(file_->mutex);
    return file_->extents.end();
  }

 private:
  struct file {
    explicit file(const options_type& options) : path(options.path.string()) {
      options.validate();
      direct = options.direct && open(options, O_DIRECT);
      if (!direct && !open(options, 0)) {
        fail("make", 0, 0);
      }
    }
    // A file that is only read, and stays.
    file(std::string name, bool past_page_cache) : path(std::move(name)), read_only(true) {
      direct = past_page_cache && open_to_read(O_DIRECT);
      if (!direct && !open_to_read(0)) {
        fail("open", 0, 0);
      }
    }
    file(const file&) = delete;
    file& operator=(const file&) = delete;
    file(file&&) = delete;
    file& operator=(file&&) = delete;
    ~file() {
      ::close(descriptor);
      if (named) {
        ::unlink(path.c_str());
      }
    }

    bool open(const options_type& options, int more) {
      std::error_code ignored;
      named = !std::filesystem::is_directory(options.path, ignored);
      if (named) {
        descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | more, 0600);
        if (descriptor < 0 && errno == EINVAL && more != 0) {
          ::unlink(path.c_str());  // it was made before the flag was refused
        }
      } else {
        descriptor = ::open(path.c_str(), O_RDWR | O_TMPFILE | O_CLOEXEC | more, 0600);
        if (descriptor < 0 && errno != EINVAL) {
          open_unnamed(more);
        }
      }
      return descriptor >= 0;
    }

    bool open_to_read(int more) {
      descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | more);
      return descriptor >= 0;
    }

    [[nodiscard]] std::uint64_t size() const {
      struct stat about{};
      if (::fstat(descriptor, &about) != 0) {
        fail("ask the size of", 0, 0);
      }
      return static_cast<std::uint64_t>(about.st_size);
    }

    // For file systems that make no files without a name.
    void open_unnamed(int more) {
      std::string name = path + "/wavekv-XXXXXX";
      descriptor = ::mkostemp(name.data(), O_CLOEXEC | more);
      if (descriptor >= 0 || errno == EINVAL) {  // refused after it was made, perhaps
        const int refused = errno;
        ::unlink(name.c_str());
        errno = refused;
      }
    }

    [[noreturn]] void fail(const char* what, std::uint64_t offset, std::size_t n) const {
      throw io_error(detail::message("file_store: ", path, ": cannot ", what, ", bytes ", offset,
                                     " to ", offset + n, ": ",
                                     errno == 0 ? "the file ends before" : std::strerror(errno)));
    }

    std::string path;
    int descriptor = -1;
    bool direct = false;
    bool named = false;
    bool read_only = false;
    mutable std::mutex mutex;
    detail::extents extents;  // guarded
  };

  // All of [offset, offset + n), however many calls it takes.
  template <class Call, class Byte>
  static void in_full(const file& of, const char* what, Call call, Byte* bytes, std::size_t n,
                      std::uint64_t offset) {
    for (std::size_t done = 0; done < n;) {
      errno = 0;
      const ssize_t some =
          call(of.descriptor, bytes + done, n - done, static_cast<off_t>(offset + done));
      if (some > 0) {
        done += static_cast<std::size_t>(some);
      } else if (errno != EINTR) {
        of.fail(what, offset + done, n - done);
      }
    }
  }

  static bool is_aligned(const void* bytes, std::uint64_t offset, std::size_t n) noexcept {
    return reinterpret_cast<std::uintptr_t>(bytes) % page_bytes == 0 && offset % page_bytes == 0 &&
           n % page_bytes == 0;
  }

  static std::uint64_t rounded_up(std::uint64_t n) noexcept {
    return (n + page_bytes - 1) / page_bytes * page_bytes;
  }

  // Memory that direct reads and writes may use, for those that bring none.
  class bounce_buffer {
   public:
    static constexpr std::size_t n_bytes = std::size_t{1} << 20U;

    std::byte* data() {
      if (memory_.size() == 0) {
        memory_ = aligned_storage<std::byte>(n_bytes + page_bytes);
      }
      const auto at = reinterpret_cast<std::uintptr_t>(memory_.data());
      return memory_.data() + (rounded_up(at) - at);
    }

   private:
    aligned_storage<std::byte> memory_;
  };

  std::shared_ptr<file> file_;
};

class file_store::outside_file {
 private:
  friend class file_store;
  explicit outside_file(std::shared_ptr<file> opened) noexcept : file_(std::move(opened)) {}
  std::shared_ptr<file> file_;
};

class file_store::region {
 public:
  region() = default;
  region(region&& other) noexcept = default;
  region& operator=(region&& other) noexcept {
    if (this != &other) {
      give_up();
      file_ = std::move(other.file_);
      offset_ = other.offset_;
      size_ = other.size_;
    }
    return *this;
  }
  region(const region&) = delete;
  region& operator=(const region&) = delete;
  ~region() { give_up(); }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  friend class file_store;
  region(std::shared_ptr<file> of, std::uint64_t offset, std::size_t size) noexcept
      : file_(std::move(of)), offset_(offset), size_(size) {}

  void give_up() noexcept {
    if (file_ == nullptr) {
      return;
    }
    if (file_->read_only) {
      file_ = nullptr;
      return;
    }
    const std::uint64_t n = rounded_up(size_);
#if defined(FALLOC_FL_PUNCH_HOLE)
    (void)::fallocate(file_->descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      static_cast<off_t>(offset_), static_cast<off_t>(n));  // a courtesy
#endif
    const std::lock_guard lock(file_->mutex);
    file_->extents.give_back(offset_, n);
    file_ = nullptr;
  }

  std::shared_ptr<file> file_;
  std::uint64_t offset_ = 0;
  std::size_t size_ = 0;
};

inline file_store::region file_store::write(std::span<const std::byte> from) {
  std::uint64_t offset = 0;
  {
    const std::lock_guard lock(file_->mutex);
    offset = file_->extents.take(rounded_up(from.size()));
  }
  region to(file_, offset, from.size());  // freed when a write fails
  std::size_t straight = from.size();     // what needs no bounce buffer
  if (file_->direct) {
    straight = is_aligned(from.data(), offset, page_bytes) ? straight / page_bytes * page_bytes : 0;
  }
  in_full(*file_, "write", ::pwrite, from.data(), straight, offset);
  bounce_buffer bounce;
  for (std::size_t done = straight; done < from.size();) {
    const std::size_t n = std::min(from.size() - done, bounce_buffer::n_bytes);
    std::memcpy(bounce.data(), from.data() + done, n);
    const std::size_t whole = rounded_up(n);
    std::memset(bounce.data() + n, 0, whole - n);
    in_full(*file_, "write", ::pwrite, bounce.data(), whole, offset + done);
    done += n;
  }
  return to;
}

inline void file_store::read(const region& from, std::uint64_t offset,
                             std::span<std::byte> to) const {
  const std::uint64_t end = alignment() == 1 ? from.size() : rounded_up(from.size());
  if (offset > end || to.size() > end - offset ||
      (offset + to.size() > from.size() && !is_aligned(to.data(), offset, to.size()))) {
    throw io_error(detail::message("file_store: ", file_->path, ": bytes ", offset, " to ",
                                   offset + to.size(), " of a region; allowed: 0 to ",
                                   from.size()));
  }
  if (to.empty()) {
    return;
  }
  const file& source = *from.file_;
  const std::uint64_t at = from.offset_ + offset;
  if (!source.direct || is_aligned(to.data(), at, to.size())) {
    in_full(source, "read", ::pread, to.data(), to.size(), at);
    return;
  }
  bounce_buffer bounce;
  for (std::size_t done = 0; done < to.size();) {
    const std::uint64_t begin = (at + done) / page_bytes * page_bytes;
    const std::size_t skipped = static_cast<std::size_t>(at + done - begin);
    const std::size_t n = std::min(to.size() - done, bounce_buffer::n_bytes - skipped);
    in_full(source, "read", ::pread, bounce.data(), rounded_up(skipped + n), begin);
    std::memcpy(to.data() + done, bounce.data() + skipped, n);
    done += n;
  }
}

inline file_store::outside_file file_store::open(const std::filesystem::path& path) const {
  return outside_file(std::make_shared<file>(path.string(), file_->direct));
}

inline file_store::region file_store::adopt(const outside_file& from, std::uint64_t offset,
                                            std::size_t n_bytes) const {
  const std::uint64_t size = from.file_->size();
  if (offset % page_bytes != 0 || offset > size || n_bytes > size - offset ||
      rounded_up(n_bytes) > size - offset) {
    throw io_error(detail::message("file_store: ", from.file_->path, ": bytes ", offset, " to ",
                                   offset + rounded_up(n_bytes), "; allowed: multiples of ",
                                   page_bytes, " up to the file's ", size));
  }
  return region(from.file_, offset, n_bytes);
}

inline std::string file_store::describe(const region& of) {
  return of.file_ == nullptr ? std::string("nothing")
                             : detail::message(of.file_->path, ", bytes ", of.offset_, " to ",
                                               of.offset_ + of.size_);
}

inline file_place file_store::in_file(const region& of) const noexcept {
  return {of.file_ == nullptr ? -1 : of.file_->descriptor, of.offset_};
}

static_assert(file_backed<file_store> && adopting_store<file_store>);

}  // namespace wavekv
