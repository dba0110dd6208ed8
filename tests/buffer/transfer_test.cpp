// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <unistd.h>

#include <wavekv/buffer/file_store.hpp>
#include <wavekv/buffer/transfer.hpp>

#if defined(WAVEKV_HAS_IO_URING)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <wavekv/buffer/io_uring.hpp>
#endif

#include "conformance/transfer_law.hpp"
#include "reference/fresh_seed.hpp"

// Left out under the thread sanitizer: counting allocations, as it has an operator new of its own; and rings, because
// liburing maps and unmaps them by system calls of its own, which the sanitizer does not see, so that a ring where
// another thread's ring was before looks like a race. A ring is for one thread at a time anyway.
#if defined(__SANITIZE_THREAD__)
#define WAVEKV_TEST_TSAN 1
#elif defined(__has_feature)
#define WAVEKV_TEST_TSAN __has_feature(thread_sanitizer)
#else
#define WAVEKV_TEST_TSAN 0
#endif
#if !WAVEKV_TEST_TSAN
#include "support/counting_new.hpp"
#endif

using wavekv::file_store;
using wavekv::slow_read;
using wavekv_test::transfer_law;
namespace fs = std::filesystem;
namespace transfer = wavekv::transfer;

namespace {

/// A file_store of one region in a file with a name, whose bytes are known.
class stored_bytes {
 public:
  stored_bytes(std::size_t n, bool direct)
      : path_(fs::temp_directory_path() / ("wavekv-transfer-test-" + std::to_string(::getpid()))),
        store_({path_, direct}),
        bytes_(n) {
    std::mt19937_64 random = wavekv_test::generator("stored_bytes");
    for (std::byte& byte : bytes_) byte = static_cast<std::byte>(random());
    region_ = store_.write(bytes_);
  }

  [[nodiscard]] slow_read read(std::uint64_t offset, std::span<std::byte> to) const {
    const wavekv::file_place place = store_.in_file(region_);
    slow_read read;
    read.make = [](const slow_read& wanted) {
      static_cast<const file_store*>(wanted.store)
          ->read(*static_cast<const file_store::region*>(wanted.region), wanted.offset, wanted.to);
    };
    read.store = &store_;
    read.region = &region_;
    read.offset = offset;
    read.to = to;
    read.file = place.file;
    read.file_offset = place.offset + offset;
    return read;
  }

  [[nodiscard]] bool are_at(std::size_t offset, std::span<const std::byte> got) const {
    return std::equal(got.begin(), got.end(), bytes_.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }
  [[nodiscard]] bool is_direct() const noexcept { return store_.is_direct(); }
  void cut_short(std::size_t n) const { fs::resize_file(path_, n); }
  [[nodiscard]] std::string path() const { return path_.string(); }

 private:
  fs::path path_;
  file_store store_;
  std::vector<std::byte> bytes_;
  file_store::region region_;
};

struct page {
  alignas(file_store::page_bytes) std::array<std::byte, file_store::page_bytes> bytes;
};

std::string message_of(const std::exception_ptr& failure) {
  try {
    if (failure != nullptr) std::rethrow_exception(failure);
  } catch (const wavekv::io_error& error) {
    return error.what();
  } catch (...) {
    return "no io_error";
  }
  return {};
}

/// Random parts of a file, of any size and at any place: past the page cache those need the store's help.
template <class Transfer>
void read_at_random(bool direct) {
  const stored_bytes stored((std::size_t{1} << 21U) - 1234, direct);
  std::mt19937_64 random = wavekv_test::generator("read_at_random");
  constexpr std::size_t n = 2000;
  std::vector<std::vector<std::byte>> to(n);
  std::vector<std::size_t> offsets(n);
  std::vector<int> n_returned(n, 0);
  Transfer engine;
  std::size_t n_under_way = 0;
  const auto take_one = [&] {
    const std::size_t tag = engine.next();
    --n_under_way;
    REQUIRE(tag < n);
    ++n_returned[tag];
    CHECK(message_of(engine.failure()) == "");
    CHECK(stored.are_at(offsets[tag], to[tag]));
  };
  for (std::size_t i = 0; i < n; ++i) {
    to[i].resize(1 + random() % 20000);
    offsets[i] = random() % (stored.size() - to[i].size());
    engine.start(stored.read(offsets[i], to[i]), i);
    ++n_under_way;
    while (n_under_way > random() % 400) take_one();
  }
  while (n_under_way != 0) take_one();
  CHECK(std::ranges::all_of(n_returned, [](int times) { return times == 1; }));
}

/// A file that is cut while it is read: what is gone is an io_error that says so, the rest is right.
template <class Transfer>
void read_while_cut(bool direct) {
  constexpr std::size_t n_pages = 400;
  constexpr std::size_t n_left = 250;
  constexpr std::size_t n_before = 200;
  const stored_bytes stored(n_pages * file_store::page_bytes, direct);
  std::vector<page> to(n_pages);
  Transfer engine;
  std::vector<std::size_t> order(n_pages);
  for (std::size_t i = 0; i < n_pages; ++i) order[i] = i;
  std::ranges::shuffle(order, wavekv_test::generator("read_while_cut"));
  for (std::size_t i = 0; i < n_pages; ++i) {
    if (i == n_before) stored.cut_short(n_left * file_store::page_bytes);
    engine.start(stored.read(order[i] * file_store::page_bytes, to[order[i]].bytes), order[i]);
  }
  std::vector<int> n_returned(n_pages, 0);
  for (std::size_t i = 0; i < n_pages; ++i) {
    const std::size_t tag = engine.next();
    REQUIRE(tag < n_pages);
    ++n_returned[tag];
    const std::string message = message_of(engine.failure());
    CAPTURE(tag);
    if (message.empty()) {
      CHECK(stored.are_at(tag * file_store::page_bytes, to[tag].bytes));
    } else {
      CHECK(tag >= n_left);
      CHECK(message == "file_store: " + stored.path() + ": cannot read, bytes " +
                           std::to_string(tag * 4096) + " to " + std::to_string(tag * 4096 + 4096) +
                           ": the file ends before");
    }
    const auto place = std::ranges::find(order, tag) - order.begin();
    if (tag >= n_left && place >= static_cast<std::ptrdiff_t>(n_before)) CHECK(message != "");
  }
  CHECK(std::ranges::all_of(n_returned, [](int times) { return times == 1; }));
  engine.start(stored.read(0, to[0].bytes), 5);  // it goes on
  CHECK(engine.next() == 5);
  CHECK(engine.failure() == nullptr);
}

/// A read that begins before the file's end and reaches past it.
template <class Transfer>
void read_across_the_end() {
  const stored_bytes stored(3 * file_store::page_bytes, false);
  stored.cut_short(10000);
  std::vector<std::byte> to(5000);
  Transfer engine;
  engine.start(stored.read(7000, to), 1);
  CHECK(engine.next() == 1);
  CHECK(message_of(engine.failure()).find("bytes 10000 to 12000: the file ends before") !=
        std::string::npos);
  engine.start(stored.read(5000, to), 2);
  CHECK(engine.next() == 2);
  CHECK(message_of(engine.failure()) == "");
  CHECK(stored.are_at(5000, to));
}

template <class Transfer>
void read_files() {
  for (const bool direct : {false, true}) {
    CAPTURE(direct);
    read_at_random<Transfer>(direct);
    read_while_cut<Transfer>(direct);
  }
  read_across_the_end<Transfer>();
}

#if !WAVEKV_TEST_TSAN
#if defined(WAVEKV_HAS_IO_URING)
bool kernel_gives_rings() {
  ::io_uring ring{};
  const bool gives = ::io_uring_queue_init(128, &ring, 0) == 0;
  if (gives) ::io_uring_queue_exit(&ring);
  return gives;
}
#endif

template <class Transfer>
std::size_t allocations_when_warm() {
  const stored_bytes stored(std::size_t{1} << 18U, false);
  std::vector<page> to(200);
  Transfer engine;
  const auto round = [&] {
    for (std::size_t i = 0; i < to.size(); ++i) {
      slow_read read = stored.read(i * 500, to[i].bytes);
      if (i % 10 == 0) read.file = -1;
      engine.start(read, i);
    }
    for (std::size_t i = 0; i < to.size(); ++i) engine.next();
  };
  round();
  const std::size_t n_before = wavekv_test::n_allocations;
  for (int i = 0; i < 20; ++i) round();
  return wavekv_test::n_allocations - n_before;
}
#endif

}  // namespace

TEST_CASE("engines that ship keep the law of their slot") {
  const std::uint64_t seed = wavekv_test::run_seed();
  CHECK(transfer_law<transfer::inline_read>(seed) == "");
  CHECK(transfer_law<transfer::threads>(seed) == "");
  CHECK(transfer_law<transfer::basic_threads<1>>(seed) == "");
}

TEST_CASE("engines read what the file holds, and say what it does not hold any more") {
  read_files<transfer::inline_read>();
  read_files<transfer::threads>();
}

#if !WAVEKV_TEST_TSAN
TEST_CASE("engines without threads do not allocate once they are warm") {
  CHECK(allocations_when_warm<transfer::inline_read>() == 0);
#if defined(WAVEKV_HAS_IO_URING)
  if (kernel_gives_rings()) CHECK(allocations_when_warm<transfer::io_uring>() == 0);
#endif
}
#endif

#if defined(WAVEKV_HAS_IO_URING)
namespace {

/// Calls on a thread to which the kernel answers a system call with an error: always, or where it is to take orders and
/// wait (io_uring_enter). False where the kernel does not let us ask for that.
template <class Call>
bool with_refused(long system_call, unsigned error, bool always, Call&& call) {
  bool is_refused = false;
  std::thread([&] {
    // Lower halves of the second and third argument, on a little-endian machine.
    constexpr unsigned n_orders = offsetof(seccomp_data, args) + 8;
    constexpr unsigned n_to_wait_for = n_orders + 8;
    sock_filter rules[] = {
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 6, static_cast<std::uint32_t>(system_call)},
        {BPF_JMP | BPF_JA, 0, 0, always ? 4U : 0U},
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, n_orders},
        {BPF_JMP | BPF_JEQ | BPF_K, 3, 0, 0},
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, n_to_wait_for},
        {BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 0},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | error},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    };
    const sock_fprog filter{std::size(rules), rules};
    is_refused = ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
                 ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
    if (is_refused) call();
  }).join();
  return is_refused;
}

/// What is written to stderr while it lives.
class caught_stderr {
 public:
  caught_stderr() : file_(std::tmpfile(), &std::fclose), before_(::dup(STDERR_FILENO)) {
    std::fflush(stderr);
    ::dup2(::fileno(file_.get()), STDERR_FILENO);
  }
  caught_stderr(const caught_stderr&) = delete;
  caught_stderr& operator=(const caught_stderr&) = delete;
  ~caught_stderr() {
    ::dup2(before_, STDERR_FILENO);
    ::close(before_);
  }
  [[nodiscard]] std::string text() const {
    std::string text(10000, '\0');
    const ssize_t n = ::pread(::fileno(file_.get()), text.data(), text.size(), 0);
    text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    return text;
  }

 private:
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  int before_;
};

}  // namespace

TEST_CASE("io_uring: where the kernel refuses it, threads read, and that is said once") {
  std::string found;
  std::string said;
  const bool is_refused = with_refused(SYS_io_uring_setup, EPERM, true, [&] {
    const caught_stderr caught;
    found = transfer_law<transfer::io_uring>(wavekv_test::run_seed());
    read_files<transfer::io_uring>();
    said = caught.text();
  });
  if (!is_refused) {
    MESSAGE("skipped: no seccomp here");
    return;
  }
  CHECK(found == "");
  CHECK(said == "wavekv: transfer::io_uring: the kernel gives no ring (Operation not permitted); "
                "threads read instead\n");
}

#if !WAVEKV_TEST_TSAN
TEST_CASE("io_uring keeps the law of its slot, and reads files") {
  if (!kernel_gives_rings()) MESSAGE("this kernel gives no io_uring: threads are tested instead");
  CHECK(transfer_law<transfer::io_uring>(wavekv_test::run_seed()) == "");
  read_files<transfer::io_uring>();
}

TEST_CASE("io_uring: signals that interrupt it change nothing") {
  struct sigaction ours{};
  struct sigaction before{};
  ours.sa_handler = [](int) {};
  ::sigaction(SIGALRM, &ours, &before);
  const itimerval often{{0, 300}, {0, 300}};
  const itimerval never{};
  ::setitimer(ITIMER_REAL, &often, nullptr);
  const std::string found = transfer_law<transfer::io_uring>(wavekv_test::run_seed());
  ::setitimer(ITIMER_REAL, &never, nullptr);
  ::sigaction(SIGALRM, &before, nullptr);
  CHECK(found == "");
}

TEST_CASE("io_uring: where the kernel gives a ring, but takes few reads or none, all are made") {
  for (const bool always : {true, false}) {
    CAPTURE(always);
    std::string found;
    if (with_refused(SYS_io_uring_enter, EAGAIN, always, [&] {
          found = transfer_law<transfer::io_uring>(wavekv_test::run_seed());
          read_files<transfer::io_uring>();
        })) {
      CHECK(found == "");
    } else {
      MESSAGE("skipped: no seccomp here");
    }
  }
}

TEST_CASE("io_uring: what is submitted is under way while the caller does other things") {
  if (!kernel_gives_rings()) return;
  const stored_bytes stored(100 * file_store::page_bytes, false);
  std::vector<page> to(13);
  transfer::io_uring engine;
  for (std::size_t i = 0; i < to.size(); ++i)
    engine.start(stored.read(i * file_store::page_bytes, to[i].bytes), i);
  engine.submit();
  const auto all_are_there = [&] {
    for (std::size_t i = 0; i < to.size(); ++i) {
      // volatile: it changes without our doing
      const volatile std::byte& last = to[i].bytes.back();
      const std::byte seen = last;
      if (!stored.are_at((i + 1) * file_store::page_bytes - 1, {&seen, 1})) return false;
    }
    return true;
  };
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!all_are_there() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  CHECK(all_are_there());
  for (std::size_t i = 0; i < to.size(); ++i) engine.next();
}
#endif
#endif

// A law that nothing breaks is none: each of these must be found out.
namespace {

/// Right, and the others' base.
struct honest : transfer::inline_read {};

struct names_the_last_twice : honest {
  std::size_t next() {
    const std::size_t tag = honest::next();
    return ++n_ % 50 == 0 ? std::exchange(last_, tag) : (last_ = tag);
  }
  std::size_t n_ = 0;
  std::size_t last_ = 0;
};

struct comes_too_early {
  void start(const slow_read& read, std::size_t tag) { orders_.emplace_back(read, tag); }
  std::size_t next() {
    const auto [read, tag] = orders_.back();
    orders_.pop_back();
    done_ = wavekv::detail::make_read(orders_.empty() ? read : orders_.back().first, tag);
    return tag;
  }
  [[nodiscard]] std::exception_ptr failure() const noexcept { return done_.failure; }
  std::vector<std::pair<slow_read, std::size_t>> orders_;
  wavekv::detail::finished_read done_;
};

struct loses_failures : honest {
  [[nodiscard]] std::exception_ptr failure() const noexcept { return nullptr; }
};

struct keeps_the_failure : honest {
  std::size_t next() {
    const std::size_t tag = honest::next();
    if (honest::failure() != nullptr) first_ = honest::failure();
    return tag;
  }
  [[nodiscard]] std::exception_ptr failure() const noexcept { return first_; }
  std::exception_ptr first_;
};

struct names_the_first_failure : honest {
  std::size_t next() {
    const std::size_t tag = honest::next();
    if (first_ == nullptr) first_ = honest::failure();
    return tag;
  }
  [[nodiscard]] std::exception_ptr failure() const noexcept {
    return honest::failure() == nullptr ? nullptr : first_;
  }
  std::exception_ptr first_;
};

struct throws_its_own : honest {
  [[nodiscard]] std::exception_ptr failure() const noexcept {
    return honest::failure() == nullptr ? nullptr
                                        : std::make_exception_ptr(std::runtime_error("failed"));
  }
};

struct shortens_tags : honest {
  void start(const slow_read& read, std::size_t tag) {
    honest::start(read, static_cast<std::uint32_t>(tag));
  }
};

struct forgets_past_a_thousand : honest {
  void start(const slow_read& read, std::size_t tag) {
    if (n_ < 1000) {
      honest::start(read, tag);
      ++n_;
    }
  }
  std::size_t next() { return n_ == 0 ? 0 : (--n_, honest::next()); }
  std::size_t n_ = 0;
};

struct leaves_files_alone : honest {
  void start(const slow_read& read, std::size_t tag) {
    slow_read mine = read;
    if (read.file >= 0) mine.make = [](const slow_read&) {};
    honest::start(mine, tag);
  }
};

/// As if a short answer of the kernel were the whole.
struct stops_short : honest {
  void start(const slow_read& read, std::size_t tag) {
    slow_read mine = read;
    mine.to = read.to.first(std::min<std::size_t>(read.to.size(), 4096));
    honest::start(mine, tag);
  }
};

}  // namespace

TEST_CASE("the law finds what breaks it") {
  const std::uint64_t seed = wavekv_test::run_seed();
  CHECK(transfer_law<honest>(seed) == "");
  CHECK(transfer_law<names_the_last_twice>(seed) == "next() returns a tag that is not under way");
  CHECK(transfer_law<comes_too_early>(seed) == "next() returns before the bytes are there");
  CHECK(transfer_law<loses_failures>(seed) == "a read's exception is lost");
  CHECK(transfer_law<keeps_the_failure>(seed) == "failure() where the read did not fail");
  CHECK(transfer_law<names_the_first_failure>(seed) == "failure() is another read's");
  CHECK(transfer_law<throws_its_own>(seed) == "failure() is not what the read threw");
  CHECK(transfer_law<shortens_tags>(seed) == "next() returns a tag that is not under way");
  CHECK(transfer_law<forgets_past_a_thousand>(seed) != "");
  CHECK(transfer_law<leaves_files_alone>(seed) != "");
  CHECK(transfer_law<stops_short>(seed) != "");
}
