// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include <hnswlib/hnswlib.h>

#include <wavekv/attention/query_rows.hpp>
#include <wavekv/baselines/top_k.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/consecutive.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/summary.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/wave_index.hpp>

/// @file graph.hpp
/// @brief RetrievalAttention: a graph over the keys, linked by the prompt's queries. Needs hnswlib: link wavekv::hnswlib. Its
/// header (0.6.2) defines functions that are not inline: include this one in a single source file of a program.

namespace wavekv::baselines {

/// @brief Keeps an HNSW graph of a segment's keys by inner product; scores the clusters that a search finds by their logits, at most
/// Effort a segment. Models cluster_summary; of clusters of one token, as the paper's.
///
/// Queries lie far from keys, so that a graph of keys alone leads them astray. Where prompt queries were seen, the keys nearest to each
/// of them are linked to the nearest of all, as in a graph projected from queries to keys. That is the paper's idea on hnswlib's
/// graph, not its RoarGraph: links come on top of those of the keys, where a node has room. The paper builds one graph over the whole prompt; here
/// each segment has its own.
/// Memory: the keys as floats, 2 · Links numbers of four bytes a key and more. score allocates, as hnswlib does; its bytes are wrong
/// by those of other searches where sequences that share a segment search it at the same time.
/// @tparam Links   of a node on the upper levels, half of what it has on the lowest; 2 or more
/// @tparam Effort  nodes that a search keeps in view (ef), 1 or more
/// Source: RetrievalAttention, arXiv 2409.10516, section 3.2; HNSW, arXiv 1603.09320.
template <std::size_t Links = 16, std::size_t Effort = 256>
struct hnsw_graph {
  static_assert(Links >= 2 && Effort >= 1, "hnsw_graph: Links from 2, Effort from 1");
  static constexpr bool uses_queries = true;
  static constexpr std::size_t n_sample_queries = 1024;

  struct kept {
    std::unique_ptr<hnswlib::InnerProductSpace> space;
    std::unique_ptr<hnswlib::HierarchicalNSW<float>> graph;
    std::size_t n_clusters = 0;

    /// @brief Of keys and links; hnswlib's books of its own memory come on top.
    [[nodiscard]] std::size_t bytes() const noexcept {
      std::size_t sum = graph->max_elements_ * graph->size_data_per_element_;
      for (std::size_t c = 0; c < n_clusters; ++c) {
        sum += static_cast<std::size_t>(graph->element_levels_[c]) * graph->size_links_per_element_;
      }
      return sum;
    }
  };

  /// Complexity: O(n_clusters · log n_clusters · Links · key_dim), some 100 times, and O(sample · n_clusters · key_dim).
  /// @throw std::bad_alloc, std::runtime_error by hnswlib
  [[nodiscard]] kept keep(const cluster_rows& clusters) const {
    const std::size_t dim = clusters.key_dim;
    const std::vector<float> keys = clusters.mean_keys();
    kept made;
    made.n_clusters = clusters.n_clusters();
    made.space = std::make_unique<hnswlib::InnerProductSpace>(dim);
    made.graph =
        std::make_unique<hnswlib::HierarchicalNSW<float>>(made.space.get(), made.n_clusters, Links);
    made.graph->setEf(Effort);
    for (std::size_t c = 0; c < made.n_clusters; ++c) {
      made.graph->addPoint(keys.data() + c * dim, c);  // one thread: its own number is c, too
    }
    if (clusters.metric != nullptr) {
      link_by_queries(keys, dim, clusters.metric->sample(), *made.graph);
    }
    return made;
  }

  /// Complexity: about O(Effort · Links · key_dim) a query head.
  std::size_t score(const kept& of, const query_rows& queries, float* scores,
                    std::size_t stride) const {
    const hnswlib::HierarchicalNSW<float>& graph = *of.graph;
    const long n_before = graph.metric_distance_computations;
    for (std::size_t g = 0; g < queries.n; ++g) {
      float* const row = scores + g * stride;
      std::fill_n(row, of.n_clusters, -std::numeric_limits<float>::infinity());
      auto found =
          graph.searchKnn(queries.data + g * queries.stride, std::min(Effort, of.n_clusters));
      for (; !found.empty(); found.pop()) {
        row[found.top().second] = 1.0F - found.top().first;  // its distance is 1 - q·k
      }
    }
    const auto n_seen = static_cast<std::size_t>(graph.metric_distance_computations - n_before);
    return n_seen * (queries.dim * sizeof(float) + sizeof(hnswlib::tableint));
  }

 private:
  // Links the Links keys nearest to each query to the nearest of them, both ways.
  static void link_by_queries(const std::vector<float>& keys, std::size_t dim,
                              std::span<const float> queries,
                              hnswlib::HierarchicalNSW<float>& graph) {
    const std::size_t n = keys.size() / dim;
    const std::size_t n_nearest = std::min(Links, n);
    std::vector<float> products(n);
    std::vector<std::uint32_t> nearest(n);
    for (std::size_t q = 0; q < queries.size() / dim; ++q) {
      simd::score_rows(queries.data() + q * dim, 1, dim, keys.data(), n, dim, products.data(), n);
      for (std::size_t i = 0; i < n; ++i) nearest[i] = static_cast<std::uint32_t>(i);
      std::ranges::partial_sort(nearest, nearest.begin() + static_cast<std::ptrdiff_t>(n_nearest),
                                [&](std::uint32_t a, std::uint32_t b) {
                                  return products[a] > products[b] ||
                                         (products[a] == products[b] && a < b);
                                });
      for (std::size_t i = 1; i < n_nearest; ++i) {
        add_link(graph, nearest[0], nearest[i]);
        add_link(graph, nearest[i], nearest[0]);
      }
    }
  }

  static void add_link(hnswlib::HierarchicalNSW<float>& graph, hnswlib::tableint from,
                       hnswlib::tableint to) {
    hnswlib::linklistsizeint* const list = graph.get_linklist0(from);
    auto* const links = reinterpret_cast<hnswlib::tableint*>(list + 1);
    const std::size_t n = graph.getListCount(list);
    if (n < graph.maxM0_ && std::find(links, links + n, to) == links + n) {
      links[n] = to;
      graph.setListCount(list, static_cast<unsigned short>(n + 1));
    }
  }
};

/// @brief Every token a node, 256 found a segment, 2,048 of them read.
using graph_index =
    wave_index<segment_size<>, tokens_per_cluster<1>, consecutive, top_k, hnsw_graph<>>;

}  // namespace wavekv::baselines
