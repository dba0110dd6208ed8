// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/cluster_covariance.cuh>
#include <wavekv/index/cluster_tree_builder.cuh>
#include <wavekv/index/detail/cluster_statistics.cuh>
#include <wavekv/index/detail/clusterer_twin.cuh>
#include <wavekv/index/detail/lloyd.cuh>
#include <wavekv/index/detail/metric_space.cuh>
#include <wavekv/index/detail/moments.cuh>
#include <wavekv/index/detail/seal_rows.cuh>
#include <wavekv/index/query_metric_kmeans.cuh>
#include <wavekv/index/seal_item.cuh>
#include <wavekv/index/segment.cuh>
#include <wavekv/index/spherical_kmeans.cuh>

/// @file sealer.cuh
/// @brief Turns runs of tokens into sealed segments on the device: the twin of <wavekv/index/sealer.hpp>.

namespace wavekv::device {

namespace detail {

/// Everything between the tokens and the segments, in one piece of device memory.
template <scalar T>
struct seal_memory {
  seal_item<T>* items = nullptr;
  metric_factors factors;
  row_moments moments;
  point_set points;      // of the finest level, which has the most
  cluster_set clusters;  // of the finest level, which has the most
  growing_level levels[max_tree_levels];
  product_parts parts[max_tree_levels];
  double* weights = nullptr;  // [n_jobs, n_levels, 2]
};

}  // namespace detail

/// @brief Makes segments from runs of tokens, all (segment, KV head) pairs of a call at once.
///
/// What a segment holds is defined as on the CPU: clusters of tokens, coarser nodes of clusters, everything in tree order, true
/// means over tokens rounded to T, dispersions that include that rounding, and what the segment teaches about covariances.
/// Means are added up in double, from the tokens as they are stored. What differs is in lloyd.cuh: the clusterer's arithmetic.
/// Results depend on the tokens, the metric and the sizes alone: not on the batch, nor on the order in which blocks run.
/// Magnitudes near 1e±20 do no harm; dispersions that leave a float's range are its largest number.
///
/// @tparam T        storage scalar: bf16, f16 or float
/// @tparam Index    a wave_index; of its clusterers those with a clusterer_twin
/// @tparam Runtime  models device_runtime
/// Source: RetroInfer, arXiv 2505.02922, section 4.2; segmented clustering as sorted runs: Thrust's stable_sort_by_key.
template <scalar T, class Index, device_runtime Runtime>
class sealer {
 public:
  using cluster_count_type = typename Index::cluster_count_type;
  using clusterer_type = typename Index::clusterer_type;
  using stream_type = typename Runtime::stream_type;
  static constexpr unsigned n_levels = cluster_count_type::n_levels;

  static_assert(
      requires { clusterer_twin<clusterer_type>::n_iterations; },
      "sealer: this Clusterer has no device code; specialise wavekv::device::clusterer_twin for "
      "it, see "
      "<wavekv/index/detail/clusterer_twin.cuh>");

  /// @brief A sealer of segments of one model.
  sealer(Runtime runtime, const model_shape& shape) : runtime_(std::move(runtime)), shape_(shape) {}

  /// @brief Bytes that `seal` works in, for n_items of n_tokens each: about a quarter more than the tokens' K and V in bf16.
  static std::size_t workspace_bytes(const model_shape& shape, std::size_t n_tokens,
                                     std::size_t n_items) {
    device_arena count(nullptr);
    (void)lay_out(count, shape, n_tokens, n_items);
    return count.used();
  }

  /// @brief Seals runs of tokens. Enqueues only: waits for nothing, allocates nothing but what Thrust's sort asks the runtime
  /// for. Rings, metrics, segments and the workspace are left alone until the stream has come here.
  /// Complexity: iterations · n_tokens² / tokens_per_cluster · width per KV head on tensor cores; some 35 launches a level,
  /// and a sort for every iteration, however many items there are.
  /// @param items      all of the same n_tokens; read before the call returns
  /// @param workspace  workspace_bytes(shape, n_tokens, items.size()) of device memory, aligned to 256 bytes
  /// @throw shape_error if the items' sizes differ, or are out of range
  void seal(std::span<const seal_item<T>> items, void* workspace, stream_type stream) {
    if (items.empty()) {
      return;
    }
    require_sizes(items);
    const unsigned n_tokens = items.front().n_tokens;
    device_arena arena(workspace);
    detail::seal_memory<T> memory = lay_out(arena, shape_, n_tokens, items.size());
    const auto n_jobs = static_cast<unsigned>(items.size() * shape_.n_kv_heads);
    const detail::seal_batch<T> batch{memory.items, shape_.n_kv_heads, n_tokens, shape_.key_dim,
                                      shape_.width()};
    runtime_.copy_in(memory.items, items.data(), items.size_bytes(), stream);
    runtime_.fill(memory.moments.largest, 0, std::size_t{n_jobs} * 2 * sizeof(std::uint32_t),
                  stream);
    runtime_.launch(stream, grid{1, n_jobs}, detail::factorize_metrics<T>{batch, memory.factors});

    const detail::ring_rows<T> tokens{batch};
    detail::measure_rows(runtime_, stream, batch, n_jobs, tokens, memory.moments, true);
    runtime_.launch(
        stream, grid{1, n_jobs},
        detail::finish_spreads<T, detail::ring_rows<T>>{batch, tokens, memory.moments, 1, true});
    group_rows(stream, batch, n_jobs, tokens, nullptr, memory, 0);
    for (unsigned level = 1; level < n_levels; ++level) {
      const detail::growing_level& below = memory.levels[level - 1];
      group_rows(stream, batch, n_jobs, detail::node_rows{below, batch.width}, below.n_nodes,
                 memory, level);
    }
    detail::order_tree(runtime_, stream, batch, n_jobs, memory.levels, n_levels);
    detail::disperse_nodes(runtime_, stream, batch, n_jobs, memory.levels, n_levels, memory.factors,
                           memory.moments);
    detail::learn_products(runtime_, stream, batch, n_jobs, memory.levels, memory.parts, n_levels,
                           memory.weights);
  }

 private:
  using twin = clusterer_twin<clusterer_type>;

  void require_sizes(std::span<const seal_item<T>> items) const {
    for (const seal_item<T>& item : items) {
      if (item.n_tokens != items.front().n_tokens || item.n_tokens < 1 || item.n_tokens > 65536) {
        throw shape_error(wavekv::detail::message(
            "sealer: an item has ", item.n_tokens,
            " tokens; allowed: 1 to 65536, as many as the first has, ", items.front().n_tokens));
      }
    }
    const std::size_t n_jobs = items.size() * shape_.n_kv_heads;
    const std::size_t n_rows = n_jobs * (items.front().n_tokens + std::size_t{1});
    if (n_jobs > 65535 || n_rows > std::numeric_limits<std::uint32_t>::max()) {
      throw shape_error(wavekv::detail::message(
          "sealer: ", items.size(), " items of ", items.front().n_tokens, " tokens and ",
          shape_.n_kv_heads,
          " KV heads; allowed: 65535 KV heads and 2^32 tokens of a head in all"));
    }
  }

  static detail::seal_memory<T> lay_out(device_arena& arena, const model_shape& shape,
                                        std::size_t n_tokens, std::size_t n_items) {
    const std::size_t n_jobs = n_items * shape.n_kv_heads;
    const std::size_t width = shape.width();
    const auto n_rows = static_cast<unsigned>(n_tokens);
    detail::seal_memory<T> memory;
    memory.items = arena.take<seal_item<T>>(n_items);

    const std::size_t factor_words = detail::metric_factors::n_words(shape.key_dim);
    memory.factors.high = arena.take<words4>(n_jobs * factor_words);
    memory.factors.low = arena.take<words4>(n_jobs * factor_words);
    memory.factors.is_known = arena.take<std::uint32_t>(n_jobs);

    detail::row_moments& moments = memory.moments;
    moments.stride = n_rows;
    moments.partial_sums = arena.take<double>(n_jobs * moments.n_tiles() * width);
    moments.means = arena.take<float>(n_jobs * width);
    moments.largest = arena.take<std::uint32_t>(n_jobs * 2);
    moments.safe_scales = arena.take<float>(n_jobs * 2);
    moments.key_squares = arena.take<float>(n_jobs * n_tokens);
    moments.value_squares = arena.take<float>(n_jobs * n_tokens);
    moments.spreads = arena.take<float>(n_jobs * 2);

    const std::size_t dim = twin::point_dim(shape.key_dim, shape.width());
    // Points are done with when products are learnt.
    std::size_t product_bytes = 0;
    for (unsigned l = 0; l < n_levels; ++l) {
      detail::growing_level& level = memory.levels[l];
      level.capacity = most_nodes<cluster_count_type>(n_tokens, l);
      level.n_rows = l == 0 ? n_rows : memory.levels[l - 1].capacity;
      memory.parts[l].n_parts = detail::product_parts::n_parts_of(level.n_rows);
      product_bytes += n_jobs * memory.parts[l].n_parts * shape.key_dim * width * sizeof(float);
    }
    const std::size_t point_bytes = n_jobs * n_tokens * dim * sizeof(bf16);
    std::byte* const products = arena.take<std::byte>(std::max(point_bytes, product_bytes));
    memory.points.points = reinterpret_cast<words4*>(products);
    memory.points.n_jobs = static_cast<unsigned>(n_jobs);
    memory.points.dim = static_cast<unsigned>(dim);
    memory.points.bases = arena.take<float>(n_jobs * n_tokens);
    memory.points.slopes = arena.take<float>(n_jobs * n_tokens);
    memory.points.misfits = arena.take<float>(n_jobs * n_tokens);
    detail::cluster_set& clusters = memory.clusters;
    clusters.n_clusters = most_nodes<cluster_count_type>(n_tokens, 0);
    clusters.centroids = arena.take<words4>(n_jobs * clusters.n_padded() * dim / 8);
    clusters.biases = arena.take<float>(n_jobs * clusters.n_padded());
    clusters.buckets = arena.take<std::uint32_t>(n_jobs * n_tokens);
    clusters.first = arena.take<std::uint32_t>(n_jobs * (clusters.n_clusters + std::size_t{2}));
    clusters.newcomers = arena.take<std::uint32_t>(n_jobs * clusters.n_clusters);
    clusters.vacant = arena.take<std::uint32_t>(n_jobs * clusters.n_clusters);

    float* sums = reinterpret_cast<float*>(products);
    for (unsigned l = 0; l < n_levels; ++l) {
      detail::growing_level& level = memory.levels[l];
      memory.parts[l].sums = sums;
      if (sums != nullptr) {
        sums += n_jobs * memory.parts[l].n_parts * shape.key_dim * width;
      }
      level.n_nodes = arena.take<std::uint32_t>(n_jobs);
      level.sorted = arena.take<std::uint32_t>(n_jobs * level.n_rows);
      level.first = arena.take<std::uint32_t>(n_jobs * (level.capacity + std::size_t{1}));
      level.means = arena.take<float>(n_jobs * level.capacity * width);
      level.sizes = arena.take<float>(n_jobs * level.capacity);
      level.id_of_rank = arena.take<std::uint32_t>(n_jobs * level.capacity);
      level.parent_rank = arena.take<std::uint32_t>(n_jobs * level.n_rows);
      level.dispersions = arena.take<float>(n_jobs * level.capacity);
    }
    memory.weights = arena.take<double>(n_jobs * n_levels * 2);
    return memory;
  }

  // One level's nodes: clusters of tokens, or of the nodes below, and their means.
  template <class Rows>
  void group_rows(stream_type stream, const detail::seal_batch<T>& batch, unsigned n_jobs,
                  const Rows& rows, const std::uint32_t* n_rows,
                  const detail::seal_memory<T>& memory, unsigned number) {
    const detail::growing_level& level = memory.levels[number];
    detail::cluster_set clusters = memory.clusters;
    clusters.n_clusters = level.capacity;
    clusters.sorted = level.sorted;
    clusters.has_narrow_buckets = std::size_t{n_jobs} * clusters.n_buckets() <= 65536;
    detail::point_set points = memory.points;
    points.n_points = n_rows;
    points.capacity = level.n_rows;
    if (level.capacity > 1 && level.capacity < level.n_rows) {
      detail::row_moments moments = memory.moments;
      moments.stride = level.n_rows;
      if (number != 0) {
        detail::measure_rows(runtime_, stream, batch, n_jobs, rows, moments, false);
      }
      twin::place(runtime_, stream, batch, rows, moments, memory.factors, points);
    }
    detail::run_lloyd<twin::kind>(runtime_, stream, points, clusters, twin::n_iterations,
                                  twin::how);
    runtime_.launch(stream, grid{1, n_jobs}, detail::name_nodes{clusters, level});
    runtime_.launch(stream, grid{level.capacity, n_jobs},
                    detail::average_nodes<Rows>{rows, level, batch.width});
  }

  Runtime runtime_;
  model_shape shape_;
};

}  // namespace wavekv::device
