// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception Logits of small random models of every
// family, and of the shipped model, against transformers' (see tests/data/README.md).
#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include "json_file.hpp"
#include "model.hpp"
#include "sampler.hpp"
#include "support.hpp"
#include "tokenizer.hpp"

namespace {

using transformer::token_id;

constexpr float tolerance = 2e-2F;
constexpr float tight_tolerance =
    2e-3F;  // with keys and values in float nothing but the order of sums differs

float largest_difference(std::span<const float> found, const std::vector<float>& expected) {
  REQUIRE(found.size() == expected.size());
  float largest = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const float difference = std::abs(found[i] - expected[i]);
    largest = std::max(largest, std::isnan(difference) ? INFINITY : difference);
  }
  return largest;
}

/// Every stored position, reached by prefill up to it and one decode step.
void check_prompt(transformer::model& model, const nlohmann::json& prompt, std::size_t chunk) {
  const auto ids = prompt["ids"].get<std::vector<token_id>>();
  const auto positions = prompt["positions"].get<std::vector<std::size_t>>();
  auto session = test::start_dense(model);
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const auto unread =
        std::span(ids).subspan(session.n_tokens, positions[i] + 1 - session.n_tokens);
    const auto logits = test::read_prompt(model, session, unread, chunk);
    CAPTURE(positions[i]);
    CHECK(largest_difference(logits, prompt["logits"][i].get<std::vector<float>>()) <=
          tight_tolerance);
  }
}

void check_greedy(transformer::model& model, const nlohmann::json& prompt) {
  const auto ids = prompt["ids"].get<std::vector<token_id>>();
  auto session = test::start_dense(model);
  auto next = transformer::greedy(test::read_prompt(model, session, ids, 512));
  for (const auto expected : prompt["greedy_ids"].get<std::vector<token_id>>()) {
    CHECK(next == expected);
    next = transformer::greedy(model.decode(session, expected));
  }
}

}  // namespace

TEST_CASE("every family's logits equal the reference's") {
  for (const std::string name : {"llama", "llama_f32", "llama_f16", "llama_sharded", "qwen2",
                                 "qwen3", "smollm3", "smollm3_window"}) {
    CAPTURE(name);
    const auto directory = test::data_dir / "models" / name;
    transformer::model model(directory);
    const auto expected = transformer::read_json(directory / "expected.json");
    for (const auto& prompt : expected["prompts"]) {
      check_prompt(model, prompt, 512);
      check_prompt(model, prompt, 37);
      check_greedy(model, prompt);
    }
  }
}

TEST_CASE("the shipped models' logits and answers equal the reference's") {
  for (const std::string& name : test::shipped_models) {
    CAPTURE(name);
    transformer::model model(test::models_dir / name);
    transformer::tokenizer tokenizer(test::models_dir / name);
    const auto golden = transformer::read_json(test::data_dir / name / "golden.json");
    for (const auto& prompt : golden["prompts"]) {
      const auto ids = prompt["ids"].get<std::vector<token_id>>();
      auto encoded = tokenizer.prefix();
      for (const token_id id : tokenizer.encode(prompt["prompt"].get<std::string>()))
        encoded.push_back(id);
      CHECK(encoded == ids);

      auto session = test::start_dense(model);
      const auto logits = test::read_prompt(model, session, ids, 512);
      const auto top = prompt["last_logits_top20_ids"].get<std::vector<std::size_t>>();
      const auto values = prompt["last_logits_top20"].get<std::vector<float>>();
      for (std::size_t i = 0; i < top.size(); ++i)
        CHECK(std::abs(logits[top[i]] - values[i]) <= tolerance);
      check_greedy(model, prompt);
      CHECK(tokenizer.decode(prompt["greedy_ids"].get<std::vector<token_id>>()) ==
            prompt["greedy_text"].get<std::string>());
    }
  }
}
