// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include <doctest/doctest.h>

#include <wavekv/buffer/file_store.hpp>
#include <wavekv/buffer/memory_store.hpp>
#include <wavekv/wavekv.hpp>

#include "archetypes/bounds.hpp"
#include "archetypes/buffers.hpp"
#include "archetypes/clusterers.hpp"
#include "archetypes/executors.hpp"
#include "archetypes/scalars.hpp"
#include "archetypes/stores.hpp"
#include "archetypes/summaries.hpp"

// What fits each slot and what does not. Every negative below is one mistake away from a type that fits.
// The namespace has a name because compilers warn of members that nobody uses in an unnamed one, and a misspelt
// member is just that.

// --- scalar ----------------------------------------------------------------------------------------
namespace slots {
struct without_traits {
  float x;
};
struct not_trivial {
  not_trivial(const not_trivial&) {}
};
struct throwing_conversion {};
struct wrong_float {};

}  // namespace slots

template <>
struct wavekv::scalar_traits<slots::not_trivial> : wavekv::scalar_traits<float> {
  static float to_float(const slots::not_trivial&) noexcept { return 0.0F; }
  static slots::not_trivial from_float(float) noexcept;
};
template <>
struct wavekv::scalar_traits<slots::throwing_conversion> {
  static constexpr std::string_view name = "throwing";
  static constexpr float epsilon = 1.0F;
  static float to_float(slots::throwing_conversion) { return 0.0F; }  // not noexcept
  static slots::throwing_conversion from_float(float) noexcept { return {}; }
};
template <>
struct wavekv::scalar_traits<slots::wrong_float> {
  static constexpr std::string_view name = "double";
  static constexpr float epsilon = 1.0F;
  static double to_float(slots::wrong_float) noexcept { return 0.0; }  // not float
  static slots::wrong_float from_float(float) noexcept { return {}; }
};

namespace slots {

using wavekv::zone;
using zones_type = std::span<zone>;

static_assert(wavekv::scalar<float> && wavekv::scalar<wavekv::bf16> && wavekv::scalar<wavekv::f16>);
static_assert(wavekv::scalar<wavekv_test::float24>);
static_assert(!wavekv::scalar<double> && !wavekv::scalar<int> && !wavekv::scalar<void>);
static_assert(!wavekv::scalar<const float>);
static_assert(!wavekv::scalar<slots::without_traits>);
static_assert(!wavekv::scalar<slots::not_trivial>);
static_assert(!wavekv::scalar<slots::throwing_conversion>);
static_assert(!wavekv::scalar<slots::wrong_float>);

// --- segment sizes, cluster counts ------------------------------------------------------------------
struct own_sizes {
  static constexpr std::size_t prefill = 4096;
  static constexpr std::size_t decode = 512;
};
struct misspelt_sizes {
  static constexpr std::size_t prefil = 4096;
  static constexpr std::size_t decode = 512;
};
static_assert(wavekv::segment_sizes<wavekv::segment_size<>>);
static_assert(wavekv::segment_size<>::prefill == 8192 && wavekv::segment_size<>::decode == 1024);
static_assert(wavekv::segment_size<100>::decode == 100);
static_assert(wavekv::segment_sizes<own_sizes>);
static_assert(!wavekv::segment_sizes<misspelt_sizes>);
static_assert(!wavekv::segment_sizes<wavekv::segment_size<64, 0>>);
static_assert(!wavekv::segment_sizes<wavekv::segment_size<64, 65>>);
static_assert(wavekv::segment_sizes<wavekv::segment_size<65536>>);
static_assert(!wavekv::segment_sizes<wavekv::segment_size<65537>>);
static_assert(!wavekv::segment_sizes<int>);

struct own_count {
  static constexpr std::size_t n_levels = 2;
  static std::size_t tokens_at(std::size_t level) { return level == 0 ? 10 : 100; }
};
template <std::size_t N>
struct levels {
  static constexpr std::size_t n_levels = N;
  static std::size_t tokens_at(std::size_t) { return 1; }
};
struct count_without_tokens {
  static constexpr std::size_t n_levels = 1;
};
static_assert(wavekv::cluster_count<wavekv::tokens_per_cluster<>>);
static_assert(wavekv::cluster_count<wavekv::tokens_per_cluster<16, 128, 1024>>);
static_assert(wavekv::cluster_count<own_count>);
static_assert(wavekv::cluster_count<levels<3>>);
static_assert(!wavekv::cluster_count<levels<0>>);
static_assert(!wavekv::cluster_count<levels<4>>);
static_assert(!wavekv::cluster_count<count_without_tokens>);
static_assert(wavekv::tokens_per_cluster<16, 128>::n_levels == 2);
static_assert(wavekv::tokens_per_cluster<16, 128>::tokens_at(0) == 16);
static_assert(wavekv::tokens_per_cluster<16, 128>::tokens_at(1) == 128);

// --- clusterer ---------------------------------------------------------------------------------------
using ids_type = std::span<std::uint32_t>;
using wavekv::cluster_request;
using wavekv::clustering_scratch;
struct clusterer_not_const {
  std::size_t cluster(const cluster_request&, ids_type, clustering_scratch&) { return 1; }
};
struct clusterer_returns_int {
  int cluster(const cluster_request&, ids_type, clustering_scratch&) const { return 1; }
};
struct clusterer_misspelt {
  std::size_t clusters(const cluster_request&, ids_type, clustering_scratch&) const { return 1; }
};
struct clusterer_with_argument {
  explicit clusterer_with_argument(int) {}
  std::size_t cluster(const cluster_request&, ids_type, clustering_scratch&) const { return 1; }
};
struct clusterer_wants_queries : wavekv_test::one_cluster {
  static constexpr bool uses_queries = true;
};
struct clusterer_misspells_queries : wavekv_test::one_cluster {
  static constexpr bool use_queries = true;
};
static_assert(wavekv::clusterer<wavekv::spherical_kmeans<>>);
static_assert(wavekv::clusterer<wavekv::query_metric_kmeans<>>);
static_assert(wavekv::clusterer<wavekv::consecutive>);
static_assert(!wavekv::clusterer<clusterer_not_const>);
static_assert(!wavekv::clusterer<clusterer_returns_int>);
static_assert(!wavekv::clusterer<clusterer_misspelt>);
static_assert(!wavekv::clusterer<clusterer_with_argument>);
static_assert(!wavekv::clusterer<wavekv::exact>);
static_assert(wavekv::detail::uses_queries<wavekv::query_metric_kmeans<>>());
static_assert(!wavekv::detail::uses_queries<wavekv::spherical_kmeans<>>());
static_assert(wavekv::detail::uses_queries<clusterer_wants_queries>());
static_assert(wavekv::clusterer<clusterer_misspells_queries> &&
              !wavekv::detail::uses_queries<clusterer_misspells_queries>());

// --- summary -----------------------------------------------------------------------------------------
struct summary_score_not_const : wavekv_test::first_key {
  std::size_t score(const kept&, const wavekv::query_rows&, float*, std::size_t) { return 0; }
};
struct summary_score_returns_nothing : wavekv_test::first_key {
  void score(const kept&, const wavekv::query_rows&, float*, std::size_t) const {}
};
struct summary_keeps_other : wavekv_test::first_key {
  [[nodiscard]] int keep(const wavekv::cluster_rows&) const { return 0; }
};
struct summary_with_argument : wavekv_test::first_key {
  explicit summary_with_argument(int) {}
};
static_assert(wavekv::cluster_summary<wavekv::mean_summary>);
static_assert(wavekv::cluster_summary<wavekv_test::first_key>);
static_assert(!wavekv::cluster_summary<summary_score_not_const>);
static_assert(!wavekv::cluster_summary<summary_score_returns_nothing>);
static_assert(!wavekv::cluster_summary<summary_keeps_other>);
static_assert(!wavekv::cluster_summary<summary_with_argument>);
static_assert(!wavekv::cluster_summary<wavekv::exact>);
static_assert(!wavekv::detail::scores_clusters<wavekv::mean_summary> &&
              wavekv::detail::scores_clusters<wavekv_test::first_key>);

// --- estimation bound --------------------------------------------------------------------------------
struct bound_not_const {
  void plan(const wavekv::frontier&, zones_type) {}
};
struct bound_returns_zone {
  zone plan(const wavekv::frontier&, zones_type) const { return zone::retrieval; }
};
struct bound_misspelt {
  void planned(const wavekv::frontier&, zones_type) const {}
};
struct bound_not_copyable {
  std::unique_ptr<int> x;
  void plan(const wavekv::frontier&, zones_type) const {}
};
struct bound_takes_const_zones {
  void plan(const wavekv::frontier&, std::span<const zone>) const {}
};
static_assert(wavekv::estimation_bound<wavekv::exact>);
static_assert(wavekv::estimation_bound<wavekv::fixed_budget>);
static_assert(wavekv::estimation_bound<wavekv::error_bound<>>);
static_assert(wavekv::estimation_bound<wavekv::verified_bound<>>);
static_assert(wavekv::estimation_bound<wavekv_test::estimate_all>);
static_assert(wavekv::estimation_bound<bound_takes_const_zones>);  // odd, but it fits
static_assert(!wavekv::estimation_bound<bound_not_const>);
static_assert(!wavekv::estimation_bound<bound_returns_zone>);
static_assert(!wavekv::estimation_bound<bound_misspelt>);
static_assert(!wavekv::estimation_bound<bound_not_copyable>);
static_assert(!wavekv::estimation_bound<wavekv::spherical_kmeans<>>);

// optional members: found when they are there, the default when they are missing or misspelt
struct bound_with_options : wavekv_test::estimate_all {
  using ranking = wavekv::rank_by_sum;
  static constexpr bool reads_everything = true;
  static constexpr bool drops = true;
  float scaled_error(float predicted) const { return predicted + 1.0F; }
  bool meets(float) const { return false; }
  void validate() const { throw wavekv::config_error("never; allowed: nothing"); }
};
struct bound_misspells_options : wavekv_test::estimate_all {
  using rankings = wavekv::rank_by_sum;
  static constexpr bool read_everything = true;
  static constexpr bool drop = true;
  bool meet(float) const { return false; }
  void validated() const { throw wavekv::config_error("never; allowed: nothing"); }
};
template <class B>
using ranking_of = wavekv::detail::bound_ranking_t<B>;
static_assert(std::is_same_v<ranking_of<bound_with_options>, wavekv::rank_by_sum>);
static_assert(std::is_same_v<ranking_of<bound_misspells_options>, wavekv::rank_by_max>);
static_assert(std::is_same_v<ranking_of<wavekv::fixed_budget>, wavekv::rank_by_turns>);
static_assert(std::is_same_v<ranking_of<wavekv::error_bound<>>, wavekv::rank_by_max>);
static_assert(wavekv::detail::reads_everything<bound_with_options>());
static_assert(!wavekv::detail::reads_everything<bound_misspells_options>());
static_assert(wavekv::detail::reads_everything<wavekv::exact>());
static_assert(wavekv::detail::drops<bound_with_options>());
static_assert(!wavekv::detail::drops<bound_misspells_options>());
static_assert(wavekv::detail::drops<wavekv::fixed_budget>());
static_assert(!wavekv::detail::drops<wavekv::error_bound<>>());

// a verifying bound is one only when all of it is there
struct verifying : wavekv_test::estimate_all {
  std::size_t n_samples() const { return 8; }
  bool accepts(float) const { return true; }
  float confidence_deviations() const { return 1.0F; }
  verifying tightened() const { return *this; }
  int max_rounds() const { return 1; }
};
struct verifying_misspelt : wavekv_test::estimate_all {
  std::size_t n_samples() const { return 8; }
  bool accept(float) const { return true; }
  float confidence_deviations() const { return 1.0F; }
  verifying_misspelt tightened() const { return *this; }
  int max_rounds() const { return 1; }
};
struct tightens_to_another : verifying {};  // tightened() gives a `verifying`
static_assert(wavekv::verifying_bound<wavekv::verified_bound<>>);
static_assert(wavekv::verifying_bound<verifying>);
static_assert(!wavekv::verifying_bound<verifying_misspelt>);
static_assert(!wavekv::verifying_bound<tightens_to_another>);
static_assert(!wavekv::verifying_bound<wavekv::error_bound<>>);

// --- eviction, transfer, placement -------------------------------------------------------------------
struct eviction_may_throw : wavekv::eviction::lru {
  using lru::lru;
  void touch(std::size_t slot) { lru::touch(slot); }
};
struct eviction_victim_int : wavekv::eviction::lru {
  using lru::lru;
  int victim() noexcept { return 0; }
};
struct eviction_without_size : wavekv::eviction::lru {
  eviction_without_size() : lru(4) {}
};
struct eviction_without_erase {
  explicit eviction_without_erase(std::size_t) {}
  void insert(std::size_t) noexcept {}
  void touch(std::size_t) noexcept {}
  std::size_t victim() noexcept { return 0; }
};
static_assert(wavekv::eviction_policy<wavekv::eviction::lru>);
static_assert(wavekv::eviction_policy<wavekv::eviction::clock>);
static_assert(wavekv::eviction_policy<wavekv::eviction::sieve>);
static_assert(wavekv::eviction_policy<wavekv_test::first_in_first_out>);
static_assert(!wavekv::eviction_policy<eviction_may_throw>);
static_assert(!wavekv::eviction_policy<eviction_victim_int>);
static_assert(!wavekv::eviction_policy<eviction_without_size>);
static_assert(!wavekv::eviction_policy<eviction_without_erase>);

struct transfer_without_next {
  void start(const wavekv::slow_read& read, std::size_t) { read(); }
  std::exception_ptr failure() const noexcept { return nullptr; }
};
struct transfer_without_failure {
  void start(const wavekv::slow_read& read, std::size_t) { read(); }
  std::size_t next() { return 0; }
};
struct transfer_of_the_old_kind {
  template <class Fetch>
  void start(Fetch&& fetch) {
    fetch();
  }
  void wait() {}
};
struct transfer_takes_any_read : transfer_without_next {
  template <class Read>
  void start(Read&& read, std::size_t) {
    read();
  }
  std::size_t next() { return 0; }
};
struct transfer_next_int : wavekv::transfer::inline_read {
  int next() noexcept { return 0; }
};
struct transfer_failure_may_throw : wavekv::transfer::inline_read {
  std::exception_ptr failure() const { return nullptr; }
};
struct transfer_with_argument : wavekv::transfer::inline_read {
  explicit transfer_with_argument(int) {}
};
static_assert(wavekv::transfer_engine<wavekv::transfer::inline_read>);
static_assert(wavekv::transfer_engine<wavekv::transfer::threads>);
static_assert(wavekv::transfer_engine<wavekv::transfer::basic_threads<1>>);
static_assert(wavekv::transfer_engine<wavekv_test::overlapped_transfer>);
static_assert(wavekv::transfer_engine<wavekv_test::late_transfer>);
static_assert(wavekv::transfer_engine<transfer_takes_any_read>);
static_assert(!wavekv::transfer_engine<transfer_without_next>);
static_assert(!wavekv::transfer_engine<transfer_without_failure>);
static_assert(!wavekv::transfer_engine<transfer_of_the_old_kind>);
static_assert(!wavekv::transfer_engine<transfer_next_int>);
static_assert(!wavekv::transfer_engine<transfer_failure_may_throw>);
static_assert(!wavekv::transfer_engine<transfer_with_argument>);
static_assert(std::is_trivially_copyable_v<wavekv::slow_read>);

// Two tiers, and one of their members deleted, or declared otherwise.
struct placement_like : wavekv_test::two_tiers {
  template <class T, class E>
  using base = wavekv_test::two_tiers::tiers<T, E>;
};
struct placement_look_up_may_throw : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    using base<T, E>::base;
    typename base<T, E>::lease look_up(const typename base<T, E>::handle& rows,
                                       const wavekv::block& which) {
      return base<T, E>::look_up(rows, which);
    }
  };
};
struct placement_release_may_throw : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    using base<T, E>::base;
    void release(std::span<const typename base<T, E>::lease> leases) {
      base<T, E>::release(leases);
    }
  };
};
struct placement_lease_not_trivial : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    using base<T, E>::base;
    struct lease {
      std::shared_ptr<int> held;
      explicit operator bool() const noexcept { return held != nullptr; }
    };
    lease look_up(const typename base<T, E>::handle&, const wavekv::block&) noexcept { return {}; }
    void release(std::span<const lease>) noexcept {}
    template <class Run>
    void for_runs(const lease&, std::size_t, Run&&) const {}
  };
};
struct placement_keeps_without_blocks : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    using base<T, E>::base;
    typename base<T, E>::handle keep(wavekv::aligned_storage<T>) { return {}; }
  };
};
struct placement_handle_with_argument : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    using base<T, E>::base;
    struct handle : base<T, E>::handle {
      explicit handle(int) {}
    };
    handle keep(wavekv::aligned_storage<T>, std::span<const wavekv::block>) { return handle(0); }
  };
};
struct placement_without_holds : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    using base<T, E>::base;
    bool holds(const typename base<T, E>::handle&, const wavekv::block&) const = delete;
  };
};
struct placement_without_alignment : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    using base<T, E>::base;
    std::size_t alignment() const = delete;
  };
};
struct placement_fetches_at_once : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    using base<T, E>::base;
    void fetch(const typename base<T, E>::handle&, std::uint64_t, std::span<std::byte>) {}
  };
};
struct placement_without_check : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    using base<T, E>::base;
    void check(const typename base<T, E>::handle&, const wavekv::block&, const T*) const = delete;
  };
};
struct placement_admit_may_throw : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    using base<T, E>::base;
    void admit(const typename base<T, E>::handle&, const wavekv::block&, const T*) {}
  };
};
struct placement_without_constant {
  struct options_type {
    void validate() const {}
  };
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers {
    using handle = wavekv::aligned_storage<T>;
    struct lease {
      const T* rows = nullptr;
      explicit operator bool() const noexcept { return rows != nullptr; }
    };
    tiers(const options_type&, std::size_t, std::size_t) {}
    handle keep(wavekv::aligned_storage<T> rows, std::span<const wavekv::block>) { return rows; }
    lease look_up(const handle& rows, const wavekv::block&) const noexcept { return {rows.data()}; }
    template <class Run>
    void for_runs(const lease&, std::size_t, Run&&) const {}
    void release(std::span<const lease>) noexcept {}
    void copy(const handle&, std::size_t, std::span<T>) const {}
  };
};
// The same with the constant; where it is true, nothing is asked for that only a slow tier has.
template <bool AlwaysFast>
struct placement_without_slow_tier : placement_without_constant {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : placement_without_constant::tiers<T, E> {
    using placement_without_constant::tiers<T, E>::tiers;
    static constexpr bool always_fast = AlwaysFast;
  };
};
struct placement_without_options {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  using tiers = wavekv::placement::resident::tiers<T, E>;
};
struct placement_options_unchecked : placement_like {
  struct options_type : wavekv_test::two_tiers::options_type {
    void validate() const = delete;
  };
};
struct placement_made_from_nothing : placement_like {
  template <wavekv::scalar T, wavekv::eviction_policy E>
  struct tiers : base<T, E> {
    tiers() : base<T, E>({}, 1, 1) {}
  };
};
struct placement_tiers_no_template {
  struct options_type {
    void validate() const {}
  };
  struct tiers {};
};
static_assert(wavekv::placement_policy<wavekv::placement::resident>);
static_assert(wavekv::placement_policy<wavekv::placement::tiered>);
static_assert(wavekv::placement_policy<wavekv::placement::tiered_over<wavekv_test::failing_store>>);
static_assert(wavekv::placement_policy<wavekv_test::two_tiers>);
static_assert(wavekv::placement_policy<placement_without_slow_tier<true>>);
static_assert(!wavekv::placement_policy<placement_without_slow_tier<false>>);
static_assert(!wavekv::placement_policy<placement_look_up_may_throw>);
static_assert(!wavekv::placement_policy<placement_release_may_throw>);
static_assert(!wavekv::placement_policy<placement_lease_not_trivial>);
static_assert(!wavekv::placement_policy<placement_keeps_without_blocks>);
static_assert(!wavekv::placement_policy<placement_handle_with_argument>);
static_assert(!wavekv::placement_policy<placement_without_holds>);
static_assert(!wavekv::placement_policy<placement_without_alignment>);
static_assert(!wavekv::placement_policy<placement_fetches_at_once>);
static_assert(!wavekv::placement_policy<placement_without_check>);
static_assert(!wavekv::placement_policy<placement_admit_may_throw>);
static_assert(!wavekv::placement_policy<placement_without_constant>);
static_assert(!wavekv::placement_policy<placement_without_options>);
static_assert(!wavekv::placement_policy<placement_options_unchecked>);
static_assert(!wavekv::placement_policy<placement_made_from_nothing>);
static_assert(!wavekv::placement_policy<placement_tiers_no_template>);
static_assert(!wavekv::placement_policy<wavekv::eviction::lru>);

// flush is there where there are two tiers, and nowhere else; what can be asked of any cache is there for all.
template <class Cache>
concept has_slow_tier = requires(Cache& cache) { cache.flush(); };
template <class Cache>
concept has_statistics = requires(const Cache& cache) {
  { cache.stats() } -> std::same_as<wavekv::cache_statistics>;
  { cache.stats().tiers } -> std::convertible_to<wavekv::tier_statistics>;
};
template <class Placement>
using cache_with =
    wavekv::kv_cache<float, wavekv::wave_index<>, wavekv::wave_buffer<>::with_placement<Placement>>;
static_assert(has_slow_tier<cache_with<wavekv::placement::tiered>>);
static_assert(!has_slow_tier<cache_with<wavekv::placement::resident>>);
static_assert(has_statistics<cache_with<wavekv::placement::tiered>>);
static_assert(has_statistics<cache_with<wavekv::placement::resident>>);
static_assert(
    std::is_same_v<decltype(cache_with<wavekv::placement::tiered>::options_type::placement),
                   wavekv::placement::tiered::options_type>);

struct store_without_flush : wavekv::memory_store {
  using memory_store::memory_store;
  void flush() = delete;
};
struct store_region_misfit : wavekv::memory_store {
  using memory_store::memory_store;
  int write(std::span<const std::byte>) { return 0; }
};
struct store_alignment_constant : wavekv::memory_store {
  using memory_store::memory_store;
  static constexpr std::size_t alignment = 1;
};
struct store_alignment_may_throw : wavekv::memory_store {
  using memory_store::memory_store;
  std::size_t alignment() const { return 1; }
};
struct store_in_a_file : wavekv::memory_store {
  using memory_store::memory_store;
  wavekv::file_place in_file(const region&) const noexcept { return {}; }
};
static_assert(wavekv::block_store<wavekv::memory_store>);
static_assert(wavekv::block_store<wavekv::file_store>);
static_assert(wavekv::block_store<wavekv_test::failing_store>);
static_assert(!wavekv::block_store<store_without_flush>);
static_assert(!wavekv::block_store<store_region_misfit>);
static_assert(!wavekv::block_store<store_alignment_constant>);
static_assert(!wavekv::block_store<store_alignment_may_throw>);
static_assert(!wavekv::block_store<wavekv::placement::resident>);
static_assert(wavekv::file_backed<wavekv::file_store> && wavekv::file_backed<store_in_a_file>);
static_assert(!wavekv::file_backed<wavekv::memory_store>);
static_assert(wavekv::adopting_store<wavekv::file_store>);
static_assert(!wavekv::adopting_store<wavekv::memory_store>);

// --- executor ------------------------------------------------------------------------------------------
struct executor_not_movable : wavekv::serial_executor {
  executor_not_movable(const executor_not_movable&) = delete;
};
struct executor_concurrency_not_const {
  std::size_t concurrency() { return 1; }
  template <class F>
  void parallel_for(std::size_t, F&&) {}
};
struct executor_misspelt {
  std::size_t concurrency() const { return 1; }
  template <class F>
  void parallel_fro(std::size_t, F&&) {}
};
static_assert(wavekv::executor<wavekv::serial_executor>);
static_assert(wavekv::executor<wavekv::openmp_executor>);
static_assert(wavekv::executor<wavekv_test::thread_executor>);
static_assert(wavekv::executor<wavekv_test::backward_executor>);
static_assert(!wavekv::executor<executor_not_movable>);
static_assert(!wavekv::executor<executor_concurrency_not_const>);
static_assert(!wavekv::executor<executor_misspelt>);

// --- composition -----------------------------------------------------------------------------------------
using index_type = wavekv::wave_index<>;
static_assert(std::is_same_v<index_type::with_bound<wavekv::exact>::bound_type, wavekv::exact>);
static_assert(std::is_same_v<index_type::with_bound<wavekv::exact>::clusterer_type,
                             index_type::clusterer_type>);
static_assert(
    std::is_same_v<
        index_type::with_segment_size<own_sizes>::with_cluster_count<own_count>::with_clusterer<
            wavekv_test::one_cluster>::with_bound<wavekv::fixed_budget>,
        wavekv::wave_index<own_sizes, own_count, wavekv_test::one_cluster, wavekv::fixed_budget>>);
static_assert(std::is_same_v<index_type::with_summary<wavekv_test::first_key>::with_cluster_count<
                                 own_count>::summary_type,
                             wavekv_test::first_key>);
static_assert(std::is_same_v<index_type::summary_type, wavekv::mean_summary>);
static_assert(std::is_same_v<wavekv::cpu<>::with_executor<wavekv::serial_executor>,
                             wavekv::cpu<wavekv::serial_executor>>);
static_assert(std::is_same_v<wavekv::kv_cache<>::scalar_type, wavekv::bf16>);
static_assert(std::is_same_v<wavekv::kv_cache<>::buffer_type, wavekv::wave_buffer<>>);
static_assert(!std::is_copy_constructible_v<wavekv::kv_cache<>> &&
              !std::is_move_constructible_v<wavekv::kv_cache<>>);

static_assert(std::is_same_v<wavekv::paper_defaults::bound_type, wavekv::fixed_budget>);
static_assert(wavekv::paper_defaults::cluster_count_type::n_levels == 1);

// stateless policies cost no bytes and are regular
template <class... Policies>
constexpr bool all_empty = (std::is_empty_v<Policies> && ...);
static_assert(all_empty<wavekv::exact, wavekv::spherical_kmeans<>, wavekv::query_metric_kmeans<>,
                        wavekv::segment_size<>, wavekv::tokens_per_cluster<>,
                        wavekv::placement::resident, wavekv::serial_executor>);
static_assert(std::is_trivially_copyable_v<wavekv::error_bound<>> &&
              std::is_trivially_copyable_v<wavekv::verified_bound<>> &&
              std::is_trivially_copyable_v<wavekv::fixed_budget>);

// --- views ---------------------------------------------------------------------------------------------
struct device_space {};
template <class T>
using view = wavekv::tensor_view<T, 3>;
static_assert(std::is_convertible_v<view<float>, view<const float>>);
static_assert(!std::is_convertible_v<view<const float>, view<float>>);
static_assert(!std::is_convertible_v<view<float>, view<wavekv::bf16>>);
static_assert(
    !std::is_convertible_v<wavekv::tensor_view<float, 3, device_space>, view<const float>>);
static_assert(std::is_trivially_copyable_v<view<float>>);

}  // namespace slots

using namespace slots;

TEST_CASE("validate, scaled_error and meets are called where a bound has them") {
  CHECK_THROWS_AS(wavekv::detail::validate_bound(bound_with_options{}), wavekv::config_error);
  wavekv::detail::validate_bound(bound_misspells_options{});
  CHECK_FALSE(wavekv::detail::meets(bound_with_options{}, 0.0F));
  CHECK(wavekv::detail::meets(bound_misspells_options{}, 0.0F));
  CHECK(wavekv::detail::scaled_error(bound_with_options{}, 0.5F) == 1.5F);
  CHECK(wavekv::detail::scaled_error(bound_misspells_options{}, 0.5F) == 0.5F);
}
