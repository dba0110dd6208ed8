// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// wavekv_tasks: lets a model answer the questions of tasks over long contexts, by full attention and by other rules side by side.
// One line of JSON an answer, written as it comes; a run that was cut short goes on where it was.
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "accuracy/tasks/ask.hpp"
#include "accuracy/tasks/chat_template.hpp"
#include "accuracy/tasks/needle_tasks.hpp"
#include "accuracy/tasks/record.hpp"
#include "accuracy/tasks/ruler_tasks.hpp"
#include "accuracy/tasks/task_rules.hpp"
#include "interrupt.hpp"
#include "json_file.hpp"
#include "needle.hpp"
#include "run_options.hpp"

namespace {

using namespace wavekv_bench;

struct options {
  std::filesystem::path model = WAVEKV_SOURCE_DIR "/examples/models/needle";
  std::filesystem::path haystack = WAVEKV_SOURCE_DIR;
  std::vector<std::string> tasks;  // empty: those that the model is made for
  std::vector<std::size_t> lengths = {4096, 16'384, 32'768};
  std::vector<std::string> rules = default_task_rules();
  std::size_t n_cases = 200;
  std::string chat = "auto";
  std::size_t chunk = 2048;
  std::size_t threads = 0;
  std::uint64_t seed = 1;
  std::filesystem::path out = "tasks.jsonl";
};

const std::vector<std::string>& needle_task_names() {
  static const std::vector<std::string> names = {"single", "many", "near_miss", "growing"};
  return names;
}

std::vector<std::string> all_task_names() {
  auto names = needle_task_names();
  names.insert(names.end(), {"list", "trace"});  // which not every model of needles was taught
  names.insert(names.end(), ruler_task_names().begin(), ruler_task_names().end());
  return names;
}

/// Whether a model was taught the phrasing of needle tasks, and nothing else: it comes with the words.
bool knows_needles(const std::filesystem::path& model) {
  return std::filesystem::exists(model / "words.json");
}

/// Words for keys and lists, whatever the model: those of the example model.
std::vector<std::string> plain_words() {
  const std::filesystem::path path = WAVEKV_SOURCE_DIR "/examples/models/needle/words.json";
  std::vector<std::string> words;
  const auto lists = transformer::read_json(path);
  for (const char* part : {"heldout", "train"})
    for (const auto& word : lists.at(part)) words.push_back(word);
  return words;
}

/// Makes tasks by name.
class task_maker {
 public:
  task_maker(const options& options, transformer::tokenizer& tokenizer, const std::string& text)
      : maker_(tokenizer, text, transformer::needle_words(options.model)),
        needle_{tokenizer, maker_, transformer::needle_words(options.model)},
        ruler_{tokenizer, split_words(text), plain_words(),
               choose_template(options.chat, options.model), knows_needles(options.model)} {}

  [[nodiscard]] std::unique_ptr<task> make(const std::string& name) const {
    if (name == "single") return single_needle(needle_);
    if (name == "many") return many_needles(needle_);
    if (name == "near_miss") return near_miss_needles(needle_);
    if (name == "growing") return growing_context(needle_);
    if (name == "list") return number_lists(needle_);
    if (name == "trace") return traced_words(needle_);
    return make_ruler_task(name, ruler_);
  }

 private:
  transformer::needle_maker maker_;
  needle_material needle_;
  ruler_material ruler_;
};

void ask_all(const options& options, transformer::model& model, transformer::tokenizer& tokenizer,
             const task_maker& maker, record& answers) {
  const auto sizes = transformer::cache_geometry(model.config(), model.n_full_layers());
  auto names = options.tasks;
  if (names.empty())
    names = knows_needles(options.model) ? needle_task_names() : ruler_task_names();
  run_progress progress;
  for (const std::string& name : names) {
    const auto task = maker.make(name);
    bool is_planned = false;
    for (const std::size_t n_tokens : options.lengths) {
      auto rules = make_task_rules(options.rules, sizes, n_tokens);
      if (!is_planned) {
        std::vector<std::string> rule_names;
        for (const rule_place& rule : rules.rules) rule_names.push_back(rule.name);
        answers.plan(name, options.lengths,
                     prompts_for(*task, options.n_cases) * task->n_questions(), rule_names);
        is_planned = true;
      }
      task_run run{model, tokenizer, rules, answers, options.chunk, options.seed};
      ask_task(run, *task, n_tokens, options.n_cases, progress);
    }
  }
}

void run(const options& options) {
  transformer::run_options threads;
  threads.threads = options.threads;
  transformer::use_threads(threads);
  transformer::model model(options.model);
  transformer::tokenizer tokenizer(options.model);
  const std::string text = transformer::haystack_text(options.haystack);
  const task_maker maker(options, tokenizer, text);
  // Of another text, prompts of the same number are others.
  const auto model_name = std::filesystem::canonical(options.model).filename().string();
  record answers(
      options.out,
      {{"model", model_name}, {"seed", options.seed}, {"text", prompt_seed(text, 0, 0, 0)}});
  ask_all(options, model, tokenizer, maker, answers);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Asks a model questions about long contexts, by full attention and by other rules.");
  options options;
  app.add_option("--model", options.model, "Model directory")
      ->capture_default_str()
      ->check(CLI::ExistingDirectory);
  app.add_option("--haystack", options.haystack, "Text to hide needles in, a file or a directory")
      ->capture_default_str()
      ->check(CLI::ExistingPath);
  app.add_option("--tasks", options.tasks,
                 "Tasks (default: single,many,near_miss,growing for the example model, "
                 "else RULER's)")
      ->delimiter(',')
      ->check(CLI::IsMember(all_task_names()));
  app.add_option("--lengths", options.lengths, "Context lengths in tokens")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(256, 16'777'216));
  app.add_option("--rules", options.rules, "Rules beside full attention")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember(task_rule_names()));
  app.add_option("--cases", options.n_cases, "Questions of each task and length, at least")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--template", options.chat,
                 "RULER's tasks: what stands round a question; auto: as the model directory says")
      ->capture_default_str()
      ->check(CLI::IsMember(template_names()));
  app.add_option("--chunk", options.chunk, "Prompt tokens per prefill chunk")
      ->capture_default_str()
      ->check(CLI::Range(2048, 65'536));
  app.add_option("--threads", options.threads, "Threads (0: all cores)")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  app.add_option("--seed", options.seed, "Of prompts")->capture_default_str();
  app.add_option("--out", options.out,
                 "File of one JSON object a line; what it holds already is not asked again")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  transformer::catch_interrupts();
  try {
    run(options);
    return 0;
  } catch (const transformer::interrupted_error&) {
    std::fprintf(stderr, "wavekv_tasks: interrupted; the same command goes on\n");
    return transformer::interrupted_status;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "wavekv_tasks: %s\n", e.what());
    return 1;
  }
}
