// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include "support/backend.hpp"
#include "support/model.hpp"
#include "support/rows.hpp"

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::geometry;

namespace {

// Segments of 64 and 32 tokens: every edge is met within a few hundred tokens.
using small_index =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::spherical_kmeans<3>, wavekv::exact>;

template <class S>
using small_cache = tested_cache<S, small_index>;

constexpr std::size_t sink = 4;
constexpr std::size_t window = 16;

// What is asked of `exact`. The oracle sees the same rounded keys and values, so that storage costs no digits:
// sums of a few hundred float products err by about 1e-7 times the logit, and logits of normal data stay below
// 20. Where a target multiplies bf16 rows directly, the other factor is a sum of two bf16, within 2^-17: that
// times the sum of magnitudes in a logit (about 10 at 256 elements) is below 1e-4. A device does so with every scalar.
template <class S>
constexpr double exact_tolerance = on_device || std::is_same_v<S, bf16> ? 1e-4 : 1e-5;

// Lengths at which something changes: nothing, sink, window, first seal ± 1, later ones, odd tails.
const std::vector<std::size_t> edge_lengths = {
    0,  1,  3,  4,  5,  15, 16,  17,  19,  20,  21,  31,  32,  33,  51,  52, 53,
    63, 64, 65, 83, 84, 85, 115, 116, 117, 127, 128, 129, 148, 213, 277, 301};

/// Walks a sequence through all lengths: by decode steps where edges are near, by larger chunks elsewhere.
template <class S>
void check_edges(const geometry& sizes, key_family family, const any_executor& executor,
                 double tolerance, std::vector<outputs>* seen) {
  typename small_cache<S>::options_type options;
  options.sink_tokens = sink;
  options.window_tokens = window;
  run_on(options, executor);
  small_cache<S> cache(sizes, options);
  const wavekv::sequence_id sequence = cache.create();
  naive_layer model;
  random_engine random(7);
  const std::size_t most = edge_lengths.back();
  const std::vector<float> keys = make_keys(random, family, most, sizes.n_kv_heads, sizes.key_dim);
  const std::vector<float> values = normal_rows(random, most * sizes.n_kv_heads * sizes.value_dim);
  std::size_t length = 0;
  for (const std::size_t next : edge_lengths) {
    const std::size_t key_width = sizes.n_kv_heads * sizes.key_dim;
    const std::size_t value_width = sizes.n_kv_heads * sizes.value_dim;
    const std::vector<float> new_keys(keys.begin() +
                                          static_cast<std::ptrdiff_t>(length * key_width),
                                      keys.begin() + static_cast<std::ptrdiff_t>(next * key_width));
    const std::vector<float> new_values(
        values.begin() + static_cast<std::ptrdiff_t>(length * value_width),
        values.begin() + static_cast<std::ptrdiff_t>(next * value_width));
    append_rows(cache, sequence, 0, new_keys, new_values);
    append_naively<S>(model, new_keys, new_values);
    length = next;
    REQUIRE(cache.length(sequence) == length);
    REQUIRE(cache.length(sequence, 0) == length);

    const std::vector<float> queries = normal_rows(random, sizes.n_query_heads * sizes.key_dim);
    const outputs got = attend_once(cache, sequence, 0, queries);
    if (tolerance > 0.0) {
      const reference_attention expected = attend_naively(sizes, 0, model, queries);
      INFO("length ", length, ", key_dim ", sizes.key_dim, ", heads ", sizes.n_query_heads, "/",
           sizes.n_kv_heads, ", keys ", std::string(name_of(family)));
      CHECK(largest_error(sizes, got.out, expected) <= tolerance);
      CHECK(largest_lse_error(got.lse, expected) <= tolerance);
    }
    seen->push_back(got);
  }
}

geometry make_geometry(std::size_t n_query_heads, std::size_t n_kv_heads, std::size_t key_dim,
                       std::size_t value_dim) {
  geometry sizes;
  sizes.n_query_heads = n_query_heads;
  sizes.n_kv_heads = n_kv_heads;
  sizes.key_dim = key_dim;
  sizes.value_dim = value_dim;
  return sizes;
}

}  // namespace

TEST_CASE_TEMPLATE("exact equals the oracle at every edge, and itself on every executor", S, float,
                   bf16, f16) {
  const std::vector<geometry> shapes = {
      make_geometry(2, 2, 64, 64),    // MHA
      make_geometry(8, 2, 80, 80),    // GQA
      make_geometry(3, 1, 96, 96),    // MQA, odd group
      make_geometry(8, 2, 128, 128),  // the shape of Llama-3.1, GQA 4
      make_geometry(9, 1, 256, 256),  // a group larger than a kernel's register tile
      make_geometry(4, 2, dim_like(33), dim_like(17)),  // odd, and key_dim != value_dim
      make_geometry(2, 1, 64, 128),                     // values wider than keys
      make_geometry(2, 1, 192, 128),                    // and narrower, as in MLA-like heads
      make_geometry(1, 1, dim_like(1), dim_like(1)),
  };
  for (const geometry& sizes : shapes) {
    std::vector<outputs> first;
    check_edges<S>(sizes, key_family::uniform, any_executor(), exact_tolerance<S>, &first);
    if (is_slow && &sizes != &shapes[1]) continue;
    for (const any_executor& executor : tested_executors()) {
      std::vector<outputs> other;
      check_edges<S>(sizes, key_family::uniform, executor, 0.0, &other);
      CHECK(first == other);
    }
  }
}

TEST_CASE_TEMPLATE("exact equals the oracle on hostile keys", S, float, bf16, f16) {
  for (const key_family family : all_families) {
    // The outlier's logit is in the hundreds, and so are the roundings of the exponent.
    const double tolerance = (family == key_family::outlier ? 20 : 1) * exact_tolerance<S>;
    std::vector<outputs> seen;
    check_edges<S>(make_geometry(4, 2, 64, 64), family, any_executor(), tolerance, &seen);
  }
}
