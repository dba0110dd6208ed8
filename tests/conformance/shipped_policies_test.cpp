// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <doctest/doctest.h>

#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/index/bounds/error_bound.hpp>
#include <wavekv/index/bounds/exact.hpp>
#include <wavekv/index/bounds/fixed_budget.hpp>
#include <wavekv/index/bounds/verified_bound.hpp>
#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/spherical_kmeans.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>

#include "archetypes/bounds.hpp"
#include "archetypes/buffers.hpp"
#include "archetypes/clusterers.hpp"
#include "archetypes/executors.hpp"
#include "archetypes/scalars.hpp"
#include "conformance/buffer_law.hpp"
#include "conformance/core_law.hpp"
#include "conformance/index_law.hpp"

// Every policy that ships keeps the law of its slot, and so do the archetypes, which stand for a user's own.

using namespace wavekv_test;
namespace eviction = wavekv::eviction;
namespace placement = wavekv::placement;
namespace transfer = wavekv::transfer;

TEST_CASE("scalars") {
  CHECK(scalar_law<float>() == "");
  CHECK(scalar_law<wavekv::bf16>() == "");
  CHECK(scalar_law<wavekv::f16>() == "");
  CHECK(scalar_law<float24>() == "");
}

TEST_CASE("executors") {
  CHECK(executor_law(wavekv::serial_executor{}) == "");
  CHECK(executor_law(wavekv::openmp_executor{}) == "");
  CHECK(executor_law(wavekv::openmp_executor{1}) == "");
  CHECK(executor_law(wavekv::openmp_executor{4}) == "");
  CHECK(executor_law(thread_executor{3}) == "");
  CHECK(executor_law(backward_executor{}) == "");
  for (const any_executor& executor : executors_to_compare()) CHECK(executor_law(executor) == "");
}

TEST_CASE("segment sizes and cluster counts") {
  CHECK(segment_sizes_law<wavekv::segment_size<>>() == "");
  CHECK(segment_sizes_law<wavekv::segment_size<1, 1>>() == "");
  CHECK(segment_sizes_law<wavekv::segment_size<65536, 65536>>() == "");
  CHECK(segment_sizes_law<wavekv::segment_size<100>>() == "");
  CHECK(cluster_count_law<wavekv::tokens_per_cluster<>>() == "");
  CHECK(cluster_count_law<wavekv::tokens_per_cluster<1>>() == "");
  CHECK(cluster_count_law<wavekv::tokens_per_cluster<16, 128>>() == "");
  CHECK(cluster_count_law<wavekv::tokens_per_cluster<16, 128, 1024>>() == "");
}

TEST_CASE("clusterers") {
  CHECK(clusterer_law<wavekv::spherical_kmeans<>>() == "");
  CHECK(clusterer_law<wavekv::spherical_kmeans<1>>() == "");
  CHECK(clusterer_law<wavekv::query_metric_kmeans<>>() == "");
  CHECK(clusterer_law<runs_of_tokens>() == "");
  CHECK(clusterer_law<one_cluster>() == "");
}

TEST_CASE("estimation bounds") {
  CHECK(bound_law<wavekv::exact>() == "");
  CHECK(bound_law<wavekv::fixed_budget>() == "");
  CHECK(bound_law<wavekv::basic_fixed_budget<wavekv::rank_by_max>>() == "");
  CHECK(bound_law(wavekv::fixed_budget{0.0F, 0.0F}) == "");
  CHECK(bound_law(wavekv::fixed_budget{1.0F, 0.0F}) == "");
  CHECK(bound_law<wavekv::error_bound<>>() == "");
  CHECK(bound_law<wavekv::error_bound<wavekv::rank_by_sum>>() == "");
  CHECK(bound_law(wavekv::error_bound<>{
            .epsilon = 1e-9F, .max_open = 1.0F, .max_read = 1.0F, .free_tokens = 0}) == "");
  CHECK(bound_law(wavekv::error_bound<>{
            .epsilon = 0.05F, .max_open = 0.0F, .max_read = 0.0F, .free_tokens = 0}) == "");
  CHECK(verifying_bound_law<wavekv::verified_bound<>>() == "");
  CHECK(verifying_bound_law<wavekv::verified_bound<wavekv::rank_by_sum>>() == "");
  CHECK(bound_law<estimate_all>() == "");
  CHECK(bound_law<open_all>() == "");
  CHECK(bound_law<drop_all>() == "");
  CHECK(bound_law<alternate<true>>() == "");
}

TEST_CASE("eviction policies") {
  CHECK(eviction_law<eviction::lru>() == "");
  CHECK(eviction_law<eviction::clock>() == "");
  CHECK(eviction_law<eviction::sieve>() == "");
  CHECK(eviction_law<first_in_first_out>() == "");
}

TEST_CASE("transfer engines") {
  CHECK(transfer_law<transfer::inline_read>() == "");
  CHECK(transfer_law<overlapped_transfer>() == "");
  CHECK(transfer_law<late_transfer>() == "");
}

TEST_CASE("placements") {
  CHECK(placement_law<placement::resident, float, eviction::lru>() == "");
  CHECK(placement_law<placement::resident, wavekv::bf16, first_in_first_out>() == "");
  for (const std::size_t n_slots : {0U, 1U, 4U, 100U}) {
    slow_tier::instance().n_slots = n_slots;
    CHECK(placement_law<two_tiers, wavekv::bf16, eviction::lru>() == "");
    CHECK(placement_law<two_tiers, float, first_in_first_out>() == "");
    CHECK(slow_tier::instance().n_kept == 0);  // all handles are gone
  }
}

// A law that nothing breaks is none: each of these must be found out.
namespace {

struct forgets_a_slot : eviction::lru {
  using eviction::lru::lru;
  void insert(std::size_t slot) noexcept {
    if (slot != 1) eviction::lru::insert(slot);
  }
  std::size_t victim() noexcept { return eviction::lru::victim(); }
};

struct drops_without_saying_so {
  void plan(const wavekv::frontier&, std::span<wavekv::zone> zones) const {
    if (!zones.empty()) zones.front() = wavekv::zone::dropped;
  }
};

struct leaves_an_id_out {
  std::size_t cluster(const wavekv::cluster_request& request, std::span<std::uint32_t> ids,
                      wavekv::clustering_scratch&) const {
    std::ranges::fill(ids, 0U);
    return request.n_clusters;
  }
};

struct loses_exceptions {
  template <class Fetch>
  void start(Fetch&& fetch) {
    try {
      fetch();
    } catch (...) {}
  }
  void wait() {}
};

struct runs_the_last_twice {
  std::size_t concurrency() const { return 1; }
  template <class F>
  void parallel_for(std::size_t n, F&& f) {
    for (std::size_t i = 0; i < n; ++i) f(i, std::size_t{0});
    if (n != 0) f(n - 1, std::size_t{0});
  }
};

}  // namespace

TEST_CASE("the laws find what breaks them") {
  CHECK(eviction_law<forgets_a_slot>() != "");
  CHECK(bound_law<drops_without_saying_so>() ==
        "plan drops a node, but the bound does not say drops = true");
  CHECK(clusterer_law<leaves_an_id_out>() != "");
  CHECK(transfer_law<loses_exceptions>() == "a fetch's exception is lost");
  CHECK(executor_law(runs_the_last_twice{}) != "");
}
