// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "support/filled_cache.hpp"

// fixed_budget and error_bound against the promises they make.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::geometry;

TEST_CASE(
    "fixed_budget reads and estimates its fractions of the clusters, and reports what it drops") {
  for (const key_family family : all_families) {
    filled<float, flat> data(family, 1300, 2);
    INFO("keys ", std::string(name_of(family)));
    const std::uint64_t n_clusters = data.cache.stats(data.sequence).clusters;
    std::vector<std::size_t> per_head;
    for (const auto& [retrieve, estimate] : {std::pair{0.018F, 0.232F},
                                             {0.1F, 0.0F},
                                             {0.0F, 0.3F},
                                             {0.0F, 0.0F},
                                             {0.25F, 0.75F},
                                             {0.0F, 1.0F}}) {
      const std::vector<float> query = data.query();
      const auto [got, stats] = attend_counted(data.cache, data.sequence, 0, query,
                                               wavekv::fixed_budget{retrieve, estimate, 0});
      CHECK(all_finite(got));
      // Counts are rounded up for each of the two KV heads.
      const auto about = [&](std::uint64_t count, float fraction) {
        const double wanted = static_cast<double>(fraction) * static_cast<double>(n_clusters);
        return static_cast<double>(count) >= wanted - 1e-3 &&
               static_cast<double>(count) <= wanted + 2.001;
      };
      CHECK(about(stats.clusters_read, retrieve));
      CHECK(about(stats.clusters_read + stats.clusters_estimated, retrieve + estimate));
      CHECK(stats.clusters_read + stats.clusters_estimated + stats.clusters_dropped == n_clusters);
      CHECK((stats.dropped_mass == 0.0F) == (stats.clusters_dropped == 0));
      CHECK(stats.capped == 0);
    }
  }
}

TEST_CASE("fixed_budget's dropped mass is the mass that the answer lacks") {
  // Exact on what is kept, so that the difference of the log-sum-exps is the dropped mass and nothing else.
  for (const key_family family : {key_family::uniform, key_family::clustered, key_family::needle}) {
    filled<float, flat> data(family, 1300, 3);
    INFO("keys ", std::string(name_of(family)));
    for (int i = 0; i < 8; ++i) {
      const std::vector<float> query = data.query(0.5F);
      const auto [got, stats] =
          attend_counted(data.cache, data.sequence, 0, query, wavekv::fixed_budget{0.3F, 0.0F});
      const reference_attention expected = attend_naively(data.sizes, 0, data.tokens, query);
      double largest = 0.0;
      for (std::size_t h = 0; h < expected.lse.size(); ++h) {
        largest =
            std::max(largest, 1.0 - std::exp(static_cast<double>(got.lse[h]) - expected.lse[h]));
      }
      CHECK(static_cast<double>(stats.dropped_mass) == doctest::Approx(largest).epsilon(0.25));
    }
  }
}

TEST_CASE("fixed_budget finds the needle") {
  // The needle's cluster is small and its keys are alike: its centroid is the nearest by far.
  filled<float, flat> data(key_family::needle, 1300, 4);
  const std::size_t width = data.sizes.n_kv_heads * data.sizes.key_dim;
  // The needle's keys are those least like the mean.
  std::vector<float> mean(width, 0.0F);
  for (std::size_t i = 0; i < data.tokens.keys.size(); ++i)
    mean[i % width] += data.tokens.keys[i] / 1300.0F;
  std::size_t needle = 0;
  float farthest = 0.0F;
  for (std::size_t t = 0; t < 1300; ++t) {
    float squared = 0.0F;
    for (std::size_t i = 0; i < width; ++i) {
      const float d = data.tokens.keys[t * width + i] - mean[i];
      squared += d * d;
    }
    if (squared > farthest) {
      farthest = squared;
      needle = t;
    }
  }
  std::vector<float> query;
  for (std::size_t h = 0; h < data.sizes.n_query_heads; ++h) {
    const std::size_t head = h / data.sizes.group_size();
    for (std::size_t i = 0; i < data.sizes.key_dim; ++i) {
      const std::size_t at = head * data.sizes.key_dim + i;
      query.push_back(data.tokens.keys[needle * width + at] - mean[at]);
    }
  }
  const auto [got, stats] =
      attend_counted(data.cache, data.sequence, 0, query, wavekv::fixed_budget{});
  CHECK(largest_error(data.sizes, got.out, attend_naively(data.sizes, 0, data.tokens, query)) <=
        1e-3);
}

TEST_CASE_TEMPLATE("error_bound: predicted error within epsilon, or capped", Counts, flat, tree) {
  for (const key_family family : all_families) {
    filled<bf16, Counts> data(family, 1300, 5);
    INFO("keys ", std::string(name_of(family)));
    for (const float epsilon : {1.0F, 0.2F, 0.05F, 0.01F, 1e-3F, 1e-6F}) {
      for (const float length : {0.1F, 1.0F, 4.0F}) {
        const std::vector<float> query = data.query(length);
        const auto [open, open_stats] =
            attend_counted(data.cache, data.sequence, 0, query, without_caps(epsilon));
        CHECK(all_finite(open));
        CHECK(open_stats.predicted_error <= epsilon * 1.001F);
        CHECK(open_stats.capped == 0);
        CHECK(open_stats.clusters_dropped == 0);
        CHECK(open_stats.dropped_mass == 0.0F);

        wavekv::error_bound<> capped = without_caps(epsilon);
        capped.max_read = 0.05F;
        capped.max_open = 0.3F;
        capped.free_tokens = 0;
        capped.floor_open = capped.floor_read = capped.hidden_share = 0.0F;  // on top of the caps
        const auto [small, small_stats] =
            attend_counted(data.cache, data.sequence, 0, query, capped);
        CHECK(all_finite(small));
        CHECK((small_stats.capped != 0 || small_stats.predicted_error <= epsilon * 1.001F));
        CHECK((small_stats.capped == 0 || small_stats.predicted_error > epsilon));
        // The cap on tokens holds for each KV head: 5 % of its sealed tokens.
        CHECK(small_stats.tokens_read <= 2 * (20 + 8 + static_cast<std::size_t>(0.05 * 1300)));
      }
    }
  }
}

TEST_CASE("error_bound: a smaller epsilon reads more and errs less") {
  for (const key_family family : {key_family::uniform, key_family::clustered}) {
    filled<float, tree> data(family, 2000, 6);
    std::vector<double> mean_error;
    std::vector<std::uint64_t> tokens_read;
    for (const float epsilon : {0.5F, 0.1F, 0.02F, 0.002F}) {
      random_engine same(99);
      double sum = 0.0;
      std::uint64_t read = 0;
      for (int i = 0; i < 12; ++i) {
        const std::vector<float> query =
            normal_rows(same, data.sizes.n_query_heads * data.sizes.key_dim);
        const auto [got, stats] =
            attend_counted(data.cache, data.sequence, 0, query, without_caps(epsilon));
        sum +=
            largest_error(data.sizes, got.out, attend_naively(data.sizes, 0, data.tokens, query));
        read += stats.tokens_read;
      }
      mean_error.push_back(sum / 12);
      tokens_read.push_back(read);
    }
    for (std::size_t i = 1; i < mean_error.size(); ++i) {
      CHECK(tokens_read[i] >= tokens_read[i - 1]);
      CHECK(mean_error[i] <= mean_error[i - 1] * 1.1 + 1e-6);
    }
  }
}

TEST_CASE("error_bound without caps: the true error stays within a small factor of epsilon") {
  // The prediction is a model of the error, no bound on it: it adds errors as if they pointed in unrelated
  // directions and takes one variance for all directions. Over (step, head) pairs the median must be
  // within epsilon, and no pair beyond four times epsilon.
  for (const key_family family : {key_family::uniform, key_family::clustered, key_family::needle}) {
    for (const float epsilon : {0.2F, 0.05F}) {
      filled<bf16, tree> data(family, 2000, 7);
      const std::size_t dim = data.sizes.value_dim;
      std::vector<double> ratios;
      for (int i = 0; i < 24; ++i) {
        const std::vector<float> query = data.query();
        const outputs got = attend_once(data.cache, data.sequence, 0, query, without_caps(epsilon));
        const reference_attention expected = attend_naively(data.sizes, 0, data.tokens, query);
        for (std::size_t h = 0; h < data.sizes.n_query_heads; ++h) {
          ratios.push_back(
              relative_error(std::span<const float>(got.out).subspan(h * dim, dim),
                             std::span<const double>(expected.out).subspan(h * dim, dim)) /
              static_cast<double>(epsilon));
        }
      }
      std::ranges::sort(ratios);
      INFO("keys ", std::string(name_of(family)), ", epsilon ", epsilon,
           ", error / epsilon: median ", ratios[ratios.size() / 2], ", largest ", ratios.back());
      CHECK(ratios[ratios.size() / 2] <= 1.0);
      CHECK(ratios.back() <= 4.0);
    }
  }
}

TEST_CASE("ranking by sum and by max") {
  filled<float, flat> data(key_family::clustered, 1300, 10);
  const std::vector<float> query = data.query();
  const outputs by_sum = attend_once(data.cache, data.sequence, 0, query,
                                     wavekv::basic_fixed_budget<wavekv::rank_by_sum>{});
  const outputs by_max = attend_once(data.cache, data.sequence, 0, query,
                                     wavekv::basic_fixed_budget<wavekv::rank_by_max>{});
  CHECK(all_finite(by_sum));
  CHECK(all_finite(by_max));
  wavekv::error_bound<wavekv::rank_by_sum> sum;
  sum.max_open = sum.max_read = 1.0F;
  sum.hidden_share = 0.0F;
  const auto [got, stats] = attend_counted(data.cache, data.sequence, 0, query, sum);
  CHECK(stats.predicted_error <= sum.epsilon * 1.001F);
  // One head per KV head: the rankings cannot differ.
  geometry single = small_geometry();
  single.n_query_heads = 2;
  filled<float, flat> alone(key_family::clustered, 1300, 10, single);
  const std::vector<float> own = alone.query();
  CHECK(attend_once(alone.cache, alone.sequence, 0, own,
                    wavekv::basic_fixed_budget<wavekv::rank_by_sum>{}) ==
        attend_once(alone.cache, alone.sequence, 0, own,
                    wavekv::basic_fixed_budget<wavekv::rank_by_max>{}));
}
