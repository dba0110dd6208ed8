// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Saved sequences. An input is a list of changes to a file that is whole: 4 bytes say where (low 24 bits: the place, from
// the file's start; high bits: how many bytes, 1 to 8), then come those bytes. If the input's first byte is odd, all
// checksums are made right again afterwards, so that what they would catch is looked at, too.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <wavekv/wavekv.hpp>

#include "input_files.hpp"
#include "support/saved_file.hpp"

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<2>, wavekv::error_bound<>>;
using cache_type = wavekv::kv_cache<float, index_type, wavekv::wave_buffer<>,
                                    wavekv::cpu<wavekv::serial_executor>>;

std::vector<float> numbers(std::size_t n, std::uint32_t seed) {
  std::vector<float> made(n);
  for (float& number : made) {
    seed = seed * 1664525U + 1013904223U;
    number = static_cast<float>(seed >> 8U) * 0x1p-23F - 1.0F;
  }
  return made;
}

/// A cache, and a file of one of its sequences.
struct fixture {
  fuzz::input_files folder;
  cache_type cache;
  wavekv_test::file_bytes whole;
  std::vector<wavekv_test::file_part> parts;
  std::filesystem::path path;

  fixture() : cache(sizes()), path(folder.path() / "sequence") {
    const auto sequence = cache.create();
    const auto keys = numbers(200 * 2 * 8, 1);
    const auto values = numbers(200 * 2 * 4, 2);
    const auto queries = numbers(200 * 4 * 8, 3);
    cache.append(sequence, 0, wavekv::nhd(keys.data(), 200, 2, 8),
                 wavekv::nhd(values.data(), 200, 2, 4), wavekv::nhd(queries.data(), 200, 4, 8));
    cache.save(sequence, path, "fuzz", std::as_bytes(std::span("engine")));
    cache.release(sequence);
    whole = wavekv_test::bytes_of(path);
    parts = wavekv_test::parts_of(whole);
  }

  static wavekv::geometry sizes() {
    wavekv::geometry made;
    made.n_query_heads = 4;
    made.n_kv_heads = 2;
    made.key_dim = 8;
    made.value_dim = 4;
    return made;
  }
};

void use(cache_type& cache, wavekv::sequence_id sequence) {
  const auto queries = numbers(4 * 8, 4);
  const auto rows = numbers(70 * 2 * 8, 5);
  std::vector<float> out(4 * 4);
  const auto attend = [&](const auto& bound) {
    cache.attend(sequence, 0, wavekv::nhd(queries.data(), 1, 4, 8),
                 wavekv::nhd(out.data(), 1, 4, 4), bound);
  };
  attend(wavekv::exact{});
  attend(wavekv::error_bound<>{.free_tokens = 20});
  attend(wavekv::fixed_budget{0.1F, 0.5F});
  cache.append(sequence, 0, wavekv::nhd(rows.data(), 70, 2, 8), wavekv::nhd(rows.data(), 70, 2, 4));
  attend(wavekv::verified_bound<>{.samples = 16});
  cache.truncate(sequence, 77);
  attend(wavekv::exact{});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static fixture made;
  wavekv_test::file_bytes changed = made.whole;
  for (std::size_t at = 1; at + 4 < size;) {
    std::uint32_t where = 0;
    std::memcpy(&where, bytes + at, sizeof where);
    at += sizeof where;
    const std::size_t n = std::min<std::size_t>({(where >> 24U) % 8 + 1, size - at});
    for (std::size_t i = 0; i < n; ++i)
      changed[((where & 0xFFFFFFU) + i) % changed.size()] = static_cast<std::byte>(bytes[at + i]);
    at += n;
  }
  if (size != 0 && bytes[0] % 2 == 1) wavekv_test::mend_checksums(changed, made.parts);
  wavekv_test::write_bytes(made.path, changed);
  try {
    std::vector<std::byte> engine;
    const auto sequence = made.cache.load(made.path, "fuzz", &engine);
    try {
      use(made.cache, sequence);
    } catch (const wavekv::error&) {  // a sequence that cannot be used says so
    }
    made.cache.release(sequence);
  } catch (const wavekv::io_error&) {  // refused
  }
  fuzz::expect(made.cache.stats().sequences == 0, "a sequence is left over");
  return 0;
}
