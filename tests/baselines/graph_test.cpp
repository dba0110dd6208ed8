// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/baselines/graph.hpp>
#include <wavekv/wavekv.hpp>

#include "baselines/plain_rule.hpp"
#include "conformance/summary_law.hpp"
#include "reference/fresh_seed.hpp"

// The graph of keys: what it finds has its logit, it finds what it should, and queries of the prompt lead there.

using namespace wavekv_test;
namespace baselines = wavekv::baselines;

namespace {

/// Tokens that are clusters of their own.
struct token_rows_of {
  std::vector<float> keys;
  std::vector<std::uint32_t> first;
  wavekv::cluster_rows view;

  token_rows_of(std::vector<float> rows, std::size_t dim) : keys(std::move(rows)) {
    for (std::size_t t = 0; t <= keys.size() / dim; ++t)
      first.push_back(static_cast<std::uint32_t>(t));
    view.keys = view.values = keys.data();
    view.key_dim = view.value_dim = dim;
    view.first_token = first;
  }
};

template <class Summary>
std::vector<float> scores_of(const Summary& summary, const typename Summary::kept& kept,
                             const float* query, std::size_t n, std::size_t dim) {
  std::vector<float> scores(n);
  summary.score(kept, {query, 1, dim, dim}, scores.data(), n);
  return scores;
}

/// Of the n largest logits, the part that was found.
double recall(const std::vector<float>& scores, const std::vector<float>& keys, const float* query,
              std::size_t dim, std::size_t n) {
  std::vector<std::pair<double, std::size_t>> logits;
  for (std::size_t t = 0; t < scores.size(); ++t) {
    double sum = 0.0;
    for (std::size_t i = 0; i < dim; ++i) {
      sum += static_cast<double>(query[i]) * static_cast<double>(keys[t * dim + i]);
    }
    logits.emplace_back(sum, t);
  }
  std::ranges::sort(logits, std::greater<>());
  double found = 0.0;
  for (std::size_t i = 0; i < n; ++i) found += std::isfinite(scores[logits[i].second]) ? 1.0 : 0.0;
  return found / static_cast<double>(n);
}

}  // namespace

TEST_CASE("hnsw_graph keeps the law of its slot") {
  CHECK(summary_law<baselines::hnsw_graph<4, 16>>() == "");
}

TEST_CASE("what is found has its logit, and as many are found as a search keeps in view") {
  random_engine random = generator("graph scores");
  constexpr std::size_t dim = 24;
  constexpr std::size_t n = 700;
  const token_rows_of rows(make_keys(random, key_family::clustered, n, 1, dim), dim);
  using summary_type = baselines::hnsw_graph<8, 64>;
  const summary_type summary;
  const summary_type::kept kept = summary.keep(rows.view);
  for (int round = 0; round < 10; ++round) {
    const std::vector<float> query = normal_rows(random, dim);
    const std::vector<float> scores = scores_of(summary, kept, query.data(), n, dim);
    std::size_t n_found = 0;
    for (std::size_t t = 0; t < n; ++t) {
      if (!std::isfinite(scores[t])) continue;
      ++n_found;
      double logit = 0.0;
      double size = 1.0;  // 1 - (1 - q·k) in float
      for (std::size_t i = 0; i < dim; ++i) {
        const double product =
            static_cast<double>(query[i]) * static_cast<double>(rows.keys[t * dim + i]);
        logit += product;
        size += std::abs(product);
      }
      CHECK(std::abs(static_cast<double>(scores[t]) - logit) < 4e-6 * size);
    }
    CHECK(n_found == 64);
  }
}

TEST_CASE("bytes are those of the keys that were looked at: all of few, a part of many") {
  random_engine random = generator("graph bytes");
  constexpr std::size_t dim = 16;
  constexpr std::size_t n = 4000;
  const token_rows_of rows(make_keys(random, key_family::uniform, n, 1, dim), dim);
  using summary_type = baselines::hnsw_graph<8, 32>;
  const summary_type summary;
  const summary_type::kept kept = summary.keep(rows.view);
  std::vector<float> scores(2 * n);
  const std::vector<float> queries = normal_rows(random, 2 * dim);
  const std::size_t one = summary.score(kept, {queries.data(), 1, dim, dim}, scores.data(), n);
  const std::size_t two = summary.score(kept, {queries.data(), 2, dim, dim}, scores.data(), n);
  const std::size_t other =
      summary.score(kept, {queries.data() + dim, 1, dim, dim}, scores.data(), n);
  CHECK(two == one + other);
  CHECK(one >= 32 * (dim + 1) * 4);
  CHECK(one < n * (dim + 1) * 4);
}

TEST_CASE(
    "queries that lie elsewhere than keys find more where the prompt's queries linked the graph") {
  random_engine random = generator("graph queries");
  constexpr std::size_t dim = 32;
  constexpr std::size_t n = 3000;
  // Keys around a common direction, queries along few others that tell keys apart little: a model's are like that.
  token_rows_of rows(normal_rows(random, n * dim), dim);
  const std::vector<float> common = normal_rows(random, dim, 3.0F);
  for (std::size_t t = 0; t < n; ++t) {
    for (std::size_t i = 0; i < dim; ++i) rows.keys[t * dim + i] += common[i];
  }
  const std::vector<float> topics = normal_rows(random, 40 * dim);
  const auto draw_query = [&] {
    std::vector<float> query = normal_rows(random, dim, 0.3F);
    const std::size_t topic = random() % 40;
    for (std::size_t i = 0; i < dim; ++i) query[i] += topics[topic * dim + i] - 0.5F * common[i];
    return query;
  };
  wavekv::query_metric metric(dim, wavekv::query_metric::default_max_queries, 1024);
  for (int q = 0; q < 1024; ++q) {
    const std::vector<float> query = draw_query();
    metric.add<float>(
        wavekv::tensor_view<const float, 3>(query.data(), {std::size_t{1}, std::size_t{1}, dim}));
  }
  CHECK(metric.sample().size() == 1024 * dim);
  using summary_type = baselines::hnsw_graph<8, 32>;
  const summary_type summary;
  const summary_type::kept alone = summary.keep(rows.view);
  rows.view.metric = &metric;
  const summary_type::kept linked = summary.keep(rows.view);
  double recall_alone = 0.0;
  double recall_linked = 0.0;
  constexpr int n_asked = 200;
  for (int q = 0; q < n_asked; ++q) {
    const std::vector<float> query = draw_query();
    recall_alone +=
        recall(scores_of(summary, alone, query.data(), n, dim), rows.keys, query.data(), dim, 10) /
        n_asked;
    recall_linked +=
        recall(scores_of(summary, linked, query.data(), n, dim), rows.keys, query.data(), dim, 10) /
        n_asked;
  }
  MESSAGE("of the ten nearest: ", recall_alone, " by the keys' links, ", recall_linked,
          " with the queries'");
  CHECK(recall_linked > recall_alone + 0.2);  // over forty seeds 0.64 to 0.93 against 0.00 to 0.03
}

TEST_CASE("graph reads what it found, nearest first") {
  random_engine random = generator("graph answers");
  using index = baselines::graph_index::with_summary<baselines::hnsw_graph<8, 24>>;
  for (const std::size_t group : {1U, 3U}) {
    plain_rule<index> rule(random, group);
    for (const std::size_t n_tokens : {0U, 1U, 20U, 5000U}) {
      INFO("group ", group, ", ", n_tokens, " tokens");
      rule.check(baselines::top_k{n_tokens}, plain_rule<index>::any_bytes,
                 [&](std::size_t head) { return choose_top_k(rule, head, n_tokens); });
    }
  }
}
