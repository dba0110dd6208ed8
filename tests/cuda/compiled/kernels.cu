// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Every kernel of the library, instantiated as its caches instantiate it. bench/cuda/resources.txt says what each needs;
// one that is added here is added there by `bash bench/cuda/resources.sh --update`.
#include <wavekv/attention/prefill.cuh>
#include <wavekv/cuda/hardware_block.cuh>
#include <wavekv/index/query_metric.cuh>
#include <wavekv/index/sealer.cuh>

#include "instantiate.hpp"
#include "sample_kernel.cuh"

namespace wavekv::device {

WAVEKV_INSTANTIATE_KERNEL(testing::sample_kernel<false>);
WAVEKV_INSTANTIATE_KERNEL(testing::sample_kernel<true>);

// --- sealing: query_metric_kmeans and spherical_kmeans on bf16
WAVEKV_INSTANTIATE_KERNEL(add_queries<bf16>);
WAVEKV_INSTANTIATE_KERNEL(detail::factorize_metrics<bf16>);
WAVEKV_INSTANTIATE_KERNEL(detail::sum_columns<detail::ring_rows<bf16>>);
WAVEKV_INSTANTIATE_KERNEL(detail::sum_columns<detail::node_rows>);
WAVEKV_INSTANTIATE_KERNEL(detail::finish_means<detail::ring_rows<bf16>>);
WAVEKV_INSTANTIATE_KERNEL(detail::finish_means<detail::node_rows>);
WAVEKV_INSTANTIATE_KERNEL(detail::square_values<detail::ring_rows<bf16>>);
WAVEKV_INSTANTIATE_KERNEL(detail::square_values<detail::node_rows>);
WAVEKV_INSTANTIATE_KERNEL(detail::finish_spreads<bf16, detail::ring_rows<bf16>>);
WAVEKV_INSTANTIATE_KERNEL(detail::finish_spreads<bf16, detail::node_rows>);
WAVEKV_INSTANTIATE_KERNEL(detail::row_squares<detail::from_mean_of_all<detail::ring_rows<bf16>>>);
WAVEKV_INSTANTIATE_KERNEL(detail::row_squares<detail::from_mean_of_all<detail::node_rows>>);
WAVEKV_INSTANTIATE_KERNEL(detail::row_squares<detail::tokens_from_clusters<bf16>>);
WAVEKV_INSTANTIATE_KERNEL(detail::row_squares<detail::nodes_from_parents>);
WAVEKV_INSTANTIATE_KERNEL(detail::row_squares<detail::rounding_of_nodes<bf16>>);
WAVEKV_INSTANTIATE_KERNEL(detail::place_seen_rows<detail::ring_rows<bf16>>);
WAVEKV_INSTANTIATE_KERNEL(detail::place_seen_rows<detail::node_rows>);
WAVEKV_INSTANTIATE_KERNEL(detail::place_keys<detail::ring_rows<bf16>>);
WAVEKV_INSTANTIATE_KERNEL(detail::place_keys<detail::node_rows>);
WAVEKV_INSTANTIATE_KERNEL(detail::measure_points<wavekv::detail::lloyd_kind::euclidean>);
WAVEKV_INSTANTIATE_KERNEL(detail::measure_points<wavekv::detail::lloyd_kind::spherical>);
WAVEKV_INSTANTIATE_KERNEL(detail::move_centroids<wavekv::detail::lloyd_kind::euclidean, true>);
WAVEKV_INSTANTIATE_KERNEL(detail::move_centroids<wavekv::detail::lloyd_kind::euclidean, false>);
WAVEKV_INSTANTIATE_KERNEL(detail::move_centroids<wavekv::detail::lloyd_kind::spherical, true>);
WAVEKV_INSTANTIATE_KERNEL(detail::move_centroids<wavekv::detail::lloyd_kind::spherical, false>);
WAVEKV_INSTANTIATE_KERNEL(detail::choose_even_seeds);
WAVEKV_INSTANTIATE_KERNEL(detail::draw_far_seeds);
WAVEKV_INSTANTIATE_KERNEL(detail::fill_vacancies<wavekv::detail::lloyd_kind::euclidean>);
WAVEKV_INSTANTIATE_KERNEL(detail::fill_vacancies<wavekv::detail::lloyd_kind::spherical>);
WAVEKV_INSTANTIATE_KERNEL(detail::assign_points);
WAVEKV_INSTANTIATE_KERNEL(detail::find_buckets);
WAVEKV_INSTANTIATE_KERNEL(detail::name_nodes);
WAVEKV_INSTANTIATE_KERNEL(detail::average_nodes<detail::ring_rows<bf16>>);
WAVEKV_INSTANTIATE_KERNEL(detail::average_nodes<detail::node_rows>);
WAVEKV_INSTANTIATE_KERNEL(detail::link_children<bf16>);
WAVEKV_INSTANTIATE_KERNEL(detail::place_children<bf16>);
WAVEKV_INSTANTIATE_KERNEL(detail::lay_out_tokens<bf16>);
WAVEKV_INSTANTIATE_KERNEL(detail::lay_out_nodes<bf16>);
WAVEKV_INSTANTIATE_KERNEL(detail::finish_dispersions<bf16>);
WAVEKV_INSTANTIATE_KERNEL(detail::multiply_deviations<detail::tokens_from_clusters<bf16>>);
WAVEKV_INSTANTIATE_KERNEL(detail::multiply_deviations<detail::nodes_from_parents>);
WAVEKV_INSTANTIATE_KERNEL(detail::weigh_levels<bf16>);
WAVEKV_INSTANTIATE_KERNEL(detail::add_up_products<bf16>);

// --- prefill: whatever the answer's kind, and one of each other scalar
WAVEKV_INSTANTIATE_KERNEL(prefill_kernel<bf16, 64, false>);
WAVEKV_INSTANTIATE_KERNEL(prefill_kernel<bf16, 64, true>);
WAVEKV_INSTANTIATE_KERNEL(prefill_kernel<bf16, 128, false>);
WAVEKV_INSTANTIATE_KERNEL(prefill_kernel<bf16, 128, true>);
WAVEKV_INSTANTIATE_KERNEL(prefill_kernel<bf16, 256, false>);
WAVEKV_INSTANTIATE_KERNEL(prefill_kernel<bf16, 256, true>);
WAVEKV_INSTANTIATE_KERNEL(prefill_kernel<f16, 128, false>);
WAVEKV_INSTANTIATE_KERNEL(prefill_kernel<float, 128, true>);

}  // namespace wavekv::device
