// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "mapped_file.hpp"

#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.hpp"

namespace transformer {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const char* what, int error) {
  throw model_error(path.string() + ": " + what + ": " + std::strerror(error));
}

}  // namespace

mapped_file::mapped_file(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(path, "cannot open", errno);
  struct stat status{};
  const bool known = ::fstat(descriptor, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {
    const int error = known ? EINVAL : errno;
    ::close(descriptor);
    fail(path, "not a regular file", error);
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) {  // mmap refuses a length of zero
    ::close(descriptor);
    return;
  }
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int error = errno;
  ::close(descriptor);  // the mapping keeps the file
  if (address == MAP_FAILED) fail(path, "cannot map", error);
#if defined(MADV_HUGEPAGE)
  // Where the system caches files in huge pages, a file that is not cached yet comes in such pages:
  // faults and page walks are fewer. Advice only.
  (void)::madvise(address, size, MADV_HUGEPAGE);
#endif
  bytes_ = {static_cast<const std::byte*>(address), size};
}

mapped_file::~mapped_file() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

mapped_file::mapped_file(mapped_file&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

mapped_file& mapped_file::operator=(mapped_file&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace transformer
