// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/core/errors.hpp>
#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/detail/cluster_statistics.hpp>
#include <wavekv/index/detail/metric_space.hpp>

/// @file cluster_tree_builder.hpp
/// @brief Clusters one KV head of one segment on every level and puts all of it in tree order.

namespace wavekv {

/// @brief One level of a cluster tree; level 0 groups tokens, level l groups the nodes of level l − 1.
///
/// Nodes are in tree order: the children of node i are first_child[i] .. first_child[i + 1] − 1 of the level
/// below (tree positions of tokens on level 0), and they lie behind the children of node i − 1.
struct cluster_tree_level {
  std::size_t n_nodes = 0;                 ///< at least 1 when there are tokens
  std::vector<std::uint32_t> first_child;  ///< [n_nodes + 1]
  std::vector<std::uint32_t> sizes;        ///< [n_nodes] tokens, at least 1 each
  std::vector<float> centroids;            ///< [n_nodes, key_dim] true means of the tokens' keys
  std::vector<float> value_means;  ///< [n_nodes, value_dim] true means of the tokens' values
  /// [n_nodes] mean of (k−c)ᵀ·M·(k−c) / trace(M) over the tokens, M the normalized query metric (the identity when
  /// unknown). A query's logit then varies inside the node by about ‖scale·q‖²·dispersion.
  std::vector<float> dispersions;
};

/// @brief The clusters of one KV head of one segment.
struct cluster_tree {
  std::size_t key_dim = 0;    ///< elements of a key
  std::size_t value_dim = 0;  ///< elements of a value
  std::vector<std::uint32_t>
      order;  ///< [n_tokens] original offset of the token at each tree position
  std::vector<cluster_tree_level> levels;  ///< finest first
};

/// @brief The clusters of the tokens, in the clusterer's ids: the first half of a tree's work.
struct token_clusters {
  std::vector<std::uint32_t> assignment;  ///< [n_tokens] cluster of each token
  std::size_t n_clusters = 0;             ///< ids in use
};

namespace detail {
inline void require_levels(std::span<const std::size_t> tokens_per_cluster) {
  if (tokens_per_cluster.empty() ||
      std::ranges::find(tokens_per_cluster, std::size_t{0}) != tokens_per_cluster.end()) {
    throw config_error(
        "build_tree: tokens_per_cluster needs one or more levels, each of at least 1 token");
  }
}

/// Clusters the rows of one level, of which the tree has n_tokens tokens.
template <class Clusterer>
std::size_t cluster_level(cluster_request request, const Clusterer& clusterer, std::size_t n_tokens,
                          std::size_t tokens_per_cluster, clustering_scratch& scratch,
                          std::vector<std::uint32_t>& assignment) {
  request.n_clusters = (n_tokens + tokens_per_cluster - 1) / tokens_per_cluster;
  assignment.resize(request.n_tokens);
  return request.n_tokens == 0 ? 0 : clusterer.cluster(request, std::span(assignment), scratch);
}
}  // namespace detail

/// @brief Clusters the tokens for grow_tree; the two together are build_tree, and may run at different times.
/// Parameters, complexity and errors as there.
template <class Clusterer>
void cluster_tokens(const cluster_request& request, const Clusterer& clusterer,
                    std::span<const std::size_t> tokens_per_cluster, clustering_scratch& scratch,
                    token_clusters& clusters) {
  detail::require_levels(tokens_per_cluster);
  clusters.n_clusters = detail::cluster_level(request, clusterer, request.n_tokens,
                                              tokens_per_cluster[0], scratch, clusters.assignment);
}

/// @brief Builds a tree on clusters of the same request that cluster_tokens made. Everything else as for build_tree.
template <class Clusterer>
void grow_tree(const cluster_request& request, const token_clusters& clusters,
               const Clusterer& clusterer, std::span<const std::size_t> tokens_per_cluster,
               clustering_scratch& scratch, cluster_tree& tree) {
  detail::require_levels(tokens_per_cluster);
  const std::size_t n_tokens = request.n_tokens;
  const std::size_t n_levels = tokens_per_cluster.size();
  tree.key_dim = request.key_dim;
  tree.value_dim = request.value_dim;
  tree.order.resize(n_tokens);
  tree.levels.resize(n_levels);

  // First in the ids the clusterer gives, level by level: the level above needs the means of the level below.
  std::vector<std::vector<std::uint32_t>> parents(n_levels);
  std::vector<detail::cluster_statistics> statistics(n_levels);
  parents[0] = clusters.assignment;
  statistics[0] = detail::token_statistics(request, parents[0], clusters.n_clusters, scratch);
  for (std::size_t l = 1; l < n_levels; ++l) {
    cluster_request above = request;
    above.keys = statistics[l - 1].centroids.data();
    above.values = statistics[l - 1].value_means.data();
    above.n_tokens = statistics[l - 1].sizes.size();
    const std::size_t n_nodes = detail::cluster_level(above, clusterer, n_tokens,
                                                      tokens_per_cluster[l], scratch, parents[l]);
    statistics[l] =
        detail::merged_statistics(statistics[l - 1], parents[l], n_nodes, request, scratch);
  }

  // Then from the top: the order of a level is that of its parents.
  std::vector<std::uint32_t> parent_rank(statistics.back().sizes.size());
  for (std::size_t i = 0; i < parent_rank.size(); ++i) {
    parent_rank[i] = static_cast<std::uint32_t>(i);
  }
  for (std::size_t l = n_levels; l-- > 0;) {
    cluster_tree_level& level = tree.levels[l];
    std::vector<std::uint32_t> ids_in_order(parent_rank.size());
    for (std::size_t id = 0; id < parent_rank.size(); ++id) {
      ids_in_order[parent_rank[id]] = static_cast<std::uint32_t>(id);
    }
    statistics[l].copy_in_order(ids_in_order, request.key_dim, request.value_dim, level.sizes,
                                level.centroids, level.value_means, level.dispersions);
    level.n_nodes = ids_in_order.size();
    // counting sort of the children by their parent's rank, stable in the children's ids
    level.first_child.assign(level.n_nodes + 1, 0);
    for (const std::uint32_t parent : parents[l]) {
      ++level.first_child[parent_rank[parent] + 1];
    }
    for (std::size_t i = 0; i < level.n_nodes; ++i) {
      level.first_child[i + 1] += level.first_child[i];
    }
    std::vector<std::uint32_t> next(level.first_child.begin(), level.first_child.end() - 1);
    std::vector<std::uint32_t> child_rank(parents[l].size());
    for (std::size_t child = 0; child < child_rank.size(); ++child) {
      child_rank[child] = next[parent_rank[parents[l][child]]]++;
    }
    parent_rank = std::move(child_rank);
  }
  for (std::size_t token = 0; token < n_tokens; ++token) {
    tree.order[parent_rank[token]] = static_cast<std::uint32_t>(token);
  }
}

/// @brief Builds a tree with one level per entry of tokens_per_cluster.
///
/// Level 0 is clustered from the tokens, level l from the centroids and value means of level l − 1, each
/// with one vote. Means are accumulated in double, over tokens; dispersions are taken around the true mean. Level l asks the
/// clusterer for ceil(n_tokens / tokens_per_cluster[l]) clusters; request.n_clusters is not used.
/// A deterministic clusterer gives a deterministic tree.
///
/// Complexity: that of the clusterer, and O(n_tokens · key_dim²) for the dispersions.
/// Allocates: the tree, unless `tree` comes from an earlier call of the same sizes; few small vectors.
/// @param request             one KV head of one segment; finite
/// @param clusterer           models wavekv::clusterer
/// @param tokens_per_cluster  finest first, each at least 1, increasing; one to any number of levels
/// @param tree                overwritten
/// @throw config_error if tokens_per_cluster is empty or holds a 0; what the clusterer throws; std::bad_alloc
template <class Clusterer>
void build_tree(const cluster_request& request, const Clusterer& clusterer,
                std::span<const std::size_t> tokens_per_cluster, clustering_scratch& scratch,
                cluster_tree& tree) {
  token_clusters clusters;
  cluster_tokens(request, clusterer, tokens_per_cluster, scratch, clusters);
  grow_tree(request, clusters, clusterer, tokens_per_cluster, scratch, tree);
}

/// @brief The same, as a new tree.
template <class Clusterer>
[[nodiscard]] cluster_tree build_tree(const cluster_request& request, const Clusterer& clusterer,
                                      std::span<const std::size_t> tokens_per_cluster,
                                      clustering_scratch& scratch) {
  cluster_tree tree;
  build_tree(request, clusterer, tokens_per_cluster, scratch, tree);
  return tree;
}

}  // namespace wavekv
