// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "support/backend.hpp"
#include "support/model.hpp"

// The same numbers in other layouts and other scalars give the same answers; nothing outside a view is touched.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::geometry;
using wavekv::sequence_id;
using wavekv::tensor_view;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<2>, wavekv::exact>;
using cache_type = tested_cache<bf16, index_type>;

geometry small_geometry() {
  geometry sizes;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 24;
  sizes.value_dim = 16;
  return sizes;
}

cache_type::options_type small_options() {
  cache_type::options_type options;
  options.window_tokens = 16;
  fix_sums(options);
  return options;
}

/// Rows [n, heads, dim] copied into memory of any strides, with NaN wherever no element lies.
struct placed {
  placed(const std::vector<float>& rows, std::size_t n, std::size_t heads, std::size_t dim,
         std::size_t token_stride, std::size_t head_stride, std::size_t offset)
      : memory(offset + n * token_stride + heads * head_stride + dim,
               std::numeric_limits<float>::quiet_NaN()),
        view(memory.data() + offset, {n, heads, dim}, {token_stride, head_stride, 1}) {
    for (std::size_t t = 0; t < n; ++t) {
      for (std::size_t h = 0; h < heads; ++h) {
        for (std::size_t i = 0; i < dim; ++i) view(t, h, i) = rows[(t * heads + h) * dim + i];
      }
    }
  }
  std::vector<float> memory;
  tensor_view<float, 3> view;
};

struct data {
  std::size_t n = 150;
  random_engine random{51};
  std::vector<float> keys = normal_rows(random, n * 2 * 24);
  std::vector<float> values = normal_rows(random, n * 2 * 16);
  std::vector<float> queries = normal_rows(random, 3 * 4 * 24);
};

}  // namespace

TEST_CASE("NHD, HND and padded views give the same bits; gaps are neither read nor written") {
  data d;
  cache_type cache(small_geometry(), small_options());
  const sequence_id plain = cache.create();
  cache.append(plain, 0, tokens_of(d.keys, 0, d.n, 2, 24), tokens_of(d.values, 0, d.n, 2, 16));
  const outputs expected = attend_once(cache, plain, 0, d.queries);

  struct layout {
    std::size_t token;
    std::size_t head;
    std::size_t offset;
  };
  const std::vector<layout> key_layouts = {{24, 150 * 24, 0}, {57, 27, 3}, {27, 4300, 1}};
  for (const layout& at : key_layouts) {
    const placed keys(d.keys, d.n, 2, 24, at.token, at.head, at.offset);
    const placed values(d.values, d.n, 2, 16, at.token, at.head, at.offset + 1);
    const placed queries(d.queries, 3, 4, 24, 4 * at.head, at.head, at.offset);
    const sequence_id sequence = cache.create();
    cache.append(sequence, 0, keys.view, values.view);
    CHECK(attend_once(cache, sequence, 0, d.queries) == expected);

    // out with gaps: written where a row lies, untouched between
    std::vector<float> memory(3 * 200 + 100, -7.0F);
    const tensor_view<float, 3> out(memory.data() + 2, {3, 4, 16}, {200, 31, 1});
    std::vector<float> lse_memory(3 * 9, -7.0F);
    const tensor_view<float, 2> lse(lse_memory.data(), {3, 4}, {9, 2});
    cache.attend(sequence, 0, queries.view, out, lse);
    std::size_t n_untouched = 0;
    for (const float x : memory) n_untouched += x == -7.0F ? 1 : 0;
    CHECK(n_untouched == memory.size() - 3 * 4 * 16);
    for (std::size_t q = 0; q < 3; ++q) {
      for (std::size_t h = 0; h < 4; ++h) {
        CHECK(lse(q, h) == expected.lse[q * 4 + h]);
        for (std::size_t i = 0; i < 16; ++i) {
          CHECK(out(q, h, i) == expected.out[(q * 4 + h) * 16 + i]);
        }
      }
    }
    CHECK(lse_memory[1] == -7.0F);
  }
  // hnd() is the view of packed [head, token, dim]
  const placed heads_first(d.keys, d.n, 2, 24, 24, d.n * 24, 0);
  const auto named = wavekv::hnd(heads_first.memory.data(), 2, d.n, 24);
  CHECK(named.strides() == heads_first.view.strides());
  CHECK(named.extents() == heads_first.view.extents());
}

TEST_CASE("inputs in another scalar are the rounded numbers; outputs are rounded once") {
  data d;
  cache_type cache(small_geometry(), small_options());
  const auto keys = as_scalar<f16>(d.keys);
  const auto values = as_scalar<bf16>(d.values);
  const auto queries = as_scalar<f16>(d.queries);
  const sequence_id sequence = cache.create();
  cache.append(sequence, 0, tokens_of(keys, 0, d.n, 2, 24), tokens_of(values, 0, d.n, 2, 16));
  naive_layer model;
  append_naively<bf16>(model, as_float<f16>(std::span<const f16>(keys)),
                       as_float<bf16>(std::span<const bf16>(values)));
  const std::vector<float> seen = as_float<f16>(std::span<const f16>(queries));
  const reference_attention expected = attend_naively(cache.geometry(), 0, model, seen);
  const outputs exact = attend_once(cache, sequence, 0, seen);
  CHECK(largest_error(cache.geometry(), exact.out, expected) <= 1e-4);  // bf16: see exact_test.cpp

  const auto in_half = tokens_of(queries, 0, 3, 4, 24);
  std::vector<float> out(3 * 4 * 16);
  cache.attend(sequence, 0, in_half, wavekv::nhd(out.data(), 3, 4, 16));
  CHECK(out == exact.out);
  std::vector<bf16> out_bf16(3 * 4 * 16);
  cache.attend(sequence, 0, in_half, wavekv::nhd(out_bf16.data(), 3, 4, 16));
  CHECK(out_bf16 == as_scalar<bf16>(exact.out));
  // half a step of bf16 is 2^-9 of an element: within the 1e-2 asked of bf16
  CHECK(largest_error(cache.geometry(), as_float<bf16>(std::span<const bf16>(out_bf16)),
                      expected) <= 1e-2);
  std::vector<f16> out_f16(3 * 4 * 16);
  cache.attend(sequence, 0, in_half, wavekv::nhd(out_f16.data(), 3, 4, 16));
  CHECK(out_f16 == as_scalar<f16>(exact.out));
}

TEST_CASE("views to const and to non-const are the same call") {
  data d;
  cache_type cache(small_geometry(), small_options());
  const sequence_id sequence = cache.create();
  cache.append(sequence, 0, wavekv::nhd(d.keys.data(), d.n, 2, 24),
               wavekv::nhd(d.values.data(), d.n, 2, 16));
  std::vector<float> out(4 * 16);
  cache.attend(sequence, 0, wavekv::nhd(d.queries.data(), 1, 4, 24),
               wavekv::nhd(out.data(), 1, 4, 16));
  const std::vector<float> one(d.queries.begin(), d.queries.begin() + 96);
  CHECK(out == attend_once(cache, sequence, 0, one).out);
}
