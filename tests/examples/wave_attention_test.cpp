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
#include "spread_rows.hpp"
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

TEST_CASE("spread rows are every n-th, whatever the chunks") {
  for (const std::size_t most : {0U, 1U, 2U, 5U, 16U}) {
    for (const std::size_t n : {0U, 1U, 4U, 16U, 17U, 500U}) {
      for (const std::size_t chunk : {1U, 7U, 500U}) {
        CAPTURE(most);
        CAPTURE(n);
        CAPTURE(chunk);
        transformer::spread_rows spread(most, 2);
        std::vector<float> rows;
        for (std::size_t i = 0; i < n; ++i) rows.insert(rows.end(), {float(i), -float(i)});
        for (std::size_t first = 0; first < n; first += chunk)
          spread.add(rows.data() + 2 * first, std::min(chunk, n - first));
        CHECK(spread.size() <= most);
        CHECK(2 * spread.size() >= std::min(most, n));
        const float step = spread.size() > 1 ? spread.data()[2] : 1.0F;
        for (std::size_t i = 0; i < spread.size(); ++i) {
          CHECK(spread.data()[2 * i] == step * static_cast<float>(i));
          CHECK(spread.data()[2 * i + 1] == -step * static_cast<float>(i));
        }
        if (most > 1 && n > 0)  // up to the end
          CHECK(step * static_cast<float>(spread.size()) >= static_cast<float>(n));
      }
    }
  }
}

TEST_CASE("a calibrated prompt's predictions are those of before, times each layer's factor; forks "
          "keep it") {
  transformer::model model(test::needle_dir);
  cache_type cache(transformer::cache_geometry(model.config(), model.n_full_layers()));
  std::vector<token_id> ids;
  for (int i = 0; i < 3000; ++i) ids.push_back(300 + (i * i + 7 * i) % 997);
  wavekv::error_bound<> bound;
  bound.epsilon = 1e6F;  // nothing is read by prediction: a factor changes no plan
  bound.hidden_share = 0.0F;
  bound.floor_open = bound.floor_read = 0.05F;
  const auto read_with = [&](std::size_t n, const transformer::any_bound& of) {
    auto attention = std::make_unique<wave_attention<cache_type>>(cache, of);
    attention->calibrate_with(n);
    auto session = model.start(std::move(attention));
    transformer::read_prompt(model, session, ids, 512);
    return session;
  };
  const auto attention_of = [](const auto& session) -> const wave_attention<cache_type>& {
    return static_cast<const wave_attention<cache_type>&>(*session.attention);
  };
  auto plain = read_with(0, bound);
  auto calibrated = read_with(32, bound);
  CHECK(attention_of(plain).calibrations().empty());
  std::vector<float> scales;
  for (const wavekv::calibration& layer : attention_of(calibrated).calibrations()) {
    CHECK(layer.n_pairs() >= wavekv::calibration::least_pairs);
    CHECK(layer.n_pairs() <= 32);
    scales.push_back(layer.factor());
  }
  REQUIRE(scales.size() == model.n_full_layers());
  CHECK(scales != std::vector<float>(model.n_full_layers(), 1.0F));
  CHECK(attention_of(read_with(32, wavekv::exact{})).calibrations().empty());

  auto forked = calibrated.fork(
      std::make_unique<wave_attention<cache_type>>(attention_of(calibrated), bound));
  for (auto* session : {&plain, &calibrated, &forked})
    transformer::generate(model, *session, ids.back(), transformer::sampler({}), {3, false});
  const auto& before = attention_of(plain).record().predicted_errors;
  for (const auto* session : {&calibrated, &forked}) {
    const auto& after = attention_of(*session).record().predicted_errors;
    REQUIRE(after.size() == before.size());
    for (std::size_t i = 0; i < after.size(); ++i)
      CHECK(after[i] == doctest::Approx(before[i] * scales[i % scales.size()]).epsilon(1e-5));
  }
}

TEST_CASE("an id outside the vocabulary is an error") {
  transformer::model model(test::needle_dir);
  auto session = test::start_dense(model);
  CHECK_THROWS_AS(model.decode(session, 2048), transformer::model_error);
  CHECK_THROWS_AS(model.prefill(session, std::vector<token_id>{1, -1}), transformer::model_error);
}
