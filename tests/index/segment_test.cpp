// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cache/token_rows.hpp>
#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/sealer.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>

#include "archetypes/clusterers.hpp"
#include "archetypes/executors.hpp"
#include "support/rows.hpp"

// What sealing lays out: every token once, K and V of a cluster together, summaries in families.

using namespace wavekv_test;
using wavekv::bf16;

namespace {

template <class Counts, class Clusterer>
struct index_of {
  using cluster_count_type = Counts;
  using clusterer_type = Clusterer;
  using summary_type = wavekv::mean_summary;
};

constexpr std::size_t key_dim = 12;
constexpr std::size_t value_dim = 7;
constexpr std::size_t n_heads = 2;
using segment_type = wavekv::segment<bf16, wavekv::aligned_storage<bf16>>;

/// @param blocks  those of each segment, as the tiers are told of them
template <class Index>
auto seal(const wavekv::token_rows<bf16>& rows, const std::vector<wavekv::seal_run>& runs,
          any_executor executor, std::vector<std::vector<wavekv::block>>* blocks = nullptr) {
  wavekv::sealer<bf16, Index, segment_type> sealer;
  return sealer.seal(
      rows, n_heads, key_dim, value_dim, runs, typename Index::clusterer_type{}, {}, executor,
      [blocks](wavekv::aligned_storage<bf16> kept, std::span<const wavekv::block> cut) {
        if (blocks != nullptr) blocks->emplace_back(cut.begin(), cut.end());
        return kept;
      });
}

wavekv::token_rows<bf16> make_rows(std::size_t n) {
  random_engine random(81);
  wavekv::token_rows<bf16> rows(n_heads, key_dim, value_dim);
  rows.reserve(n);
  for (std::size_t head = 0; head < n_heads; ++head) {
    const auto keys = as_scalar<bf16>(make_keys(random, key_family::clustered, n, 1, key_dim));
    const auto values = as_scalar<bf16>(normal_rows(random, n * value_dim));
    std::ranges::copy(keys, rows.keys(head));
    std::ranges::copy(values, rows.values(head));
  }
  rows.commit(n);
  return rows;
}

/// Centroids and value means of every level against the tokens below, in the family layout.
void check_summaries(const segment_type& segment, const wavekv::token_rows<bf16>& rows,
                     const wavekv::seal_run& run, std::size_t head) {
  const wavekv::head_index<bf16>& index = segment.head(head);
  for (std::size_t level = 0; level < segment.n_levels(); ++level) {
    const wavekv::tree_level<bf16>& nodes = index.levels[level];
    std::vector<std::uint32_t> family{0, nodes.n_nodes};
    if (level + 1 < segment.n_levels()) {
      const wavekv::tree_level<bf16>& parents = index.levels[level + 1];
      family.assign(parents.first_child, parents.first_child + parents.n_nodes + 1);
      CHECK(family.front() == 0);
      CHECK(family.back() == nodes.n_nodes);
    }
    for (std::size_t parent = 0; parent + 1 < family.size(); ++parent) {
      const std::size_t n = family[parent + 1] - family[parent];
      const bf16* centroids = nodes.rows + family[parent] * (key_dim + value_dim);
      const bf16* means = centroids + n * key_dim;
      for (std::size_t i = 0; i < n; ++i) {
        const auto node = static_cast<std::uint32_t>(family[parent] + i);
        const auto [first_cluster, last_cluster] = segment.clusters_under(head, level, node);
        const std::uint32_t first = index.levels[0].first_child[first_cluster];
        const std::uint32_t last = index.levels[0].first_child[last_cluster];
        CHECK(nodes.size[node] == static_cast<float>(last - first));
        const auto mean_of = [&](const bf16* from, std::size_t dim, std::size_t c) {
          double sum = 0.0;
          for (std::uint32_t at = first; at < last; ++at) {
            sum += static_cast<double>(
                wavekv::to_float(from[(run.first_row + index.order[at]) * dim + c]));
          }
          return sum / (last - first);
        };
        for (std::size_t c = 0; c < key_dim; ++c) {
          const double mean = mean_of(rows.keys(head), key_dim, c);
          CHECK(static_cast<double>(wavekv::to_float(centroids[i * key_dim + c])) ==
                doctest::Approx(mean).epsilon(1.01 * 0x1p-8).scale(1e-3));  // half a step of bf16
        }
        for (std::size_t c = 0; c < value_dim; ++c) {
          const double mean = mean_of(rows.values(head), value_dim, c);
          CHECK(static_cast<double>(wavekv::to_float(means[i * value_dim + c])) ==
                doctest::Approx(mean).epsilon(1.01 * 0x1p-8).scale(1e-3));
        }
      }
    }
  }
}

template <class Index>
void check_layout() {
  const wavekv::token_rows<bf16> rows = make_rows(300);
  const std::vector<wavekv::seal_run> runs = {
      {1000, 10, 1}, {1001, 11, 2}, {1003, 13, 64}, {1067, 77, 200}};
  std::vector<std::vector<wavekv::block>> blocks;
  const auto sealed = seal<Index>(rows, runs, {}, &blocks);
  REQUIRE(sealed.segments.size() == runs.size());
  REQUIRE(blocks.size() == runs.size());
  for (std::size_t r = 0; r < runs.size(); ++r) {
    const segment_type& segment = *sealed.segments[r];
    CHECK(segment.first_token() == runs[r].first_token);
    CHECK(segment.n_tokens() == runs[r].n_tokens);
    CHECK(segment.kv_bytes() == runs[r].n_tokens * n_heads * (key_dim + value_dim) * sizeof(bf16));
    CHECK(segment.index_bytes() > 0);
    REQUIRE(segment.n_blocks() == blocks[r].size());
    std::size_t n_blocks = 0;  // seen so far
    std::size_t end_of_blocks = 0;
    for (std::size_t head = 0; head < n_heads; ++head) {
      const wavekv::head_index<bf16>& index = segment.head(head);
      std::set<std::uint16_t> order(index.order, index.order + runs[r].n_tokens);
      CHECK(order.size() == runs[r].n_tokens);  // a permutation of the run
      CHECK(*order.rbegin() == runs[r].n_tokens - 1);
      std::size_t position = 0;
      for (std::uint32_t cluster = 0; cluster < index.levels[0].n_nodes; ++cluster) {
        const auto [first, last] = segment.cluster_tokens(head, cluster);
        CHECK(first == position);
        CHECK(last > first);
        position = last;
        CHECK(index.levels[0].size[cluster] == static_cast<float>(last - first));
        // The block holds the cluster's keys, then its values, exactly as they were stored.
        const wavekv::block block = segment.cluster_block(head, cluster);
        REQUIRE(block.n_tokens == last - first);
        // Blocks of all heads lie behind each other, and are numbered so.
        REQUIRE(block.index == n_blocks++);
        CHECK(block.offset == end_of_blocks);
        end_of_blocks += block.n_tokens * (key_dim + value_dim);
        for (const wavekv::block& same :
             {blocks[r][block.index], segment.list_blocks()[block.index]}) {
          CHECK(same.index == block.index);
          CHECK(same.offset == block.offset);
          CHECK(same.n_tokens == block.n_tokens);
        }
        const bf16* k = segment.rows().data() + block.offset;
        const bf16* v = k + (last - first) * key_dim;
        for (std::uint32_t i = first; i < last; ++i) {
          const std::size_t row = runs[r].first_row + index.order[i];
          CHECK(std::equal(k, k + key_dim, rows.keys(head) + row * key_dim));
          CHECK(std::equal(v, v + value_dim, rows.values(head) + row * value_dim));
          k += key_dim;
          v += value_dim;
        }
      }
      CHECK(position == runs[r].n_tokens);
      check_summaries(segment, rows, runs[r], head);
    }
    CHECK(n_blocks == blocks[r].size());
    CHECK(end_of_blocks == segment.rows().size());
  }
}

}  // namespace

TEST_CASE("a flat index") {
  check_layout<index_of<wavekv::tokens_per_cluster<4>, wavekv::query_metric_kmeans<2>>>();
}

TEST_CASE("three levels") {
  check_layout<index_of<wavekv::tokens_per_cluster<2, 8, 32>, wavekv::query_metric_kmeans<2>>>();
}

TEST_CASE("a user's own clusterer, one that makes a single cluster") {
  check_layout<index_of<wavekv::tokens_per_cluster<4, 16>, one_cluster>>();
}

TEST_CASE("sealing gives the same segments on every executor") {
  using index = index_of<wavekv::tokens_per_cluster<4, 16>, wavekv::query_metric_kmeans<3>>;
  const wavekv::token_rows<bf16> rows = make_rows(300);
  const std::vector<wavekv::seal_run> runs = {{0, 0, 128}, {128, 128, 128}, {256, 256, 44}};
  const auto expected = seal<index>(rows, runs, {});
  for (const any_executor& executor : executors_to_compare()) {
    const auto sealed = seal<index>(rows, runs, executor);
    for (std::size_t r = 0; r < runs.size(); ++r) {
      const segment_type& a = *expected.segments[r];
      const segment_type& b = *sealed.segments[r];
      REQUIRE(a.kv_bytes() == b.kv_bytes());
      CHECK(std::equal(a.rows().data(), a.rows().data() + a.rows().size(), b.rows().data()));
      for (std::size_t head = 0; head < n_heads; ++head) {
        CHECK(
            std::equal(a.head(head).order, a.head(head).order + a.n_tokens(), b.head(head).order));
      }
    }
  }
}
