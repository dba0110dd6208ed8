// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Rules side by side answer as each does alone; a run that was cut short asks only for what is missing.
#include <algorithm>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <variant>

#include <doctest/doctest.h>

#include <wavekv/baselines/page_bounds.hpp>

#include "accuracy/tasks/ask.hpp"
#include "accuracy/tasks/needle_tasks.hpp"
#include "accuracy/tasks/side_by_side.hpp"
#include "generation.hpp"
#include "made_text.hpp"
#include "support.hpp"

namespace {

using namespace wavekv_bench;
using nlohmann::json;
using transformer::any_bound;
using page_cache = wavekv::kv_cache<wavekv::bf16, wavekv::baselines::page_bounds_index>;
using page_bound = std::variant<wavekv::baselines::top_k>;

rule_set two_caches(const wavekv::geometry& sizes) {
  std::vector<std::unique_ptr<rule_cache>> caches;
  caches.push_back(std::make_unique<index_rules<wavekv::kv_cache<>, any_bound>>(
      sizes, std::vector<bound_rule<any_bound>>{
                 {"full", [](std::size_t) { return any_bound(wavekv::exact{}); }},
                 {"default", [](std::size_t) { return any_bound(wavekv::error_bound<>{}); }}}));
  caches.push_back(std::make_unique<index_rules<page_cache, page_bound>>(
      sizes, std::vector<bound_rule<page_bound>>{{"pages", [](std::size_t n_tokens) {
                                                    return wavekv::baselines::top_k{n_tokens / 16};
                                                  }}}));
  return rules_of(std::move(caches));
}

struct setup {
  transformer::model model{test::needle_dir};
  transformer::tokenizer tokenizer{test::needle_dir};
  std::vector<std::string> words = transformer::needle_words(test::needle_dir);
  transformer::needle_maker maker{tokenizer, test::plain_text(), words};
  needle_material material{tokenizer, maker, words};
  wavekv::geometry sizes = transformer::cache_geometry(model.config(), model.n_full_layers());
  rule_set rules = two_caches(sizes);
  test::temporary_directory directory;
  run_progress progress;
  json source = {{"model", "needle"}};

  /// Runs a task at a length into a file; the number of prompts that were read.
  std::size_t ask(task& task, std::size_t n_tokens, std::size_t n_cases, const std::string& file) {
    record answers(directory.path() / file, source);
    task_run run{model, tokenizer, rules, answers};
    return ask_task(run, task, n_tokens, n_cases, progress);
  }
  [[nodiscard]] std::string read(const std::string& file) const {
    return (std::ostringstream() << std::ifstream(directory.path() / file).rdbuf()).str();
  }
};

std::vector<json> rows_of(const std::string& text) {
  std::vector<json> rows;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    json row = json::parse(line, nullptr, false);
    if (row.is_object() && row.contains("rule")) rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

TEST_CASE("side by side, each rule's steps are those of its cache alone") {
  setup all;
  const prompt made = many_needles(all.material)->make(2500, 0, 1);
  const turn& only = made.turns.front();
  auto whole = all.model.start(std::make_unique<side_by_side>(
      std::vector<rule_cache*>{all.rules.caches[0].get(), all.rules.caches[1].get()}));
  for (const auto chunk : even_chunks(only.text, 2048)) all.model.prefill(whole, chunk);
  whole.attention->end_prompt();
  const auto forked = whole.fork();
  const auto& parts = static_cast<const side_by_side&>(*forked.attention);

  const auto logits_of = [&](transformer::session session) {
    std::vector<float> logits;
    for (const transformer::token_id token : only.questions.front().tokens) {
      const auto step = all.model.decode(session, token);
      logits.insert(logits.end(), step.begin(), step.end());
    }
    return logits;
  };
  std::vector<std::vector<float>> found;
  for (const rule_place& rule : all.rules.rules) {
    CAPTURE(rule.name);
    rule_cache& cache = *all.rules.caches[rule.cache];
    const auto together =
        logits_of(whole.fork(parts.answered_by(cache, rule.rule, whole.n_tokens)));
    auto alone = all.model.start(cache.start(rule.rule));
    for (const auto chunk : even_chunks(only.text, 2048)) all.model.prefill(alone, chunk);
    alone.attention->end_prompt();
    found.push_back(logits_of(alone.fork(cache.fork(*alone.attention, rule.rule, alone.n_tokens))));
    CHECK(together == found.back());
  }
  CHECK(found[0] != found[1]);  // they are different rules
  CHECK(found[0] != found[2]);
  CHECK(parts.answered_by(*two_caches(all.sizes).caches[0], 0, 1) == nullptr);
}

TEST_CASE("full attention finds the needles, and every rule's row says what it read") {
  setup all;
  const auto task = near_miss_needles(all.material);
  CHECK(all.ask(*task, 1500, 20, "answers") == 1);
  const auto rows = rows_of(all.read("answers"));
  REQUIRE(rows.size() == 60);
  double n_found = 0;
  for (const json& row : rows) {
    CHECK(row.at("task") == "near_miss");
    CHECK(row.at("prompt") == 0);
    CHECK(row.at("bytes_share").get<double>() > 0.0);
    if (row.at("rule") == "full") {
      n_found += row.at("score").get<double>();
      CHECK(row.at("read_share") == 1.0);
    }
  }
  CHECK(n_found >= 17.0);
}

TEST_CASE("a run that was cut short goes on where it was") {
  setup all;
  const auto task = single_needle(all.material);
  CHECK(all.ask(*task, 600, 4, "answers") == 4);
  const std::string whole = all.read("answers");
  REQUIRE(rows_of(whole).size() == 12);
  CHECK(all.ask(*task, 600, 4, "answers") == 0);  // all is there
  CHECK(all.read("answers") == whole);

  // The first half of it and a torn line: only the rest is asked, and the answers are the same.
  std::size_t at = 0;
  for (int line = 0; line < 6; ++line) at = whole.find('\n', at) + 1;  // the source, five answers
  all.directory.write("torn", whole.substr(0, at + 30));
  CHECK(all.ask(*task, 600, 4, "torn") == 3);
  auto again = rows_of(all.read("torn"));
  auto before = rows_of(whole);
  const auto by_key = [](const json& a, const json& b) {
    return std::pair(a.at("case"), a.at("rule")) < std::pair(b.at("case"), b.at("rule"));
  };
  std::ranges::sort(again, by_key);
  std::ranges::sort(before, by_key);
  CHECK(again == before);

  all.source["model"] = "another";
  CHECK_THROWS_AS((void)all.ask(*task, 600, 4, "answers"), std::runtime_error);
}

TEST_CASE("in a growing context every rule's own answers stay, and cases that are there are kept") {
  setup all;
  const auto task = growing_context(all.material);
  CHECK(all.ask(*task, 4096, 1, "answers") == 1);
  const std::string whole = all.read("answers");
  const auto rows = rows_of(whole);
  REQUIRE(rows.size() == 150);
  double n_found = 0;
  double n_before = 0;
  for (const json& row : rows) {
    if (row.at("rule") != "full") continue;
    n_found += row.at("score").get<double>();
    CHECK(row.at("tokens_read").get<double>() > n_before);  // it grows
    n_before = row.at("tokens_read").get<double>();
  }
  CHECK(n_found >= 45.0);
  all.directory.write("torn", whole.substr(0, whole.size() - 10));
  CHECK(all.ask(*task, 4096, 1, "torn") == 1);
  CHECK(rows_of(all.read("torn")) == rows);
}
