// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/core/tensor_view.hpp>
#include <wavekv/index/query_metric.cuh>
#include <wavekv/index/query_metric.hpp>

#include "cuda/emulated_runtime.hpp"
#include "cuda/seal_harness.hpp"
#include "reference/fresh_seed.hpp"
#include "support/rows.hpp"

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::device::metric_schedule;
using wavekv::device::metric_stretch;
using wavekv::testing::schedule;
namespace device = wavekv::device;

namespace {

// Every token that is taken, as (position, weight), for tokens given in calls of random lengths.
struct taken_token {
  std::size_t position;
  std::size_t weight;
  friend bool operator==(const taken_token&, const taken_token&) = default;
};

std::vector<taken_token> taken_of(metric_schedule schedule, std::size_t n_tokens,
                                  random_engine* random) {
  std::vector<taken_token> taken;
  for (std::size_t done = 0; done < n_tokens;) {
    const std::size_t n =
        random == nullptr ? n_tokens : std::min(n_tokens - done, std::size_t{(*random)() % 40});
    schedule.advance(n, [&](const metric_stretch& stretch) {
      REQUIRE(stretch.count > 0);
      REQUIRE(stretch.first + (stretch.count - 1) * stretch.period < n);
      for (std::size_t i = 0; i < stretch.count; ++i) {
        taken.push_back({done + stretch.first + i * stretch.period, stretch.period});
      }
    });
    done += n;
  }
  CHECK(schedule.n_tokens() == n_tokens);
  return taken;
}

// The same of query_metric: a query of one element tells by how much its square counts.
std::vector<taken_token> taken_on_cpu(std::size_t group_size, std::size_t max_queries,
                                      std::size_t n_tokens) {
  wavekv::query_metric metric(1, max_queries);
  const std::vector<float> ones(group_size, 1.0F);
  std::vector<taken_token> taken;
  for (std::size_t t = 0; t < n_tokens; ++t) {
    const std::size_t before = metric.count();
    std::vector<double> unused(1);
    double weight = 0.0;
    wavekv::query_metric::visit_state(metric, [&](const auto& x) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(x)>, double>) {
        weight = weight == 0.0 ? static_cast<double>(x) : weight;
      }
    });
    const double weight_before = weight;
    metric.add<float>(tokens_of(ones, 0, 1, group_size, 1));
    weight = 0.0;
    wavekv::query_metric::visit_state(metric, [&](const auto& x) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(x)>, double>) {
        weight = weight == 0.0 ? static_cast<double>(x) : weight;
      }
    });
    if (metric.count() != before) {
      taken.push_back({t, static_cast<std::size_t>(
                              (weight - weight_before) / static_cast<double>(group_size) + 0.5)});
    }
  }
  return taken;
}

template <class Q>
void check_sums(random_engine& random, unsigned n_heads, unsigned group_size, unsigned key_dim,
                std::size_t n_tokens, bool with_strange_rows, schedule order) {
  const float scale = 0.37F;
  const unsigned n_query_heads = n_heads * group_size;
  const std::size_t max_queries = 32;
  std::vector<float> queries = normal_rows(random, n_tokens * n_query_heads * key_dim);
  if (with_strange_rows) {
    queries[random() % queries.size()] = std::numeric_limits<float>::quiet_NaN();
    queries[random() % queries.size()] = std::numeric_limits<float>::infinity();
    queries[random() % queries.size()] = std::is_same_v<Q, f16> ? 1.0F : 1e17F;
  }
  const std::vector<Q> stored = as_scalar<Q>(queries);
  std::vector<wavekv::query_metric> expected(n_heads, wavekv::query_metric(key_dim, max_queries));
  for (unsigned head = 0; head < n_heads; ++head) {
    expected[head].template add<Q>(
        wavekv::tensor_view<const Q, 3>(stored.data() + std::size_t{head} * group_size * key_dim,
                                        {n_tokens, group_size, key_dim},
                                        {std::size_t{n_query_heads} * key_dim, key_dim, 1}),
        scale);
  }

  const auto learn = [&](bool in_pieces) {
    wavekv::testing::emulated_runtime runtime({.order = order, .seed = random()});
    device_memory memory(runtime);
    const std::vector<float> zeros(std::size_t{n_heads} * key_dim * key_dim);
    const device::metric_view metric{memory.upload(zeros),
                                     memory.upload(std::vector<float>(n_heads))};
    const Q* const on_device = memory.upload(stored);
    device::model_shape shape{.n_kv_heads = n_heads, .group_size = group_size, .key_dim = key_dim};
    metric_schedule taken(group_size, max_queries);
    for (std::size_t done = 0; done < n_tokens;) {
      const std::size_t n =
          in_pieces ? std::min(n_tokens - done, std::size_t{random() % 20}) : n_tokens;
      const device::query_rows<Q> rows{on_device + done * n_query_heads * key_dim,
                                       std::size_t{n_query_heads} * key_dim, key_dim};
      device::learn_queries(runtime, {}, shape, rows, n, scale, taken, metric);
      done += n;
    }
    std::vector<float> sums = memory.download(metric.products, zeros.size());
    const std::vector<float> weights = memory.download(metric.weights, n_heads);
    sums.insert(sums.end(), weights.begin(), weights.end());
    return sums;
  };
  const std::vector<float> sums = learn(false);
  CHECK(sums == learn(true));  // to the bit

  for (unsigned head = 0; head < n_heads; ++head) {
    const float* products = sums.data() + std::size_t{head} * key_dim * key_dim;
    const auto weight = static_cast<double>(sums[std::size_t{n_heads} * key_dim * key_dim + head]);
    double trace = 0.0;
    for (unsigned i = 0; i < key_dim; ++i) trace += static_cast<double>(products[i * key_dim + i]);
    CHECK(trace / weight == doctest::Approx(expected[head].trace()).epsilon(1e-5));
    std::vector<double> normal(std::size_t{key_dim} * key_dim);
    expected[head].normalized(normal);
    const double mean = trace / key_dim;
    double off = 0.0;
    for (unsigned i = 0; i < key_dim; ++i) {
      for (unsigned j = 0; j < key_dim; ++j) {
        const double entry =
            (static_cast<double>(products[i * key_dim + j]) / mean + (i == j ? 1.0 : 0.0)) / 2.0;
        off = std::max(off, std::abs(entry - normal[i * key_dim + j]));
        CHECK(products[i * key_dim + j] == products[j * key_dim + i]);
      }
    }
    CHECK(off < 1e-5);
  }
}

}  // namespace

TEST_CASE("a schedule takes the tokens that query_metric takes, however they come") {
  auto random = generator("schedule");
  for (const std::size_t group_size : {1, 3, 4, 8}) {
    for (const std::size_t max_queries : {2, 10, 64}) {
      CAPTURE(group_size);
      CAPTURE(max_queries);
      const std::size_t n = 1 + random() % 2000;
      const std::vector<taken_token> expected = taken_on_cpu(group_size, max_queries, n);
      CHECK(taken_of(metric_schedule(group_size, max_queries), n, nullptr) == expected);
      CHECK(taken_of(metric_schedule(group_size, max_queries), n, &random) == expected);
    }
  }
}

TEST_CASE("a schedule's state can be kept and put back") {
  metric_schedule seen(4, 64);
  seen.advance(1234, [](const metric_stretch&) {});
  std::vector<std::size_t> state;
  metric_schedule::visit_state(seen, [&](const std::size_t& x) { state.push_back(x); });
  metric_schedule restored(4);
  CHECK(!(restored == seen));
  std::size_t at = 0;
  metric_schedule::visit_state(restored, [&](std::size_t& x) { x = state[at++]; });
  CHECK(restored == seen);
  CHECK(restored.period() == seen.period());
}

TEST_CASE("the device's sums are those of query_metric") {
  auto random = generator("sums");
  check_sums<float>(random, 2, 3, 48, 200, false, schedule::forwards);
  check_sums<bf16>(random, 1, 4, 64, 150, false, schedule::backwards);
  check_sums<f16>(random, 3, 1, 40, 300, false, schedule::random);
  check_sums<bf16>(random, 1, 2, 136, 60, false, schedule::random);
}

TEST_CASE("rows that are not finite, or out of all proportion, are skipped") {
  auto random = generator("strange");
  check_sums<float>(random, 2, 2, 24, 60, true, schedule::random);
  check_sums<bf16>(random, 1, 4, 32, 60, true, schedule::forwards);
  check_sums<f16>(random, 1, 4, 8, 60, true, schedule::backwards);
}
