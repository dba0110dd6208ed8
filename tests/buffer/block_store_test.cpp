// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <wavekv/buffer/detail/extents.hpp>
#include <wavekv/buffer/file_store.hpp>
#include <wavekv/buffer/memory_store.hpp>

#include "conformance/store_law.hpp"
#include "reference/fresh_seed.hpp"

using wavekv::file_store;
namespace fs = std::filesystem;

namespace {

/// A directory of this test's own, gone afterwards.
class scratch_folder {
 public:
  scratch_folder()
      : path_(fs::temp_directory_path() / ("wavekv-store-test-" + std::to_string(::getpid()))) {
    fs::create_directories(path_);
  }
  scratch_folder(const scratch_folder&) = delete;
  scratch_folder& operator=(const scratch_folder&) = delete;
  ~scratch_folder() { fs::remove_all(path_); }
  [[nodiscard]] const fs::path& path() const { return path_; }
  [[nodiscard]] bool is_empty() const { return fs::is_empty(path_); }

 private:
  fs::path path_;
};

std::vector<std::byte> bytes_of(std::size_t n, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(n);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

bool is_there(const file_store& store, const file_store::region& region,
              const std::vector<std::byte>& expected) {
  std::vector<std::byte> got(expected.size());
  store.read(region, 0, got);
  return got == expected;
}

template <class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const wavekv::io_error& error) {
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("stores that ship keep the law of their slot") {
  const scratch_folder directory;
  const std::uint64_t seed = wavekv_test::run_seed();
  CHECK(wavekv_test::store_law<wavekv::memory_store>({}, seed) == "");
  for (const bool direct : {true, false}) {
    for (const fs::path& path : {directory.path(), directory.path() / "named"}) {
      CAPTURE(direct);
      CAPTURE(path);
      CHECK(wavekv_test::store_law<file_store>({path, direct}, seed) == "");
    }
  }
  CHECK(directory.is_empty());
}

TEST_CASE("file_store: a named file is new, and goes with the store; others are left alone") {
  const scratch_folder directory;
  const fs::path name = directory.path() / "blocks";
  {
    file_store store({name, true});
    const file_store::region region = store.write(bytes_of(10000, 1));
    CHECK(fs::exists(name));
    const std::string message = message_of([&] { const file_store other({name, true}); });
    CHECK(message.find(name.string()) != std::string::npos);
    CHECK(is_there(store, region, bytes_of(10000, 1)));
  }
  CHECK_FALSE(fs::exists(name));
  std::ofstream(name) << "a user's";
  CHECK_THROWS_AS(file_store({name, false}), wavekv::io_error);
  CHECK(fs::file_size(name) == 8);
  CHECK_THROWS_AS(file_store({directory.path() / "none" / "blocks", false}), wavekv::io_error);
  CHECK_THROWS_AS(file_store({fs::path(), false}), wavekv::config_error);
}

TEST_CASE("file_store: a region outlives the store, and moves") {
  const scratch_folder directory;
  const std::vector<std::byte> bytes = bytes_of(30000, 2);
  file_store::region region;
  {
    file_store store({directory.path(), true});
    region = store.write(bytes);
    file_store::region moved = std::move(region);
    CHECK(is_there(store, moved, bytes));
    region = std::move(moved);
  }
  const file_store other({directory.path(), true});
  CHECK(is_there(other, region, bytes));  // a region knows its own file
}

TEST_CASE("file_store: space that is given up is used again") {
  const scratch_folder directory;
  file_store store({directory.path(), true});
  std::mt19937_64 random = wavekv_test::generator("file_store, space");
  std::vector<std::pair<file_store::region, std::uint64_t>> held;
  for (int i = 0; i < 600; ++i) {
    if (held.size() == 10) {
      std::swap(held[random() % held.size()], held.back());
      held.pop_back();
    }
    const std::uint64_t seed = random();
    held.emplace_back(store.write(bytes_of(1 + seed % 40000, seed)), seed);
    for (const auto& [region, own] : held) {
      REQUIRE(is_there(store, region, bytes_of(1 + own % 40000, own)));
    }
  }
  CHECK(store.file_bytes() <= 4 * 10 * 45056);  // 600 of them would be 12 MB
}

TEST_CASE("file_store: a file that was cut short, and a disk that is full, are io_errors") {
  const scratch_folder directory;
  const fs::path name = directory.path() / "blocks";
  for (const bool direct : {true, false}) {
    CAPTURE(direct);
    file_store store({name, direct});
    const file_store::region first = store.write(bytes_of(50000, 3));
    const file_store::region second = store.write(bytes_of(50000, 4));
    fs::resize_file(name, 60000);
    std::vector<std::byte> got(50000);
    const std::string cut = message_of([&] { store.read(second, 0, got); });
    CHECK(cut.find(name.string()) != std::string::npos);
    CHECK(cut.find("read") != std::string::npos);
    CHECK(is_there(store, first, bytes_of(50000, 3)));

    // A limit on the size of files stands for a full disk.
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    rlimit limit = before;
    limit.rlim_cur = 200000;
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
    const std::string full = message_of([&] { (void)store.write(bytes_of(300000, 5)); });
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
    std::signal(SIGXFSZ, handler);
    CHECK(full.find("write") != std::string::npos);
    CHECK(full.find(name.string()) != std::string::npos);
    CHECK(is_there(store, first, bytes_of(50000, 3)));
    const file_store::region third = store.write(bytes_of(300000, 6));  // now there is room
    CHECK(is_there(store, third, bytes_of(300000, 6)));
  }
}

TEST_CASE("file_store: what its reads prefer, and where a region lies") {
  const scratch_folder directory;
  const std::vector<std::byte> bytes = bytes_of(3 * 4096 + 100, 7);
  for (const bool direct : {true, false}) {
    CAPTURE(direct);
    file_store store({directory.path() / "blocks", direct});
    CHECK(store.alignment() == (store.is_direct() ? file_store::page_bytes : 1));
    if (!direct) CHECK_FALSE(store.is_direct());
    const file_store::region before = store.write(bytes_of(5000, 8));
    const file_store::region region = store.write(bytes);
    const wavekv::file_place place = store.in_file(region);
    CHECK(place.file == store.in_file(before).file);
    CHECK(place.offset == 2 * file_store::page_bytes);
    CHECK(store.in_file(file_store::region()).file == -1);
    // The bytes are there, for whoever reads the file on their own.
    std::ifstream file(directory.path() / "blocks", std::ios::binary);
    file.seekg(static_cast<std::streamoff>(place.offset));
    std::vector<std::byte> got(bytes.size());
    file.read(reinterpret_cast<char*>(got.data()), static_cast<std::streamsize>(got.size()));
    CHECK(got == bytes);
    CHECK(file_store::describe(region).find(directory.path().string()) != std::string::npos);
  }
}

TEST_CASE("file_store: a part of an outside file is read, and the file left alone") {
  const scratch_folder directory;
  const fs::path name = directory.path() / "saved";
  constexpr std::size_t page = file_store::page_bytes;
  const std::vector<std::byte> bytes = bytes_of(20 * page, 9);
  std::ofstream(name, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  const auto time = fs::last_write_time(name);
  const auto part = [&](std::size_t offset, std::size_t n) {
    return std::vector<std::byte>(bytes.begin() + static_cast<std::ptrdiff_t>(offset),
                                  bytes.begin() + static_cast<std::ptrdiff_t>(offset + n));
  };
  std::mt19937_64 random = wavekv_test::generator("file_store, adopt");
  for (const bool direct : {true, false}) {
    CAPTURE(direct);
    file_store::region last;
    {
      file_store store({directory.path(), direct});
      const file_store::region own = store.write(bytes_of(10000, 10));
      const std::uint64_t before = store.file_bytes();
      {
        const file_store::outside_file file = store.open(name);
        const file_store::outside_file same = file;
        const file_store::region first = store.adopt(file, 3 * page, 2 * page + 77);
        CHECK(first.size() == 2 * page + 77);
        CHECK(is_there(store, first, part(3 * page, 2 * page + 77)));
        for (int i = 0; i < 50; ++i) {
          const std::size_t from = random() % first.size();
          std::vector<std::byte> got(random() % (first.size() - from + 1));
          store.read(first, from, got);
          CHECK(got == part(3 * page + from, got.size()));
        }
        // Parts may overlap, and lie anywhere up to the end.
        last = store.adopt(same, 17 * page, 2 * page + 5000 - page);
        CHECK(is_there(store, store.adopt(file, 4 * page, page), part(4 * page, page)));
        CHECK(is_there(store, store.adopt(file, 0, 20 * page), bytes));
        CHECK(store.adopt(file, 20 * page, 0).size() == 0);
        const wavekv::file_place place = store.in_file(first);
        CHECK(place.offset == 3 * page);
        CHECK(place.file != store.in_file(own).file);
        CHECK((::fcntl(place.file, F_GETFL) & O_ACCMODE) == O_RDONLY);
        CHECK(file_store::describe(first).find(name.string()) != std::string::npos);
        // Past a region's end only at multiples of what the store prefers.
        std::vector<std::byte> more(2 * page + 78);
        CHECK_THROWS_AS(store.read(first, 0, more), wavekv::io_error);
      }
      CHECK(
          is_there(store, last, part(17 * page, page + 5000)));  // it outlives what it was cut from
      CHECK(store.file_bytes() == before);                       // and takes no space
      CHECK(is_there(store, own, bytes_of(10000, 10)));
    }
    const file_store other({directory.path(), false});
    CHECK(is_there(other, last, part(17 * page, page + 5000)));  // and the store, too
    fs::rename(name, directory.path() / "elsewhere");            // a file is more than its name
    CHECK(is_there(other, last, part(17 * page, page + 5000)));
    last = {};
    fs::rename(directory.path() / "elsewhere", name);
    CHECK(fs::file_size(name) == bytes.size());
    CHECK(fs::last_write_time(name) == time);
    std::vector<std::byte> after(bytes.size());
    std::ifstream(name, std::ios::binary)
        .read(reinterpret_cast<char*>(after.data()), static_cast<std::streamsize>(after.size()));
    CHECK(after == bytes);  // no hole where a region was given up
  }
}

TEST_CASE("file_store: an outside file that is not there, too short, or cut at odd places") {
  const scratch_folder directory;
  const fs::path name = directory.path() / "saved";
  constexpr std::size_t page = file_store::page_bytes;
  std::ofstream(name, std::ios::binary) << std::string(6 * page + 100, 'x');
  for (const bool direct : {true, false}) {
    CAPTURE(direct);
    const file_store store({directory.path(), direct});
    const fs::path none = directory.path() / "none";
    CHECK(message_of([&] { (void)store.open(none); }).find(none.string()) != std::string::npos);
    const file_store::outside_file file = store.open(name);
    struct part {
      std::uint64_t offset;
      std::size_t n_bytes;
    };
    constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    for (const auto& [offset, n_bytes] : {
             part{0, 7 * page}, part{0, 6 * page + 1},  // the last page is not whole
             part{5 * page, page + 1}, part{6 * page, 1}, part{7 * page, 0}, part{7 * page, 1},
             part{1, page}, part{page - 1, 1}, part{page + 512, page},  // not at a page
             part{most / page * page, page}, part{0, most / page * page}, part{page, most},
             part{0, most}, part{0, most - 100},  // would wrap around
         }) {
      CAPTURE(offset);
      CAPTURE(n_bytes);
      const std::string message = message_of([&] { (void)store.adopt(file, offset, n_bytes); });
      CHECK(message.find(name.string()) != std::string::npos);
      CHECK(message.find("allowed") != std::string::npos);
    }
    const file_store::region region = store.adopt(file, 4 * page, 2 * page);
    fs::resize_file(name, 5 * page);  // cut short behind the store's back
    std::vector<std::byte> got(2 * page);
    const std::string cut = message_of([&] { store.read(region, 0, got); });
    CHECK(cut.find("read") != std::string::npos);
    CHECK(cut.find(name.string()) != std::string::npos);
    fs::resize_file(name, 6 * page + 100);
  }
}

TEST_CASE("extents: no byte is given twice, and all come back") {
  std::mt19937_64 random = wavekv_test::generator("extents");
  wavekv::detail::extents extents;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> taken;
  std::vector<bool> used;
  for (int i = 0; i < 5000; ++i) {
    if (taken.empty() || random() % 2 == 0) {
      const std::uint64_t n = random() % 50;
      const std::uint64_t offset = extents.take(n);
      if (used.size() < offset + n) used.resize(offset + n, false);
      for (std::uint64_t b = offset; b < offset + n; ++b) {
        REQUIRE_FALSE(used[b]);
        used[b] = true;
      }
      taken.emplace_back(offset, n);
    } else {
      std::swap(taken[random() % taken.size()], taken.back());
      const auto [offset, n] = taken.back();
      taken.pop_back();
      for (std::uint64_t b = offset; b < offset + n; ++b) used[b] = false;
      extents.give_back(offset, n);
    }
    REQUIRE(extents.end() == used.size());
    REQUIRE(extents.n_free() ==
            static_cast<std::uint64_t>(std::count(used.begin(), used.end(), false)));
  }
  for (const auto& [offset, n] : taken) extents.give_back(offset, n);
  CHECK(extents.n_free() == extents.end());
  CHECK(extents.take(extents.end()) == 0);  // one run again
}
