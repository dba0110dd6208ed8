// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <wavekv/wavekv.hpp>

#include "support/model.hpp"
#include "support/saved_file.hpp"

// Bytes of saved files that change: found where they lie in a part, harmless where they do not.

using namespace wavekv_test;
using wavekv::geometry;
using wavekv::sequence_id;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<3>, wavekv::error_bound<>>;
template <class Buffer>
using cache_of = wavekv::kv_cache<float, index_type, Buffer, wavekv::cpu<wavekv::serial_executor>>;

geometry small_geometry() {
  geometry sizes;
  sizes.n_layers = 2;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 16;
  sizes.value_dim = 12;
  return sizes;
}

template <class Cache>
Cache make() {
  typename Cache::options_type options;
  options.window_tokens = 16;
  if constexpr (requires { options.placement.fast_bytes; }) options.placement.fast_bytes = 0;
  return Cache(small_geometry(), options);
}

template <class Cache>
sequence_id fill(Cache& cache) {
  const sequence_id sequence = cache.create();
  random_engine random(31);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const auto keys = make_keys(random, key_family::clustered, 250, 2, 16);
    const auto values = normal_rows(random, 250 * 2 * 12);
    const auto queries = normal_rows(random, 250 * 4 * 16);
    cache.append(sequence, layer, tokens_of(keys, 0, 250, 2, 16), tokens_of(values, 0, 250, 2, 12),
                 tokens_of(queries, 0, 250, 4, 16));
  }
  return sequence;
}

template <class Cache>
std::vector<outputs> answers(Cache& cache, sequence_id sequence) {
  random_engine random(32);
  std::vector<outputs> all;
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const auto query = normal_rows(random, 4 * 16);
    all.push_back(attend_once(cache, sequence, layer, query, wavekv::exact{}));
    all.push_back(attend_once(cache, sequence, layer, query));
  }
  return all;
}

/// Changes one byte of a file while it lives.
class changed_byte {
 public:
  changed_byte(const std::filesystem::path& path, std::size_t at, std::byte before, std::byte now)
      : file_(::open(path.c_str(), O_WRONLY | O_CLOEXEC)), at_(at), before_(before) {
    REQUIRE(::pwrite(file_, &now, 1, static_cast<off_t>(at_)) == 1);
  }
  ~changed_byte() {
    (void)!::pwrite(file_, &before_, 1, static_cast<off_t>(at_));
    ::close(file_);
  }
  changed_byte(const changed_byte&) = delete;
  changed_byte& operator=(const changed_byte&) = delete;

 private:
  int file_;
  std::size_t at_;
  std::byte before_;
};

}  // namespace

TEST_CASE_TEMPLATE(
    "2,500 random changes: found by load, or when the block is read; none goes unseen", Buffer,
    wavekv::wave_buffer<>, wavekv::wave_buffer<wavekv::placement::tiered>) {
  using cache_type = cache_of<Buffer>;
  const scratch_folder folder;
  auto cache = make<cache_type>();
  const sequence_id original = fill(cache);
  const auto path = folder / "a";
  cache.save(original, path);
  if constexpr (requires { cache.flush(); }) cache.flush();
  const auto expected = answers(cache, original);
  const file_bytes whole = bytes_of(path);
  const auto parts = parts_of(whole);
  std::map<std::string, int> found;  // by kind of part
  int n_harmless = 0;
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  random_engine random(seed);
  for (int i = 0; i < 2500; ++i) {
    // Every part as often as any other, and the rest of the file.
    const std::size_t which = random() % (parts.size() + 1);
    const std::size_t at = which == parts.size() || parts[which].n_bytes == 0
                               ? random() % whole.size()
                               : parts[which].offset + random() % parts[which].n_bytes;
    const auto now = whole[at] ^ static_cast<std::byte>(1 + random() % 255);
    const auto holds = std::ranges::find_if(parts, [&](const file_part& part) {
      return at >= part.offset && at < part.offset + part.n_bytes;
    });
    const changed_byte change(path, at, whole[at], now);
    CAPTURE(at);
    std::string message;
    std::vector<outputs> seen;
    bool was_loaded = false;
    try {
      const sequence_id loaded = cache.load(path);
      was_loaded = true;
      struct released {
        cache_type& of;
        sequence_id id;
        ~released() { of.release(id); }
      } const at_end{cache, loaded};
      seen = answers(cache, loaded);
    } catch (const wavekv::io_error& error) {  // format_error and mismatch_error are io_errors
      message = error.what();
    }
    CAPTURE(message);
    if (holds == parts.end()) {
      REQUIRE(message.empty());  // between parts: nothing reads it
      REQUIRE(seen == expected);
      ++n_harmless;
    } else {
      CAPTURE(holds->name);
      REQUIRE_FALSE(message.empty());
      REQUIRE(message.find(path.string()) != std::string::npos);
      const bool in_rows = holds->name.starts_with("rows");
      REQUIRE((in_rows || !was_loaded));  // only rows may be looked at later
      ++found[holds->name.substr(0, holds->name.find(' '))];
    }
  }
  for (const char* kind : {"header", "table", "layer", "index", "rows", "fingerprint"}) {
    CAPTURE(kind);
    CHECK(found[kind] > 20);
  }
  CHECK(n_harmless > 20);
  CHECK(cache.stats().sequences == 1);
  CHECK(answers(cache, original) == expected);  // whatever failed left the others alone
  CHECK(answers(cache, cache.load(path)) == expected);
}

TEST_CASE("the same with checksums that were mended: typed errors or answers, never more") {
  // What the sanitizers watch. tests/fuzz/load_fuzz.cpp goes further.
  using cache_type = cache_of<wavekv::wave_buffer<>>;
  const scratch_folder folder;
  auto cache = make<cache_type>();
  const auto path = folder / "a";
  cache.save(fill(cache), path);
  const file_bytes whole = bytes_of(path);
  const auto parts = parts_of(whole);
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  random_engine random(seed);
  int n_refused = 0;
  int n_loaded = 0;
  for (int i = 0; i < 3000; ++i) {
    file_bytes changed = whole;
    for (std::size_t edits = 1 + random() % 3; edits > 0; --edits) {
      const file_part& part = parts[random() % parts.size()];
      if (part.n_bytes == 0) continue;
      // Most numbers are small: the first bytes of a part are worth more than others.
      const std::size_t at =
          part.offset + (random() % 2 == 0 ? random() % std::min<std::size_t>(part.n_bytes, 128)
                                           : random() % part.n_bytes);
      changed[at] = static_cast<std::byte>(random() % 3 == 0 ? 0xFF : random() % 256);
    }
    mend_checksums(changed, parts);
    write_bytes(path, changed);
    try {
      const sequence_id loaded = cache.load(path);
      (void)answers(cache, loaded);
      cache.truncate(loaded, 77);
      cache.release(loaded);
      ++n_loaded;
    } catch (const wavekv::io_error&) {
      ++n_refused;
    }
  }
  CHECK(n_refused > 100);
  CHECK(n_loaded > 10);
}

TEST_CASE("files made on purpose: every lie about a segment is told from the truth") {
  using cache_type = cache_of<wavekv::wave_buffer<>>;
  using segment_type = wavekv::segment<
      float, typename wavekv::placement::resident::tiers<float, wavekv::eviction::lru>::handle>;
  using image_type = segment_type::image;
  const scratch_folder folder;
  auto cache = make<cache_type>();
  const auto path = folder / "a";
  cache.save(fill(cache), path);
  const file_bytes whole = bytes_of(path);
  const auto parts = parts_of(whole);
  const auto part = std::ranges::find_if(
      parts, [](const file_part& one) { return one.name == "index of layer 1, segment 0"; });
  REQUIRE(part != parts.end());
  const auto lie = [&](auto&& change) {
    std::vector<std::uint32_t> checksums;
    wavekv::byte_reader from(std::span<const std::byte>(whole).subspan(part->offset, part->n_bytes),
                             "part");
    auto image = wavekv::get_segment<image_type>(from, 2, 2, 28, checksums);
    change(image, checksums);
    wavekv::byte_writer to;
    wavekv::put_segment(to, image, checksums);
    REQUIRE(to.bytes().size() == part->n_bytes);
    file_bytes changed = whole;
    std::ranges::copy(to.bytes(), changed.begin() + static_cast<std::ptrdiff_t>(part->offset));
    mend_checksums(changed, parts);
    write_bytes(path, changed);
    std::string message = "no error";
    try {
      (void)cache.load(path);
    } catch (const wavekv::format_error& error) {
      message = error.what();
    }
    CAPTURE(message);
    CHECK(message.find("segment 0") != std::string::npos);
  };
  using sums = std::vector<std::uint32_t>;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  lie([&](image_type& image, sums&) { image.summaries[3] = nan; });
  lie([&](image_type& image, sums&) { image.numbers[0] += 1.0F; });
  lie([&](image_type& image, sums&) {  // a dispersion below nothing, of the last head's clusters
    image.numbers[image.numbers.size() - 1] = -1.0F;
  });
  lie([&](image_type& image, sums&) { image.value_spread[1] = nan; });
  lie([&](image_type& image, sums&) { image.links[0] = 1; });
  lie([&](image_type& image, sums&) { image.links[1] = 0; });
  lie([&](image_type& image, sums&) { image.links[image.links.size() - 1] += 1; });
  lie([&](image_type& image, sums&) { image.links[1] = 0xFFFFFFFF; });
  lie([&](image_type& image, sums&) { image.order[0] = image.order[1]; });
  lie([&](image_type& image, sums&) { image.order[5] = 64; });
  lie([&](image_type& image, sums&) { image.first_token += 1; });
  lie([&](image_type&, sums& checksums) { checksums[0] ^= 1U; });
}
