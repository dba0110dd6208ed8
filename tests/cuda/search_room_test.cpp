// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cache/attend_workspace.cuh>
#include <wavekv/index/search_room.cuh>
#include <wavekv/wavekv.hpp>

#include "cuda/emulated_runtime.hpp"
#include "support/rows.hpp"

// How large a workspace is: large enough for whatever segments a sequence consists of, and no larger than that takes.

using namespace wavekv;
using wavekv_test::random_engine;

namespace {

template <std::size_t Prefill, std::size_t Decode, std::size_t... Clusters>
using index_of = wave_index<segment_size<Prefill, Decode>, tokens_per_cluster<Clusters...>,
                            spherical_kmeans<>, error_bound<>>;

std::size_t runs_of(std::size_t n) { return (n + device::run_rows - 1) / device::run_rows; }

/// Columns and token runs that a search over these segments needs when all nodes are opened and their children fall into
/// families as unevenly as can be drawn.
struct need {
  std::array<std::size_t, max_tree_levels> columns{};
  std::size_t token_runs = 0;
};

// n children among parents: each has one, the others go to some of them.
std::size_t family_runs(std::size_t n, std::size_t n_parents, random_engine& random) {
  std::vector<std::size_t> children(std::min(n, n_parents), 1);
  for (std::size_t left = n - children.size(); left > 0;) {
    const std::size_t many = std::min<std::size_t>(left, 1 + random() % 20);
    children[random() % children.size()] += many;
    left -= many;
  }
  std::size_t runs = 0;
  for (const std::size_t family : children) runs += runs_of(family);
  return runs;
}

template <class Index>
need needed(const std::vector<std::size_t>& segments, random_engine& random) {
  using counts = typename Index::cluster_count_type;
  need sum;
  for (const std::size_t n_tokens : segments) {
    std::size_t n_above = 0;
    for (std::size_t level = counts::n_levels; level-- > 0;) {
      const std::size_t n_nodes = device::most_nodes<counts>(n_tokens, level);
      const std::size_t runs =
          level + 1 == counts::n_levels ? runs_of(n_nodes) : family_runs(n_nodes, n_above, random);
      sum.columns[level] += runs * device::run_rows;
      n_above = n_nodes;
    }
    sum.token_runs += family_runs(n_tokens, n_above, random);
  }
  return sum;
}

template <class Index>
void check_room(std::uint64_t seed) {
  using counts = typename Index::cluster_count_type;
  using sizes = typename Index::segment_size_type;
  INFO("seed ", seed);
  random_engine random(seed);
  const std::size_t smallest =
      std::min((sizes::decode + 1) / 2, counts::tokens_at(counts::n_levels - 1));
  for (int round = 0; round < 40; ++round) {
    std::size_t n_tokens = random() % (4 * sizes::prefill);
    std::vector<std::size_t> segments;
    const bool all_small = round % 4 == 0;
    for (std::size_t left = n_tokens; left >= smallest;) {
      const std::size_t most = std::min<std::size_t>(left, sizes::prefill);
      const std::size_t n = all_small ? smallest : smallest + random() % (most - smallest + 1);
      segments.push_back(n);
      left -= n;
    }
    const need least = needed<Index>(segments, random);
    const device::search_room room = device::room_for<Index>(3, n_tokens, 5);
    INFO(n_tokens, " tokens in ", segments.size(), " segments");
    CHECK(room.n_queries == 3);
    CHECK(room.n_splits == 5);
    for (std::size_t level = 0; level < counts::n_levels; ++level) {
      INFO("level ", level);
      CHECK(room.n_columns[level] >= least.columns[level]);
      CHECK(room.n_columns[level] % device::run_rows == 0);
      // A run for each node above, full ones besides: a search never needs less than half of that at its worst.
      CHECK(room.n_columns[level] <=
            2 * device::run_rows *
                (n_tokens / smallest + 2 + n_tokens / counts::tokens_at(level) + 1));
    }
    CHECK(room.n_token_runs >= least.token_runs);
  }
}

}  // namespace

TEST_CASE("there is room for whatever a sequence consists of") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    check_room<index_of<64, 32, 4, 16>>(seed);
    check_room<index_of<256, 64, 16>>(seed);
    check_room<index_of<512, 128, 4, 16, 64>>(seed);
    check_room<index_of<8192, 1024, 16, 128>>(seed);
  }
}

TEST_CASE("room of a case worked out by hand") {
  // 1000 tokens; the smallest segment is of min(16, 16) = 16 tokens: at most 62, and 2 for what is rounded.
  const device::search_room room = device::room_for<index_of<64, 32, 4, 16>>(1, 1000, 1);
  // Top: 1000 / 16 + 64 = 126 nodes, 15 full runs, one more a segment, one for the rest: 80 runs.
  CHECK(room.n_columns[1] == 640);
  // Below: 1000 / 4 + 64 = 314 nodes, 39 full runs, one more for each of 126, one: 166 runs.
  CHECK(room.n_columns[0] == 1328);
  // Tokens: 125 full runs, one more for each of 314, one.
  CHECK(room.n_token_runs == 440);
  CHECK(room.n_columns[2] == 0);
}

TEST_CASE("searches are split until they fill the device, and where one is long") {
  CHECK(device::splits_for(8, 1000, 132) == 16);
  CHECK(device::splits_for(132, 1000, 132) == 1);
  CHECK(device::splits_for(1024, 1000, 132) == 1);
  CHECK(device::splits_for(1, 1000, 132) == device::most_splits);
  CHECK(device::splits_for(0, 0, 132) == device::most_splits);
  CHECK(device::splits_for(1024, 131072, 132) == 4);
  CHECK(device::splits_for(1024, 100'000'000, 132) == device::most_splits);
}

TEST_CASE("a workspace grows with queries and tokens, and with nothing else") {
  using index = index_of<8192, 1024, 16, 128>;
  using workspace = attend_workspace<bf16, wavekv::testing::emulated_runtime>;
  device::model_shape shape;
  shape.n_kv_heads = 8;
  shape.group_size = 4;
  shape.key_dim = shape.value_dim = 128;
  shape.n_levels = 2;
  const auto bytes = [&](std::size_t n_queries, std::size_t n_tokens, unsigned n_splits = 4) {
    return workspace::bytes(shape, device::room_for<index>(n_queries, n_tokens, n_splits));
  };
  CHECK(bytes(1, 131072) % 256 == 0);
  CHECK(bytes(2, 131072) > bytes(1, 131072));
  CHECK(bytes(1, 131072) < bytes(1, 262144));
  CHECK(bytes(1, 131072, 8) > bytes(1, 131072, 4));
  // Queries share nothing; but each array of theirs is rounded up to 256 bytes.
  CHECK(bytes(16, 131072) <= 16 * bytes(1, 131072));
  CHECK(bytes(16, 131072) > 15 * bytes(1, 131072));
  // One query's, at 128K: the frontier's columns, about 70 floats each for its four heads, must stay far below a layer's K and V.
  CHECK(bytes(1, 131072) < std::size_t{131072} * 8 * 256 * sizeof(bf16) / 4);
}
