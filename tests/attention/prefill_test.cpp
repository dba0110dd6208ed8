// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/attention/exact.hpp>
#include <wavekv/attention/prefill.hpp>
#include <wavekv/core/scalar.hpp>

#include "reference/fresh_seed.hpp"
#include "reference/full_attention.hpp"
#include "reference/guarded_array.hpp"

using wavekv::bf16;
using wavekv::f16;
using wavekv_test::guarded_array;

namespace {

constexpr float poison = std::numeric_limits<float>::quiet_NaN();

template <class S>
void fill(S* data, std::size_t n, std::mt19937_64& random, float size = 1.0F) {
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < n; ++i) data[i] = wavekv::from_float<S>(size * normal(random));
}

template <class S>
std::vector<double> doubles(const guarded_array<S>& from) {
  std::vector<double> result;
  for (std::size_t i = 0; i < from.size(); ++i)
    result.push_back(static_cast<double>(wavekv::to_float(from[i])));
  return result;
}

}  // namespace

TEST_CASE_TEMPLATE("prefill_tile against the oracle: cached runs, then a causal chunk", S, float,
                   bf16, f16) {
  auto random = wavekv_test::generator("prefill");
  for (const std::size_t key_dim : {1, 17, 64, 80}) {
    for (const std::size_t group : {1, 3, 4}) {
      for (const std::size_t n_cached : {0, 1, 64, 150}) {
        for (const std::size_t n_chunk : {1, 20, 64, 65, 131}) {
          const std::size_t value_dim = key_dim + 3;
          const std::size_t n_tokens = n_cached + n_chunk;
          const float softcap = group == 3 ? 5.0F : 0.0F;
          guarded_array<float> q(n_chunk * group * key_dim);
          guarded_array<S> keys(n_tokens * key_dim);
          guarded_array<S> values(n_tokens * value_dim);
          fill(q.data(), q.size(), random, 3.0F / std::sqrt(static_cast<float>(key_dim)));
          fill(keys.data(), keys.size(), random);
          fill(values.data(), values.size(), random);

          wavekv_test::reference_geometry shape;
          shape.n_query_heads = group;
          shape.key_dim = key_dim;
          shape.value_dim = value_dim;
          shape.scale = 0.5;
          shape.logit_softcap = static_cast<double>(softcap);
          if (group == 4) shape.sink_logits = {-5.0, 0.0, 2.0, 30.0};
          const auto k = doubles(keys);
          const auto v = doubles(values);
          const auto expected = wavekv_test::full_attention<float, double, double>(
              shape, std::span<const float>(q.data(), q.size()), k, v, n_cached);

          std::vector<float> out(n_chunk * group * value_dim, poison);
          std::vector<float> lse(n_chunk * group, poison);
          constexpr std::size_t tokens_per_task = 37;  // does not divide anything
          wavekv::prefill_tile tile(tokens_per_task * group, key_dim, value_dim);
          for (std::size_t t = 0; t < n_chunk; t += tokens_per_task) {
            const std::size_t n_rows = std::min(tokens_per_task, n_chunk - t) * group;
            tile.begin(n_rows, group, n_cached + t, softcap);
            for (std::size_t r = 0; r < n_rows; ++r)
              tile.set_query(r, q.data() + (t * group + r) * key_dim, 0.5F);
            // The cached tokens in two runs, the chunk in two as well.
            const std::size_t half = n_cached / 2;
            const auto run = [&](std::size_t first, std::size_t n, bool is_causal) {
              const S* run_keys = keys.data() + first * key_dim;
              const S* run_values = values.data() + first * value_dim;
              if (is_causal) {
                tile.add_causal_run(run_keys, key_dim, run_values, value_dim, n, first);
              } else {
                tile.add_run(run_keys, key_dim, run_values, value_dim, n);
              }
            };
            run(0, half, false);
            run(half, n_cached - half, false);
            run(n_cached, n_chunk / 3, true);
            run(n_cached + n_chunk / 3, n_chunk - n_chunk / 3, true);
            for (std::size_t r = 0; r < n_rows; ++r) {
              if (!shape.sink_logits.empty())
                tile.add_sink_logit(r, static_cast<float>(shape.sink_logits[r % group]));
              tile.finish_row(r, out.data() + (t * group + r) * value_dim);
              lse[t * group + r] = tile.log_sum_exp(r);
            }
          }
          CAPTURE(key_dim);
          CAPTURE(group);
          CAPTURE(n_cached);
          CAPTURE(n_chunk);
          // Relative to the values, which are of size 1: where they cancel, the output's norm says little.
          double sum = 0.0;
          for (std::size_t i = 0; i < out.size(); ++i) {
            const double delta = static_cast<double>(out[i]) - expected.out[i];
            sum += delta * delta;
          }
          CHECK(std::sqrt(sum / static_cast<double>(out.size())) <= 1e-5);
          for (std::size_t i = 0; i < lse.size(); ++i) {
            if (!(std::abs(static_cast<double>(lse[i]) - expected.lse[i]) <=
                  1e-5 * (1.0 + std::abs(expected.lse[i]))))
              CHECK(static_cast<double>(lse[i]) == expected.lse[i]);
          }
        }
      }
    }
  }
}

TEST_CASE("prefill_tile: strided rows, mixed scalars, and a state that merges with decode's") {
  auto random = wavekv_test::generator("prefill strides");
  constexpr std::size_t dim = 24;
  constexpr std::size_t n_heads = 3;  // rows of one head among three
  constexpr std::size_t n = 90;
  guarded_array<bf16> keys(((n - 1) * n_heads + 1) * dim);
  guarded_array<float> values(((n - 1) * n_heads + 1) * dim);
  guarded_array<float> q(5 * dim);
  fill(keys.data(), keys.size(), random);
  fill(values.data(), values.size(), random);
  fill(q.data(), q.size(), random);
  std::vector<float> run_keys(n * dim);
  std::vector<float> run_values(n * dim);
  for (std::size_t t = 0; t < n; ++t) {
    for (std::size_t c = 0; c < dim; ++c) {
      run_keys[t * dim + c] = wavekv::to_float(keys[t * n_heads * dim + c]);
      run_values[t * dim + c] = values[t * n_heads * dim + c];
    }
  }

  wavekv::prefill_tile tile(64, dim, dim);
  tile.begin(5, 1, 1000, 0.0F);
  for (std::size_t r = 0; r < 5; ++r) tile.set_query(r, q.data() + r * dim, 1.0F);
  tile.add_run(keys.data(), n_heads * dim, values.data(), n_heads * dim, 50);
  wavekv::partial_softmax state(5, dim);
  tile.store_state(0, state.view());

  wavekv::partial_softmax rest(5, dim);
  const wavekv::query_rows queries{q.data(), 5, dim, dim};
  wavekv::attend_rows(queries, run_keys.data() + 50 * dim, run_values.data() + 50 * dim, n - 50,
                      0.0F, rest.view());
  wavekv::merge(state.view(), rest.view());
  std::vector<float> merged(5 * dim, poison);
  wavekv::finish(state.view(), merged.data(), dim);

  wavekv::partial_softmax whole(5, dim);
  wavekv::attend_rows(queries, run_keys.data(), run_values.data(), n, 0.0F, whole.view());
  std::vector<float> expected(5 * dim, poison);
  wavekv::finish(whole.view(), expected.data(), dim);
  CHECK(wavekv_test::relative_error<float, float>(merged, expected) <= 2e-6);
}

TEST_CASE("prefill_tile: nothing seen, positions far out, extreme logits") {
  wavekv::prefill_tile tile(10, 4, 4);
  tile.begin(10, 2, 1'000'000'000'000U, 0.0F);
  const float query[4] = {1.0F, 1.0F, 1.0F, 1.0F};
  for (std::size_t r = 0; r < 10; ++r) tile.set_query(r, query, 1.0F);
  float out[4] = {poison, poison, poison, poison};
  tile.finish_row(3, out);
  for (const float x : out) CHECK(x == 0.0F);
  CHECK(tile.log_sum_exp(3) == -std::numeric_limits<float>::infinity());
  wavekv::partial_softmax empty(10, 4);
  tile.store_state(0, empty.view());
  CHECK(empty.view().is_empty(9));

  // Keys at logits of -10000 and 10000; the first token sees only the first key.
  std::vector<float> keys = {-2500.0F, -2500.0F, -2500.0F, -2500.0F,
                             2500.0F,  2500.0F,  2500.0F,  2500.0F};
  std::vector<float> values = {1.0F, 2.0F, 3.0F, 4.0F, -1.0F, -2.0F, -3.0F, -4.0F};
  tile.add_causal_run(keys.data(), 4, values.data(), 4, 2, 1'000'000'000'000U);
  tile.finish_row(1, out);
  CHECK(out[2] == 3.0F);
  CHECK(tile.log_sum_exp(1) == -1e4F);
  tile.finish_row(2, out);
  CHECK(out[2] == -3.0F);
  CHECK(tile.log_sum_exp(2) == 1e4F);
  // Keys past every row are not looked at, and the tile can be used again.
  tile.add_causal_run<float, float>(nullptr, 4, nullptr, 4, 5, 1'000'000'000'005U);
  tile.begin(1, 1, 0, 0.0F);
  tile.finish_row(0, out);
  CHECK(out[0] == 0.0F);
}
