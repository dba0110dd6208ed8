// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/core/scalar.hpp>
#include <wavekv/index/detail/lloyd.cuh>

#include "cuda/emulated_runtime.hpp"
#include "cuda/seal_harness.hpp"
#include "reference/fresh_seed.hpp"
#include "support/rows.hpp"

using namespace wavekv_test;
using namespace wavekv::device;
using wavekv::bf16;
using wavekv::detail::lloyd_kind;
using wavekv::testing::emulated_runtime;
using wavekv::testing::schedule;

namespace {

// Points of several jobs, on the device and here.
struct point_case {
  unsigned n_jobs = 1;
  unsigned capacity = 0;
  unsigned dim = 0;
  unsigned n_clusters = 0;
  std::vector<std::uint32_t> n_points;  // [n_jobs], or empty
  std::vector<bf16> points;             // [n_jobs, capacity, dim]

  [[nodiscard]] unsigned n(unsigned job) const {
    return n_points.empty() ? capacity : n_points[job];
  }
  [[nodiscard]] double at(unsigned job, unsigned point, unsigned i) const {
    return static_cast<double>(
        wavekv::to_float(points[(std::size_t{job} * capacity + point) * dim + i]));
  }
};

struct clustering {
  std::vector<std::uint32_t> sorted;
  std::vector<std::uint32_t> first;
  std::vector<bf16> centroids;
  std::vector<float> misfits;
  friend bool operator==(const clustering& a, const clustering& b) {
    return a.sorted == b.sorted && a.first == b.first && a.centroids == b.centroids;
  }
};

point_case make_points(random_engine& random, unsigned n_jobs, unsigned capacity, unsigned dim,
                       unsigned n_clusters) {
  point_case made{n_jobs, capacity, dim, n_clusters, {}, {}};
  made.points = as_scalar<bf16>(std::vector<float>(
      make_keys(random, key_family::clustered, std::size_t{n_jobs} * capacity, 1, dim)));
  return made;
}

// Centroids as rows, [n_jobs, n_padded, dim], from where tensor cores want them.
std::vector<bf16> in_rows(const point_case& from, const std::vector<bf16>& left) {
  constexpr std::size_t tile = detail::cluster_set::tile;
  const std::size_t n_rows = left.size() / from.dim;
  std::vector<bf16> rows(left.size());
  for (std::size_t row = 0; row < n_rows; ++row) {
    for (std::size_t d = 0; d < from.dim; ++d) {
      const std::size_t chunk = row / tile * (from.dim / 32) + d / 32;
      const std::size_t in_tile = row % tile;
      const std::size_t lane = in_tile % 16 / 2 * 4 + d % 32 / 8;
      const std::size_t piece = in_tile / 16 * 64 + d % 8 / 4 * 32 + lane;
      const std::size_t word = in_tile % 2 + d % 4 / 2 * 2;
      rows[row * from.dim + d] = left[chunk * tile * 32 + piece * 8 + word * 2 + d % 2];
    }
  }
  return rows;
}

clustering run(const point_case& from, int n_iterations, bool narrow,
               wavekv::testing::emulation_options options) {
  emulated_runtime runtime(options);
  device_memory memory(runtime);
  detail::point_set points;
  points.points = reinterpret_cast<words4*>(memory.upload(from.points));
  points.n_points = from.n_points.empty() ? nullptr : memory.upload(from.n_points);
  points.n_jobs = from.n_jobs;
  points.capacity = from.capacity;
  points.dim = from.dim;
  const std::size_t n = std::size_t{from.n_jobs} * from.capacity;
  const auto floats = [&](std::size_t many) { return static_cast<float*>(memory.take(many * 4)); };
  const auto numbers = [&](std::size_t many) {
    return static_cast<std::uint32_t*>(memory.take(many * 4));
  };
  points.bases = floats(n);
  points.slopes = floats(n);
  points.misfits = floats(n);
  detail::cluster_set clusters;
  clusters.n_clusters = from.n_clusters;
  const std::size_t n_centroids = std::size_t{from.n_jobs} * clusters.n_padded();
  clusters.centroids = static_cast<words4*>(memory.take(n_centroids * from.dim * 2));
  clusters.biases = floats(n_centroids);
  clusters.buckets = numbers(n);
  clusters.has_narrow_buckets = narrow;
  clusters.sorted = numbers(n);
  clusters.first = numbers(std::size_t{from.n_jobs} * (from.n_clusters + 2));
  clusters.newcomers = numbers(std::size_t{from.n_jobs} * from.n_clusters);
  clusters.vacant = numbers(std::size_t{from.n_jobs} * from.n_clusters);
  detail::run_lloyd<lloyd_kind::euclidean>(runtime, {}, points, clusters, n_iterations,
                                           wavekv::detail::seeding::evenly_spaced);
  clustering found;
  found.sorted = memory.download(clusters.sorted, n);
  found.first = memory.download(clusters.first, std::size_t{from.n_jobs} * (from.n_clusters + 2));
  found.centroids = in_rows(from, memory.download(reinterpret_cast<const bf16*>(clusters.centroids),
                                                  n_centroids * from.dim));
  found.misfits = memory.download(points.misfits, n);
  return found;
}

// Every point is in one cluster, and none is nearer to another cluster's centroid by more than rounding.
void check(const point_case& from, const clustering& found) {
  const unsigned padded = detail::cluster_set{.n_clusters = from.n_clusters}.n_padded();
  for (unsigned job = 0; job < from.n_jobs; ++job) {
    CAPTURE(job);
    const std::uint32_t* first = found.first.data() + std::size_t{job} * (from.n_clusters + 2);
    const std::uint32_t* sorted = found.sorted.data() + std::size_t{job} * from.capacity;
    REQUIRE(first[0] == 0);
    REQUIRE(first[from.n_clusters] == from.n(job));
    REQUIRE(first[from.n_clusters + 1] == from.capacity);
    std::vector<bool> seen(from.capacity);
    for (unsigned c = 0; c < from.n_clusters; ++c) {
      REQUIRE(first[c] <= first[c + 1]);
      for (std::uint32_t i = first[c]; i < first[c + 1]; ++i) {
        const std::uint32_t point = sorted[i];
        REQUIRE(point < from.n(job));
        REQUIRE(!seen[point]);
        seen[point] = true;
        if (i > first[c]) REQUIRE(sorted[i - 1] < point);
        if (from.n_clusters >= from.n(job)) {
          REQUIRE(point == c);
          continue;
        }
        double own = 0.0;
        double square = 0.0;
        double nearest = std::numeric_limits<double>::infinity();
        for (unsigned other = 0; other < from.n_clusters; ++other) {
          double distance = 0.0;
          for (unsigned d = 0; d < from.dim; ++d) {
            const auto centroid = static_cast<double>(wavekv::to_float(
                found.centroids[(std::size_t{job} * padded + other) * from.dim + d]));
            distance += std::pow(from.at(job, point, d) - centroid, 2);
          }
          if (other == c) own = distance;
          nearest = std::min(nearest, distance);
        }
        for (unsigned d = 0; d < from.dim; ++d) square += std::pow(from.at(job, point, d), 2);
        CHECK(own <= nearest + 1e-5 * square);
        CHECK(
            std::abs(static_cast<double>(found.misfits[std::size_t{job} * from.capacity + point]) -
                     own) <= 1e-5 * square);
      }
    }
  }
}

}  // namespace

TEST_CASE("every point goes to the nearest centroid") {
  auto random = generator("nearest");
  // one tile of clusters and less, more than a tile, more than one block of points
  for (const unsigned n_clusters : {2U, 5U, 64U, 65U, 130U}) {
    CAPTURE(n_clusters);
    const point_case points =
        make_points(random, 2, 131 + static_cast<unsigned>(random() % 40), 64, n_clusters);
    check(points, run(points, 1 + static_cast<int>(random() % 3), true,
                      {.order = static_cast<schedule>(random() % 3), .seed = random()}));
  }
}

TEST_CASE("jobs may have fewer points than there is room for") {
  auto random = generator("ragged");
  point_case points = make_points(random, 4, 200, 32, 20);
  points.n_points = {200, 1, 20, 77};
  check(points, run(points, 3, true, {.order = schedule::random, .seed = random()}));
  points.n_points = {129, 21, 3, 2};
  check(points, run(points, 2, false, {.order = schedule::backwards, .seed = random()}));
}

TEST_CASE("buckets of sixteen bits and of thirty-two sort alike") {
  auto random = generator("buckets");
  const point_case points = make_points(random, 3, 150, 32, 17);
  CHECK(run(points, 3, true, {.seed = random()}) == run(points, 3, false, {.seed = random()}));
}

TEST_CASE("the widest points") {
  auto random = generator("wide");
  const point_case points = make_points(random, 1, 140, 512, 9);
  check(points, run(points, 2, true, {.order = schedule::random, .seed = random()}));
}

TEST_CASE("an empty cluster begins anew where points fit worst") {
  auto random = generator("vacant");
  // Ten places, and all seeds at the first: each iteration finds one more.
  point_case points{1, 200, 32, 20, {}, {}};
  std::vector<float> rows(std::size_t{200} * 32);
  const std::vector<float> places = normal_rows(random, 10 * 32, 3.0F);
  for (unsigned p = 0; p < 200; ++p) {
    const bool is_seed = p % 10 == 5;  // middle_of_run(c, 20, 200)
    const unsigned place = is_seed ? 0 : p % 10;
    std::copy_n(places.data() + place * 32, 32, rows.data() + p * 32);
  }
  points.points = as_scalar<bf16>(rows);
  const clustering found = run(points, 9, true, {.order = schedule::random, .seed = random()});
  check(points, found);
  // The place whose turn the seeds take is empty; each of the other nine is a cluster of its own by now.
  unsigned n_used = 0;
  for (unsigned c = 0; c < 20; ++c) n_used += found.first[c] < found.first[c + 1] ? 1 : 0;
  CHECK(n_used == 9);
}
