// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Sequences on a device, emulated: what is captured, forks and bounds, and the engine that the programs run.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "device_engine.cuh"
#include "device_model.hpp"
#include "error.hpp"
#include "generation.hpp"
#include "json_file.hpp"
#include "support.hpp"

namespace {

using test::any_bound;
using test::token_id;

// Segments so small that short prompts have some.
using small_index =
    wavekv::wave_index<wavekv::segment_size<128, 64>, wavekv::tokens_per_cluster<8, 32>>;
using machine = test::emulated_machine<wavekv::bf16, small_index, true>;
using machine_without_graphs = test::emulated_machine<wavekv::bf16, small_index, false>;

}  // namespace

TEST_CASE("in bf16 they stay within what rounding the keys and values costs, sealed or not") {
  for (const std::string name : {"llama", "smollm3_window"}) {
    CAPTURE(name);
    const auto directory = test::data_dir / "models" / name;
    CHECK(test::largest_difference<machine>(directory, test::stored_prompt(directory, 4), 500,
                                            200) <= 2e-2F);
  }
}

TEST_CASE("captured steps are the steps, bit by bit, beyond what is sealed meanwhile") {
  const auto directory = test::data_dir / "models/smollm3_window";
  const auto ids = test::stored_prompt(directory, 4);
  test::device<machine> captured(directory);
  test::device<machine_without_graphs> direct(directory);
  const any_bound bound = wavekv::error_bound<>{.epsilon = 0.1F};
  auto a = captured.read(std::span(ids).first(300), 128, bound);
  auto b = direct.read(std::span(ids).first(300), 128, bound);
  for (std::size_t i = 300; i < 450; ++i) {
    const auto expected = direct.model.decode(b, ids[i]);
    const auto found = captured.model.decode(a, ids[i]);
    REQUIRE(std::ranges::equal(found, expected));
  }
  CHECK(a.graph.has_value());
  CHECK(!b.graph.has_value());
  CHECK(a.attention->record().total.tokens_read == b.attention->record().total.tokens_read);
  CHECK(a.attention->record().total.tokens_read < a.attention->record().total.tokens_held);

  // After more of a prompt the same graph goes on.
  captured.model.prefill(a, std::span(ids).subspan(450, 100));
  direct.model.prefill(b, std::span(ids).subspan(450, 100));
  CHECK(std::ranges::equal(captured.model.decode(a, ids[550]), direct.model.decode(b, ids[550])));
}

TEST_CASE("a fork goes on from the same prompt by its own bound, and says how far it errs") {
  const auto directory = test::data_dir / "models/smollm3_window";
  const auto ids = test::stored_prompt(directory, 4);
  test::device<machine> on(directory);
  const auto parent = on.read(std::span(ids).first(500), 500, wavekv::exact{});
  const auto decode = [&](const any_bound& bound, bool probes) {
    auto session = on.model.fork(parent, bound, probes);
    std::vector<float> last;
    for (std::size_t i = 500; i < 506; ++i) {
      const auto logits = on.model.decode(session, ids[i]);
      last.assign(logits.begin(), logits.end());
    }
    return std::pair(last, session.attention->record());
  };
  const auto [full, full_record] = decode(wavekv::exact{}, false);
  CHECK(full_record.total.tokens_read == full_record.total.tokens_held);
  CHECK(full_record.predicted_errors.size() == 6);
  for (const any_bound& bound :
       {any_bound(wavekv::fixed_budget{.retrieve = 0.3F, .estimate = 0.7F}),
        any_bound(wavekv::error_bound<>{.epsilon = 0.02F}),
        any_bound(wavekv::verified_bound<>{.epsilon = 0.02F})}) {
    CAPTURE(bound.index());
    const auto [logits, record] = decode(bound, true);
    CHECK(test::largest_difference(logits, full) < 1.0F);
    CHECK(record.true_errors.size() == 6 * on.cache.geometry().n_layers * 4);
    CHECK(*std::ranges::max_element(record.true_errors) < 0.5F);
    CHECK(record.total.tokens_held == full_record.total.tokens_held);
  }
  const auto [none, none_record] = decode(transformer::window_only{}, false);
  CHECK(none_record.total.clusters_dropped > 0);
  CHECK(none_record.total.clusters_estimated == 0);
}

TEST_CASE("the shipped model answers its golden prompts through the engine") {
  test::emulated_runtime runtime;
  transformer::device_engine<machine> on_device(test::needle_dir, runtime, runtime.make_stream());
  transformer::engine& engine = on_device;
  const auto golden = transformer::read_json(test::data_dir / "needle/golden.json");
  for (const auto& prompt : golden["prompts"]) {
    const auto ids = prompt["ids"].get<std::vector<token_id>>();
    if (ids.size() > 900) continue;  // takes its time here
    const auto expected = prompt["greedy_ids"].get<std::vector<token_id>>();
    const auto read = engine.start(wavekv::exact{});
    transformer::read_prompt(engine, *read, ids, 256);
    CHECK(engine.length(*read) == ids.size() - 1);
    for (const any_bound& bound :
         {any_bound(wavekv::exact{}), any_bound(wavekv::error_bound<>{})}) {
      const auto fork = engine.fork(*read, bound);
      const auto found = transformer::generate(engine, *fork, ids.back(), transformer::sampler({}),
                                               {expected.size(), true});
      CAPTURE(bound.index());
      CHECK(std::equal(found.tokens.begin(), found.tokens.begin() + 5, expected.begin()));
      CHECK(engine.record(*fork).total.tokens_held > 0);
    }
  }
}

TEST_CASE("what a device does not do is said") {
  test::emulated_runtime runtime;
  using engine_type = transformer::device_engine<machine>;
  CHECK_THROWS_WITH_AS(engine_type(test::data_dir / "models/qwen2", runtime, {}),
                       "head_dim is 20; --device cuda takes multiples of 8 up to 256",
                       transformer::model_error);
  engine_type engine(test::data_dir / "models/llama", runtime, runtime.make_stream());
  const auto sequence = engine.start(wavekv::exact{});
  CHECK_THROWS_AS(engine.decode(*sequence, 272), transformer::model_error);
  CHECK_THROWS_AS(engine.save(*sequence, "nowhere", {}, ""), transformer::model_error);
  CHECK(engine.decode(*sequence, 271).size() == 272);
}
