// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include <wavekv/index/cluster_tree_builder.hpp>
#include <wavekv/index/query_metric.hpp>
#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/spherical_kmeans.hpp>

// Clustering of one KV head of one segment, one thread. `flops` counts the multiply-adds that a plain
// assignment makes (2 · tokens · clusters · dim · iterations), whatever shortcut is taken.

namespace {

constexpr std::size_t n_tokens = 8192;
constexpr std::size_t dim = 128;

std::vector<float> normal_rows(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(n * dim);
  for (float& element : rows) {
    element = normal(random);
  }
  return rows;
}

/// 400 centers, noise of half their deviation, and an offset common to all: nearer to what a model makes.
std::vector<float> clustered_rows(std::uint32_t seed) {
  std::vector<float> rows = normal_rows(n_tokens, seed);
  const std::vector<float> centers = normal_rows(400, seed + 1);
  std::mt19937 random(seed + 2);
  for (std::size_t t = 0; t < n_tokens; ++t) {
    const std::size_t center = random() % 400;
    for (std::size_t i = 0; i < dim; ++i) {
      float& element = rows[t * dim + i];
      element = 0.5F * element + centers[center * dim + i] + (i % 16 == 0 ? 3.0F : 0.0F);
    }
  }
  return rows;
}

struct segment_data {
  std::vector<float> keys;
  std::vector<float> values = normal_rows(n_tokens, 7);
  std::vector<float> queries = normal_rows(4096, 8);
  wavekv::query_metric metric{dim};
  wavekv::cluster_request request;

  explicit segment_data(bool clustered)
      : keys(clustered ? clustered_rows(1) : normal_rows(n_tokens, 1)) {
    for (std::size_t i = 0; i < queries.size(); ++i) {
      queries[i] /= std::sqrt(static_cast<float>(1 + i % dim));
    }
    metric.add(wavekv::nhd<const float>(queries.data(), 1024, 4, dim));
    request = {keys.data(), dim, values.data(), dim, n_tokens, 512, &metric};
  }
};

double mean_cosine(const segment_data& data, const std::vector<std::uint32_t>& assignment,
                   std::size_t n_clusters) {
  std::vector<double> sums(n_clusters * dim);
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t i = 0; i < dim; ++i) {
      sums[assignment[t] * dim + i] += static_cast<double>(data.keys[t * dim + i]);
    }
  }
  double total = 0;
  for (std::size_t t = 0; t < n_tokens; ++t) {
    double product = 0;
    double key_square = 0;
    double sum_square = 0;
    for (std::size_t i = 0; i < dim; ++i) {
      const auto key = static_cast<double>(data.keys[t * dim + i]);
      const double sum = sums[assignment[t] * dim + i];
      product += key * sum;
      key_square += key * key;
      sum_square += sum * sum;
    }
    total += product / std::sqrt(key_square * sum_square);
  }
  return total / static_cast<double>(n_tokens);
}

template <class Clusterer, std::size_t ClusteredDim>
void cluster_segment(benchmark::State& state) {
  const segment_data data(state.range(0) != 0);
  wavekv::clustering_scratch scratch;
  std::vector<std::uint32_t> assignment(n_tokens);
  std::size_t n_clusters = 0;
  for (auto _ : state) {
    n_clusters = Clusterer{}.cluster(data.request, assignment, scratch);
  }
  state.counters["mean_cosine"] = mean_cosine(data, assignment, n_clusters);
  state.counters["flops"] =
      benchmark::Counter(2.0 * n_tokens * 512 * ClusteredDim * Clusterer::n_iterations *
                             static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
}

template <class Nearest>
void assignment_only(benchmark::State& state) {
  const segment_data data(state.range(0) != 0);
  wavekv::clustering_scratch scratch;
  std::vector<std::uint32_t> assignment(n_tokens);
  const std::vector<float> biases(512, 0.0F);
  Nearest nearest(data.keys.data(), n_tokens, dim, 512, scratch);
  nearest.set_centroids(data.keys.data() + 512 * dim, biases.data());
  for (auto _ : state) {
    nearest.assign(assignment);
  }
  state.counters["flops"] =
      benchmark::Counter(2.0 * n_tokens * 512 * dim * static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
}

template <class Clusterer, std::size_t... TokensPerCluster>
void build_segment_tree(benchmark::State& state) {
  const segment_data data(state.range(0) != 0);
  wavekv::clustering_scratch scratch;
  wavekv::cluster_tree tree;
  constexpr std::size_t counts[] = {TokensPerCluster...};
  for (auto _ : state) {
    build_tree(data.request, Clusterer{}, counts, scratch, tree);
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(n_tokens) *
                          static_cast<std::int64_t>(state.iterations()));
}

void gather_query_metric(benchmark::State& state) {
  const segment_data data(false);
  for (auto _ : state) {
    wavekv::query_metric metric(dim);
    metric.add(wavekv::nhd<const float>(data.queries.data(), 1024, 4, dim));
    benchmark::DoNotOptimize(metric);
  }
}

}  // namespace

// Argument: 0 normal, 1 clustered keys.
BENCHMARK(assignment_only<wavekv::detail::nearest_float>)->Arg(0)->Unit(benchmark::kMillisecond);
#if WAVEKV_DETAIL_EIGHT_BIT
BENCHMARK(assignment_only<wavekv::detail::nearest_eight_bit>)
    ->Arg(0)
    ->Unit(benchmark::kMillisecond);
#endif
BENCHMARK(cluster_segment<wavekv::spherical_kmeans<5>, dim>)
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(cluster_segment<wavekv::spherical_kmeans<10>, dim>)
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(cluster_segment<wavekv::query_metric_kmeans<5>, 2 * dim>)
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(cluster_segment<wavekv::query_metric_kmeans<10>, 2 * dim>)
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(build_segment_tree<wavekv::spherical_kmeans<10>, 16>)
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(build_segment_tree<wavekv::spherical_kmeans<10>, 16, 128>)
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(build_segment_tree<wavekv::query_metric_kmeans<5>, 16, 128>)
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(build_segment_tree<wavekv::query_metric_kmeans<5>, 16, 128, 1024>)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(gather_query_metric)->Unit(benchmark::kMillisecond);
