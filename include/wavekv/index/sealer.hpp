// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/cache/token_rows.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/executor.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/cluster_covariance.hpp>
#include <wavekv/index/cluster_tree_builder.hpp>
#include <wavekv/index/detail/cluster_statistics.hpp>
#include <wavekv/index/detail/metric_space.hpp>
#include <wavekv/index/query_metric.hpp>
#include <wavekv/index/segment.hpp>
#include <wavekv/index/summary.hpp>

/// @file sealer.hpp
/// @brief Turns runs of tokens into sealed segments: clusters every KV head and lays rows out in tree order.

namespace wavekv {

/// @brief A run of tokens to seal.
struct seal_run {
  std::size_t first_token = 0;  ///< position in the sequence
  std::size_t first_row = 0;    ///< place in the rows that are sealed from
  std::size_t n_tokens = 0;     ///< 1 to 65,536
};

/// @brief A segment in the making. Nobody sees it before it is finished, so that it may be dropped at any time and made
/// again. A KV head is made in two chores of about the same length: its tokens are clustered; the rest of its tree is
/// grown and laid out. The last chore of all is to finish the segment.
template <class Segment>
struct unfinished_segment {
  static constexpr std::size_t chores_per_head = 2;

  /// @brief Chores of the whole segment.
  [[nodiscard]] static constexpr std::size_t n_chores(std::size_t n_kv_heads) noexcept {
    return chores_per_head * n_kv_heads + 1;
  }

  seal_run run;
  typename Segment::parts parts;
  std::vector<token_clusters> clusters;       ///< [n_kv_heads] what the first chore gave
  std::vector<head_covariances> covariances;  ///< [n_kv_heads]
  std::size_t n_chores_done = 0;              ///< of all heads, head by head
};

/// @brief What sealing gives: the segments, and what their clusters teach about values, per KV head.
template <class Segment>
struct sealed_runs {
  std::vector<std::shared_ptr<const Segment>> segments;
  std::vector<head_covariances> covariances;  ///< [n_kv_heads]
};

/// @brief Makes segments from token rows. Work splits over runs and KV heads.
/// @tparam T        storage scalar
/// @tparam Index    a wave_index
/// @tparam Segment  the segment type made
template <scalar T, class Index, class Segment>
class sealer {
 public:
  using cluster_count_type = typename Index::cluster_count_type;
  using clusterer_type = typename Index::clusterer_type;
  using summary_type = typename Index::summary_type;
  static constexpr std::size_t n_levels = cluster_count_type::n_levels;

  /// @brief Seals the runs. Nothing outside the result changes, whatever is thrown.
  /// Complexity: that of the clusterer, per run and head. Allocates: the segments; scratch while it grows.
  /// @param rows     keys and values of all runs; may reach beyond rows.size() to rows not committed yet
  /// @param metrics  [n_kv_heads] or empty
  /// @param keep     called as keep(rows, blocks) for each segment's rows; returns the tiers' handle
  template <executor Executor, class Keep>
  sealed_runs<Segment> seal(const token_rows<T>& rows, std::size_t n_heads, std::size_t key_dim,
                            std::size_t value_dim, std::span<const seal_run> runs,
                            const clusterer_type& clusterer, std::span<const query_metric> metrics,
                            Executor& executor, Keep&& keep) {
    std::vector<unfinished_segment<Segment>> made;
    made.reserve(runs.size());
    for (const seal_run& run : runs) {
      made.push_back(begin(run, n_heads, key_dim, value_dim));
    }
    make_workers(executor);
    executor.parallel_for(runs.size() * n_heads, [&](std::size_t task, std::size_t worker) {
      constexpr std::size_t all = unfinished_segment<Segment>::chores_per_head;
      seal_head(rows, made[task / n_heads], task % n_heads, 0, all, key_dim, value_dim, clusterer,
                metrics, workers_[worker]);
    });
    sealed_runs<Segment> sealed;
    sealed.segments.reserve(runs.size());
    sealed.covariances.resize(n_heads);
    for (unfinished_segment<Segment>& segment : made) {
      finish(segment, key_dim, value_dim, keep, sealed);
    }
    return sealed;
  }

  /// @brief A segment none of whose heads is made.  @throw std::bad_alloc
  static unfinished_segment<Segment> begin(const seal_run& run, std::size_t n_heads,
                                           std::size_t key_dim, std::size_t value_dim) {
    unfinished_segment<Segment> begun;
    begun.run = run;
    begun.parts.n_tokens = run.n_tokens;
    begun.parts.n_levels = n_levels;
    begun.parts.heads.resize(n_heads);
    begun.parts.token_rows = aligned_storage<T>(n_heads * run.n_tokens * (key_dim + value_dim));
    begun.clusters.resize(n_heads);
    begun.covariances.resize(n_heads);
    return begun;
  }

  /// @brief Does chores [n_chores_done, end) of a segment but the last, which is `finish`; n_chores_done stays, so that the
  /// caller decides whether they count. Parameters as for seal.
  template <executor Executor>
  void do_chores(const token_rows<T>& rows, unfinished_segment<Segment>& segment, std::size_t end,
                 std::size_t key_dim, std::size_t value_dim, const clusterer_type& clusterer,
                 std::span<const query_metric> metrics, Executor& executor) {
    make_workers(executor);
    constexpr std::size_t per_head = unfinished_segment<Segment>::chores_per_head;
    const std::size_t first = segment.n_chores_done;
    const std::size_t first_head = first / per_head;
    const std::size_t end_head =
        std::min((end + per_head - 1) / per_head, segment.parts.heads.size());
    if (first_head >= end_head) {
      return;
    }
    executor.parallel_for(end_head - first_head, [&](std::size_t task, std::size_t worker) {
      const std::size_t head = first_head + task;
      const std::size_t own = head * per_head;  // its first chore
      seal_head(rows, segment, head, std::max(first, own) - own, std::min(end - own, per_head),
                key_dim, value_dim, clusterer, metrics, workers_[worker]);
    });
  }

  /// @brief Adds a segment all of whose heads are made to what was sealed before it. Its parts move on.
  /// @throw std::bad_alloc, io_error by a store; the parts may then be gone
  template <class Keep>
  static void finish(unfinished_segment<Segment>& segment, std::size_t key_dim,
                     std::size_t value_dim, Keep&& keep, sealed_runs<Segment>& sealed) {
    for (std::size_t head = 0; head < segment.covariances.size(); ++head) {
      for (std::size_t level = 0; level < n_levels; ++level) {
        sealed.covariances[head][level].add(segment.covariances[head][level]);
      }
    }
    sealed.segments.push_back(std::make_shared<const Segment>(
        segment.run.first_token, key_dim, value_dim, std::move(segment.parts), keep));
  }

 private:
  struct worker_state {
    clustering_scratch scratch;
    cluster_tree tree;
    std::vector<float> keys;
    std::vector<float> values;
    covariance_scratch covariance;
    std::vector<float> rounded;  // [n_nodes, key_dim] centroids as they are stored
    std::vector<std::uint32_t> node_ids;
    std::vector<double> rounding;  // [n_nodes] what that adds to the dispersion
  };

  template <executor Executor>
  void make_workers(const Executor& executor) {
    if (workers_.size() < executor.concurrency()) {
      workers_.resize(executor.concurrency());
    }
  }

  // Chores [first, end) of one head.
  static void seal_head(const token_rows<T>& from, unfinished_segment<Segment>& segment,
                        std::size_t head, std::size_t first, std::size_t end, std::size_t key_dim,
                        std::size_t value_dim, const clusterer_type& clusterer,
                        std::span<const query_metric> metrics, worker_state& worker) {
    typename Segment::parts& parts = segment.parts;
    const T* keys = from.keys(head) + segment.run.first_row * key_dim;
    const T* values = from.values(head) + segment.run.first_row * value_dim;
    const query_metric* metric = metrics.empty() ? nullptr : &metrics[head];
    const std::size_t n = parts.n_tokens;
    worker.keys.resize(n * key_dim);
    worker.values.resize(n * value_dim);
    simd::to_float(worker.keys.data(), keys, n * key_dim);
    simd::to_float(worker.values.data(), values, n * value_dim);
    cluster_request request;
    request.keys = worker.keys.data();
    request.key_dim = key_dim;
    request.values = worker.values.data();
    request.value_dim = value_dim;
    request.n_tokens = n;
    request.metric = metric != nullptr && metric->known() ? metric : nullptr;
    std::array<std::size_t, n_levels> tokens_per_node{};
    for (std::size_t level = 0; level < n_levels; ++level) {
      tokens_per_node[level] = cluster_count_type::tokens_at(level);
    }
    token_clusters& clusters = segment.clusters[head];
    if (first == 0) {
      cluster_tokens(request, clusterer, std::span<const std::size_t>(tokens_per_node),
                     worker.scratch, clusters);
    }
    if (end == 1) {
      return;
    }
    grow_tree(request, clusters, clusterer, std::span<const std::size_t>(tokens_per_node),
              worker.scratch, worker.tree);

    auto& part = parts.heads[head];
    part.order.assign(worker.tree.order.begin(), worker.tree.order.end());
    part.value_spread = spread(worker.values, n, value_dim);
    T* rows = parts.token_rows.data() + head * n * (key_dim + value_dim);
    lay_out_tokens(keys, values, key_dim, value_dim, worker.tree, rows);
    const detail::metric_space space(request.metric, key_dim, worker.scratch);
    for (std::size_t level = 0; level < n_levels; ++level) {
      lay_out_summaries(worker.tree, level, space, worker, part);
    }
    if constexpr (detail::scores_clusters<summary_type>) {
      auto kept =
          std::make_shared<const typename summary_type::kept>(keep_summary(request, worker));
      part.kept_bytes = detail::kept_bytes(*kept);
      part.kept = std::move(kept);
      return;  // there are no estimates that covariances would better
    }
    std::array<std::span<const float>, n_levels> dispersions;
    std::ranges::copy_n(part.dispersion.begin(), n_levels, dispersions.begin());
    learn_covariances(request, worker.tree, dispersions, worker.covariance,
                      segment.covariances[head]);
  }

  // What the index's summary keeps of a head's clusters.
  static auto keep_summary(const cluster_request& request, worker_state& worker) {
    const auto in_order = [&](const float* rows, std::size_t dim) {
      std::vector<float> sorted(request.n_tokens * dim);
      for (std::size_t i = 0; i < request.n_tokens; ++i) {
        std::copy_n(rows + worker.tree.order[i] * dim, dim, sorted.data() + i * dim);
      }
      return sorted;
    };
    const std::vector<float> keys = in_order(request.keys, request.key_dim);
    const std::vector<float> values = in_order(request.values, request.value_dim);
    cluster_rows clusters;
    clusters.keys = keys.data();
    clusters.values = values.data();
    clusters.key_dim = request.key_dim;
    clusters.value_dim = request.value_dim;
    clusters.first_token = worker.tree.levels[0].first_child;
    clusters.metric = request.metric;
    return summary_type{}.keep(clusters);
  }

  // K and V of each cluster: its keys in tree order, then its values.
  static void lay_out_tokens(const T* keys, const T* values, std::size_t key_dim,
                             std::size_t value_dim, const cluster_tree& tree, T* to) {
    const auto& first_token = tree.levels[0].first_child;
    for (std::size_t cluster = 0; cluster + 1 < first_token.size(); ++cluster) {
      for (std::uint32_t i = first_token[cluster]; i < first_token[cluster + 1]; ++i) {
        to = std::copy_n(keys + tree.order[i] * key_dim, key_dim, to);
      }
      for (std::uint32_t i = first_token[cluster]; i < first_token[cluster + 1]; ++i) {
        to = std::copy_n(values + tree.order[i] * value_dim, value_dim, to);
      }
    }
  }

  // One level's families: the centroids of a parent's children, then their value means.
  static void lay_out_summaries(const cluster_tree& tree, std::size_t level,
                                const detail::metric_space& space, worker_state& worker,
                                typename Segment::parts::head_part& part) {
    const cluster_tree_level& source = tree.levels[level];
    const std::size_t key_dim = tree.key_dim;
    part.n_nodes[level] = static_cast<std::uint32_t>(source.n_nodes);
    part.size[level].assign(source.sizes.begin(), source.sizes.end());
    part.first_child[level] = source.first_child;
    part.rows[level] = aligned_storage<T>(source.n_nodes * (key_dim + tree.value_dim));
    const std::array<std::uint32_t, 2> whole{0, static_cast<std::uint32_t>(source.n_nodes)};
    const std::span<const std::uint32_t> family =
        level + 1 < n_levels ? std::span<const std::uint32_t>(tree.levels[level + 1].first_child)
                             : std::span<const std::uint32_t>(whole);
    T* to = part.rows[level].data();
    worker.rounded.resize(source.n_nodes * key_dim);
    for (std::size_t parent = 0; parent + 1 < family.size(); ++parent) {
      const std::size_t first = family[parent];
      const std::size_t n = family[parent + 1] - first;
      simd::from_float(to, source.centroids.data() + first * key_dim, n * key_dim);
      simd::to_float(worker.rounded.data() + first * key_dim, to, n * key_dim);
      to += n * key_dim;
      simd::from_float(to, source.value_means.data() + first * tree.value_dim, n * tree.value_dim);
      to += n * tree.value_dim;
    }
    // What rounding a centroid to the storage scalar adds to its dispersion. Keys often share an offset far larger than
    // what tells them apart: the error of a summary's logit is then mostly this.
    worker.node_ids.resize(source.n_nodes);
    std::iota(worker.node_ids.begin(), worker.node_ids.end(), 0U);
    worker.rounding.assign(source.n_nodes, 0.0);
    detail::add_dispersions(
        source.centroids.data(), worker.node_ids, key_dim, space,
        [&](std::size_t node) { return worker.rounded.data() + node * key_dim; },
        [](std::size_t) { return 1.0; }, worker.rounding, worker.scratch);
    part.dispersion[level] = source.dispersions;
    for (std::size_t node = 0; node < source.n_nodes; ++node) {
      part.dispersion[level][node] += static_cast<float>(worker.rounding[node]);
    }
  }

  static float spread(const std::vector<float>& values, std::size_t n, std::size_t dim) {
    std::vector<double> mean(dim, 0.0);
    std::vector<double> squared(dim, 0.0);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < dim; ++j) {
        const auto x = static_cast<double>(values[i * dim + j]);
        mean[j] += x;
        squared[j] += x * x;
      }
    }
    const auto count = static_cast<double>(n);
    double variance = 0.0;
    for (std::size_t j = 0; j < dim; ++j) {
      variance += squared[j] / count - mean[j] / count * (mean[j] / count);
    }
    return static_cast<float>(std::sqrt(std::max(0.0, variance)));
  }

  std::vector<worker_state> workers_;
};

}  // namespace wavekv
