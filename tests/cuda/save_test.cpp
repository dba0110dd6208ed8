// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "cuda/emulated_runtime.hpp"
#include "cuda/host_cache.hpp"
#include "support/model.hpp"
#include "support/rows.hpp"
#include "support/scratch_folder.hpp"

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::testing::emulated_runtime;

namespace {

using small_index =
    wavekv::wave_index<wavekv::segment_size<256, 64>, wavekv::tokens_per_cluster<8, 32>,
                       wavekv::query_metric_kmeans<3>, wavekv::error_bound<>>;
using on_device = wavekv::kv_cache<bf16, small_index, wavekv::wave_buffer<>,
                                   wavekv::basic_cuda<emulated_runtime>>;
using on_cpu = wavekv::kv_cache<bf16, small_index>;

const wavekv::geometry sizes{
    .n_layers = 2, .n_query_heads = 4, .n_kv_heads = 2, .key_dim = 32, .value_dim = 24};

template <class Options>
Options small_window() {
  Options options;
  options.window_tokens = 16;
  return options;
}

/// Appends the same new tokens, with queries, to both.
template <class A, class B>
void append_both(A& a, wavekv::sequence_id in_a, B& b, wavekv::sequence_id in_b, std::size_t n,
                 random_engine& random) {
  const auto keys = make_keys(random, key_family::clustered, n, sizes.n_kv_heads, sizes.key_dim);
  const auto values = normal_rows(random, n * sizes.n_kv_heads * sizes.value_dim);
  const auto queries = normal_rows(random, n * sizes.n_query_heads * sizes.key_dim);
  const auto k = wavekv::nhd(keys.data(), n, sizes.n_kv_heads, sizes.key_dim);
  const auto v = wavekv::nhd(values.data(), n, sizes.n_kv_heads, sizes.value_dim);
  const auto q = wavekv::nhd(queries.data(), n, sizes.n_query_heads, sizes.key_dim);
  for (std::size_t layer = 0; layer < sizes.n_layers; ++layer) {
    a.append(in_a, layer, k, v, q);
    b.append(in_b, layer, k, v, q);
  }
}

double difference(const outputs& a, const outputs& b) {
  double squared = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < a.out.size(); ++i) {
    squared += std::pow(double{a.out[i]} - double{b.out[i]}, 2);
    norm += std::pow(double{b.out[i]}, 2);
  }
  return norm > 0.0 ? std::sqrt(squared / norm) : std::sqrt(squared);
}

std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Both do the same arithmetic on the same trees: what differs are roundings of sums (2^-17 of a product, see row_tile.cuh),
// and of a covariance that was divided by its weight and multiplied again (2^-23).
constexpr double same = 1e-4;

}  // namespace

TEST_CASE("what one backend saves the other loads, with the same trees") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  const scratch_folder folder;
  for (const std::size_t n : {0U, 3U, 40U, 700U}) {
    CAPTURE(n);
    random_engine random(seed + n);
    host_cache<on_device> device(sizes, small_window<on_device::options_type>());
    on_cpu cpu(sizes, small_window<on_cpu::options_type>());
    const auto first = device.create();
    const auto on_host = cpu.create();
    append_both(device, first, cpu, on_host, n, random);
    const auto from_device = folder.path() / ("device" + std::to_string(n));
    const auto from_cpu = folder.path() / ("cpu" + std::to_string(n));
    device.on_device().save(first, from_device, "model");
    cpu.save(on_host, from_cpu, "model");

    const auto again = device.on_device().load(from_device, "model");
    const auto moved_in = device.on_device().load(from_cpu, "model");
    const auto moved_out = cpu.load(from_device, "model");
    const auto queries = normal_rows(random, sizes.n_query_heads * sizes.key_dim);
    for (std::size_t layer = 0; layer < sizes.n_layers; ++layer) {
      const outputs before = attend_once(device, first, layer, queries);
      CHECK(difference(attend_once(device, again, layer, queries), before) < same);
      CHECK(difference(attend_once(cpu, moved_out, layer, queries), before) < same);
      CHECK(difference(attend_once(device, moved_in, layer, queries),
                       attend_once(cpu, on_host, layer, queries)) < same);
    }
    device.on_device().save(again, folder.path() / "again", "model");
    CHECK(bytes_of(folder.path() / "again") == bytes_of(from_device));

    // A loaded sequence grows on, seals, and forgets.
    for (int step = 0; step < 150; ++step) append_both(device, again, cpu, moved_out, 1, random);
    CHECK(difference(attend_once(device, again, 1, queries, wavekv::exact{}),
                     attend_once(cpu, moved_out, 1, queries, wavekv::exact{})) < same);
    device.truncate(again, n / 2);
    cpu.truncate(moved_out, n / 2);
    CHECK(difference(attend_once(device, again, 1, queries, wavekv::exact{}),
                     attend_once(cpu, moved_out, 1, queries, wavekv::exact{})) < same);
  }
}

TEST_CASE("load refuses another model and leaves no sequence") {
  const scratch_folder folder;
  host_cache<on_device> device(sizes, small_window<on_device::options_type>());
  device.on_device().save(device.create(), folder.path() / "file", "one");
  CHECK_THROWS_AS((void)device.on_device().load(folder.path() / "file", "other"),
                  wavekv::mismatch_error);
  std::vector<std::byte> engine(3);
  const std::vector<std::byte> kept{std::byte{1}, std::byte{2}};
  device.on_device().save(device.create(), folder.path() / "file", "one", kept);
  (void)device.on_device().load(folder.path() / "file", "one", &engine);
  CHECK(engine == kept);
}
