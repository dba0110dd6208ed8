// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// g++ 12 warns inside its own AVX-512 intrinsics where Eigen uses them; a test's oracle needs no vectors.
#define EIGEN_DONT_VECTORIZE

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <Eigen/Cholesky>
#include <doctest/doctest.h>

#include <wavekv/index/query_metric.hpp>

#include "clustering_reference.hpp"

using namespace clustering_reference;
using wavekv::nhd;
using wavekv::query_metric;

namespace {

using matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

matrix normalized(const query_metric& metric) {
  const auto dim = static_cast<Eigen::Index>(metric.key_dim());
  matrix result = matrix::Constant(dim, dim, NAN);
  metric.normalized({result.data(), metric.key_dim() * metric.key_dim()});
  return result;
}

matrix factor(const query_metric& metric) {
  const auto dim = static_cast<Eigen::Index>(metric.key_dim());
  std::vector<float> lower(metric.key_dim() * metric.key_dim(), NAN);
  metric.factor(lower);
  return Eigen::Map<Eigen::Matrix<float, -1, -1, Eigen::RowMajor>>(lower.data(), dim, dim)
      .cast<double>();
}

/// Mean of q·qᵀ scaled to trace dim, with the ridge, in double.
matrix expected_matrix(const std::vector<float>& queries, std::size_t dim) {
  const auto d = static_cast<Eigen::Index>(dim);
  const matrix rows = Eigen::Map<const Eigen::Matrix<float, -1, -1, Eigen::RowMajor>>(
                          queries.data(), static_cast<Eigen::Index>(queries.size() / dim), d)
                          .cast<double>();
  const matrix sum = rows.transpose() * rows;
  return (sum * (static_cast<double>(dim) / sum.trace()) +
          query_metric::ridge * matrix::Identity(d, d)) /
         (1 + query_metric::ridge);
}

}  // namespace

TEST_CASE("query metric: the mean of q·qᵀ, for every scalar and any split") {
  for (const std::size_t dim : {1U, 5U, 64U, 128U}) {
    CAPTURE(dim);
    const std::size_t n_tokens = 100;
    const std::size_t group = 3;
    const std::vector<float> queries = normal_rows(n_tokens * group, dim, 7, 0.4F, 3.0F);
    query_metric once(dim);
    once.add(nhd<const float>(queries.data(), n_tokens, group, dim), 0.25F);
    CHECK(once.count() == n_tokens * group);
    CHECK(once.known());
    double mean_square = 0;
    for (const float q : queries) {
      mean_square += static_cast<double>(q) * static_cast<double>(q) / 16.0;
    }
    CHECK(once.trace() == doctest::Approx(mean_square / static_cast<double>(n_tokens * group)));
    CHECK((normalized(once) - expected_matrix(queries, dim)).norm() <=
          1e-5 * static_cast<double>(dim));
    CHECK(normalized(once).trace() == doctest::Approx(static_cast<double>(dim)).epsilon(1e-5));

    query_metric split(dim);
    for (std::size_t t = 0; t < n_tokens; t += 7) {
      split.add(nhd<const float>(&queries[t * group * dim], std::min<std::size_t>(7, n_tokens - t),
                                 group, dim),
                0.25F);
    }
    CHECK(normalized(split) == normalized(once));

    std::vector<wavekv::bf16> narrow(queries.size());
    std::vector<float> rounded(queries.size());
    for (std::size_t i = 0; i < queries.size(); ++i) {
      narrow[i] = wavekv::from_float<wavekv::bf16>(queries[i]);
      rounded[i] = wavekv::to_float(narrow[i]);
    }
    query_metric from_narrow(dim);
    query_metric from_rounded(dim);
    from_narrow.add(nhd<const wavekv::bf16>(narrow.data(), n_tokens, group, dim));
    from_rounded.add(nhd<const float>(rounded.data(), n_tokens, group, dim));
    CHECK(normalized(from_narrow) == normalized(from_rounded));
  }
}

TEST_CASE("query metric: reads the heads of one group out of a wider view") {
  const std::size_t dim = 6;
  const std::vector<float> queries = normal_rows(20 * 8, dim, 8);
  const auto all = nhd<const float>(queries.data(), 20, 8, dim);
  const wavekv::tensor_view<const float, 3> group(all.data() + 4 * dim, {20, 2, dim},
                                                  all.strides());
  std::vector<float> packed;
  for (std::size_t t = 0; t < 20; ++t) {
    packed.insert(packed.end(), &queries[(t * 8 + 4) * dim], &queries[(t * 8 + 4) * dim] + 2 * dim);
  }
  query_metric from_view(dim);
  query_metric from_packed(dim);
  from_view.add(group);
  from_packed.add(nhd<const float>(packed.data(), 20, 2, dim));
  CHECK(normalized(from_view) == normalized(from_packed));
}

TEST_CASE("query metric: the factor is Eigen's, and finite for any number of queries") {
  for (const std::size_t dim : {1U, 16U, 80U, 128U}) {
    for (const std::size_t n : {1U, 2U, 16U, 500U}) {
      CAPTURE(dim);
      CAPTURE(n);
      const std::vector<float> queries = normal_rows(n, dim, 9, 1.0F);
      query_metric metric(dim);
      metric.add(nhd<const float>(queries.data(), n, 1, dim));
      const matrix m = normalized(metric);
      const matrix lower = factor(metric);
      CHECK(lower.allFinite());
      CHECK((lower * lower.transpose() - m).norm() <= 1e-6 * m.norm());
      const Eigen::LLT<matrix> reference(m);
      REQUIRE(reference.info() == Eigen::Success);
      CHECK((lower - matrix(reference.matrixL())).norm() <= 1e-5 * lower.norm());
    }
  }
}

TEST_CASE("query metric: nothing seen, zeros, and queries out of range leave the identity") {
  const std::size_t dim = 9;
  const matrix identity = matrix::Identity(9, 9);
  query_metric metric(dim);
  CHECK_FALSE(metric.known());
  CHECK(metric.trace() == 0);
  CHECK(factor(metric) == identity);
  const std::vector<float> zeros(4 * dim, 0.0F);
  metric.add(nhd<const float>(zeros.data(), 4, 1, dim));
  CHECK_FALSE(metric.known());
  CHECK(factor(metric) == identity);
  const std::vector<float> huge(dim, 1e30F);
  metric.add(nhd<const float>(huge.data(), 1, 1, dim));
  CHECK_FALSE(metric.known());
  CHECK(normalized(metric) == identity);
  metric.add(nhd<const float>(nullptr, 0, 1, dim));
  CHECK(metric.count() == 4);
}

TEST_CASE("query metric: a long prompt is thinned evenly") {
  // queries that drift along the prompt: the mean over all of it is known
  const std::size_t dim = 4;
  const std::size_t n = 20000;
  std::vector<float> queries(n * dim, 0.0F);
  for (std::size_t t = 0; t < n; ++t) {
    queries[t * dim + t * dim / n] = 1.0F;
  }
  query_metric metric(dim, 256);
  metric.add(nhd<const float>(queries.data(), n, 1, dim));
  CHECK(metric.count() < 256 * 6);
  CHECK(metric.count() > 256);
  const matrix m = normalized(metric);
  for (int i = 0; i < 4; ++i) {
    CHECK(m(i, i) == doctest::Approx(1.0).epsilon(0.05));
  }
  query_metric split(dim, 256);
  for (std::size_t t = 0; t < n; t += 333) {
    split.add(nhd<const float>(&queries[t * dim], std::min<std::size_t>(333, n - t), 1, dim));
  }
  CHECK(normalized(split) == m);
}

TEST_CASE("query metric: a copy goes its own way") {
  const std::vector<float> queries = normal_rows(10, 8, 10);
  query_metric original(8);
  original.add(nhd<const float>(queries.data(), 5, 1, 8));
  const matrix before = normalized(original);
  query_metric fork = original;
  fork.add(nhd<const float>(&queries[5 * 8], 5, 1, 8));
  CHECK(normalized(original) == before);
  original.add(nhd<const float>(&queries[5 * 8], 5, 1, 8));
  CHECK(normalized(original) == normalized(fork));
}

TEST_CASE("query metric: a sample of the queries, thinned evenly, whatever the split") {
  constexpr std::size_t dim = 3;
  for (const std::size_t max_sample : {2U, 7U, 16U, 64U}) {
    for (const std::size_t n_tokens : {1U, 15U, 16U, 17U, 100U, 1000U}) {
      CAPTURE(max_sample);
      CAPTURE(n_tokens);
      std::vector<float> queries(n_tokens * 2 * dim);  // row i is (i, i, i)
      for (std::size_t i = 0; i < queries.size(); ++i) queries[i] = static_cast<float>(i / dim);
      query_metric once(dim, 4096, max_sample);
      once.add(nhd<const float>(queries.data(), n_tokens, 2, dim));
      const std::size_t n = once.sample().size() / dim;
      CHECK(n <= max_sample);
      CHECK(n >= std::min(2 * n_tokens, max_sample / 2));
      const float period = n < 2 ? 1.0F : once.sample()[dim];
      for (std::size_t i = 0; i < n * dim; ++i) {
        CHECK(once.sample()[i] == period * static_cast<float>(i / dim));
      }
      CHECK(static_cast<std::size_t>(period) * n >=
            2 * n_tokens - static_cast<std::size_t>(period) + 1);
      query_metric split(dim, 4096, max_sample);
      for (std::size_t first = 0; first < n_tokens; first += 7) {
        split.add(nhd<const float>(queries.data() + first * 2 * dim,
                                   std::min<std::size_t>(7, n_tokens - first), 2, dim));
      }
      CHECK(split == once);
      query_metric none(dim);
      none.add(nhd<const float>(queries.data(), n_tokens, 2, dim));
      CHECK(none.sample().empty());
      CHECK(normalized(none) == normalized(once));
    }
  }
}

TEST_CASE("query metric: wrong shapes are refused") {
  query_metric metric(8);
  const std::vector<float> queries(8 * 9, 1.0F);
  CHECK_THROWS_AS(metric.add(nhd<const float>(queries.data(), 2, 1, 9)), wavekv::shape_error);
  CHECK_THROWS_AS(
      metric.add(wavekv::tensor_view<const float, 3>(queries.data(), {2, 1, 8}, {16, 16, 2})),
      wavekv::shape_error);
  CHECK(metric.count() == 0);
  std::vector<float> small(63);
  CHECK_THROWS_AS(metric.factor(small), wavekv::shape_error);
}
