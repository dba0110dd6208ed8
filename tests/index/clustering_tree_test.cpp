// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/index/cluster_tree_builder.hpp>
#include <wavekv/index/query_metric.hpp>
#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/spherical_kmeans.hpp>

#include "clustering_reference.hpp"

using namespace clustering_reference;
using wavekv::cluster_request;
using wavekv::cluster_tree;
using wavekv::clustering_scratch;
using wavekv::query_metric;

namespace {

/// A clusterer somebody else might write: token t goes to cluster t mod n, which scatters every cluster.
struct round_robin {
  std::size_t cluster(const cluster_request& request, std::span<std::uint32_t> assignment,
                      clustering_scratch&) const {
    const std::size_t n = std::max<std::size_t>(std::min(request.n_clusters, request.n_tokens), 1);
    for (std::size_t t = 0; t < request.n_tokens; ++t) {
      assignment[t] = static_cast<std::uint32_t>(t % n);
    }
    return n;
  }
  bool operator==(const round_robin&) const = default;
};

struct segment_data {
  std::vector<float> keys;
  std::vector<float> values;
  query_metric metric;
  cluster_request request;

  segment_data(std::size_t n, std::size_t key_dim, std::size_t value_dim, std::uint32_t seed,
               bool with_metric, float offset = 0.0F)
      : keys(normal_rows(n, key_dim, seed, offset)),
        values(normal_rows(n, value_dim, seed + 1)),
        metric(key_dim) {
    const std::vector<float> queries = normal_rows(2 * key_dim, key_dim, seed + 2, 0.5F);
    metric.add(wavekv::nhd<const float>(queries.data(), 2 * key_dim, 1, key_dim));
    request.keys = keys.data();
    request.key_dim = key_dim;
    request.values = values.data();
    request.value_dim = value_dim;
    request.n_tokens = n;
    request.metric = with_metric ? &metric : nullptr;
  }
  segment_data(const segment_data&) = delete;
  segment_data& operator=(const segment_data&) = delete;
};

/// Everything a tree promises, against double precision.
void check_tree(const cluster_tree& tree, const cluster_request& request,
                std::span<const std::size_t> counts) {
  const std::size_t n = request.n_tokens;
  const std::size_t key_dim = request.key_dim;
  const std::size_t value_dim = request.value_dim;
  REQUIRE(tree.key_dim == key_dim);
  REQUIRE(tree.value_dim == value_dim);
  REQUIRE(tree.order.size() == n);
  REQUIRE(tree.levels.size() == counts.size());
  std::vector<bool> seen(n, false);
  for (const std::uint32_t token : tree.order) {
    REQUIRE(token < n);
    CHECK_FALSE(seen[token]);
    seen[token] = true;
  }
  std::vector<double> metric(key_dim * key_dim, 0.0);
  if (request.metric != nullptr) {
    request.metric->normalized(metric);
  } else {
    for (std::size_t i = 0; i < key_dim; ++i) {
      metric[i * key_dim + i] = 1.0;
    }
  }
  double trace = 0;
  for (std::size_t i = 0; i < key_dim; ++i) {
    trace += metric[i * key_dim + i];
  }

  std::vector<std::size_t> first_token(n + 1);  // of the level below, by node
  for (std::size_t t = 0; t <= n; ++t) {
    first_token[t] = t;
  }
  for (std::size_t l = 0; l < tree.levels.size(); ++l) {
    CAPTURE(l);
    const wavekv::cluster_tree_level& level = tree.levels[l];
    const std::size_t n_below = first_token.size() - 1;
    REQUIRE(level.n_nodes >= 1);
    REQUIRE(level.n_nodes <= (n + counts[l] - 1) / counts[l]);
    REQUIRE(level.first_child.size() == level.n_nodes + 1);
    REQUIRE(level.sizes.size() == level.n_nodes);
    REQUIRE(level.centroids.size() == level.n_nodes * key_dim);
    REQUIRE(level.value_means.size() == level.n_nodes * value_dim);
    REQUIRE(level.dispersions.size() == level.n_nodes);
    CHECK(level.first_child.front() == 0);
    CHECK(level.first_child.back() == n_below);
    std::vector<std::size_t> first(level.n_nodes + 1);
    for (std::size_t i = 0; i < level.n_nodes; ++i) {
      REQUIRE(level.first_child[i] < level.first_child[i + 1]);
      first[i] = first_token[level.first_child[i]];
      first[i + 1] = first_token[level.first_child[i + 1]];
      const std::size_t size = first[i + 1] - first[i];
      REQUIRE(level.sizes[i] == size);
      const auto mean_of = [&](const float* rows, std::size_t dim) {
        std::vector<double> mean(dim);
        for (std::size_t t = first[i]; t < first[i + 1]; ++t) {
          for (std::size_t d = 0; d < dim; ++d) {
            mean[d] +=
                static_cast<double>(rows[tree.order[t] * dim + d]) / static_cast<double>(size);
          }
        }
        return mean;
      };
      const std::vector<double> key_mean = mean_of(request.keys, key_dim);
      const std::vector<double> value_mean = mean_of(request.values, value_dim);
      double worst = 0;
      for (std::size_t d = 0; d < key_dim; ++d) {
        const auto got = static_cast<double>(level.centroids[i * key_dim + d]);
        worst = std::max(worst, std::abs(got - key_mean[d]) / (std::abs(key_mean[d]) + 1e-6));
      }
      for (std::size_t d = 0; d < value_dim; ++d) {
        const auto got = static_cast<double>(level.value_means[i * value_dim + d]);
        worst = std::max(worst, std::abs(got - value_mean[d]) / (std::abs(value_mean[d]) + 1e-6));
      }
      CHECK(worst <= 1e-6);
      double dispersion = 0;
      for (std::size_t t = first[i]; t < first[i + 1]; ++t) {
        std::vector<double> deviation(key_dim);
        for (std::size_t d = 0; d < key_dim; ++d) {
          deviation[d] =
              static_cast<double>(request.keys[tree.order[t] * key_dim + d]) - key_mean[d];
        }
        for (std::size_t a = 0; a < key_dim; ++a) {
          dispersion += deviation[a] * dot(&metric[a * key_dim], deviation.data(), key_dim);
        }
      }
      dispersion /= static_cast<double>(size) * trace;
      CHECK(static_cast<double>(level.dispersions[i]) == doctest::Approx(dispersion).epsilon(2e-4));
      if (size == 1) {
        CHECK(level.dispersions[i] == 0.0F);
      }
    }
    first_token = first;
  }
}

template <class Clusterer>
void build_and_check(const segment_data& data, std::vector<std::size_t> counts,
                     const Clusterer& clusterer) {
  clustering_scratch scratch;
  cluster_tree tree;
  tree.order.assign(3, 0xDEAD'BEEFU);  // leftovers must not show
  tree.levels.resize(5);
  build_tree(data.request, clusterer, std::span<const std::size_t>(counts), scratch, tree);
  check_tree(tree, data.request, counts);
  const cluster_tree again =
      build_tree(data.request, clusterer, std::span<const std::size_t>(counts), scratch);
  CHECK(again.order == tree.order);
  for (std::size_t l = 0; l < counts.size(); ++l) {
    CHECK(again.levels[l].first_child == tree.levels[l].first_child);
    CHECK(again.levels[l].centroids == tree.levels[l].centroids);
    CHECK(again.levels[l].dispersions == tree.levels[l].dispersions);
  }
}

}  // namespace

TEST_CASE("cluster tree: order, means and dispersions on every level") {
  for (const bool with_metric : {false, true}) {
    for (const std::size_t n : {1U, 2U, 15U, 16U, 17U, 128U, 129U, 1000U}) {
      CAPTURE(with_metric);
      CAPTURE(n);
      const segment_data data(n, 24, 10, static_cast<std::uint32_t>(n), with_metric, 0.5F);
      for (const std::vector<std::size_t>& counts :
           {std::vector<std::size_t>{16}, {16, 128}, {4, 16, 128}, {1, 2}}) {
        build_and_check(data, counts, wavekv::spherical_kmeans<5>{});
        build_and_check(data, counts, wavekv::query_metric_kmeans<5>{});
        build_and_check(data, counts, round_robin{});
      }
    }
  }
}

TEST_CASE("cluster tree: head sizes") {
  for (const std::size_t dim : {1U, 7U, 31U, 33U, 64U, 80U, 96U, 128U, 256U}) {
    CAPTURE(dim);
    const segment_data data(300, dim, dim + 3, static_cast<std::uint32_t>(dim), true);
    build_and_check(data, {16, 128}, wavekv::query_metric_kmeans<3>{});
  }
}

TEST_CASE("cluster tree: an offset common to all keys costs no accuracy of the dispersion") {
  const segment_data data(400, 32, 8, 5, true, 1000.0F);
  build_and_check(data, {16, 64}, round_robin{});
}

TEST_CASE("cluster tree: no token, no values") {
  clustering_scratch scratch;
  const std::size_t counts[] = {16, 128};
  cluster_request request;
  request.key_dim = 8;
  const cluster_tree empty = build_tree(request, wavekv::spherical_kmeans<>{}, counts, scratch);
  CHECK(empty.order.empty());
  CHECK(empty.levels.size() == 2);
  CHECK(empty.levels[0].n_nodes == 0);
  CHECK(empty.levels[1].first_child == std::vector<std::uint32_t>{0});
  const segment_data data(50, 8, 1, 6, false);
  request = data.request;
  request.values = nullptr;
  request.value_dim = 0;
  check_tree(build_tree(request, wavekv::query_metric_kmeans<>{}, counts, scratch), request,
             counts);
}

TEST_CASE("cluster tree: extreme keys give finite summaries") {
  clustering_scratch scratch;
  const std::size_t counts[] = {16, 128};
  for (const float magnitude :
       {0.0F, 1e-44F, 1e-30F, 1e18F, 1e30F, std::numeric_limits<float>::max()}) {
    for (const bool with_metric : {false, true}) {
      CAPTURE(magnitude);
      CAPTURE(with_metric);
      segment_data data(300, 16, 16, 7, with_metric);
      for (float& element : data.keys) {
        element = std::copysign(magnitude, element);
      }
      data.values = data.keys;
      data.request.values = data.values.data();
      const cluster_tree tree =
          build_tree(data.request, wavekv::query_metric_kmeans<>{}, counts, scratch);
      for (const wavekv::cluster_tree_level& level : tree.levels) {
        for (const auto* numbers : {&level.centroids, &level.value_means, &level.dispersions}) {
          for (const float number : *numbers) {
            REQUIRE(std::isfinite(number));
          }
        }
        for (const float number : level.dispersions) {
          CHECK(number >= 0.0F);
        }
      }
    }
  }
}

TEST_CASE("cluster tree: levels must be given and hold tokens") {
  clustering_scratch scratch;
  const segment_data data(50, 8, 8, 8, false);
  const std::vector<std::size_t> none;
  CHECK_THROWS_AS(
      (void)build_tree(data.request, round_robin{}, std::span<const std::size_t>(none), scratch),
      wavekv::config_error);
  const std::size_t zero[] = {16, 0};
  CHECK_THROWS_AS((void)build_tree(data.request, round_robin{}, zero, scratch),
                  wavekv::config_error);
}
