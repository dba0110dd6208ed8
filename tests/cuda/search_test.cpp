// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cache/attend_pass.hpp>
#include <wavekv/cache/layer_writer.hpp>
#include <wavekv/index/bounds/error_bound.cuh>
#include <wavekv/index/bounds/exact.hpp>
#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/search_runner.cuh>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/wave_index.hpp>

#include "archetypes/executors.hpp"
#include "cuda/emulated_runtime.hpp"
#include "cuda/uploaded_layer.hpp"
#include "support/model.hpp"
#include "support/rows.hpp"

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::geometry;
using wavekv::testing::emulated_runtime;
using wavekv::testing::emulation_options;
using wavekv::testing::schedule;
namespace device = wavekv::device;

namespace {

// One layer of one sequence, sealed by the CPU, on both.
template <class S, class ClusterCount>
class twin_layers {
 public:
  using index = wavekv::wave_index<wavekv::segment_size<512, 128>, ClusterCount,
                                   wavekv::query_metric_kmeans<3>, wavekv::error_bound<>>;
  using writer = wavekv::layer_writer<S, index, wavekv::wave_buffer<>, any_executor>;
  using layer = typename writer::layer_type;
  using pass = wavekv::attend_pass<S, wavekv::wave_buffer<>, typename writer::segment_type>;

  twin_layers(const geometry& sizes, std::size_t n_tokens, key_family family, std::uint64_t seed,
              emulation_options options)
      : sizes_(sizes),
        reader_({}, sizes.key_dim, sizes.value_dim),
        writer_(sizes_, 4, 16, executor_, reader_),
        runtime_(options) {
    random_engine random(seed);
    state_.sink = state_.tail =
        wavekv::token_rows<S>(sizes.n_kv_heads, sizes.key_dim, sizes.value_dim);
    state_.metrics.assign(sizes.n_kv_heads, wavekv::query_metric(sizes.key_dim));
    const auto keys = make_keys(random, family, n_tokens, sizes.n_kv_heads, sizes.key_dim);
    const auto values = normal_rows(random, n_tokens * sizes.n_kv_heads * sizes.value_dim);
    const auto queries = normal_rows(random, n_tokens * sizes.n_query_heads * sizes.key_dim);
    wavekv::detail::stage_rows(
        state_.tail, wavekv::nhd(keys.data(), n_tokens, sizes.n_kv_heads, sizes.key_dim),
        wavekv::nhd(values.data(), n_tokens, sizes.n_kv_heads, sizes.value_dim));
    writer_.commit(state_, 0, n_tokens, false,
                   wavekv::nhd(queries.data(), n_tokens, sizes.n_query_heads, sizes.key_dim));
    for (auto& prepared : writer_.prepare_rest(state_)) writer::commit_seal(state_, 0, prepared);
    append_naively<S>(tokens_, keys, values);
    shape_.n_kv_heads = static_cast<unsigned>(sizes.n_kv_heads);
    shape_.group_size = static_cast<unsigned>(sizes.group_size());
    shape_.key_dim = static_cast<unsigned>(sizes.key_dim);
    shape_.value_dim = static_cast<unsigned>(sizes.value_dim);
    shape_.n_levels = ClusterCount::n_levels;
    shape_.softcap = sizes.logit_softcap;
  }

  const naive_layer& tokens() const { return tokens_; }
  const layer& state() const { return state_; }

  template <class Bound>
  std::pair<outputs, wavekv::step_stats> attend_on_cpu(const std::vector<float>& queries,
                                                       const Bound& bound) {
    const std::size_t n = queries.size() / (sizes_.n_query_heads * sizes_.key_dim);
    outputs result(sizes_, n);
    pass cpu;
    const typename pass::settings fixed{sizes_, 0, 16, 0};
    cpu.begin(fixed, wavekv::nhd(queries.data(), n, sizes_.n_query_heads, sizes_.key_dim));
    cpu.add(fixed, {{}, n}, state_);
    const auto stats = cpu.run(bound, reader_, executor_, [&](std::size_t query, std::size_t head,
                                                              const auto& merged) {
      for (std::size_t g = 0; g < merged.n_queries; ++g) {
        const std::size_t row = query * sizes_.n_query_heads + head * sizes_.group_size() + g;
        result.lse[row] = wavekv::log_sum_exp(merged, g);
        wavekv::finish(merged.part(g, 1), result.out.data() + row * sizes_.value_dim,
                       sizes_.value_dim);
      }
    });
    return {std::move(result), stats};
  }

  template <class Bound>
  std::pair<outputs, device::step_counts> attend_on_device(const std::vector<float>& queries,
                                                           const Bound& bound,
                                                           unsigned n_splits) {
    const std::size_t n = queries.size() / (sizes_.n_query_heads * sizes_.key_dim);
    uploaded_layer<S, ClusterCount, emulated_runtime> layer(runtime_, shape_, state_);
    outputs result(sizes_, n);
    device::search_room room;
    room.n_queries = static_cast<unsigned>(n);
    room.n_splits = n_splits;
    for (unsigned l = 0; l < shape_.n_levels; ++l) {
      // Runs of opened families are not all full.
      room.n_columns[l] = (device::most_nodes<ClusterCount>(length(), l) + length() / 16 + 8) /
                          8 * 8 * (l + 1 == shape_.n_levels ? 1 : 2);
    }
    room.n_columns[shape_.n_levels - 1] = layer.n_top_runs() * 8;
    room.n_token_runs = static_cast<unsigned>(length());
    device::device_arena count(nullptr);
    (void)device::lay_out_searches<S>(count, shape_, room);
    const std::size_t bytes = count.used();
    void* const memory = runtime_.allocate(bytes, {});
    device::device_arena arena(memory);
    device::search_space<S> space = device::lay_out_searches<S>(arena, shape_, room);
    runtime_.fill(space.counters, 0, space.n_searches * sizeof(unsigned), {});
    auto* const report =
        static_cast<device::step_counts*>(runtime_.allocate(sizeof(device::step_counts), {}));
    runtime_.fill(report, 0, sizeof(device::step_counts), {});
    space.report = report;
    auto* const on_device =
        static_cast<float*>(runtime_.allocate(queries.size() * sizeof(float), {}));
    runtime_.copy_in(on_device, queries.data(), queries.size() * sizeof(float), {});
    auto* const out =
        static_cast<float*>(runtime_.allocate(result.out.size() * sizeof(float), {}));
    auto* const lse =
        static_cast<float*>(runtime_.allocate(result.lse.size() * sizeof(float), {}));
    const device::query_run_view<S> run{layer.view(), static_cast<std::uint32_t>(n), 0};
    device::search_batch<S> batch;
    batch.runs = std::span(&run, 1);
    batch.queries = {on_device, device::element_kind::float32,
                     sizes_.n_query_heads * sizes_.key_dim, sizes_.key_dim};
    batch.scale = sizes_.logit_scale();
    batch.answer.out = {out, device::element_kind::float32,
                        sizes_.n_query_heads * sizes_.value_dim, sizes_.value_dim};
    batch.answer.lse = lse;
    batch.answer.lse_strides[0] = sizes_.n_query_heads;
    batch.answer.lse_strides[1] = 1;
    device::launch_searches(runtime_, space, batch, bound, {});
    device::step_counts counts;
    runtime_.copy_out(result.out.data(), out, result.out.size() * sizeof(float), {});
    runtime_.copy_out(result.lse.data(), lse, result.lse.size() * sizeof(float), {});
    runtime_.copy_out(&counts, report, sizeof(counts), {});
    runtime_.deallocate(memory, bytes, {});
    runtime_.deallocate(report, sizeof(device::step_counts), {});
    runtime_.deallocate(on_device, queries.size() * sizeof(float), {});
    runtime_.deallocate(out, result.out.size() * sizeof(float), {});
    runtime_.deallocate(lse, result.lse.size() * sizeof(float), {});
    return {std::move(result), counts};
  }

 private:
  std::size_t length() const { return state_.length(); }

  geometry sizes_;
  any_executor executor_;
  typename writer::reader_type reader_;
  writer writer_;
  layer state_;
  naive_layer tokens_;
  device::model_shape shape_;
  emulated_runtime runtime_;
};

double relative_difference(std::span<const float> a, std::span<const float> b) {
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
    norm += double{b[i]} * double{b[i]};
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

constexpr schedule all_schedules[] = {schedule::forwards, schedule::backwards, schedule::random};

template <class S, class ClusterCount>
void compare(const geometry& sizes, std::size_t n_tokens, key_family family) {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  CAPTURE(n_tokens);
  CAPTURE(name_of(family));
  for (const schedule order : all_schedules) {
    emulation_options options;
    options.order = order;
    options.seed = seed;
    twin_layers<S, ClusterCount> layers(sizes, n_tokens, family, seed, options);
    random_engine random(seed + 1);
    const auto queries = normal_rows(random, 2 * sizes.n_query_heads * sizes.key_dim, 2.0F);
    const reference_attention truth = attend_naively(sizes, 0, layers.tokens(), queries);
    const auto [exact, exact_counts] = layers.attend_on_device(queries, wavekv::exact{}, 3);
    double worst = 0.0;
    for (std::size_t i = 0; i < exact.out.size(); ++i)
      worst = std::max(worst, std::abs(double{exact.out[i]} - truth.out[i]));
    MESSAGE("exact against double: " << worst);
    CHECK(worst < 1e-4);
    CHECK(exact_counts.faults == 0);
    CHECK(exact_counts.tokens_read == exact_counts.tokens_held);
    wavekv::error_bound<> bound;
    bound.free_tokens = 16;
    bound.max_read = 0.05F;
    const auto [cpu, cpu_stats] = layers.attend_on_cpu(queries, bound);
    const auto [gpu, counts] = layers.attend_on_device(queries, bound, 2);
    MESSAGE("bound: cpu against device " << relative_difference(gpu.out, cpu.out) << ", read "
                                         << counts.tokens_read << " cpu "
                                         << cpu_stats.tokens_read << " of " << counts.tokens_held);
    CHECK(relative_difference(gpu.out, cpu.out) < 1e-4);
    CHECK(counts.tokens_read == cpu_stats.tokens_read);
    CHECK(counts.clusters_read == cpu_stats.clusters_read);
    CHECK(counts.summaries_read == cpu_stats.summaries_read);
    CHECK(counts.clusters_estimated == cpu_stats.clusters_estimated);
    CHECK(std::bit_cast<float>(counts.predicted_error) ==
          doctest::Approx(cpu_stats.predicted_error).epsilon(1e-3));
    CHECK(counts.faults == 0);
  }
}

}  // namespace

TEST_CASE("a search on the device answers as on the CPU") {
  const geometry sizes{.n_layers = 1, .n_query_heads = 8, .n_kv_heads = 2, .key_dim = 64, .value_dim = 64};
  compare<bf16, wavekv::tokens_per_cluster<8, 64>>(sizes, 1100, key_family::clustered);
}
