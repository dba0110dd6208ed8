// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "support/backend.hpp"
#include "support/model.hpp"

// Bad input: a typed error that names what was seen and what is allowed, and a cache that answers bit for
// bit as before.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::geometry;
using wavekv::query_run;
using wavekv::sequence_id;
using wavekv::tensor_view;

namespace {

using index_type =
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<2>, wavekv::error_bound<>>;
template <class S>
using cache_of = tested_cache<S, index_type>;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

geometry small_geometry() {
  geometry sizes;
  sizes.n_layers = 2;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 2;
  sizes.key_dim = 16;
  sizes.value_dim = 8;
  return sizes;
}

/// A cache with two sequences, and what it answers.
template <class S>
struct fixture {
  explicit fixture(std::size_t max_tokens = 1U << 20U, std::size_t max_sequences = 8)
      : sizes(small_geometry()), cache(sizes, options(max_tokens, max_sequences)), random(3) {
    for (const std::size_t n : {130U, 18U}) {
      sequences.push_back(cache.create());
      for (std::size_t layer = 0; layer < 2; ++layer) {
        append_rows(cache, sequences.back(), layer, normal_rows(random, n * 2 * 16),
                    normal_rows(random, n * 2 * 8), 50);
      }
    }
    query = normal_rows(random, 4 * 16);
  }

  static typename cache_of<S>::options_type options(std::size_t max_tokens,
                                                    std::size_t max_sequences) {
    typename cache_of<S>::options_type chosen;
    chosen.window_tokens = 16;
    chosen.max_tokens = max_tokens;
    chosen.max_sequences = max_sequences;
    return chosen;
  }

  /// All that can be seen of the cache.
  std::vector<outputs> answers() {
    std::vector<outputs> seen;
    for (const sequence_id sequence : sequences) {
      for (std::size_t layer = 0; layer < 2; ++layer) {
        seen.push_back(attend_once(cache, sequence, layer, query, wavekv::exact{}));
        if constexpr (std::is_same_v<S, float>) {  // once is enough, and costs less to compile
          seen.push_back(attend_once(cache, sequence, layer, query, wavekv::fixed_budget{}));
        }
        seen.back().lse.push_back(static_cast<float>(cache.length(sequence, layer)));
      }
      seen.back().lse.push_back(static_cast<float>(cache.stats(sequence).segments));
    }
    return seen;
  }

  /// Runs a call that must throw Error with all the parts in its message, and must change nothing.
  template <class Error, class Call>
  void rejects(const std::vector<std::string>& parts, Call&& call) {
    const std::vector<outputs> before = answers();
    try {
      call();
      FAIL_CHECK("nothing was thrown; expected a message with ", parts.front());
    } catch (const Error& error) {
      const std::string text = error.what();
      for (const std::string& part : parts) {
        CHECK_MESSAGE(text.find(part) != std::string::npos, "'", part, "' is not in '", text, "'");
      }
      CHECK_MESSAGE(text.find("allowed") != std::string::npos, text);
    } catch (const std::exception& error) {
      FAIL_CHECK("another type of error: ", error.what());
    }
    CHECK(answers() == before);
  }

  geometry sizes;
  cache_of<S> cache;
  random_engine random;
  std::vector<sequence_id> sequences;
  std::vector<float> query;
};

using view = tensor_view<const float, 3>;

}  // namespace

TEST_CASE("append: wrong shapes, missing memory, gaps in rows") {
  fixture<float> f;
  const std::vector<float> memory(4096, 1.0F);
  const float* p = memory.data();
  const auto keys = wavekv::nhd(p, 3, 2, 16);
  const auto values = wavekv::nhd(p, 3, 2, 8);
  const sequence_id s = f.sequences[0];
  const auto append = [&](view k, view v, view q = {}, std::size_t layer = 0) {
    return [&f, s, k, v, q, layer] { f.cache.append(s, layer, k, v, q); };
  };
  using wavekv::shape_error;
  f.rejects<shape_error>({"keys", "[3, 3, 16]", "[3, 2, 16]"},
                         append(wavekv::nhd(p, 3, 3, 16), values));
  f.rejects<shape_error>({"keys", "[3, 2, 15]", "[3, 2, 16]"},
                         append(wavekv::nhd(p, 3, 2, 15), values));
  f.rejects<shape_error>({"values", "[4, 2, 8]", "[3, 2, 8]"},
                         append(keys, wavekv::nhd(p, 4, 2, 8)));
  f.rejects<shape_error>({"values", "[3, 2, 16]", "[3, 2, 8]"}, append(keys, keys));
  f.rejects<shape_error>({"keys", "memory"},
                         append(wavekv::nhd<const float>(nullptr, 3, 2, 16), values));
  f.rejects<shape_error>({"values", "memory"},
                         append(keys, wavekv::nhd<const float>(nullptr, 3, 2, 8)));
  f.rejects<shape_error>({"keys", "stride 2"}, append(view(p, {3, 2, 16}, {64, 32, 2}), values));
  f.rejects<shape_error>({"values", "stride 0"}, append(keys, view(p, {3, 2, 8}, {64, 32, 0})));
  f.rejects<shape_error>({"queries", "[2, 4, 16]", "[3, 4, 16]"},
                         append(keys, values, wavekv::nhd(p, 2, 4, 16)));
  f.rejects<shape_error>({"queries", "[3, 2, 16]", "[3, 4, 16]"},
                         append(keys, values, wavekv::nhd(p, 3, 2, 16)));
  f.rejects<shape_error>({"queries", "stride"},
                         append(keys, values, view(p, {3, 4, 16}, {64, 16, 3})));
  f.rejects<shape_error>({"layer is 2", "0 to 1"}, append(keys, values, {}, 2));
  f.rejects<shape_error>({"layer is 18446744073709551615", "0 to 1"},
                         append(keys, values, {}, SIZE_MAX));
}

#ifndef WAVEKV_TEST_ON_DEVICE  // which learns of such numbers later: see tests/cuda/kv_cache_test.cpp
TEST_CASE_TEMPLATE("append: elements that are not finite, at any place", S, float, bf16, f16) {
  fixture<S> f;
  // 70 tokens seal a segment when they are good; the bad element comes last, first, and in between.
  for (const std::size_t n : {1U, 70U}) {
    for (const float bad : {infinity, -infinity, not_a_number}) {
      for (const std::size_t at : {std::size_t{0}, n * 2 * 8 / 2, n * 2 * 8 - 1}) {
        std::vector<float> keys = normal_rows(f.random, n * 2 * 16);
        std::vector<float> values = normal_rows(f.random, n * 2 * 8);
        const auto append = [&] { append_rows(f.cache, f.sequences[1], 0, keys, values); };
        const auto place = [](std::size_t i, std::size_t dim) {
          return "[" + std::to_string(i / (2 * dim)) + ", " + std::to_string(i / dim % 2) + ", " +
                 std::to_string(i % dim) + "]";
        };
        const std::string seen = std::isnan(bad) ? "nan" : "inf";
        const float good_key = std::exchange(keys[at], bad);
        f.template rejects<wavekv::value_error>({"keys" + place(at, 16), seen, "finite"}, append);
        keys[at] = good_key;
        values[at] = bad;
        f.template rejects<wavekv::value_error>({"values" + place(at, 8), seen, "finite"}, append);
      }
    }
  }
}

TEST_CASE("append: finite numbers that the storage scalar cannot hold") {
  const std::vector<float> good_keys(70 * 2 * 16, 1.0F);
  const std::vector<float> good_values(70 * 2 * 8, 1.0F);
  {
    fixture<f16> f;
    std::vector<float> keys = good_keys;
    keys[40] = 65519.0F;  // rounds to 65504, the largest f16
    append_rows(f.cache, f.sequences[0], 0, keys, good_values);
    keys[40] = 65520.0F;  // rounds up to an infinity
    f.rejects<wavekv::value_error>({"keys[1, 0, 8]", "65520", "f16"}, [&] {
      append_rows(f.cache, f.sequences[0], 0, keys, good_values);
    });
    std::vector<float> values = good_values;
    values.back() = -1e9F;
    f.rejects<wavekv::value_error>({"values[69, 1, 7]", "-1e+09", "f16"}, [&] {
      append_rows(f.cache, f.sequences[0], 0, good_keys, values);
    });
  }
  {
    fixture<bf16> f;
    std::vector<float> keys = good_keys;
    keys[0] = std::numeric_limits<float>::max();  // rounds up to an infinity of bf16
    f.rejects<wavekv::value_error>({"keys[0, 0, 0]", "bf16"}, [&] {
      append_rows(f.cache, f.sequences[0], 0, keys, good_values);
    });
  }
}

TEST_CASE("append: queries that are not finite teach nothing") {
  fixture<float> f;
  const std::vector<float> keys = normal_rows(f.random, 3 * 2 * 16);
  const std::vector<float> values = normal_rows(f.random, 3 * 2 * 8);
  std::vector<float> queries = normal_rows(f.random, 3 * 4 * 16);
  queries[100] = not_a_number;
  f.rejects<wavekv::value_error>({"queries[1, 2, 4]", "nan"}, [&] {
    f.cache.append(f.sequences[0], 0, tokens_of(keys, 0, 3, 2, 16), tokens_of(values, 0, 3, 2, 8),
                   tokens_of(queries, 0, 3, 4, 16));
  });
}
#endif

TEST_CASE("capacity: tokens of a sequence") {
  fixture<float> f(132);
  const std::vector<float> keys(200 * 2 * 16, 1.0F);
  const std::vector<float> values(200 * 2 * 8, 1.0F);
  const auto append = [&](std::size_t n) {
    return [&f, &keys, &values, n] {
      f.cache.append(f.sequences[0], 0, tokens_of(keys, 0, n, 2, 16),
                     tokens_of(values, 0, n, 2, 8));
    };
  };
  f.rejects<wavekv::capacity_error>({"3 tokens to 130", "132", "max_tokens"}, append(3));
  f.rejects<wavekv::capacity_error>({"200 tokens to 130", "132"}, append(200));
  append(2)();
  CHECK(f.cache.length(f.sequences[0], 0) == 132);
  f.rejects<wavekv::capacity_error>({"1 tokens to 132", "132"}, append(1));
  append(0)();
  f.cache.truncate(f.sequences[0], 100);
  append(32)();  // room that a truncation made is room
}

TEST_CASE("capacity: sequences alive at once") {
  fixture<float> f(1000, 2);
  f.rejects<wavekv::capacity_error>({"2 sequences", "max_sequences"}, [&] { f.cache.create(); });
  f.rejects<wavekv::capacity_error>({"2 sequences", "max_sequences"},
                                    [&] { f.cache.fork(f.sequences[0]); });
  f.cache.release(f.sequences[1]);
  f.sequences[1] = f.cache.fork(f.sequences[0]);
  f.rejects<wavekv::capacity_error>({"2 sequences"}, [&] { f.cache.fork(f.sequences[1]); });
}

TEST_CASE("sequences that are not alive") {
  fixture<float> f;
  const sequence_id released = f.cache.fork(f.sequences[0]);
  f.cache.release(released);
  const sequence_id stale = released;
  const sequence_id reborn = f.cache.create();  // takes the slot, under a new generation
  CHECK(reborn.slot == stale.slot);
  CHECK(reborn != stale);
  const std::vector<float> rows(3 * 4 * 16, 1.0F);
  for (const sequence_id dead :
       {stale, sequence_id{}, sequence_id{7, 0}, sequence_id{stale.slot, 99}}) {
    const std::string name = std::to_string(dead.slot) + "." + std::to_string(dead.generation);
    const std::vector<std::string> parts = {"sequence " + name, "not alive"};
    using wavekv::sequence_error;
    f.rejects<sequence_error>(parts, [&] { f.cache.release(dead); });
    f.rejects<sequence_error>(parts, [&] { f.cache.fork(dead); });
    f.rejects<sequence_error>(parts, [&] { f.cache.truncate(dead, 1); });
    f.rejects<sequence_error>(parts, [&] { f.cache.seal(dead); });
    f.rejects<sequence_error>(parts, [&] { (void)f.cache.length(dead); });
    f.rejects<sequence_error>(parts, [&] { (void)f.cache.length(dead, 0); });
    f.rejects<sequence_error>(parts, [&] { (void)f.cache.stats(dead); });
    f.rejects<sequence_error>(parts, [&] {
      append_rows(f.cache, dead, 0, std::vector<float>(2 * 16), std::vector<float>(2 * 8));
    });
    f.rejects<sequence_error>(parts, [&] { attend_once(f.cache, dead, 0, f.query); });
    f.rejects<sequence_error>(parts, [&] {  // the last of a batch: nothing of it may have run
      outputs to(f.sizes, 3);
      const std::vector<query_run> batch = {{f.sequences[0]}, {f.sequences[1]}, {dead}};
      f.cache.attend(std::span<const query_run>(batch), 0, tokens_of(rows, 0, 3, 4, 16),
                     wavekv::nhd(to.out.data(), 3, 4, 8));
    });
    f.rejects<sequence_error>(parts, [&] {
      outputs to(f.sizes, 1);
      const std::vector<float> kv(2 * 16, 1.0F);
      f.cache.prefill(dead, 0, tokens_of(rows, 0, 1, 4, 16), tokens_of(kv, 0, 1, 2, 16),
                      tokens_of(kv, 0, 1, 2, 8), wavekv::nhd(to.out.data(), 1, 4, 8));
    });
  }
  f.cache.release(reborn);
  f.rejects<wavekv::sequence_error>({"not alive"}, [&] { f.cache.release(reborn); });
}

TEST_CASE("attend: wrong shapes, missing memory, bad queries") {
  fixture<float> f;
  const sequence_id s = f.sequences[0];
  std::vector<float> memory(4096, 1.0F);
  float* p = memory.data();
  const float* c = memory.data();
  using wavekv::shape_error;
  const auto attend = [&](view q, tensor_view<float, 3> out, tensor_view<float, 2> lse = {},
                          std::size_t layer = 0) {
    return [&f, s, q, out, lse, layer] { f.cache.attend(s, layer, q, out, lse); };
  };
  const auto out1 = wavekv::nhd(p, 1, 4, 8);
  const auto query1 = wavekv::nhd(c, 1, 4, 16);
  f.rejects<shape_error>({"queries", "[1, 2, 16]", "[1, 4, 16]"},
                         attend(wavekv::nhd(c, 1, 2, 16), out1));
  f.rejects<shape_error>({"queries", "[1, 4, 8]", "[1, 4, 16]"},
                         attend(wavekv::nhd(c, 1, 4, 8), out1));
  f.rejects<shape_error>({"out", "[1, 4, 16]", "[1, 4, 8]"},
                         attend(query1, wavekv::nhd(p, 1, 4, 16)));
  f.rejects<shape_error>({"out", "[2, 4, 8]", "[1, 4, 8]"},
                         attend(query1, wavekv::nhd(p, 2, 4, 8)));
  f.rejects<shape_error>({"queries", "memory"},
                         attend(wavekv::nhd<const float>(nullptr, 1, 4, 16), out1));
  f.rejects<shape_error>({"out", "memory"}, attend(query1, wavekv::nhd<float>(nullptr, 1, 4, 8)));
  f.rejects<shape_error>({"out", "stride 2"}, attend(query1, {p, {1, 4, 8}, {96, 24, 2}}));
  f.rejects<shape_error>({"queries", "stride 0"}, attend({c, {1, 4, 16}, {64, 16, 0}}, out1));
  f.rejects<shape_error>({"lse", "[1, 3]", "[1, 4]"}, attend(query1, out1, {p, {1, 3}}));
  f.rejects<shape_error>({"layer is 2", "0 to 1"}, attend(query1, out1, {}, 2));
  // more queries than the window holds, or than there are tokens
  f.rejects<shape_error>({"17 queries", "130 tokens", "window_tokens", "16"},
                         attend(wavekv::nhd(c, 17, 4, 16), wavekv::nhd(p, 17, 4, 8)));
  f.rejects<shape_error>({"19 queries", "18 tokens"}, [&] {
    f.cache.attend(f.sequences[1], 0, wavekv::nhd(c, 19, 4, 16), wavekv::nhd(p, 19, 4, 8));
  });
  // counts of a batch that do not add up to the rows given, or that overflow
  f.rejects<shape_error>({"[3, 4, 8]", "[2, 4, 8]"}, [&] {
    const std::vector<query_run> batch = {{s, 2}};
    f.cache.attend(std::span<const query_run>(batch), 0, wavekv::nhd(c, 3, 4, 16),
                   wavekv::nhd(p, 3, 4, 8));
  });
  f.rejects<shape_error>({"queries"}, [&] {
    const std::vector<query_run> batch = {{s, SIZE_MAX}, {s, 3}};
    f.cache.attend(std::span<const query_run>(batch), 0, wavekv::nhd(c, 2, 4, 16),
                   wavekv::nhd(p, 2, 4, 8));
  });
  if constexpr (!on_device) {  // which learns of such numbers later
    for (const float bad : {infinity, -infinity, not_a_number}) {
      f.rejects<wavekv::value_error>({"queries[0, 3, 15]", "finite"}, [&] {
        std::vector<float> query = f.query;
        query.back() = bad;
        attend_once(f.cache, s, 0, query);
      });
    }
  }
}

TEST_CASE("attend_partial: every part must be there") {
  fixture<float> f;
  std::vector<float> memory(4096, 1.0F);
  float* p = memory.data();
  const query_run run{f.sequences[0], 1};
  const auto call = [&](const wavekv::partial_output& to) {
    return [&f, &run, to] {
      f.cache.attend_partial(std::span(&run, 1), 0, tokens_of(f.query, 0, 1, 4, 16), to);
    };
  };
  wavekv::partial_output good{{p, {1, 4}}, {p + 16, {1, 4}}, wavekv::nhd(p + 32, 1, 4, 8)};
  call(good)();
  using wavekv::shape_error;
  wavekv::partial_output bad = good;
  bad.max = {};
  f.rejects<shape_error>({"max", "memory"}, call(bad));
  bad = good;
  bad.denominator = {p, {2, 4}};
  f.rejects<shape_error>({"denominator", "[2, 4]", "[1, 4]"}, call(bad));
  bad = good;
  bad.numerator = wavekv::nhd(p, 1, 4, 16);
  f.rejects<shape_error>({"numerator", "[1, 4, 16]", "[1, 4, 8]"}, call(bad));
}

TEST_CASE("prefill: wrong shapes, bad numbers, capacity") {
  fixture<float> f(135);
  std::vector<float> memory(8192, 1.0F);
  float* p = memory.data();
  const float* c = memory.data();
  const auto prefill = [&](view q, view k, view v, tensor_view<float, 3> out,
                           tensor_view<float, 2> lse = {}, std::size_t layer = 0) {
    return [&f, q, k, v, out, lse, layer] {
      f.cache.prefill(f.sequences[0], layer, q, k, v, out, lse);
    };
  };
  const auto q = wavekv::nhd(c, 3, 4, 16);
  const auto k = wavekv::nhd(c, 3, 2, 16);
  const auto v = wavekv::nhd(c, 3, 2, 8);
  const auto out = wavekv::nhd(p + 4096, 3, 4, 8);
  using wavekv::shape_error;
  f.rejects<shape_error>({"queries", "[2, 4, 16]"}, prefill(wavekv::nhd(c, 2, 4, 16), k, v, out));
  f.rejects<shape_error>({"keys", "[3, 4, 16]"}, prefill(q, q, v, out));
  f.rejects<shape_error>({"values", "[3, 2, 16]"}, prefill(q, k, k, out));
  f.rejects<shape_error>({"out", "[3, 4, 16]"}, prefill(q, k, v, wavekv::nhd(p, 3, 4, 16)));
  f.rejects<shape_error>({"lse", "[3, 2]"}, prefill(q, k, v, out, {p, {3, 2}}));
  f.rejects<shape_error>({"layer is 5"}, prefill(q, k, v, out, {}, 5));
  f.rejects<shape_error>({"queries", "memory"},
                         prefill(wavekv::nhd<const float>(nullptr, 3, 4, 16), k, v, out));
  f.rejects<wavekv::capacity_error>(
      {"6 tokens to 130", "135"}, prefill(wavekv::nhd(c, 6, 4, 16), wavekv::nhd(c, 6, 2, 16),
                                          wavekv::nhd(c, 6, 2, 8), wavekv::nhd(p + 4096, 6, 4, 8)));
  if (on_device) return;
  memory[70] = not_a_number;
  f.rejects<wavekv::value_error>({"[2, 0, 6]", "nan"},
                                 prefill(wavekv::nhd(c + 128, 3, 4, 16), k, v, out));
  f.rejects<wavekv::value_error>({"queries[1, 0, 6]", "nan"},
                                 prefill(q, wavekv::nhd(c + 128, 3, 2, 16), v, out));
}

TEST_CASE("bounds out of range, in the options and in a call") {
  fixture<float> f;
  const auto refused = [&](const std::vector<std::string>& parts, const auto& bound) {
    f.rejects<wavekv::config_error>(
        parts, [&] { attend_once(f.cache, f.sequences[0], 0, f.query, bound); });
  };
  using error_bound = wavekv::error_bound<>;
  refused({"epsilon is 0"}, error_bound{0.0F});
  refused({"epsilon is -1"}, error_bound{-1.0F});
  refused({"epsilon is inf"}, error_bound{infinity});
  refused({"epsilon is", "nan"}, error_bound{not_a_number});
  refused({"max_open is 1.5", "0 to 1"}, error_bound{0.1F, 1.5F});
  refused({"max_open is -0.5"}, error_bound{0.1F, -0.5F});
  refused({"max_read is 2", "0 to 1"}, error_bound{0.1F, 0.5F, 2.0F});
  refused({"max_read is", "nan"}, error_bound{0.1F, 0.5F, not_a_number});
  refused({"retrieve is -0.1"}, wavekv::fixed_budget{-0.1F, 0.5F});
  refused({"retrieve is 0.6", "estimate is 0.5"}, wavekv::fixed_budget{0.6F, 0.5F});
  refused({"estimate is", "nan"}, wavekv::fixed_budget{0.1F, not_a_number});
  using verified_bound = wavekv::verified_bound<>;
  refused({"epsilon is 0"}, verified_bound{0.0F});
  refused({"delta is 0"}, verified_bound{0.1F, 0.0F});
  refused({"delta is 0.5"}, verified_bound{0.1F, 0.5F});
  refused({"samples is 7"}, verified_bound{0.1F, 0.05F, 7});
  refused({"margin is 0"}, verified_bound{.margin = 0.0F});
  refused({"margin is 1.5"}, verified_bound{.margin = 1.5F});
  refused({"coarse_share is 2", "0 to 1"}, error_bound{.coarse_share = 2.0F});
  refused({"error_scale is 0", "above 0"}, error_bound{.error_scale = 0.0F});
  refused({"error_scale is -2"}, error_bound{.error_scale = -2.0F});
  refused({"error_scale is inf"}, error_bound{.error_scale = infinity});
  refused({"error_scale is", "nan"}, error_bound{.error_scale = not_a_number});
  refused({"hidden_share is -1", "0 to 1"}, error_bound{.hidden_share = -1.0F});
  refused({"hidden_share is", "nan"}, error_bound{.hidden_share = not_a_number});
  refused({"rounds is 0"}, verified_bound{0.1F, 0.05F, 64, 0});
  refused({"max_read is 3"}, verified_bound{.rule = error_bound{.max_read = 3.0F}});
  refused({"error_scale is 0"}, verified_bound{.rule = error_bound{.error_scale = 0.0F}});

  cache_of<float>::options_type options;
  options.bound.epsilon = -2.0F;
  CHECK_THROWS_AS(cache_of<float>(small_geometry(), options), wavekv::config_error);
}

TEST_CASE("options and geometries out of range") {
  const auto message_of = [](const geometry& sizes, const cache_of<float>::options_type& options) {
    try {
      cache_of<float> cache(sizes, options);
    } catch (const wavekv::config_error& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  const auto contains = [](const std::string& text, const std::string& part) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, "'", part, "' is not in '", text, "'");
    CHECK_MESSAGE(text.find("allowed") != std::string::npos, text);
  };
  using options_type = cache_of<float>::options_type;
  options_type options;
  options.window_tokens = 0;
  contains(message_of(small_geometry(), options), "window_tokens is 0");
  options = {};
  options.sink_tokens = 1U << 21U;
  contains(message_of(small_geometry(), options), "sink_tokens is 2097152");
  options = {};
  options.max_sequences = 0;
  contains(message_of(small_geometry(), options), "max_sequences is 0");
  options = {};
  options.max_tokens = 0;
  contains(message_of(small_geometry(), options), "max_tokens is 0");
  options.max_tokens = std::size_t{1} << 40U;
  contains(message_of(small_geometry(), options), "max_tokens is 1099511627776");
  geometry sizes = small_geometry();
  sizes.n_kv_heads = 3;
  contains(message_of(sizes, {}), "n_query_heads is 4");
}
