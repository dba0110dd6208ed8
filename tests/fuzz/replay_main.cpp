// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Where no fuzzer is built: gives a harness the kept corpus, and every file of it changed at random
// a fixed number of times.
//
// replay <corpus> [<seed>]: the seed is printed. The input in work lies in <program>.input in the
// current directory, so that it is there after a crash.
#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size);

// Asked by the address sanitizer where there is one. As in run.sh: no small file needs more.
extern "C" const char* __asan_default_options() { return "max_allocation_size_mb=512"; }

namespace {

constexpr int n_changes_per_file = 200;
constexpr std::uint64_t default_seed = 20260101;

using content = std::vector<std::uint8_t>;

content read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot open " + path.string());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Random edits that are the same everywhere: the standard's distributions are not.
class editor {
 public:
  explicit editor(std::uint64_t seed) : random_(seed) {}

  /// One to four edits, each at a place of its own.
  content changed(content input) {
    for (std::size_t left = 1 + below(4); left > 0; --left) edit(input);
    return input;
  }

 private:
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }
  auto place_in(content& input, std::size_t at) {
    return input.begin() + static_cast<std::ptrdiff_t>(at);
  }

  /// Bytes that mean something to the readers come more often than others.
  std::uint8_t any_byte() {
    constexpr std::string_view telling("{}[]\",:\\-0129eE. \n\0\x7F\x80\xFF", 22);
    return static_cast<std::uint8_t>(below(2) == 0 ? telling[below(telling.size())]
                                                   : static_cast<char>(below(256)));
  }

  void edit(content& input) {
    if (input.empty()) {
      input.push_back(any_byte());
      return;
    }
    const std::size_t at = below(input.size());
    const std::size_t n = 1 + below(std::min<std::size_t>(input.size() - at, 32));
    switch (below(6)) {
    case 0:  // another byte
      input[at] = any_byte();
      break;
    case 1:  // another bit
      input[at] ^= static_cast<std::uint8_t>(1U << below(8));
      break;
    case 2:  // a byte more
      input.insert(place_in(input, at), any_byte());
      break;
    case 3:  // a piece less
      input.erase(place_in(input, at), place_in(input, at + n));
      break;
    case 4: {  // a piece of it once more
      const content piece(place_in(input, at), place_in(input, at + n));
      input.insert(place_in(input, below(input.size() + 1)), piece.begin(), piece.end());
      break;
    }
    default:  // the end is missing
      input.resize(at);
    }
  }

  std::mt19937_64 random_;
};

/// Runs the harness on inputs, each of which lies in a file meanwhile.
class runner {
 public:
  explicit runner(std::filesystem::path path)
      : path_(std::move(path)),
        file_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)) {
    if (file_ < 0) throw std::runtime_error("cannot write " + path_.string());
  }
  ~runner() { ::close(file_); }
  runner(const runner&) = delete;
  runner& operator=(const runner&) = delete;

  void run(const content& input) const {
    const auto size = static_cast<ssize_t>(input.size());
    if (::ftruncate(file_, size) != 0 || ::pwrite(file_, input.data(), input.size(), 0) != size)
      throw std::runtime_error("cannot write " + path_.string());
    // A copy that ends where its allocation ends, for the address sanitizer.
    const content exact(input);
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
  }

  /// All went well.
  void discard() const { std::filesystem::remove(path_); }

 private:
  std::filesystem::path path_;
  int file_;
};

/// Makes an allocation of gigabytes fail. With the address sanitizer, which maps terabytes, the
/// allocator does that.
void limit_memory() {
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  return;
#endif
#endif
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  constexpr rlim_t limit = rlim_t{4} << 30U;
  const rlimit both{limit, limit};
  ::setrlimit(RLIMIT_AS, &both);
#endif
}

std::uint64_t seed_of(std::string_view text) {
  std::uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || end != text.data() + text.size())
    throw std::runtime_error("not a seed: " + std::string(text));
  return seed;
}

void replay(const std::filesystem::path& corpus, const runner& runner, std::uint64_t seed) {
  std::vector<std::filesystem::path> files;
  for (const auto& file : std::filesystem::directory_iterator(corpus)) files.push_back(file.path());
  if (files.empty()) throw std::runtime_error("no files in " + corpus.string());
  std::ranges::sort(files);
  std::printf("%zu files, each as it is and changed %d times, seed %llu\n", files.size(),
              n_changes_per_file, static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  editor editor(seed);
  runner.run({});
  for (const auto& file : files) {
    const auto input = read_file(file);
    runner.run(input);
    for (int i = 0; i < n_changes_per_file; ++i) runner.run(editor.changed(input));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::span<char*> arguments(argv, static_cast<std::size_t>(argc));
  if (arguments.size() < 2 || arguments.size() > 3) {
    std::fprintf(stderr, "usage: %s <corpus> [<seed>]\n", arguments[0]);
    return 2;
  }
  limit_memory();
  const auto kept = std::filesystem::path(arguments[0]).filename().string() + ".input";
  try {
    const runner runner(kept);
    replay(arguments[1], runner, arguments.size() == 3 ? seed_of(arguments[2]) : default_seed);
    runner.discard();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s (the input is %s)\n", arguments[0], e.what(), kept.c_str());
    return 1;
  }
  return 0;
}
