// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "accuracy/tasks/ask.hpp"

#include <algorithm>
#include <cstdio>
#include <span>
#include <utility>

#include "accuracy/tasks/side_by_side.hpp"
#include "generation.hpp"
#include "interrupt.hpp"
#include "sampler.hpp"

namespace wavekv_bench {
namespace {

using transformer::session;
using transformer::token_id;

struct answer {
  std::vector<token_id> tokens;
  std::string text;
  double score = 0.0;
  std::vector<token_id>
      unread;  // chosen, but not read yet: the last token, unless the end token came
};

/// Generates until the answer is complete. What all expected strings are in already does not get better, nor worse.
answer generate_answer(task_run& run, session& session, const question& asked) {
  const auto& ends = run.model.config().eos_ids;
  answer found;
  token_id last = asked.tokens.back();
  while (found.tokens.size() < asked.max_new_tokens) {
    if (transformer::interrupted()) throw transformer::interrupted_error();
    last = transformer::greedy(run.model.decode(session, last));
    found.unread.clear();
    if (std::ranges::find(ends, last) != ends.end()) break;
    found.tokens.push_back(last);
    found.unread.push_back(last);
    if (asked.how == scoring::recall) {
      found.text = run.tokenizer.decode(found.tokens);
      if (score_answer(asked, found.text) >= 1.0) break;
    }
  }
  found.text = run.tokenizer.decode(found.tokens);
  found.score = score_answer(asked, found.text);
  return found;
}

nlohmann::json to_json(const task_run& run, std::size_t prompt, const question& asked,
                       const answer& found, const wavekv::step_stats& steps) {
  const auto& config = run.model.config();
  const auto held = static_cast<double>(std::max<std::uint64_t>(steps.tokens_held, 1));
  const double row_bytes = 2.0 * static_cast<double>(config.head_dim * sizeof(wavekv::bf16));
  const auto groups = static_cast<double>(std::max<std::uint64_t>(steps.groups, 1));
  return {{"prompt", prompt},
          {"expected", asked.expected},
          {"answer", found.text},
          {"score", found.score},
          {"tokens_read", static_cast<double>(steps.tokens_read) / groups},
          {"read_share", static_cast<double>(steps.tokens_read) / held},
          {"bytes_share", static_cast<double>(steps.bytes_read) / (held * row_bytes)}};
}

/// A prompt, and which of its answers are wanted.
struct asked_prompt {
  wavekv_bench::task& task;
  std::size_t n_tokens = 0;
  std::size_t number = 0;

  [[nodiscard]] case_key key(std::size_t question, const std::string& rule) const {
    return {task.name(), n_tokens, number * task.n_questions() + question, rule};
  }
  [[nodiscard]] bool is_done(const record& answers, const std::string& rule) const {
    for (std::size_t q = 0; q < task.n_questions(); ++q)
      if (!answers.has(key(q, rule))) return false;
    return true;
  }
};

void read(task_run& run, session& session, std::span<const token_id> tokens,
          const std::function<void(double)>& on_progress) {
  double n_done = 0.0;
  for (const auto chunk : even_chunks(tokens, run.chunk)) {
    const auto size = static_cast<double>(chunk.size());
    run.model.prefill(session, chunk, [&](double share) {
      if (transformer::interrupted()) throw transformer::interrupted_error();
      on_progress(n_done + share * size);
    });
    n_done += size;
  }
}

/// The question but for its last token, with which the answer's first step begins.
void read_question(task_run& run, session& session, const question& asked) {
  run.model.prefill(session, std::span(asked.tokens).first(asked.tokens.size() - 1));
}

/// All rules, side by side: the prompt is read once, each answer is a fork of it.
void ask_independently(task_run& run, const asked_prompt& asked, const prompt& prompt,
                       const std::vector<rule_place>& rules,
                       const std::function<void(double)>& on_progress) {
  std::vector<rule_cache*> caches;
  for (const rule_place& rule : rules) {
    rule_cache* const cache = run.rules.caches[rule.cache].get();
    if (std::ranges::find(caches, cache) == caches.end()) caches.push_back(cache);
  }
  session whole = run.model.start(std::make_unique<side_by_side>(std::move(caches)));
  const turn& only = prompt.turns.front();
  read(run, whole, only.text, on_progress);
  run.model.end_prompt(whole);
  for (std::size_t q = 0; q < only.questions.size(); ++q) {
    const question& question = only.questions[q];
    session before = whole.fork();
    read_question(run, before, question);
    const auto& parts = static_cast<const side_by_side&>(*before.attention);
    for (const rule_place& rule : rules) {
      const case_key key = asked.key(q, rule.name);
      if (run.answers.has(key)) continue;
      rule_cache& cache = *run.rules.caches[rule.cache];
      session own = before.fork(parts.answered_by(cache, rule.rule, before.n_tokens));
      const answer found = generate_answer(run, own, question);
      run.answers.add(key,
                      to_json(run, asked.number, question, found, cache.steps(*own.attention)));
    }
  }
}

/// One rule, whose answers stay in the context and are read by the next steps.
void ask_in_turns(task_run& run, const asked_prompt& asked, const prompt& prompt,
                  const rule_place& rule, const std::function<void(double)>& on_progress) {
  rule_cache& cache = *run.rules.caches[rule.cache];
  session own = run.model.start(cache.start(rule.rule));
  std::vector<token_id> unread;
  std::size_t q = 0;
  for (const turn& turn : prompt.turns) {
    unread.insert(unread.end(), turn.text.begin(), turn.text.end());
    const auto before = static_cast<double>(own.n_tokens);
    read(run, own, unread, [&](double n) { on_progress(before + n); });
    unread.clear();
    run.model.end_prompt(own);
    for (const question& question : turn.questions) {
      if (!unread.empty()) read(run, own, unread, [](double) {});
      read_question(run, own, question);
      own = own.fork(cache.fork(*own.attention, rule.rule, own.n_tokens));
      const answer found = generate_answer(run, own, question);
      const case_key key = asked.key(q, rule.name);
      if (!run.answers.has(key))
        run.answers.add(key,
                        to_json(run, asked.number, question, found, cache.steps(*own.attention)));
      unread = found.unread;
      ++q;
    }
  }
}

}  // namespace

void run_progress::begin(std::string label, std::size_t n_prompts) {
  label_ = std::move(label);
  n_prompts_ = n_prompts;
  start_ = last_ = clock::now();
}

void run_progress::update(std::size_t i, double n_read, std::size_t n_tokens) {
  constexpr std::chrono::seconds pause(10);
  const auto now = clock::now();
  if (now - last_ < pause) return;
  last_ = now;
  std::fprintf(stderr, "%s: prompt %zu of %zu, %.0f %% read, %.0f s\n", label_.c_str(), i + 1,
               n_prompts_, 100.0 * n_read / static_cast<double>(n_tokens),
               std::chrono::duration<double>(now - start_).count());
}

void run_progress::finish(std::size_t i) {
  if (i + 1 == n_prompts_)
    std::fprintf(stderr, "%s: %zu prompts in %.0f s\n", label_.c_str(), n_prompts_,
                 std::chrono::duration<double>(clock::now() - start_).count());
}

std::size_t ask_task(task_run& run, task& task, std::size_t n_tokens, std::size_t n_cases,
                     run_progress& progress) {
  const std::size_t n_prompts = prompts_for(task, n_cases);
  std::size_t n_read = 0;
  progress.begin(task.name() + ", " + std::to_string(n_tokens) + " tokens", n_prompts);
  for (std::size_t i = 0; i < n_prompts; ++i) {
    const asked_prompt asked{task, n_tokens, i};
    std::vector<rule_place> rules;
    for (const rule_place& rule : run.rules.rules)
      if (!asked.is_done(run.answers, rule.name)) rules.push_back(rule);
    if (!rules.empty()) {
      ++n_read;
      const prompt prompt = task.make(n_tokens, i, run.seed);
      const auto on_progress = [&](double n) { progress.update(i, n, n_tokens); };
      if (task.grows()) {
        for (const rule_place& rule : rules) ask_in_turns(run, asked, prompt, rule, on_progress);
      } else {
        ask_independently(run, asked, prompt, rules, on_progress);
      }
    }
    progress.finish(i);
  }
  return n_read;
}

}  // namespace wavekv_bench
