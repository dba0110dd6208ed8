// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <tuple>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/bounds.hpp"
#include "reference/fresh_seed.hpp"
#include "support/model.hpp"

// A frontier says whose it is: which sequence, layer and KV head asks, and in which step of it.

using namespace wavekv_test;

TEST_CASE(
    "frontiers carry their query's place, at every level, in a batch and after a slot was reused") {
  random_engine random = generator("query places");
  wavekv::geometry sizes;
  sizes.n_layers = 2;
  sizes.n_query_heads = 4;
  sizes.n_kv_heads = 2;
  sizes.key_dim = sizes.value_dim = 8;
  using index = wavekv::wave_index<>::with_segment_size<wavekv::segment_size<128, 128>>;
  wavekv::kv_cache<float, index, wavekv::wave_buffer<>, wavekv::cpu<wavekv::serial_executor>> cache(
      sizes);
  const auto begin = [&](std::size_t n_tokens) {
    const wavekv::sequence_id sequence = cache.create();
    for (std::size_t layer = 0; layer < 2; ++layer) {
      append_rows(cache, sequence, layer, normal_rows(random, n_tokens * 16),
                  normal_rows(random, n_tokens * 16));
    }
    return sequence;
  };
  cache.release(begin(10));
  const wavekv::sequence_id first = begin(300);  // in the slot of the one before
  REQUIRE(first.generation == 1);
  const wavekv::sequence_id second = begin(400);
  const std::vector<wavekv::query_run> batch = {{first, 2}, {second, 1}};
  for (std::size_t layer = 0; layer < 2; ++layer) {
    std::vector<plan_record> log;
    const std::vector<float> queries = normal_rows(random, 3 * 4 * 8);
    outputs result(sizes, 3);
    cache.attend(batch, layer, tokens_of(queries, 0, 3, 4, 8),
                 wavekv::nhd(result.out.data(), 3, 4, 8), recording<open_all>{{}, &log});
    std::vector<std::tuple<wavekv::sequence_id, std::uint32_t, std::size_t, std::size_t>> expected;
    for (const auto& [sequence, step] : {std::pair{first, 299U}, {first, 300U}, {second, 400U}}) {
      for (std::size_t head = 0; head < 2; ++head) {
        for (const std::size_t level : {1U, 0U}) expected.emplace_back(sequence, step, head, level);
      }
    }
    std::vector<std::tuple<wavekv::sequence_id, std::uint32_t, std::size_t, std::size_t>> seen;
    for (const plan_record& record : log) {
      CHECK(record.place.layer == layer);
      seen.emplace_back(record.place.sequence, record.place.step, record.head, record.level);
    }
    CHECK(seen == expected);
  }
}
