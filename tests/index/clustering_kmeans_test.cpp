// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/spherical_kmeans.hpp>

#include "clustering_reference.hpp"

using namespace clustering_reference;
using wavekv::cluster_request;
using wavekv::clustering_scratch;
using wavekv::query_metric;
using wavekv::query_metric_kmeans;
using wavekv::spherical_kmeans;

namespace {

cluster_request request_of(const std::vector<float>& keys, std::size_t dim,
                           std::size_t n_clusters) {
  cluster_request request;
  request.keys = keys.data();
  request.key_dim = dim;
  request.n_tokens = keys.size() / dim;
  request.n_clusters = n_clusters;
  return request;
}

/// The space of query_metric_kmeans without a metric, in double: both parts centered and scaled.
std::vector<double> keys_and_values_space(const std::vector<float>& keys, std::size_t key_dim,
                                          const std::vector<float>& values, std::size_t value_dim,
                                          const std::vector<float>& factor) {
  const std::size_t n = keys.size() / key_dim;
  const std::size_t dim = key_dim + value_dim;
  std::vector<double> points(n * dim);
  const auto place = [&](const std::vector<double>& rows, std::size_t row_dim, std::size_t column,
                         double weight) {
    std::vector<double> mean(row_dim);
    for (std::size_t p = 0; p < n * row_dim; ++p) {
      mean[p % row_dim] += rows[p] / static_cast<double>(n);
    }
    double variance = 0;
    for (std::size_t p = 0; p < n * row_dim; ++p) {
      variance +=
          (rows[p] - mean[p % row_dim]) * (rows[p] - mean[p % row_dim]) / static_cast<double>(n);
    }
    for (std::size_t p = 0; p < n; ++p) {
      for (std::size_t i = 0; i < row_dim; ++i) {
        points[p * dim + column + i] =
            (rows[p * row_dim + i] - mean[i]) * weight / std::sqrt(variance);
      }
    }
  };
  std::vector<double> seen(n * key_dim);
  for (std::size_t p = 0; p < n; ++p) {
    for (std::size_t j = 0; j < key_dim; ++j) {
      for (std::size_t i = 0; i < key_dim; ++i) {
        const double entry =
            factor.empty() ? (i == j ? 1.0 : 0.0) : static_cast<double>(factor[i * key_dim + j]);
        seen[p * key_dim + j] += static_cast<double>(keys[p * key_dim + i]) * entry;
      }
    }
  }
  place(seen, key_dim, 0, 1.0);
  place(widened(values), value_dim, key_dim, 0.5);
  return points;
}

}  // namespace

TEST_CASE("spherical k-means: equals the plain double-precision reference") {
  clustering_scratch scratch;
  for (const std::uint32_t seed : {1U, 2U, 3U}) {
    for (const std::size_t dim : {1U, 3U, 16U, 64U, 80U, 96U, 128U, 129U, 256U}) {
      for (const std::size_t n : {2U, 5U, 13U, 97U, 300U}) {
        for (const std::size_t k : {1U, 2U, 7U, 31U, 65U}) {
          CAPTURE(seed);
          CAPTURE(dim);
          CAPTURE(n);
          CAPTURE(k);
          // offset means make norms and directions differ
          const std::vector<float> keys =
              normal_rows(n, dim, seed * 1000 + static_cast<std::uint32_t>(n + dim), 0.3F);
          const clustering got = run(spherical_kmeans<4>{}, request_of(keys, dim, k), scratch);
          REQUIRE(is_clustering(got.assignment, got.n_clusters));
          CHECK(got.n_clusters <= std::min(k, n));
          if (k >= n || dim == 1) {
            continue;
          }  // one dimension has two directions: every key ties
          std::vector<std::uint32_t> expected;
          const std::size_t n_expected = lloyd(widened(keys), n, dim, k, 4, true, expected);
          CHECK(got.n_clusters == n_expected);
          CHECK(got.assignment == expected);
        }
      }
    }
  }
}

TEST_CASE("query-metric k-means: equals the plain double-precision reference in its space") {
  clustering_scratch scratch;
  for (const std::uint32_t seed : {11U, 12U}) {
    for (const std::size_t key_dim : {3U, 16U, 40U, 64U, 128U}) {
      for (const std::size_t value_dim : {5U, 64U}) {
        for (const bool with_metric : {false, true}) {
          CAPTURE(seed);
          CAPTURE(key_dim);
          CAPTURE(value_dim);
          CAPTURE(with_metric);
          const std::size_t n = 211;
          // a common offset far larger than the spread: what rotary keys look like
          std::vector<float> keys = normal_rows(n, key_dim, seed);
          for (std::size_t i = 0; i < keys.size(); i += key_dim) {
            keys[i] += 64.0F;
          }
          const std::vector<float> values = normal_rows(n, value_dim, seed + 100, 2.0F, 7.0F);
          const std::vector<float> queries = normal_rows(3 * key_dim, key_dim, seed + 200, 0.5F);
          query_metric metric(key_dim);
          metric.add(wavekv::nhd<const float>(queries.data(), 3 * key_dim, 1, key_dim));
          std::vector<float> factor;
          cluster_request request = request_of(keys, key_dim, 17);
          request.values = values.data();
          request.value_dim = value_dim;
          if (with_metric) {
            factor.resize(key_dim * key_dim);
            metric.factor(factor);
            request.metric = &metric;
          }
          const clustering got = run(query_metric_kmeans<4>{}, request, scratch);
          REQUIRE(is_clustering(got.assignment, got.n_clusters));
          std::vector<std::uint32_t> expected;
          const std::size_t n_expected =
              lloyd(keys_and_values_space(keys, key_dim, values, value_dim, factor), n,
                    key_dim + value_dim, 17, 4, false, expected);
          CHECK(got.n_clusters == n_expected);
          CHECK(got.assignment == expected);
        }
      }
    }
  }
}

TEST_CASE("k-means: the objective gets better with every iteration") {
  clustering_scratch scratch;
  const std::size_t n = 2000;
  const std::size_t dim = 64;
  const std::vector<float> keys = normal_rows(n, dim, 21, 0.1F);
  const cluster_request request = request_of(keys, dim, 125);
  const auto spherical = [&](const auto& clusterer) {
    const clustering made = run(clusterer, request, scratch);
    return spherical_objective(keys, dim, made.assignment, made.n_clusters);
  };
  const auto euclidean = [&](const auto& clusterer) {
    const clustering made = run(clusterer, request, scratch);
    return euclidean_objective(widened(keys), dim, made.assignment, made.n_clusters);
  };
  CHECK(spherical(spherical_kmeans<2>{}) > spherical(spherical_kmeans<1>{}));
  CHECK(spherical(spherical_kmeans<5>{}) > spherical(spherical_kmeans<2>{}));
  CHECK(spherical(spherical_kmeans<10>{}) > spherical(spherical_kmeans<5>{}));
  CHECK(euclidean(query_metric_kmeans<2>{}) < euclidean(query_metric_kmeans<1>{}));
  CHECK(euclidean(query_metric_kmeans<5>{}) < euclidean(query_metric_kmeans<2>{}));
  CHECK(euclidean(query_metric_kmeans<10>{}) < euclidean(query_metric_kmeans<5>{}));
}

// spherical_kmeans draws half of its seeds and promises no such thing: the next case is what holds for both.
TEST_CASE("query-metric k-means: recovers planted clusters when every one has a seed") {
  clustering_scratch scratch;
  for (const std::uint32_t seed : {31U, 32U, 33U}) {
    CAPTURE(seed);
    const std::size_t n_clusters = 31;  // 31 · 33 points: the seeds, 33 apart, fall on all labels
    const planted_rows data = planted(n_clusters * 33, 48, n_clusters, seed, 1.0F, 0.05F);
    cluster_request request = request_of(data.rows, 48, n_clusters);
    const std::vector<float> values(data.label.size() * 8,
                                    1.0F);  // no variance: they must drop out
    request.values = values.data();
    request.value_dim = 8;
    const clustering metric = run(query_metric_kmeans<10>{}, request, scratch);
    CHECK(metric.n_clusters == n_clusters);
    CHECK(same_partition(metric.assignment, data.label));
  }
}

TEST_CASE("k-means: no cluster mixes planted ones when every one has a seed") {
  clustering_scratch scratch;
  const std::size_t n_planted = 31;
  const std::size_t n_clusters =
      2 * n_planted;  // the evenly spaced half, 66 apart, falls on all labels
  for (const std::uint32_t seed : {31U, 32U, 33U}) {
    CAPTURE(seed);
    const planted_rows data = planted(n_planted * 66, 48, n_planted, seed, 1.0F, 0.05F);
    const auto check = [&](const clustering& made) {
      CHECK(made.n_clusters == n_clusters);
      std::vector<std::uint32_t> label_of(made.n_clusters, 0xFFFFFFFFU);
      std::size_t n_mixed = 0;
      for (std::size_t t = 0; t < data.label.size(); ++t) {
        std::uint32_t& label = label_of[made.assignment[t]];
        if (label == 0xFFFFFFFFU) label = data.label[t];
        if (label != data.label[t]) ++n_mixed;
      }
      CHECK(n_mixed == 0);
    };
    cluster_request request = request_of(data.rows, 48, n_clusters);
    check(run(spherical_kmeans<10>{}, request, scratch));
    const std::vector<float> values(data.label.size() * 8,
                                    1.0F);  // no variance: they must drop out
    request.values = values.data();
    request.value_dim = 8;
    check(run(query_metric_kmeans<10>{}, request, scratch));
  }
}

TEST_CASE("k-means: stopping once nothing moves gives what further iterations would") {
  clustering_scratch scratch;
  const std::vector<float> keys = planted(700, 20, 40, 34, 1.0F, 0.3F).rows;
  std::vector<std::uint32_t> expected;
  const std::size_t n_expected = lloyd(widened(keys), 700, 20, 44, 60, true, expected);
  const clustering made = run(spherical_kmeans<60>{}, request_of(keys, 20, 44), scratch);
  CHECK(made.n_clusters == n_expected);
  CHECK(made.assignment == expected);
}

TEST_CASE("query-metric k-means: tokens with equal keys are told apart by their values") {
  clustering_scratch scratch;
  const std::size_t n = 64;
  const std::vector<float> keys(n * 8, 3.0F);
  std::vector<float> values(n * 4, 0.0F);
  std::vector<std::uint32_t> expected(n);
  for (std::size_t t = 0; t < n; ++t) {
    expected[t] = t < n / 2 ? 0 : 1;
    values[t * 4] = t < n / 2 ? -1.0F : 1.0F;
  }
  cluster_request request = request_of(keys, 8, 2);
  request.values = values.data();
  request.value_dim = 4;
  const clustering made = run(query_metric_kmeans<5>{}, request, scratch);
  CHECK(made.n_clusters == 2);
  CHECK(same_partition(made.assignment, expected));
}

TEST_CASE("query-metric k-means: directions that no query looks along do not matter") {
  clustering_scratch scratch;
  const std::size_t n = 400;
  const std::size_t dim = 8;
  std::vector<float> keys = normal_rows(n, dim, 41, 0.0F, 0.01F);
  std::vector<std::uint32_t> expected(n);
  const std::vector<float> noise = normal_rows(n, 1, 42, 0.0F, 5.0F);
  for (std::size_t t = 0; t < n; ++t) {
    expected[t] =
        t < n / 2 ? 0 : 1;  // the seeds, at a quarter and three quarters, have one of each
    keys[t * dim + 1] += expected[t] == 0 ? -1.0F : 1.0F;  // what queries see
    keys[t * dim + 5] += noise[t];                         // what they do not, five times as large
  }
  std::vector<float> query(dim, 0.0F);
  query[1] = 2.0F;
  query_metric metric(dim);
  metric.add(wavekv::nhd<const float>(query.data(), 1, 1, dim));
  cluster_request request = request_of(keys, dim, 2);
  CHECK_FALSE(
      same_partition(run(query_metric_kmeans<10>{}, request, scratch).assignment, expected));
  request.metric = &metric;
  CHECK(same_partition(run(query_metric_kmeans<10>{}, request, scratch).assignment, expected));
}

TEST_CASE_TEMPLATE("k-means: a function of the request alone", Clusterer, spherical_kmeans<6>,
                   query_metric_kmeans<6>) {
  const std::vector<float> keys = normal_rows(1500, 40, 51);
  const std::vector<float> values = normal_rows(1500, 24, 52);
  cluster_request request = request_of(keys, 40, 94);
  request.values = values.data();
  request.value_dim = 24;
  clustering_scratch fresh;
  const clustering first = run(Clusterer{}, request, fresh);
  clustering_scratch used;  // leftovers of other sizes must not show
  const std::vector<float> other(3000 * 50, std::numeric_limits<float>::max());
  (void)run(Clusterer{}, request_of(other, 50, 200), used);
  const clustering second = run(Clusterer{}, request, used);
  CHECK(first.n_clusters == second.n_clusters);
  CHECK(first.assignment == second.assignment);
}

TEST_CASE_TEMPLATE("k-means: a power of two as a factor changes nothing", Clusterer,
                   spherical_kmeans<6>, query_metric_kmeans<6>) {
  clustering_scratch scratch;
  std::vector<float> keys = normal_rows(500, 16, 61);
  for (float& element : keys) {
    element = std::round(element * 256.0F) / 256.0F;
  }  // few bits, to survive denormals
  const clustering expected = run(Clusterer{}, request_of(keys, 16, 31), scratch);
  for (const int exponent : {-130, -100, -60, -40, 40, 60, 100, 120}) {
    CAPTURE(exponent);
    std::vector<float> scaled = keys;
    for (float& element : scaled) {
      element = std::ldexp(element, exponent);
    }
    CHECK(run(Clusterer{}, request_of(scaled, 16, 31), scratch).assignment == expected.assignment);
  }
}

TEST_CASE_TEMPLATE("k-means: degenerate and adversarial keys", Clusterer, spherical_kmeans<10>,
                   query_metric_kmeans<10>) {
  clustering_scratch scratch;
  const std::size_t n = 200;
  const std::size_t dim = 24;
  const auto check = [&](const std::vector<float>& keys, std::size_t n_clusters) {
    cluster_request request = request_of(keys, dim, n_clusters);
    for (const std::size_t value_dim : {std::size_t{0}, dim}) {
      request.values = value_dim == 0 ? nullptr : keys.data();
      request.value_dim = value_dim;
      const clustering made = run(Clusterer{}, request, scratch);
      REQUIRE(is_clustering(made.assignment, made.n_clusters));
      CHECK(made.n_clusters >= (keys.empty() ? 0U : 1U));
      CHECK(made.n_clusters <= std::max<std::size_t>(n_clusters, 1));
    }
    request.value_dim = 0;
    return run(Clusterer{}, request, scratch);
  };
  const std::vector<float> ordinary = normal_rows(n, dim, 71);
  SUBCASE("one token") { CHECK(check(normal_rows(1, dim, 72), 13).n_clusters == 1); }
  SUBCASE("no token") { CHECK(check({}, 4).n_clusters == 0); }
  SUBCASE("more clusters than tokens") { CHECK(check(ordinary, 1000).n_clusters == n); }
  SUBCASE("as many clusters as tokens") { CHECK(check(ordinary, n).n_clusters == n); }
  SUBCASE("one less") { CHECK(check(ordinary, n - 1).n_clusters == n - 1); }
  SUBCASE("no cluster asked for") { CHECK(check(ordinary, 0).n_clusters == 1); }
  SUBCASE("all keys equal") {
    CHECK(check(std::vector<float>(n * dim, 0.37F), 13).n_clusters == 1);
  }
  SUBCASE("all keys zero") { CHECK(check(std::vector<float>(n * dim, 0.0F), 13).n_clusters == 1); }
  SUBCASE("positive and negative zeros") {
    std::vector<float> keys(n * dim, 0.0F);
    for (std::size_t i = 0; i < keys.size(); i += 3) {
      keys[i] = -0.0F;
    }
    CHECK(check(keys, 13).n_clusters == 1);
  }
  SUBCASE("denormals") {
    std::vector<float> keys(n * dim);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      keys[i] = std::copysign(1e-42F, ordinary[i]);
    }
    CHECK(check(keys, 13).n_clusters == 13);
  }
  SUBCASE("the largest floats") {
    std::vector<float> keys(n * dim);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      keys[i] = std::copysign(std::numeric_limits<float>::max(), ordinary[i]);
    }
    CHECK(check(keys, 13).n_clusters == 13);
  }
  SUBCASE("one huge outlier is alone and leaves the rest as it was") {
    std::vector<float> keys = ordinary;
    for (std::size_t i = 0; i < dim; ++i) {
      keys[17 * dim + i] = i % 2 == 0 ? 1e30F : -1e30F;
    }
    CHECK(check(keys, 13).n_clusters >= 1);
  }
  SUBCASE("a mixture of zeros, denormals, ordinary and huge keys") {
    std::vector<float> keys = ordinary;
    const float factors[] = {0.0F, 1e-42F, 1.0F, 1e-20F, 1e20F, 1e37F};
    for (std::size_t i = 0; i < keys.size(); ++i) {
      keys[i] *= factors[i / dim % 6];
    }
    CHECK(check(keys, 13).n_clusters >= 1);
  }
  SUBCASE("seven distinct keys, thirteen clusters asked for: seven, each of one key") {
    std::vector<float> keys(n * dim);
    std::vector<std::uint32_t> label(n);
    for (std::size_t t = 0; t < n; ++t) {
      label[t] = static_cast<std::uint32_t>(t % 7);
      std::copy_n(&ordinary[label[t] * dim], dim, &keys[t * dim]);
    }
    const clustering made = check(keys, 13);
    CHECK(made.n_clusters == 7);
    CHECK(same_partition(made.assignment, label));
  }
  SUBCASE("seeds that coincide: empty clusters are repaired") {
    // evenly spaced points are the same key; everything else lies between them
    std::vector<float> keys = ordinary;
    for (std::size_t c = 0; c < 20; ++c) {
      std::copy_n(&ordinary[0], dim, &keys[(2 * c + 1) * n / 40 * dim]);
    }
    CHECK(check(keys, 20).n_clusters == 20);
  }
  SUBCASE("all keys on one line") {
    std::vector<float> keys(n * dim);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      keys[i] = ordinary[i % dim] * static_cast<float>(1 + i / dim);
    }
    CHECK(check(keys, 13).n_clusters >= 1);
  }
}

TEST_CASE("query-metric k-means: a metric of another key_dim is refused") {
  clustering_scratch scratch;
  const std::vector<float> keys = normal_rows(100, 16, 81);
  const std::vector<float> queries = normal_rows(10, 8, 82);
  query_metric metric(8);
  metric.add(wavekv::nhd<const float>(queries.data(), 10, 1, 8));
  cluster_request request = request_of(keys, 16, 7);
  request.metric = &metric;
  std::vector<std::uint32_t> assignment(100);
  CHECK_THROWS_AS((void)query_metric_kmeans<5>{}.cluster(request, assignment, scratch),
                  wavekv::shape_error);
}

TEST_CASE("spherical k-means: mean cosine on normal data, 8192 x 128 -> 512, is not below faiss's "
          "0.397") {
  clustering_scratch scratch;
  const std::vector<float> keys = normal_rows(8192, 128, 91);
  const clustering made = run(spherical_kmeans<10>{}, request_of(keys, 128, 512), scratch);
  CHECK(made.n_clusters == 512);
  CHECK(mean_cosine(keys, 128, made.assignment, made.n_clusters) >= 0.397);
}

namespace {

std::vector<float> keys_of_kind(int kind, std::size_t n, std::size_t dim) {
  std::vector<float> keys = normal_rows(n, dim, 101);
  for (std::size_t t = 0; t < n; ++t) {
    for (std::size_t i = 0; i < dim; ++i) {
      float& element = keys[t * dim + i];
      switch (kind) {
      case 1:
        element += static_cast<float>(i % 5) * 8.0F;
        break;  // an offset common to all
      case 2:
        element *= i == 0 ? 20.0F : 1.0F;
        break;  // one dimension holds the norm
      case 3:
        element *= t == n / 2 ? 1000.0F : 1.0F;
        break;  // one huge outlier
      case 4:
        element = keys[t % 10 * dim + i];
        break;  // many equal keys
      case 5:
        element *=
            t % 3 == 0 ? 1e-20F : (t % 3 == 1 ? 0.0F : 1.0F);  // tiny ones and zeros among others
      default:
        break;
      }
    }
  }
  return keys;
}

/// The centroid a finder names must be the best of all in double precision, up to the rounding of a float sum.
template <class Nearest>
void check_nearest(const std::vector<float>& points, std::size_t dim, std::size_t n_clusters,
                   bool euclidean) {
  const std::size_t n = points.size() / dim;
  clustering_scratch scratch;
  std::vector<float> centroids(n_clusters * dim);
  std::vector<float> biases(n_clusters, 0.0F);
  for (std::size_t c = 0; c < n_clusters; ++c) {
    const float* first = &points[c % n * dim];
    const float* second = &points[(7 * c + 3) % n * dim];
    for (std::size_t i = 0; i < dim; ++i) {
      centroids[c * dim + i] = 0.5F * (first[i] + second[i]);
    }
    if (euclidean) {
      for (std::size_t i = 0; i < dim; ++i) {
        biases[c] -= 0.5F * centroids[c * dim + i] * centroids[c * dim + i];
      }
    }
  }
  std::vector<std::uint32_t> assignment(n, 0xDEAD'BEEFU);
  Nearest nearest(points.data(), n, dim, n_clusters, scratch);
  nearest.set_centroids(centroids.data(), biases.data());
  nearest.assign(assignment);
  const std::vector<double> wide_points = widened(points);
  const std::vector<double> wide_centroids = widened(centroids);
  std::size_t n_wrong = 0;
  for (std::size_t p = 0; p < n; ++p) {
    const double* point = &wide_points[p * dim];
    double best = -INFINITY;
    double largest = 0;
    for (std::size_t c = 0; c < n_clusters; ++c) {
      const double* centroid = &wide_centroids[c * dim];
      best = std::max(best, dot(point, centroid, dim) + static_cast<double>(biases[c]));
      largest = std::max(largest, std::sqrt(dot(point, point, dim) * dot(centroid, centroid, dim)) +
                                      std::abs(static_cast<double>(biases[c])));
    }
    REQUIRE(assignment[p] < n_clusters);
    const double got = dot(point, &wide_centroids[assignment[p] * dim], dim) +
                       static_cast<double>(biases[assignment[p]]);
    n_wrong += got < best - 1e-6 * largest ? 1U : 0U;
  }
  CHECK(n_wrong == 0);
}

}  // namespace

TEST_CASE("k-means: the centroid found is the best of all") {
  for (const int kind : {0, 1, 2, 3, 4, 5}) {
    for (const std::size_t dim : {1U, 4U, 13U, 64U, 128U, 250U}) {
      for (const std::size_t n_clusters : {1U, 2U, 33U, 64U, 129U, 400U}) {
        for (const bool euclidean : {false, true}) {
          CAPTURE(kind);
          CAPTURE(dim);
          CAPTURE(n_clusters);
          CAPTURE(euclidean);
          const std::vector<float> points = keys_of_kind(kind, 301, dim);
          check_nearest<wavekv::detail::nearest_float>(points, dim, n_clusters, euclidean);
#if WAVEKV_DETAIL_EIGHT_BIT
          check_nearest<wavekv::detail::nearest_eight_bit>(points, dim, n_clusters, euclidean);
#endif
        }
      }
    }
  }
}

TEST_CASE("seeds: distinct, evenly spaced for one half, and far from those for the other") {
  using wavekv::detail::choose_far_seeds;
  using wavekv::detail::lloyd_kind;
  using wavekv::detail::nearest_finder;
  clustering_scratch scratch;
  const auto check = [&](const std::vector<float>& rows, std::size_t n, std::size_t dim,
                         std::size_t n_clusters) {
    std::vector<std::uint32_t> seeds(n_clusters, 0xFFFFFFFFU);
    std::vector<std::uint32_t> again(n_clusters, 0xFFFFFFFFU);
    choose_far_seeds<lloyd_kind::euclidean, nearest_finder>(rows.data(), n, dim, n_clusters,
                                                            scratch, seeds.data());
    choose_far_seeds<lloyd_kind::euclidean, nearest_finder>(rows.data(), n, dim, n_clusters,
                                                            scratch, again.data());
    CHECK(seeds == again);
    for (const std::uint32_t seed : seeds) CHECK(seed < n);
    std::vector<std::uint32_t> sorted = seeds;
    std::sort(sorted.begin(), sorted.end());
    CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());
    const std::size_t n_even = (n_clusters + 1) / 2;
    for (std::size_t c = 0; c < n_even; ++c) {  // as evenly as a pool of three a cluster allows
      const double place = (static_cast<double>(c) + 0.5) / static_cast<double>(n_even);
      CHECK(std::abs(seeds[c] - place * static_cast<double>(n)) <=
            static_cast<double>(n) / static_cast<double>(n_clusters) + 2);
    }
    return seeds;
  };
  for (const std::size_t n : {3U, 17U, 64U, 500U}) {
    for (const std::size_t n_clusters : {2U, 7U, 16U, 63U}) {
      if (n_clusters < n) {
        CAPTURE(n);
        CAPTURE(n_clusters);
        check(normal_rows(n, 12, 901), n, 12, n_clusters);
        check(std::vector<float>(n * 12, 2.5F), n, 12, n_clusters);  // nothing lies apart
      }
    }
  }
  // A crowd and nine loners in the pool, none of them evenly spaced: each is drawn.
  const std::size_t n = 96;
  const std::size_t n_clusters = 33;  // the pool is all 96 points
  std::vector<float> rows = normal_rows(n, 8, 902, 0.0F, 1e-3F);
  const std::vector<std::uint32_t> before = check(rows, n, 8, n_clusters);
  std::vector<std::uint32_t> loners;
  for (std::uint32_t p = 1; p < n && loners.size() < 9; p += 7) {
    if (std::find(before.begin(), before.begin() + 17, p) == before.begin() + 17) {
      loners.push_back(p);
      for (std::size_t i = 0; i < 8; ++i)
        rows[p * 8 + i] = static_cast<float>((p * 37 + i * 11) % 19);
    }
  }
  REQUIRE(loners.size() == 9);
  const std::vector<std::uint32_t> seeds = check(rows, n, 8, n_clusters);
  std::size_t n_drawn = 0;
  for (const std::uint32_t p : loners) {
    n_drawn += static_cast<std::size_t>(std::count(seeds.begin(), seeds.end(), p));
  }
  CHECK(n_drawn >= 7);  // two may fall into the step of a heavier one
}
