// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

/// @file fwd.hpp
/// @brief Every template a user composes, with its defaults.

namespace wavekv {

struct rank_by_max;
struct rank_by_sum;
struct rank_by_turns;

template <std::size_t Prefill, std::size_t Decode>
struct segment_size;
template <std::size_t Finest, std::size_t... Coarser>
struct tokens_per_cluster;
template <int Iterations>
struct spherical_kmeans;
template <int Iterations>
struct query_metric_kmeans;
struct consecutive;

struct mean_summary;
struct exact;
template <class Ranking>
struct basic_fixed_budget;
template <class Ranking>
struct error_bound;
template <class Ranking>
struct verified_bound;

namespace placement {
struct resident;
}
namespace eviction {
class lru;
}
namespace transfer {
class inline_read;
}

/// @brief The default index: segments of 8,192 (1,024 while decoding), a two-level tree of clusters of 16
/// under nodes of 128, clustered as the queries see the keys, read by expected error. Why these: README,
/// "Which bound by default".
template <class SegmentSize = segment_size<8192, 1024>,
          class ClusterCount = tokens_per_cluster<16, 128>,
          class Clusterer = query_metric_kmeans<5>, class Bound = error_bound<rank_by_max>,
          class Summary = mean_summary>
struct wave_index;

template <class Placement, class Eviction, class Transfer>
struct wave_buffer;

}  // namespace wavekv
