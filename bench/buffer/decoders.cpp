// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The cache types of the bench; each is much code, and they are compiled once.
#include "buffer/decoder.hpp"

#if defined(WAVEKV_HAS_IO_URING)
#include <wavekv/buffer/io_uring.hpp>
#endif

namespace wavekv_bench {
namespace {

template <class Eviction, class Transfer>
using tiered_buffer = wavekv::wave_buffer<wavekv::placement::tiered, Eviction, Transfer>;

template <class Eviction, class Transfer>
std::unique_ptr<decoder> make(const wavekv::geometry& sizes, const decoder_options& options) {
  return std::make_unique<cache_decoder<tiered_buffer<Eviction, Transfer>>>(sizes, options);
}

using maker = std::unique_ptr<decoder> (*)(const wavekv::geometry&, const decoder_options&);

const std::vector<std::pair<std::string, maker>>& makers() {
  using namespace wavekv;
  static const std::vector<std::pair<std::string, maker>> all = {
      {"lru/inline_read", make<eviction::lru, transfer::inline_read>},
      {"lru/threads", make<eviction::lru, transfer::threads>},
#if defined(WAVEKV_HAS_IO_URING)
      {"lru/io_uring", make<eviction::lru, transfer::io_uring>},
      {"clock/io_uring", make<eviction::clock, transfer::io_uring>},
      {"sieve/io_uring", make<eviction::sieve, transfer::io_uring>},
#else
      {"clock/threads", make<eviction::clock, transfer::threads>},
      {"sieve/threads", make<eviction::sieve, transfer::threads>},
#endif
  };
  return all;
}

}  // namespace

std::unique_ptr<decoder> make_decoder(const std::string& name, const wavekv::geometry& sizes,
                                      const decoder_options& options) {
  if (name == "resident") {
    return std::make_unique<cache_decoder<wavekv::wave_buffer<>>>(sizes, options);
  }
  for (const auto& [known, make_it] : makers()) {
    if (known == name) return make_it(sizes, options);
  }
  return nullptr;
}

std::vector<std::string> decoder_names() {
  std::vector<std::string> names;
  for (const auto& [name, make_it] : makers()) names.push_back(name);
  return names;
}

}  // namespace wavekv_bench
