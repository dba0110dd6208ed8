// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/attention/exact.hpp>
#include <wavekv/core/scalar.hpp>

#include "reference/fresh_seed.hpp"
#include "reference/full_attention.hpp"
#include "reference/guarded_array.hpp"

using wavekv::bf16;
using wavekv::f16;
using wavekv_test::guarded_array;

namespace {

constexpr float poison = std::numeric_limits<float>::quiet_NaN();

// A logit is a sum of key_dim products whose magnitudes add up to some 3 * sqrt(key_dim) here. In float it
// errs by a few roundings of 2^-24 of that, and a weight by as much relatively. Where a target multiplies
// bf16 rows directly, queries and weights are sums of two bf16: 2^-17 of each product instead.
template <class S>
constexpr double bound = std::is_same_v<S, bf16> ? 1e-4 : 1e-5;

template <class S>
void fill(S* data, std::size_t n, std::mt19937_64& random, float size = 1.0F) {
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < n; ++i) data[i] = wavekv::from_float<S>(size * normal(random));
}

template <class Range>
std::vector<double> doubles(const Range& range) {
  std::vector<double> result;
  for (std::size_t i = 0; i < range.size(); ++i)
    result.push_back(static_cast<double>(wavekv::to_float(range[i])));
  return result;
}

// Root mean square of the error. The values are of size 1, and an output errs relative to the values that
// it averages: where they cancel, its own norm would be the wrong yardstick.
double error_per_value(const std::vector<float>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double delta = static_cast<double>(a[i]) - b[i];
    sum += delta * delta;
  }
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// One KV head, n_q query heads: the oracle on what is stored.
template <class Keys, class Values>
wavekv_test::reference_attention oracle(const guarded_array<float>& q, const Keys& keys,
                                        const Values& values, std::size_t n_q, std::size_t key_dim,
                                        std::size_t value_dim, float softcap) {
  wavekv_test::reference_geometry shape;
  shape.n_query_heads = n_q;
  shape.key_dim = key_dim;
  shape.value_dim = value_dim;
  shape.logit_softcap = static_cast<double>(softcap);
  const auto k = doubles(keys);
  const auto v = doubles(values);
  return wavekv_test::full_attention<float, double, double>(
      shape, std::span<const float>(q.data(), q.size()), k, v, SIZE_MAX);
}

}  // namespace

TEST_CASE_TEMPLATE("attend_rows against the oracle", S, float, bf16, f16) {
  auto random = wavekv_test::generator("attend_rows");
  for (const std::size_t key_dim : {1, 17, 64, 80, 128}) {
    for (const std::size_t value_dim : {std::size_t{3}, key_dim}) {
      for (const std::size_t n_q : {1, 2, 4, 7, 8, 9, 17}) {
        for (const std::size_t n : {1, 5, 63, 64, 65, 200}) {
          for (const float softcap : {0.0F, 4.0F}) {
            guarded_array<float> q(n_q * key_dim);
            guarded_array<S> keys(n * key_dim);
            guarded_array<S> values(n * value_dim);
            // Logits of a few units, so that the softmax is neither flat nor a single token.
            fill(q.data(), q.size(), random, 3.0F / std::sqrt(static_cast<float>(key_dim)));
            fill(keys.data(), keys.size(), random);
            fill(values.data(), values.size(), random);

            wavekv::partial_softmax state(n_q, value_dim);
            wavekv::attend_rows(wavekv::query_rows{q.data(), n_q, key_dim, key_dim}, keys.data(),
                                values.data(), n, softcap, state.view());
            std::vector<float> out(n_q * value_dim, poison);
            std::vector<float> lse(n_q, poison);
            wavekv::finish(state.view(), out.data(), value_dim, lse.data());

            const auto expected = oracle(q, keys, values, n_q, key_dim, value_dim, softcap);
            CAPTURE(key_dim);
            CAPTURE(n_q);
            CAPTURE(n);
            CHECK(error_per_value(out, expected.out) <= bound<S>);
            for (std::size_t g = 0; g < n_q; ++g)
              CHECK(static_cast<double>(lse[g]) ==
                    doctest::Approx(expected.lse[g]).epsilon(bound<S>).scale(1.0));
          }
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("attend_rows: run by run equals one run", S, float, bf16) {
  auto random = wavekv_test::generator("attend_rows runs");
  constexpr std::size_t dim = 80;
  constexpr std::size_t n_q = 4;
  constexpr std::size_t n = 300;
  std::vector<float> q(n_q * dim);
  std::vector<S> keys(n * dim);
  std::vector<S> values(n * dim);
  fill(q.data(), q.size(), random, 0.3F);
  fill(keys.data(), keys.size(), random);
  fill(values.data(), values.size(), random);
  const wavekv::query_rows queries{q.data(), n_q, dim, dim};
  wavekv::partial_softmax whole(n_q, dim);
  wavekv::attend_rows(queries, keys.data(), values.data(), n, 0.0F, whole.view());
  wavekv::partial_softmax runs(n_q, dim);
  for (std::size_t r = 0; r < n;) {
    const std::size_t length = std::min<std::size_t>(n - r, random() % 50);
    wavekv::attend_rows(queries, keys.data() + r * dim, values.data() + r * dim, length, 0.0F,
                        runs.view());
    r += length;
  }
  std::vector<float> a(n_q * dim);
  std::vector<float> b(n_q * dim);
  wavekv::finish(whole.view(), a.data(), dim);
  wavekv::finish(runs.view(), b.data(), dim);
  // The maxima differ on the way, and with them how weights round.
  CHECK(wavekv_test::relative_error<float, float>(a, b) <= 0.2 * bound<S>);
}

TEST_CASE_TEMPLATE("attend_runs: rows in runs anywhere, bit for bit as one run of them", S, float,
                   bf16, f16) {
  auto random = wavekv_test::generator("attend_runs");
  constexpr std::size_t value_dim = 24;
  for (const std::size_t key_dim : {24, 72, 128}) {
    for (const std::size_t n_q : {1, 4, 5, 11}) {
      for (const std::size_t n : {0, 1, 63, 64, 65, 400}) {
        std::vector<float> q(n_q * key_dim);
        std::vector<S> keys(n * key_dim);
        std::vector<S> values(n * value_dim);
        fill(q.data(), q.size(), random, 0.3F);
        fill(keys.data(), keys.size(), random);
        fill(values.data(), values.size(), random);
        const wavekv::query_rows queries{q.data(), n_q, key_dim, key_dim};

        // Runs of 0 to 39 or 0 to 199 rows; keys and values lie in one block each time, or in two.
        std::deque<guarded_array<S>> blocks;
        std::vector<wavekv::token_run<S>> runs;
        const std::size_t most = random() % 2 == 0 ? 40 : 200;
        for (std::size_t r = 0; r < n;) {
          const std::size_t length = std::min<std::size_t>(n - r, random() % most);
          const bool together = random() % 2 == 0;
          blocks.emplace_back(length * (key_dim + (together ? value_dim : 0)));
          S* run_keys = blocks.back().data();
          S* run_values = run_keys + length * key_dim;
          if (!together) {
            blocks.emplace_back(length * value_dim);
            run_values = blocks.back().data();
          }
          std::copy_n(keys.data() + r * key_dim, length * key_dim, run_keys);
          std::copy_n(values.data() + r * value_dim, length * value_dim, run_values);
          runs.push_back({run_keys, run_values, length});
          r += length;
        }

        wavekv::partial_softmax expected(n_q, value_dim);
        wavekv::attend_rows(queries, keys.data(), values.data(), n, 0.0F, expected.view());
        wavekv::partial_softmax state(n_q, value_dim);
        wavekv::attend_runs(
            queries, runs.size(), [&](std::size_t i) { return runs[i]; }, 0.0F, state.view());
        for (std::size_t g = 0; g < n_q; ++g) {
          CHECK(state.view().max[g] == expected.view().max[g]);
          CHECK(state.view().denominator[g] == expected.view().denominator[g]);
          CHECK(std::equal(expected.view().numerator_of(g),
                           expected.view().numerator_of(g) + value_dim,
                           state.view().numerator_of(g)));
        }
      }
    }
  }
}

TEST_CASE("attend_rows: logits of +-10000, equal keys, one key far above the others") {
  constexpr std::size_t dim = 16;
  auto random = wavekv_test::generator("extreme");
  for (const float size : {0.0F, 100.0F, 2500.0F}) {
    guarded_array<float> q(2 * dim);
    guarded_array<float> keys(70 * dim);
    guarded_array<float> values(70 * dim);
    std::fill(q.begin(), q.end(), 1.0F);
    fill(keys.data(), keys.size(), random, size);
    fill(values.data(), values.size(), random);
    wavekv::partial_softmax state(2, dim);
    wavekv::attend_rows(wavekv::query_rows{q.data(), 2, dim, dim}, keys.data(), values.data(), 70,
                        0.0F, state.view());
    std::vector<float> out(2 * dim, poison);
    std::vector<float> lse(2, poison);
    wavekv::finish(state.view(), out.data(), dim, lse.data());
    const auto expected = oracle(q, keys, values, 2, dim, dim, 0.0F);
    // An error of a logit is an error of the weight: 10^4 logits carry 16 roundings of 2^-11 each.
    const double bound = 1e-5 + 16.0 * 4.0 * static_cast<double>(size) * 0x1p-24;
    CHECK(error_per_value(out, expected.out) <= bound);
    CHECK(static_cast<double>(lse[0]) ==
          doctest::Approx(expected.lse[0]).epsilon(1e-6).scale(bound * 1e6));
  }
}

TEST_CASE("accumulate_rows: masked logits") {
  constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
  std::vector<float> values(100 * 5, 2.0F);
  std::vector<float> logits(100, minus_infinity);
  wavekv::partial_softmax state(1, 5);
  wavekv::accumulate_rows(logits.data(), 100, values.data(), 100, wavekv::accumulation::add,
                          state.view());
  CHECK(state.view().is_empty(0));
  CHECK(state.view().denominator[0] == 0.0F);
  logits[77] = -1e4F;
  wavekv::accumulate_rows(logits.data(), 100, values.data(), 100, wavekv::accumulation::add,
                          state.view());
  CHECK(state.view().max[0] == -1e4F);
  CHECK(state.view().denominator[0] == 1.0F);
  CHECK(state.view().numerator[4] == 2.0F);
}

TEST_CASE_TEMPLATE("estimate_rows: a cluster counts as its size in equal tokens", S, float, bf16,
                   f16) {
  auto random = wavekv_test::generator("estimate_rows");
  for (const std::size_t n : {1, 8, 64, 130}) {
    for (const std::size_t n_q : {1, 4, 11}) {
      constexpr std::size_t dim = 48;
      constexpr float softcap = 6.0F;
      guarded_array<float> q(n_q * dim);
      guarded_array<S> centroids(n * dim);
      guarded_array<S> means(n * dim);
      fill(q.data(), q.size(), random, 0.4F);
      fill(centroids.data(), centroids.size(), random);
      fill(means.data(), means.size(), random);
      guarded_array<std::uint16_t> sizes(n);
      std::vector<S> tokens;
      std::vector<S> token_values;
      for (std::size_t r = 0; r < n; ++r) {
        sizes[r] = static_cast<std::uint16_t>(random() % 6);  // an empty cluster counts nothing
        for (std::size_t i = 0; i < sizes[r]; ++i) {
          tokens.insert(tokens.end(), centroids.data() + r * dim, centroids.data() + (r + 1) * dim);
          token_values.insert(token_values.end(), means.data() + r * dim,
                              means.data() + (r + 1) * dim);
        }
      }
      if (tokens.empty()) continue;

      const wavekv::query_rows queries{q.data(), n_q, dim, dim};
      wavekv::partial_softmax state(n_q, dim);
      std::vector<float> logits(n_q * n, poison);
      const guarded_array<float> dispersions(n);  // zero: every token lies at its centroid
      const std::vector<float> squared_norms(n_q, 1.0F);
      const wavekv::summary_rows<std::uint16_t, S> summaries{centroids.data(), means.data(),
                                                             sizes.data(), dispersions.data(), n};
      wavekv::estimate_rows(queries, squared_norms.data(), summaries, softcap, logits.data(), n,
                            state.view());
      std::vector<float> out(n_q * dim, poison);
      std::vector<float> lse(n_q, poison);
      wavekv::finish(state.view(), out.data(), dim, lse.data());
      const auto expected = oracle(q, tokens, token_values, n_q, dim, dim, softcap);
      CHECK(error_per_value(out, expected.out) <= bound<S>);
      CHECK(static_cast<double>(lse[0]) ==
            doctest::Approx(expected.lse[0]).epsilon(bound<S>).scale(1.0));

      std::vector<float> planned(n_q * n, poison);
      wavekv::score_logits(queries, centroids.data(), n, softcap, planned.data(), n);
      CHECK(planned == logits);

      // Rows that lie anywhere are added bit for bit as a run of them.
      std::vector<const S*> where(n);
      for (std::size_t r = 0; r < n; ++r) where[r] = means.data() + r * dim;
      wavekv::partial_softmax by_run(n_q, dim);
      wavekv::partial_softmax by_place(n_q, dim);
      wavekv::accumulate_rows(logits.data(), n, sizes.data(), means.data(), n,
                              wavekv::accumulation::add, by_run.view());
      wavekv::accumulate_rows_at(logits.data(), n, sizes.data(), where.data(), n,
                                 wavekv::accumulation::add, by_place.view());
      for (std::size_t g = 0; g < n_q; ++g) {
        CHECK(by_run.view().denominator[g] == by_place.view().denominator[g]);
        CHECK(std::equal(by_run.view().numerator_of(g), by_run.view().numerator_of(g) + dim,
                         by_place.view().numerator_of(g)));
      }

      // Some clusters are read exactly after all: taken out, and their tokens put in.
      for (std::size_t r = 0; r < n; r += 3) {
        wavekv::accumulate_rows(logits.data() + r, n, sizes.data() + r, means.data() + r * dim, 1,
                                wavekv::accumulation::subtract, state.view());
        for (std::size_t i = 0; i < sizes[r]; ++i)
          wavekv::attend_rows(queries, centroids.data() + r * dim, means.data() + r * dim, 1,
                              softcap, state.view());
      }
      wavekv::finish(state.view(), out.data(), dim, lse.data());
      CHECK(error_per_value(out, expected.out) <= 2.0 * bound<S>);
    }
  }
}

TEST_CASE("score_summaries: half the variance of the logit is added, flattened by a softcap") {
  auto random = wavekv_test::generator("variance");
  constexpr std::size_t dim = 20;
  constexpr std::size_t n = 37;
  constexpr std::size_t n_q = 3;
  guarded_array<float> q(n_q * dim);
  guarded_array<float> centroids(n * dim);
  guarded_array<float> means(n * dim);
  guarded_array<float> dispersions(n);
  guarded_array<int> sizes(n);
  fill(q.data(), q.size(), random);
  fill(centroids.data(), centroids.size(), random, 0.3F);
  for (float& x : dispersions) x = static_cast<float>(random() % 1000) * 1e-4F;
  std::vector<float> squared_norms(n_q, 0.0F);
  for (std::size_t i = 0; i < q.size(); ++i) squared_norms[i / dim] += q[i] * q[i];
  const wavekv::query_rows queries{q.data(), n_q, dim, dim};
  const wavekv::summary_rows<int, float> summaries{centroids.data(), means.data(), sizes.data(),
                                                   dispersions.data(), n};
  for (const float softcap : {0.0F, 2.0F}) {
    std::vector<float> plain(n_q * n, poison);
    std::vector<float> corrected(n_q * n, poison);
    wavekv::score_logits(queries, centroids.data(), n, softcap, plain.data(), n);
    wavekv::score_summaries(queries, squared_norms.data(), summaries, softcap, corrected.data(), n);
    for (std::size_t i = 0; i < corrected.size(); ++i) {
      const double s = static_cast<double>(plain[i]);
      const double cap = static_cast<double>(softcap);
      // d/dx of cap * tanh(x / cap), at the logit it gives
      const double slope = cap > 0.0 ? 1.0 - s / cap * (s / cap) : 1.0;
      const double variance = std::min(static_cast<double>(wavekv::max_logit_variance),
                                       static_cast<double>(squared_norms[i / n]) *
                                           static_cast<double>(dispersions[i % n]) * slope * slope);
      // No token's logit lies above the cap, nor does the logarithm of their mean mass.
      const double expected = cap > 0.0 ? std::min(cap, s + 0.5 * variance) : s + 0.5 * variance;
      CHECK(static_cast<double>(corrected[i]) ==
            doctest::Approx(expected).epsilon(1e-5).scale(1.0));
    }
  }
}
