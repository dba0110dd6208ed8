// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/baselines/block_mean.hpp>
#include <wavekv/baselines/low_rank.hpp>
#include <wavekv/baselines/lsh_sampling.hpp>
#include <wavekv/baselines/oracle.hpp>
#include <wavekv/baselines/page_bounds.hpp>
#include <wavekv/baselines/product_quantised.hpp>
#include <wavekv/baselines/streaming.hpp>

#include "archetypes/summaries.hpp"
#include "conformance/summary_law.hpp"
#include "reference/fresh_seed.hpp"

// What rules score clusters by: the law of the slot, and the paper's formula in double.

using namespace wavekv_test;
namespace baselines = wavekv::baselines;

namespace {

/// Scores [n_queries, n_clusters] of random clusters by a summary, beside formula(query, keys of a cluster) in double. Returns the
/// largest difference, as a part of |query| · (longest key).
template <class Summary, class Formula>
double largest_difference(random_engine& random, std::size_t dim, const Formula& formula) {
  const cluster_data data = cluster_data::random(random, key_family::clustered, 200, 17, dim);
  constexpr std::size_t n_queries = 3;
  const std::vector<float> queries = normal_rows(random, n_queries * dim);
  const Summary summary;
  std::vector<float> scores(n_queries * 17);
  summary.score(summary.keep(data.view), {queries.data(), n_queries, dim, dim}, scores.data(), 17);
  double longest = 0.0;
  for (std::size_t t = 0; t < 200; ++t) {
    double squared = 0.0;
    for (std::size_t i = 0; i < dim; ++i)
      squared += std::pow(static_cast<double>(data.keys[t * dim + i]), 2);
    longest = std::max(longest, std::sqrt(squared));
  }
  double largest = 0.0;
  for (std::size_t q = 0; q < n_queries; ++q) {
    const std::vector<double> query(queries.begin() + static_cast<std::ptrdiff_t>(q * dim),
                                    queries.begin() + static_cast<std::ptrdiff_t>((q + 1) * dim));
    double length = 0.0;
    for (const double x : query) length += x * x;
    for (std::size_t c = 0; c < 17; ++c) {
      std::vector<std::vector<double>> keys;
      for (std::size_t t = data.first_token[c]; t < data.first_token[c + 1]; ++t) {
        keys.emplace_back(data.keys.begin() + static_cast<std::ptrdiff_t>(t * dim),
                          data.keys.begin() + static_cast<std::ptrdiff_t>((t + 1) * dim));
      }
      const double difference = static_cast<double>(scores[q * 17 + c]) - formula(query, keys);
      largest = std::max(largest, std::abs(difference) / (std::sqrt(length) * longest));
    }
  }
  return largest;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Rows and queries are rounded to bf16, 8 bits: by at most 2^-9 of each element; products of rounded rows are off by at most
// 2 · 2^-9 of |q|·|k|, page_bounds' by twice that (outward rounding, two rows).
constexpr double bf16_rounding = 1.0 / 256.0;

}  // namespace

TEST_CASE("summaries keep the law of their slot") {
  CHECK(summary_law<first_key>() == "");
  CHECK(summary_law<baselines::no_summary>() == "");
  CHECK(summary_law<baselines::page_bounds>() == "");
  CHECK(summary_law<baselines::block_mean>() == "");
  CHECK(summary_law<baselines::oracle>() == "");
  CHECK(summary_law<baselines::low_rank<>>() == "");
  CHECK(summary_law<baselines::low_rank<3>>() == "");
  CHECK(summary_law<baselines::product_quantised<>>() == "");
  CHECK(summary_law<baselines::product_quantised<3, 8>>() == "");
  CHECK(summary_law<baselines::lsh_tables<4, 20>>() == "");
}

TEST_CASE("page_bounds: sum over dimensions of max(q·min, q·max)") {
  random_engine random = generator("page_bounds formula");
  const auto formula = [](const std::vector<double>& q,
                          const std::vector<std::vector<double>>& keys) {
    double sum = 0.0;
    for (std::size_t i = 0; i < q.size(); ++i) {
      const auto [least, most] =
          std::ranges::minmax(keys, {}, [i](const auto& key) { return key[i]; });
      sum += std::max(q[i] * least[i], q[i] * most[i]);
    }
    return sum;
  };
  for (const std::size_t dim : {16U, 64U, 128U}) {
    CHECK(largest_difference<baselines::page_bounds>(random, dim, formula) <
          2 * std::sqrt(2.0) * bf16_rounding);
  }
}

TEST_CASE("page_bounds: no key's logit lies above the score") {
  random_engine random = generator("page_bounds bound");
  for (const key_family family : all_families) {
    const cluster_data data = cluster_data::random(random, family, 200, 17, 64);
    const std::vector<float> query = normal_rows(random, 64);
    std::vector<float> scores(17);
    const baselines::page_bounds summary;
    summary.score(summary.keep(data.view), {query.data(), 1, 64, 64}, scores.data(), 17);
    for (std::size_t c = 0; c < 17; ++c) {
      for (std::size_t t = data.first_token[c]; t < data.first_token[c + 1]; ++t) {
        double logit = 0.0;
        double size = 0.0;
        for (std::size_t i = 0; i < 64; ++i) {
          const double product =
              static_cast<double>(query[i]) * static_cast<double>(data.keys[t * 64 + i]);
          logit += product;
          size += std::abs(product);
        }
        CHECK(static_cast<double>(scores[c]) >=
              logit - 2.0 * bf16_rounding * size - 1e-30);  // queries are rounded, too
      }
    }
  }
}

TEST_CASE("block_mean: the logit of the mean key") {
  random_engine random = generator("block_mean");
  const auto formula = [](const std::vector<double>& q,
                          const std::vector<std::vector<double>>& keys) {
    double sum = 0.0;
    for (const auto& key : keys) sum += dot(q, key);
    return sum / static_cast<double>(keys.size());
  };
  for (const std::size_t dim : {16U, 64U, 128U}) {
    CHECK(largest_difference<baselines::block_mean>(random, dim, formula) < bf16_rounding);
  }
}

TEST_CASE("oracle: the largest logit, and it books nothing") {
  random_engine random = generator("oracle");
  const auto formula = [](const std::vector<double>& q,
                          const std::vector<std::vector<double>>& keys) {
    double largest = -INFINITY;
    for (const auto& key : keys) largest = std::max(largest, dot(q, key));
    return largest;
  };
  for (const std::size_t dim : {16U, 64U, 128U}) {
    CHECK(largest_difference<baselines::oracle>(random, dim, formula) < 1e-5);
  }
}

TEST_CASE(
    "low_rank: all directions give the logit; few give that of the key's projection on them") {
  random_engine random = generator("low_rank");
  const auto mean_logit = [](const std::vector<double>& q,
                             const std::vector<std::vector<double>>& keys) {
    double sum = 0.0;
    for (const auto& key : keys) sum += dot(q, key);
    return sum / static_cast<double>(keys.size());
  };
  CHECK(largest_difference<baselines::low_rank<64>>(random, 64, mean_logit) < 2 * bf16_rounding);
  // Keys in a plane, and a little beside it: two directions tell all but that.
  constexpr std::size_t dim = 24;
  constexpr std::size_t n = 300;
  const std::vector<float> axes = normal_rows(random, 2 * dim);
  std::vector<float> keys = normal_rows(random, n * dim, 1e-3F);
  for (std::size_t t = 0; t < n; ++t) {
    const std::vector<float> at = normal_rows(random, 2, 3.0F);
    for (std::size_t i = 0; i < dim; ++i)
      keys[t * dim + i] += at[0] * axes[i] + at[1] * axes[dim + i];
  }
  std::vector<std::uint32_t> first(n + 1);
  for (std::size_t t = 0; t <= n; ++t) first[t] = static_cast<std::uint32_t>(t);
  wavekv::cluster_rows rows;
  rows.keys = rows.values = keys.data();
  rows.key_dim = rows.value_dim = dim;
  rows.first_token = first;
  const std::vector<float> query = normal_rows(random, dim);
  std::vector<float> scores(n);
  const baselines::low_rank<2> summary;
  const std::size_t bytes =
      summary.score(summary.keep(rows), {query.data(), 1, dim, dim}, scores.data(), n);
  CHECK(bytes == 2 * dim * sizeof(float) + n * 2 * sizeof(wavekv::bf16));
  double length = 0.0;
  for (const float x : query) length += static_cast<double>(x) * static_cast<double>(x);
  for (std::size_t t = 0; t < n; ++t) {
    double logit = 0.0;
    double squared = 0.0;
    for (std::size_t i = 0; i < dim; ++i) {
      const auto k = static_cast<double>(keys[t * dim + i]);
      logit += static_cast<double>(query[i]) * k;
      squared += k * k;
    }
    // What lies beside the plane: 24 numbers of 1e-3; coordinates and query are rounded to bf16.
    CHECK(std::abs(static_cast<double>(scores[t]) - logit) <
          std::sqrt(length) * (2 * bf16_rounding * std::sqrt(squared) + 0.02));
  }
}

TEST_CASE("product_quantised: the logit of the nearest code of each part") {
  random_engine random = generator("product_quantised");
  // As many codes as points: every key is its own code, and the score its logit.
  const auto mean_logit = [](const std::vector<double>& q,
                             const std::vector<std::vector<double>>& keys) {
    double sum = 0.0;
    for (const auto& key : keys) sum += dot(q, key);
    return sum / static_cast<double>(keys.size());
  };
  CHECK(largest_difference<baselines::product_quantised<2, 6>>(random, 64, mean_logit) < 1e-5);
  CHECK(largest_difference<baselines::product_quantised<5, 5>>(random, 33, mean_logit) < 1e-5);
  // Fewer: the score is that of a point made of means, one a part, each of the points that share its code.
  const cluster_data data = cluster_data::random(random, key_family::clustered, 500, 500, 12);
  using summary_type = baselines::product_quantised<3, 4>;
  const summary_type::kept kept = summary_type{}.keep(data.view);
  const std::vector<float> query = normal_rows(random, 12);
  std::vector<float> scores(500);
  CHECK(summary_type{}.score(kept, {query.data(), 1, 12, 12}, scores.data(), 500) ==
        3 * 500 + 16 * 12 * sizeof(float));
  for (std::size_t i = 0; i < 500; ++i) {
    double expected = 0.0;
    for (std::size_t part = 0; part < 3; ++part) {
      const std::uint8_t code = kept.codes[part * 500 + i];
      std::size_t n = 0;
      double product = 0.0;
      for (std::size_t j = 0; j < 500; ++j) {
        if (kept.codes[part * 500 + j] != code) continue;
        ++n;
        for (std::size_t e = 4 * part; e < 4 * part + 4; ++e)
          product += static_cast<double>(query[e]) * static_cast<double>(data.keys[j * 12 + e]);
      }
      expected += product / static_cast<double>(n);
    }
    CHECK(static_cast<double>(scores[i]) == doctest::Approx(expected).epsilon(1e-4).scale(1.0));
  }
}

TEST_CASE("lsh_tables: who shares two codes is found, at its logit less the logarithm of how "
          "likely that was") {
  random_engine random = generator("lsh_tables");
  using summary_type = baselines::lsh_tables<4, 20>;
  constexpr std::size_t dim = 16;
  constexpr std::size_t n = 400;
  std::vector<double> off;  // found or not, less how likely
  for (int round = 0; round < 20; ++round) {
    const cluster_data data = cluster_data::random(random, key_family::uniform, n, n, dim);
    const std::vector<float> projections = summary_type::projections(dim);
    std::vector<double> mean(dim, 0.0);
    for (std::size_t i = 0; i < n * dim; ++i)
      mean[i % dim] += static_cast<double>(data.keys[i]) / n;
    const std::vector<float> query = normal_rows(random, dim);
    std::vector<float> scores(n);
    summary_type{}.score(summary_type{}.keep(data.view), {query.data(), 1, dim, dim}, scores.data(),
                         n);
    for (std::size_t t = 0; t < n; ++t) {
      double logit = 0.0;
      double along = 0.0;
      double key_squared = 0.0;
      double query_squared = 0.0;
      std::vector<double> centred(dim);
      for (std::size_t i = 0; i < dim; ++i) {
        const auto q = static_cast<double>(query[i]);
        const auto k = static_cast<double>(data.keys[t * dim + i]);
        centred[i] = k - mean[i];
        logit += q * k;
        along += q * centred[i];
        key_squared += centred[i] * centred[i];
        query_squared += q * q;
      }
      std::size_t n_common = 0;
      bool is_close = false;  // to a plane: float may see it on the other side
      for (std::size_t table = 0; table < 20; ++table) {
        bool same = true;
        for (std::size_t bit = 0; bit < 4; ++bit) {
          double of_query = 0.0;
          double of_key = 0.0;
          for (std::size_t i = 0; i < dim; ++i) {
            const auto axis = static_cast<double>(projections[(table * 4 + bit) * dim + i]);
            of_query += axis * static_cast<double>(query[i]);
            of_key += axis * centred[i];
          }
          is_close = is_close || std::abs(of_query) < 1e-4 || std::abs(of_key) < 1e-4;
          same = same && (of_query > 0.0) == (of_key > 0.0);
        }
        n_common += same ? 1 : 0;
      }
      const double p =
          1.0 - std::acos(along / std::sqrt(key_squared * query_squared)) / 3.14159265358979;
      const double code = std::pow(p, 4);
      const double likely = 1.0 - std::pow(1.0 - code, 20) - 20.0 * code * std::pow(1.0 - code, 19);
      const bool found = std::isfinite(scores[t]);
      off.push_back((found ? 1.0 : 0.0) - likely);
      if (is_close) continue;
      CHECK(found == (n_common >= 2));
      if (found) {
        // The logit is of a key in bf16, the cosine, too.
        CHECK(static_cast<double>(scores[t]) ==
              doctest::Approx(logit - std::log(likely)).epsilon(0.05).scale(1.0));
      }
    }
  }
  // The planes are the same in all rounds, so that tokens are not found independently: a wide margin.
  double sum = 0.0;
  for (const double x : off) sum += x;
  CHECK(std::abs(sum / static_cast<double>(off.size())) < 0.05);
}

TEST_CASE("what a summary keeps is counted, the object and its arrays") {
  random_engine random = generator("kept bytes");
  const cluster_data data = cluster_data::random(random, key_family::clustered, 200, 40, 32);
  const auto bytes_of = [&]<class Summary>(const Summary& summary) {
    using kept_type = typename Summary::kept;
    return wavekv::detail::kept_bytes(summary.keep(data.view)) - sizeof(kept_type);
  };
  CHECK(bytes_of(baselines::no_summary{}) == 0);
  CHECK(bytes_of(first_key{}) == 0);  // does not say
  CHECK(bytes_of(baselines::page_bounds{}) == 40 * 2 * 32 * 2);
  CHECK(bytes_of(baselines::block_mean{}) == 40 * 32 * 2);
  CHECK(bytes_of(baselines::low_rank<6>{}) == 6 * 32 * 4 + 40 * 6 * 2);
  CHECK(bytes_of(baselines::product_quantised<2, 3>{}) == 2 * 40 + 8 * 32 * 4 + 3 * 8);
  CHECK(bytes_of(baselines::oracle{}) == 200 * 32 * 4 + 41 * 4);
  CHECK(bytes_of(baselines::lsh_tables<4, 20>{}) ==
        20 * 17 * 4 + 20 * 40 * 2 + 32 * 4 + 40 * 32 * 2 + 40 * 4);
}
