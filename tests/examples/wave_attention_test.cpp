// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The model on a wavekv::kv_cache: logits against transformers', forks, and what decode records.
#include <algorithm>
#include <cmath>
#include <memory>

#include <doctest/doctest.h>

#include "error.hpp"
#include "generation.hpp"
#include "json_file.hpp"
#include "model.hpp"
#include "support.hpp"
#include "wave_attention.hpp"

namespace {

using transformer::token_id;
using transformer::wave_attention;

/// Largest difference over every stored position of every prompt, with full attention over the
/// cache.
template <class Cache>
float largest_difference(const std::string& name) {
  const auto directory = test::data_dir / "models" / name;
  transformer::model model(directory);
  float largest = 0;
  const auto stored = transformer::read_json(directory / "expected.json");
  for (const auto& prompt : stored["prompts"]) {
    const auto ids = prompt["ids"].get<std::vector<token_id>>();
    const auto positions = prompt["positions"].get<std::vector<std::size_t>>();
    Cache cache(transformer::cache_geometry(model.config(), model.n_full_layers()));
    auto session = model.start(std::make_unique<wave_attention<Cache>>(cache, wavekv::exact{}));
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const auto unread =
          std::span(ids).subspan(session.n_tokens, positions[i] + 1 - session.n_tokens);
      const auto logits = test::read_prompt(model, session, unread, 100);
      const auto expected = prompt["logits"][i].get<std::vector<float>>();
      for (std::size_t j = 0; j < expected.size(); ++j)
        largest = std::max(largest, std::abs(logits[j] - expected[j]));
    }
  }
  return largest;
}

const std::vector<std::string> families = {"llama", "llama_f32", "llama_f16", "llama_sharded",
                                           "qwen2", "qwen3",     "smollm3",   "smollm3_window"};

using cache_type = wavekv::kv_cache<>;

}  // namespace

TEST_CASE("through a cache in float, every family's logits equal the reference's") {
  for (const auto& name : families) {
    CAPTURE(name);
    CHECK(largest_difference<wavekv::kv_cache<float>>(name) <= 2e-3F);
  }
}

TEST_CASE("through a cache in bf16 they stay within what rounding the keys and values costs") {
  for (const auto& name : families) {
    CAPTURE(name);
    CHECK(largest_difference<cache_type>(name) <= 2e-2F);
  }
}

TEST_CASE("the shipped models answer their golden prompts by every bound that keeps the far past") {
  const std::vector<transformer::any_bound> bounds = {
      wavekv::exact{}, wavekv::fixed_budget{}, wavekv::error_bound<>{}, wavekv::verified_bound<>{}};
  for (const std::string& name : test::shipped_models) {
    CAPTURE(name);
    transformer::model model(test::models_dir / name);
    const auto golden = transformer::read_json(test::data_dir / name / "golden.json");
    for (const auto& prompt : golden["prompts"]) {
      const auto ids = prompt["ids"].get<std::vector<token_id>>();
      const auto expected = prompt["greedy_ids"].get<std::vector<token_id>>();
      cache_type cache(transformer::cache_geometry(model.config(), model.n_full_layers()));
      auto read = model.start(std::make_unique<wave_attention<cache_type>>(cache, wavekv::exact{}));
      transformer::read_prompt(model, read, ids, 50);
      for (const auto& bound : bounds) {
        const auto& parent = static_cast<const wave_attention<cache_type>&>(*read.attention);
        auto session = read.fork(std::make_unique<wave_attention<cache_type>>(parent, bound));
        const auto found = transformer::generate(model, session, ids.back(),
                                                 transformer::sampler({}), {expected.size(), true});
        CAPTURE(bound.index());
        CHECK(std::equal(found.tokens.begin(), found.tokens.begin() + 5, expected.begin()));
        if (bound.index() == 0) CHECK(found.tokens == expected);
      }
    }
  }
}

TEST_CASE("a probe records the error of every head, and exact attention has none") {
  transformer::model model(test::needle_dir);
  cache_type cache(transformer::cache_geometry(model.config(), model.n_full_layers()));
  const std::vector<token_id> ids(500, 300);
  auto read = model.start(std::make_unique<wave_attention<cache_type>>(cache, wavekv::exact{}));
  transformer::read_prompt(model, read, ids, 128);
  const auto& parent = static_cast<const wave_attention<cache_type>&>(*read.attention);
  const auto errors_with = [&](const transformer::any_bound& bound) {
    auto session = read.fork(std::make_unique<transformer::error_probe<cache_type>>(parent, bound));
    const auto generated =
        transformer::generate(model, session, ids.back(), transformer::sampler({}), {3, false});
    CHECK(generated.n_steps == 3);
    const auto& record =
        static_cast<const transformer::error_probe<cache_type>&>(*session.attention).record();
    CHECK(record.true_errors.size() == 3 * model.n_full_layers() * model.config().n_query_heads);
    CHECK(record.predicted_errors.size() == 3 * model.n_full_layers());
    CHECK(record.total.bytes_read > 0);
    return record.true_errors;
  };
  for (const float error : errors_with(wavekv::exact{})) CHECK(error == 0.0F);
  const auto blind = errors_with(transformer::window_only{});
  CHECK(std::ranges::all_of(blind, [](float error) { return std::isfinite(error); }));
}

TEST_CASE("an id outside the vocabulary is an error") {
  transformer::model model(test::needle_dir);
  auto session = test::start_dense(model);
  CHECK_THROWS_AS(model.decode(session, 2048), transformer::model_error);
  CHECK_THROWS_AS(model.prefill(session, std::vector<token_id>{1, -1}), transformer::model_error);
}
