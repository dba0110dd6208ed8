// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <wavekv/cache/attend_pass.hpp>
#include <wavekv/cache/layer_writer.hpp>
#include <wavekv/index/bounds/error_bound.hpp>
#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/search_runner.cuh>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/wave_index.hpp>

#include "archetypes/bounds.hpp"
#include "archetypes/executors.hpp"
#include "cuda/emulated_runtime.hpp"
#include "cuda/uploaded_layer.hpp"
#include "support/model.hpp"
#include "support/rows.hpp"

/// @file twin_layers.hpp
/// @brief One layer that the CPU has sealed, on the CPU and on the emulated device, and searches in both.

namespace wavekv_test {

/// @brief What a layer holds.
struct layer_contents {
  std::size_t n_tokens = 0;
  key_family family = key_family::clustered;
  bool all_in_sink = false;  ///< nothing else: no tail, no segments
};

/// @brief The zones of one search's nodes, per level, those of the finest first; in the order of nodes.
using search_zones = std::vector<std::vector<wavekv::zone>>;

/// @brief What an attend on the CPU gave.
struct cpu_attend {
  outputs result;
  wavekv::step_stats stats;
  std::vector<search_zones> zones;  ///< of each search; where they were recorded
};

/// @brief What one on the device gave.
struct device_attend {
  outputs result;
  wavekv::device::step_counts counts{};
  std::vector<search_zones> zones;
};

/// @brief How an attend on the device is asked for.
struct device_options {
  unsigned n_splits = 2;
  std::uint64_t seed = 0;
  std::uint32_t sequence = 0;
  wavekv::device::search_room room{};  ///< where not 0: instead of what is needed
};

/// @brief One layer of one sequence on both sides, and its tokens for an oracle.
/// @tparam S  storage scalar
template <class S>
class twin_layers {
 public:
  template <class ClusterCount>
  using index = wavekv::wave_index<wavekv::segment_size<512, 128>, ClusterCount,
                                   wavekv::query_metric_kmeans<3>, wavekv::error_bound<>>;
  template <class ClusterCount>
  using writer = wavekv::layer_writer<S, index<ClusterCount>, wavekv::wave_buffer<>, any_executor>;
  using any_writer = writer<wavekv::tokens_per_cluster<8>>;
  using layer_type = typename any_writer::layer_type;
  using reader_type = typename any_writer::reader_type;
  using pass = wavekv::attend_pass<S, wavekv::wave_buffer<>, typename any_writer::segment_type>;
  using runtime_type = wavekv::testing::emulated_runtime;

  /// @brief Most queries of a sequence.
  static constexpr std::size_t window = 16;

  /// @param counts  a value of the cluster_count, for its type
  template <class ClusterCount>
  twin_layers(ClusterCount counts, const wavekv::geometry& sizes, const layer_contents& what,
              std::uint64_t seed, const runtime_type& runtime)
      : sizes_(sizes), reader_({}, sizes.key_dim, sizes.value_dim), runtime_(runtime) {
    fill(counts, what, seed);
    shape_.n_kv_heads = static_cast<unsigned>(sizes.n_kv_heads);
    shape_.group_size = static_cast<unsigned>(sizes.group_size());
    shape_.key_dim = static_cast<unsigned>(sizes.key_dim);
    shape_.value_dim = static_cast<unsigned>(sizes.value_dim);
    shape_.n_levels = ClusterCount::n_levels;
    shape_.softcap = sizes.logit_softcap;
    auto uploaded =
        std::make_shared<uploaded_layer<S, ClusterCount, runtime_type>>(runtime_, shape_, state_);
    view_ = uploaded->view();
    measure_room(uploaded->n_top_runs());
    uploaded_ = std::move(uploaded);
  }

  [[nodiscard]] const naive_layer& tokens() const { return tokens_; }
  [[nodiscard]] const wavekv::device::layer_view<S>* view() const { return view_; }
  [[nodiscard]] const wavekv::device::model_shape& shape() const { return shape_; }
  /// @brief What searches of one query need.
  [[nodiscard]] const wavekv::device::search_room& room() const { return room_; }
  /// @brief Tokens of the steady zone that the newest query sees.
  [[nodiscard]] std::size_t n_steady() const { return state_.sink.size() + state_.tail.size(); }
  /// @brief Most queries that an attend may have.
  [[nodiscard]] std::size_t most_queries() const {
    return std::clamp<std::size_t>(state_.segments.empty() ? state_.length() : state_.tail.size(),
                                   1, window);
  }

  /// @brief The CPU's answer.
  /// @param queries  [n, n_query_heads, key_dim]
  template <class Bound>
  cpu_attend attend_on_cpu(const std::vector<float>& queries, const Bound& bound,
                           const device_options& options = {}) {
    cpu_attend done{outputs(sizes_, n_of(queries)), {}, {}};
    if constexpr (wavekv::verifying_bound<Bound> || wavekv::detail::reads_everything<Bound>()) {
      done.stats = run_on_cpu(queries, bound, options, done.result);
    } else {
      std::vector<plan_record> log;
      recording<Bound> recorded{bound, &log};
      done.stats = run_on_cpu(queries, recorded, options, done.result);
      for (const plan_record& record : log) {
        if (record.level + 1 == shape_.n_levels) done.zones.emplace_back(shape_.n_levels);
        done.zones.back()[record.level] = record.zones;
      }
    }
    return done;
  }

  /// @brief The device's.
  template <class Bound>
  device_attend attend_on_device(const std::vector<float>& queries, const Bound& bound,
                                 const device_options& options = {}) {
    const auto n = static_cast<std::uint32_t>(n_of(queries));
    const wavekv::device::query_run_view<S> run{view_, n, options.sequence};
    return run_searches(runtime_, sizes_, shape_, std::span(&run, 1),
                        options.room.n_token_runs != 0 ? options.room : room_, queries, bound,
                        options);
  }

  /// @brief A launch of any batch, into poisoned memory of exactly the size that it needs.
  template <class Bound>
  static device_attend run_searches(runtime_type runtime, const wavekv::geometry& sizes,
                                    const wavekv::device::model_shape& shape,
                                    std::span<const wavekv::device::query_run_view<S>> runs,
                                    wavekv::device::search_room room,
                                    const std::vector<float>& queries, const Bound& bound,
                                    const device_options& options) {
    namespace device = wavekv::device;
    const std::size_t n = queries.size() / (sizes.n_query_heads * sizes.key_dim);
    device_attend done{outputs(sizes, n), {}, {}};
    room.n_queries = static_cast<unsigned>(n);
    room.n_splits = options.n_splits;
    device::device_arena count(nullptr);
    (void)device::lay_out_searches<S>(count, shape, room);
    memory_of memory{runtime, {}};
    device::device_arena arena(memory.template take<std::byte>(count.used()));
    device::search_space<S> space = device::lay_out_searches<S>(arena, shape, room);
    runtime.fill(space.counters, 0, space.n_searches * sizeof(unsigned), {});
    space.report = memory.template take<device::step_counts>(1);
    runtime.fill(space.report, 0, sizeof(device::step_counts), {});
    auto* const on_device = memory.template take<float>(queries.size());
    runtime.copy_in(on_device, queries.data(), queries.size() * sizeof(float), {});
    auto* const out = memory.template take<float>(done.result.out.size());
    auto* const lse = memory.template take<float>(done.result.lse.size());
    device::search_batch<S> batch;
    batch.runs = runs;
    batch.queries = {on_device, device::element_kind::float32, sizes.n_query_heads * sizes.key_dim,
                     sizes.key_dim};
    batch.scale = sizes.logit_scale();
    batch.answer.out = {out, device::element_kind::float32, sizes.n_query_heads * sizes.value_dim,
                        sizes.value_dim};
    batch.answer.lse = lse;
    batch.answer.lse_strides[0] = sizes.n_query_heads;
    batch.answer.lse_strides[1] = 1;
    batch.seed = options.seed;
    device::launch_searches(runtime, space, batch, bound, {});
    copy_out(runtime, done.result.out, out);
    copy_out(runtime, done.result.lse, lse);
    runtime.copy_out(&done.counts, space.report, sizeof(done.counts), {});
    if constexpr (!wavekv::detail::reads_everything<Bound>()) read_zones(runtime, space, done);
    return done;
  }

 private:
  struct memory_of {
    template <class Element>
    Element* take(std::size_t n) {
      const std::size_t bytes = std::max<std::size_t>(n, 1) * sizeof(Element);
      taken.emplace_back(runtime.allocate(bytes, {}), bytes);
      return static_cast<Element*>(taken.back().first);
    }
    ~memory_of() {
      for (const auto& [p, bytes] : taken) runtime.deallocate(p, bytes, {});
    }
    runtime_type runtime;
    std::vector<std::pair<void*, std::size_t>> taken;
  };

  template <class Element>
  static void copy_out(runtime_type& runtime, std::vector<Element>& to, const Element* from) {
    runtime.copy_out(to.data(), from, to.size() * sizeof(Element), {});
  }

  // The zones of nodes, without the empty columns between them.
  static void read_zones(runtime_type& runtime, const wavekv::device::search_space<S>& space,
                         device_attend& done) {
    std::vector<wavekv::device::search_state> states(space.n_searches);
    copy_out(runtime, states, space.states);
    done.zones.assign(space.n_searches, search_zones(space.shape.n_levels));
    for (unsigned level = 0; level < space.shape.n_levels; ++level) {
      const auto& of_level = space.levels[level];
      std::vector<float> sizes(std::size_t{space.n_searches} * of_level.n_columns);
      std::vector<wavekv::zone> zones(sizes.size());
      copy_out(runtime, sizes, of_level.sizes);
      copy_out(runtime, zones, of_level.zones);
      for (unsigned search = 0; search < space.n_searches; ++search) {
        const std::size_t first = std::size_t{search} * of_level.n_columns;
        for (unsigned i = 0; i < states[search].n_runs[level] * wavekv::device::run_rows; ++i) {
          if (sizes[first + i] > 0.0F) done.zones[search][level].push_back(zones[first + i]);
        }
      }
    }
  }

  [[nodiscard]] std::size_t n_of(const std::vector<float>& queries) const {
    return queries.size() / (sizes_.n_query_heads * sizes_.key_dim);
  }

  template <class ClusterCount>
  void fill(ClusterCount /*counts*/, const layer_contents& what, std::uint64_t seed) {
    random_engine random(seed);
    const std::size_t n = what.n_tokens;
    state_.sink = state_.tail =
        wavekv::token_rows<S>(sizes_.n_kv_heads, sizes_.key_dim, sizes_.value_dim);
    state_.metrics.assign(sizes_.n_kv_heads, wavekv::query_metric(sizes_.key_dim));
    const auto keys = make_keys(random, what.family, n, sizes_.n_kv_heads, sizes_.key_dim);
    const auto values = normal_rows(random, n * sizes_.n_kv_heads * sizes_.value_dim);
    const auto queries = normal_rows(random, n * sizes_.n_query_heads * sizes_.key_dim);
    if (n != 0) {
      wavekv::detail::stage_rows(
          what.all_in_sink ? state_.sink : state_.tail,
          wavekv::nhd(keys.data(), n, sizes_.n_kv_heads, sizes_.key_dim),
          wavekv::nhd(values.data(), n, sizes_.n_kv_heads, sizes_.value_dim));
    }
    if (what.all_in_sink) state_.sink.commit(n);
    if (n != 0 && !what.all_in_sink) {
      writer<ClusterCount> seals(sizes_, 4, window, executor_, reader_);
      seals.commit(state_, 0, n, false,
                   wavekv::nhd(queries.data(), n, sizes_.n_query_heads, sizes_.key_dim));
      for (auto& prepared : seals.prepare_rest(state_)) {
        writer<ClusterCount>::commit_seal(state_, 0, prepared);
      }
    }
    append_naively<S>(tokens_, keys, values);
  }

  // Room for plans that open everything, and not for a run more.
  void measure_room(std::uint32_t n_top_runs) {
    constexpr std::size_t run = wavekv::device::run_rows;
    std::size_t n_runs[wavekv::max_tree_levels] = {};  // of each level's children
    for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
      for (std::size_t level = 0; level < shape_.n_levels; ++level) {
        std::size_t n = 0;
        for (const auto& segment : state_.segments) {
          const auto& nodes = segment->head(head).levels[level];
          for (std::uint32_t i = 0; i < nodes.n_nodes; ++i)
            n += (nodes.first_child[i + 1] - nodes.first_child[i] + run - 1) / run;
        }
        n_runs[level] = std::max(n_runs[level], n);
      }
    }
    for (unsigned level = 0; level + 1 < shape_.n_levels; ++level)
      room_.n_columns[level] = static_cast<std::uint32_t>(n_runs[level + 1] * run);
    room_.n_columns[shape_.n_levels - 1] = n_top_runs * static_cast<std::uint32_t>(run);
    room_.n_token_runs = static_cast<std::uint32_t>(std::max<std::size_t>(n_runs[0], 1));
  }

  template <class Bound>
  wavekv::step_stats run_on_cpu(const std::vector<float>& queries, const Bound& bound,
                                const device_options& options, outputs& result) {
    const std::size_t n = n_of(queries);
    pass cpu;
    const typename pass::settings fixed{sizes_, 0, window, options.seed};
    cpu.begin(fixed, wavekv::nhd(queries.data(), n, sizes_.n_query_heads, sizes_.key_dim));
    wavekv::query_run run{{}, n};
    run.sequence.slot = options.sequence;
    cpu.add(fixed, run, state_);
    return cpu.run(
        bound, reader_, executor_, [&](std::size_t query, std::size_t head, const auto& merged) {
          for (std::size_t g = 0; g < merged.n_queries; ++g) {
            const std::size_t row = query * sizes_.n_query_heads + head * sizes_.group_size() + g;
            result.lse[row] = wavekv::log_sum_exp(merged, g);
            wavekv::finish(merged.part(g, 1), result.out.data() + row * sizes_.value_dim,
                           sizes_.value_dim);
          }
        });
  }

  wavekv::geometry sizes_;
  any_executor executor_;
  reader_type reader_;
  layer_type state_;
  naive_layer tokens_;
  wavekv::device::model_shape shape_;
  runtime_type runtime_;
  std::shared_ptr<void> uploaded_;
  const wavekv::device::layer_view<S>* view_ = nullptr;
  wavekv::device::search_room room_;
};

/// @brief How far a row of outputs may be from what float arithmetic gives, for values at most one unit long.
///
/// Queries, and the weights of values, are two 16-bit halves: what is left out is 2^-17 (bf16) or 2^-22 (f16) of an element,
/// rows themselves are exact (floats as three terms of bf16). So a logit errs by at most that part of ‖q‖·‖k‖, a weight's
/// share by twice as much, and sums in float add some 2^-21 of a logit.
/// @param longest  the largest scale · ‖q‖ · ‖k‖
template <class S>
double rounding(double longest) {
  const double halves = std::is_same_v<S, wavekv::f16> ? 0x1p-20 : 0x1p-16;
  return halves * (1.0 + longest);
}

/// @brief The largest scale · ‖query‖ · ‖key‖ of a layer.
inline double longest_logit(const wavekv::geometry& sizes, const naive_layer& tokens,
                            std::span<const float> queries) {
  const auto longest = [&](std::span<const float> rows) {
    double most = 0.0;
    for (std::size_t first = 0; first < rows.size(); first += sizes.key_dim) {
      double squared = 0.0;
      for (const float x : rows.subspan(first, sizes.key_dim))
        squared += static_cast<double>(x) * static_cast<double>(x);
      most = std::max(most, squared);
    }
    return std::sqrt(most);
  };
  return static_cast<double>(sizes.logit_scale()) * longest(queries) * longest(tokens.keys);
}

/// @brief The longest value of a layer.
inline double longest_value(const wavekv::geometry& sizes, const naive_layer& tokens) {
  double most = 0.0;
  for (std::size_t first = 0; first < tokens.values.size(); first += sizes.value_dim) {
    double squared = 0.0;
    for (std::size_t i = 0; i < sizes.value_dim; ++i) {
      const auto x = static_cast<double>(tokens.values[first + i]);
      squared += x * x;
    }
    most = std::max(most, squared);
  }
  return std::sqrt(most);
}

/// @brief The largest distance of two arrays' rows of `dim`; infinity where a number is none.
template <class A, class B>
double largest_distance(std::span<const A> a, std::span<const B> b, std::size_t dim) {
  double most = 0.0;
  for (std::size_t first = 0; first < a.size(); first += dim) {
    double squared = 0.0;
    for (std::size_t i = first; i < first + dim; ++i) {
      if (a[i] == static_cast<A>(b[i])) continue;  // infinities, too
      const double delta = static_cast<double>(a[i]) - static_cast<double>(b[i]);
      squared += delta * delta;
    }
    if (!(std::sqrt(squared) <= most)) most = std::isnan(squared) ? HUGE_VAL : std::sqrt(squared);
  }
  return most;
}

/// @brief Part of the nodes whose zones differ; 1 where there are not as many.
inline double different_zones(const std::vector<search_zones>& a,
                              const std::vector<search_zones>& b) {
  std::size_t n = 0;
  std::size_t n_different = 0;
  for (std::size_t search = 0; search < a.size() && search < b.size(); ++search) {
    for (std::size_t level = 0; level < a[search].size(); ++level) {
      const auto& one = a[search][level];
      const auto& other = b[search][level];
      n += one.size();
      if (one.size() != other.size()) {
        n_different += one.size();
        continue;
      }
      for (std::size_t i = 0; i < one.size(); ++i) n_different += one[i] != other[i] ? 1 : 0;
    }
  }
  return n == 0 ? 0.0 : static_cast<double>(n_different) / static_cast<double>(n);
}

}  // namespace wavekv_test
