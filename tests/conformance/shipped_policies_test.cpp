// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <doctest/doctest.h>
#include <unistd.h>

#include <wavekv/baselines/head_budgets.hpp>
#include <wavekv/baselines/lsh_sampling.hpp>
#include <wavekv/baselines/streaming.hpp>
#include <wavekv/baselines/top_k.hpp>
#include <wavekv/baselines/top_p_budget.hpp>
#include <wavekv/buffer/memory_store.hpp>
#include <wavekv/buffer/tiered.hpp>
#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/index/bounds/error_bound.hpp>
#include <wavekv/index/bounds/exact.hpp>
#include <wavekv/index/bounds/fixed_budget.hpp>
#include <wavekv/index/bounds/verified_bound.hpp>
#include <wavekv/index/consecutive.hpp>
#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/spherical_kmeans.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>

#include "archetypes/bounds.hpp"
#include "archetypes/buffers.hpp"
#include "archetypes/clusterers.hpp"
#include "archetypes/executors.hpp"
#include "archetypes/scalars.hpp"
#include "archetypes/stores.hpp"
#include "conformance/buffer_law.hpp"
#include "conformance/core_law.hpp"
#include "conformance/index_law.hpp"
#include "conformance/store_law.hpp"
#include "conformance/transfer_law.hpp"
#include "reference/fresh_seed.hpp"

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
  CHECK(clusterer_law<wavekv::consecutive>() == "");
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
  CHECK(bound_law<wavekv::baselines::streaming>() == "");
  CHECK(bound_law<wavekv::baselines::lsh_sampling>() == "");
  CHECK(bound_law<wavekv::baselines::top_k>() == "");
  CHECK(bound_law(wavekv::baselines::top_k{0}) == "");
  CHECK(bound_law(wavekv::baselines::top_k{SIZE_MAX}) == "");
  CHECK(bound_law<wavekv::baselines::top_p_budget>() == "");
  CHECK(bound_law(wavekv::baselines::top_p_budget{1.0F}) == "");
}

TEST_CASE("estimation bounds that remember") {
  namespace baselines = wavekv::baselines;
  const auto with_memory = [](auto steady, auto unsteady, float threshold) {
    return baselines::head_budgets<decltype(steady)>{
        steady, unsteady,
        std::make_shared<baselines::head_steadiness>(
            wavekv::geometry{},
            baselines::head_steadiness::settings{.n_observed = 3, .threshold = threshold})};
  };
  for (const float threshold : {0.0F, 0.5F, 1.0F}) {  // all are steady, some, hardly any
    const auto of_tokens = [&] {
      return with_memory(baselines::top_k{64}, baselines::top_k{256}, threshold);
    };
    CHECK(bound_law(of_tokens(), of_tokens()) == "");
    const auto of_error = [&] {
      return with_memory(wavekv::error_bound<>{.epsilon = 0.1F}, wavekv::error_bound<>{},
                         threshold);
    };
    CHECK(bound_law(of_error(), of_error()) == "");
  }
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

TEST_CASE("stores") {  // those that ship: tests/buffer/block_store_test.cpp
  for (const std::size_t alignment : {1U, 64U, 4096U}) {
    CHECK(store_law<failing_store>({.alignment = alignment}, run_seed()) == "");
  }
}

TEST_CASE("placements in memory") {
  CHECK(placement_law<placement::resident, float, eviction::lru>({}, run_seed()) == "");
  CHECK(placement_law<placement::resident, wavekv::bf16, first_in_first_out>() == "");
  slow_tier::instance() = {};
  for (const std::size_t n_slots : {0U, 1U, 4U, 100U}) {
    CHECK(placement_law<two_tiers, wavekv::bf16, eviction::lru>({n_slots}, run_seed()) == "");
    CHECK(placement_law<two_tiers, float, first_in_first_out>({n_slots}, run_seed()) == "");
    CHECK(slow_tier::instance().n_kept == 0);  // all handles are gone
    CHECK(slow_tier::instance().n_leases == 0);
  }
}

TEST_CASE_TEMPLATE("placements over a store", Eviction, eviction::lru, eviction::clock,
                   eviction::sieve, first_in_first_out) {
  // None; one block of the law's, which has up to 60 tokens of 64 numbers; as much as there is.
  for (const std::size_t fast_bytes : {std::size_t{0}, std::size_t{18000}, std::size_t{4} << 20U}) {
    for (const std::size_t write_back_bytes : {std::size_t{0}, std::size_t{1} << 28U}) {
      CAPTURE(fast_bytes);
      CAPTURE(write_back_bytes);
      using in_memory = placement::tiered_over<wavekv::memory_store>;
      CHECK(placement_law<in_memory, wavekv::bf16, Eviction>({fast_bytes, write_back_bytes, {}},
                                                             run_seed()) == "");
      using aligned = placement::tiered_over<failing_store>;
      CHECK(placement_law<aligned, float, Eviction>(
                {fast_bytes, write_back_bytes, {.alignment = 512}}, run_seed()) == "");
      const std::filesystem::path name = std::filesystem::temp_directory_path() /
                                         ("wavekv-placement-law-" + std::to_string(::getpid()));
      const bool direct = write_back_bytes == 0 || fast_bytes == 0;
      CHECK(placement_law<placement::tiered, float, Eviction>(
                {fast_bytes, write_back_bytes, {name, direct}}, run_seed()) == "");
      CHECK_FALSE(std::filesystem::exists(name));
    }
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
  void start(const wavekv::slow_read& read, std::size_t tag) {
    try {
      read();
    } catch (...) {}
    tags_.push_back(tag);
  }
  std::size_t next() {
    const std::size_t tag = tags_.back();
    tags_.pop_back();
    return tag;
  }
  std::exception_ptr failure() const noexcept { return nullptr; }
  std::vector<std::size_t> tags_;
};

// Placements: two_tiers, but for one mistake each.
template <template <class, class> class Tiers>
struct two_tiers_but : two_tiers {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  using tiers = Tiers<T, E>;
};

template <class T, class E>
struct says_always_fast : two_tiers::tiers<T, E> {
  using two_tiers::tiers<T, E>::tiers;
  static constexpr bool always_fast = true;
};

template <class T, class E>
struct checks_nothing : two_tiers::tiers<T, E> {
  using two_tiers::tiers<T, E>::tiers;
  void check(const typename checks_nothing::handle&, const wavekv::block&, const T*) const {}
};

template <class T, class E>
struct guesses_what_it_holds : two_tiers::tiers<T, E> {
  using two_tiers::tiers<T, E>::tiers;
  bool holds(const typename guesses_what_it_holds::handle&,
             const wavekv::block& which) const noexcept {
    return which.index % 2 == 0;
  }
};

template <class T, class E>
struct finds_by_segment_alone : two_tiers::tiers<T, E> {
  using base = two_tiers::tiers<T, E>;
  using base::base;
  typename base::lease look_up(const typename base::handle& rows, const wavekv::block&) noexcept {
    return base::look_up(rows, {0, 0, 1});
  }
};

template <class T, class E>
struct lets_go_at_once : two_tiers::tiers<T, E> {
  using base = two_tiers::tiers<T, E>;
  using base::base;
  typename base::lease look_up(const typename base::handle& rows,
                               const wavekv::block& which) noexcept {
    const typename base::lease found = base::look_up(rows, which);
    // The memory stays, so that the mistake is not undefined; what it shows is another block's.
    if (found && ++n_ % 5 == 0) std::fill_n(const_cast<T*>(found.held->rows.data()), 8, T{});
    return found;
  }
  std::size_t n_ = 0;
};

template <class T, class E>
struct shows_the_last_run_twice : two_tiers::tiers<T, E> {
  using base = two_tiers::tiers<T, E>;
  using base::base;
  template <class Run>
  void for_runs(const typename base::lease& found, std::size_t n_tokens, Run&& run) const {
    base::for_runs(found, n_tokens, run);
    if (n_tokens > 4) base::for_runs(found, 1, run);
  }
};

template <class T, class E>
struct reads_from_the_start : two_tiers::tiers<T, E> {
  using base = two_tiers::tiers<T, E>;
  using base::base;
  wavekv::slow_read fetch(const typename base::handle& rows, std::uint64_t,
                          std::span<std::byte> to) {
    return base::fetch(rows, 0, to);
  }
};

template <class T, class E>
struct copies_one_too_few : two_tiers::tiers<T, E> {
  using base = two_tiers::tiers<T, E>;
  using base::base;
  void copy(const typename base::handle& rows, std::size_t offset, std::span<T> to) const {
    base::copy(rows, offset, to.first(to.empty() ? 0 : to.size() - 1));
  }
};

// Stores: a failing_store, but for one mistake each.
struct has_an_odd_alignment : failing_store {
  using failing_store::failing_store;
  std::size_t alignment() const noexcept { return 1000; }
};

struct says_it_is_aligned : failing_store {
  using failing_store::failing_store;
  std::size_t alignment() const noexcept { return 512; }
};

struct reads_past_the_end : failing_store {
  using failing_store::failing_store;
  void read(const region& from, std::uint64_t offset, std::span<std::byte> to) const {
    if (offset > from.size()) return;
    failing_store::read(from, offset, to.first(std::min(to.size(), from.size() - offset)));
  }
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
  CHECK(transfer_law<loses_exceptions>() == "a read's exception is lost");
  CHECK(executor_law(runs_the_last_twice{}) != "");
}

TEST_CASE("the law of placements finds what breaks it") {
  const auto found = []<template <class, class> class Tiers>(std::uint64_t seed) {
    return placement_law<two_tiers_but<Tiers>, float, eviction::lru>({3}, seed);
  };
  slow_tier::instance() = {};
  const std::uint64_t seed = run_seed();
  CHECK(found.operator()<says_always_fast>(seed) ==
        "always_fast, but look_up does not find a block");
  CHECK(found.operator()<checks_nothing>(seed) ==
        "check accepts a block of which a bit has changed");
  CHECK(found.operator()<guesses_what_it_holds>(seed) == "holds foretells look_up badly");
  CHECK(found.operator()<finds_by_segment_alone>(seed) != "");
  CHECK(found.operator()<lets_go_at_once>(seed) ==
        "a block that is found differs from the rows that were kept");
  CHECK(found.operator()<shows_the_last_run_twice>(seed) ==
        "for_runs shows more or fewer tokens than the block has");
  CHECK(found.operator()<reads_from_the_start>(seed) ==
        "a block that was fetched differs from the rows that were kept");
  CHECK(found.operator()<copies_one_too_few>(seed) == "copy differs from the rows that were kept");
}

TEST_CASE("the law of stores finds what breaks it") {
  const std::uint64_t seed = run_seed();
  CHECK(store_law<has_an_odd_alignment>({}, seed) == "alignment() is no power of two up to 4096");
  CHECK(store_law<says_it_is_aligned>({}, seed) ==
        "a read at multiples of the alignment is refused");
  CHECK(store_law<reads_past_the_end>({}, seed) ==
        "reading past a region's end throws no io_error");
  const auto control = std::make_shared<store_control>();
  control->read_corrupts.set(500);
  CHECK(store_law<failing_store>({.control = control}, seed) ==
        "what is read is not what was written");
}
