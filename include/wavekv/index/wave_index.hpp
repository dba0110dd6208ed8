// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

#include <wavekv/fwd.hpp>
#include <wavekv/index/bounds/error_bound.hpp>
#include <wavekv/index/bounds/fixed_budget.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/spherical_kmeans.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>

namespace wavekv {

/// @brief Composes the index's policies; a type without a value. `with_…` changes one slot and names no other.
/// @tparam SegmentSize   models wavekv::segment_sizes
/// @tparam ClusterCount  models wavekv::cluster_count
/// @tparam Clusterer     models wavekv::clusterer
/// @tparam Bound         models wavekv::estimation_bound; the default of a cache, replaceable per call
/// @tparam Summary       models wavekv::cluster_summary; one that is not mean_summary scores the clusters of a flat index
/// Source: RetroInfer, arXiv 2505.02922, section 4.2 (wave index).
template <class SegmentSize, class ClusterCount, class Clusterer, class Bound, class Summary>
struct wave_index {
  static_assert(
      segment_sizes<SegmentSize>,
      "wave_index: SegmentSize must model wavekv::segment_sizes (prefill and decode, tokens, "
      "1 <= decode <= prefill <= 65536); see <wavekv/index/concepts.hpp>");
  static_assert(cluster_count<ClusterCount>,
                "wave_index: ClusterCount must model wavekv::cluster_count (n_levels 1 to 3, "
                "tokens_at(level)); "
                "see <wavekv/index/concepts.hpp>");
  static_assert(clusterer<Clusterer>,
                "wave_index: Clusterer must model wavekv::clusterer (cluster(request, assignment, "
                "scratch) const -> "
                "std::size_t, default-constructible, copyable); see <wavekv/index/concepts.hpp>");
  static_assert(estimation_bound<Bound>, "wave_index: Bound must model wavekv::estimation_bound "
                                         "(plan(frontier, zones) const -> void, copyable); "
                                         "see <wavekv/index/concepts.hpp>");

  static_assert(cluster_summary<Summary>,
                "wave_index: Summary must be wavekv::mean_summary or model wavekv::cluster_summary "
                "(kept, keep(clusters) const, score(kept, queries, scores, stride) const -> bytes "
                "read); see <wavekv/index/concepts.hpp>");
  using segment_size_type = SegmentSize;
  using cluster_count_type = ClusterCount;
  using clusterer_type = Clusterer;
  using bound_type = Bound;
  using summary_type = Summary;

  template <class S>
  using with_segment_size = wave_index<S, ClusterCount, Clusterer, Bound, Summary>;
  template <class C>
  using with_cluster_count = wave_index<SegmentSize, C, Clusterer, Bound, Summary>;
  template <class C>
  using with_clusterer = wave_index<SegmentSize, ClusterCount, C, Bound, Summary>;
  template <class B>
  using with_bound = wave_index<SegmentSize, ClusterCount, Clusterer, B, Summary>;
  template <class S>
  using with_summary = wave_index<SegmentSize, ClusterCount, Clusterer, Bound, S>;
};

/// @brief The paper's parameters, for parity: flat index, spherical k-means with 10 iterations, fixed
/// budgets. Give it as the Index of a kv_cache. (The block cache of 5 % belongs to the tiered buffer.)
/// Source: RetroInfer, arXiv 2505.02922, sections 4 and 5.
using paper_defaults = wave_index<segment_size<8192, 1024>, tokens_per_cluster<16>,
                                  spherical_kmeans<10>, fixed_budget>;

}  // namespace wavekv
