// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// wavekv_generate: text from a model directory, its KV cache a wavekv::kv_cache.
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "comparison.hpp"
#include "engine.hpp"
#include "error.hpp"
#include "generation.hpp"
#include "interrupt.hpp"
#include "needle.hpp"
#include "progress.hpp"
#include "run_options.hpp"
#include "sampler.hpp"
#include "tiers.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace {

using namespace transformer;

struct options : run_options {
  tier_options tiers;
  std::filesystem::path save;
  std::filesystem::path load;
  std::string prompt;
  std::filesystem::path prompt_file;
  std::size_t needle_tokens = 0;
  std::size_t needles = 0;  // 0: by length
  std::string cache = "default";
  bool compare = false;
  std::size_t max_tokens = 0;  // 0: by kind of prompt
  float temperature = 0;
  float top_p = 1;
  std::string bos = "auto";
  bool ignore_end = false;
  std::filesystem::path json;
};

void parse_command_line(CLI::App& app, options& options) {
  auto* prompt = app.add_option_group("prompt", "One of these");
  prompt->add_option("--prompt", options.prompt, "The text to continue");
  prompt->add_option("--prompt-file", options.prompt_file, "A file that holds it")
      ->check(CLI::ExistingFile);
  prompt
      ->add_option("--needle", options.needle_tokens,
                   "Hide facts in a text of this many tokens and ask for one")
      ->check(CLI::Range(64, 16'777'216));
  prompt->require_option(1);
  add_common_options(app, options);
  add_tier_options(app, options.tiers);
  add_device_option(app, options, {"--save", "--load", "--ram-budget", "--store", "--calibrate"});
  app.add_option("--save", options.save,
                 "Write the prompt, once read, with its index to this file");
  app.add_option("--load", options.load,
                 "Go on after a prompt that --save wrote: only what comes after it is read")
      ->check(CLI::ExistingFile);
  app.add_option("--cache", options.cache,
                 "How attention reads the cache: exact (all of it), fixed (fixed shares of the "
                 "clusters), error (until the "
                 "predicted error is small), verified (and checked by sampling), none (sink and "
                 "window only)")
      ->capture_default_str()
      ->check(CLI::IsMember(bound_names()));
  app.add_option("--calibrate", options.calibrate,
                 "--cache default, error: calibrate predicted errors with at most so many queries "
                 "of the prompt in each layer (default: not at all)")
      ->check(CLI::Range(16, 4096));
  app.add_flag(
      "--compare", options.compare,
      "Decode twice from one prefill, with full attention and with --cache; print a table");
  app.add_option("--needles", options.needles, "Facts to hide (default: by length)")
      ->check(CLI::Range(1, 10'000));
  app.add_option("--max-tokens", options.max_tokens,
                 "Tokens to generate (default: 256; 64 with --needle)");
  app.add_option("--temperature", options.temperature, "0: greedy")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--top-p", options.top_p,
                 "Sample from the likeliest tokens of this total probability")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--bos", options.bos,
                 "Begin with the BOS token: as the tokenizer says, always, never")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "yes", "no"}));
  app.add_flag("--ignore-end", options.ignore_end, "Go on after an end token");
  app.add_option("--json", options.json, "Write all figures to this file");
}

struct prompt {
  std::vector<token_id> tokens;
  std::optional<needle> asked;  // with --needle
};

std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw model_error(path.string() + ": cannot open");
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<token_id> prefix(const options& options, const tokenizer& tokenizer,
                             const model_config& config) {
  if (options.bos == "no") return {};
  if (options.bos == "auto" || !tokenizer.prefix().empty()) return tokenizer.prefix();
  if (!config.bos_id)
    throw model_error("--bos yes: neither the tokenizer nor config.json names a BOS token");
  return {*config.bos_id};
}

prompt make_needle_prompt(const options& options, tokenizer& tokenizer) {
  needle_maker maker(tokenizer, haystack_text(haystack_path(options)), needle_words(options.model));
  const std::size_t n =
      options.needles > 0 ? options.needles : default_needles(options.needle_tokens);
  auto hay = maker.make(options.needle_tokens, n, options.seed);
  const needle asked = hay.needles[options.seed % n];
  const auto question = maker.question(asked.word);
  hay.tokens.insert(hay.tokens.end(), question.begin(), question.end());
  std::printf("%zu needles in %zu tokens of text; asked for one at %.0f %% of its length\n", n,
              options.needle_tokens, 100 * asked.depth);
  return {std::move(hay.tokens), asked};
}

prompt make_prompt(const options& options, tokenizer& tokenizer, const model_config& config) {
  if (options.needle_tokens > 0) return make_needle_prompt(options, tokenizer);
  const auto text = options.prompt_file.empty() ? options.prompt : read_file(options.prompt_file);
  prompt prompt{prefix(options, tokenizer, config), std::nullopt};
  for (const token_id id : tokenizer.encode(text)) prompt.tokens.push_back(id);
  if (prompt.tokens.empty()) throw model_error("the prompt has no tokens");
  return prompt;
}

/// A sequence that has read the prompt but for its last token, and how long that took.
struct read_sequence {
  std::unique_ptr<sequence> read;
  double seconds = 0;
};

/// With --load the prompt goes on from the saved one: a haystack begins with it, any other text comes behind it.
void join_prompts(const std::vector<token_id>& saved, prompt& prompt, std::size_t n_prefix) {
  auto& tokens = prompt.tokens;
  if (prompt.asked) {
    if (tokens.size() < saved.size() || !std::equal(saved.begin(), saved.end(), tokens.begin()))
      throw model_error("--load: the saved prompt is not the beginning of this one");
    return;
  }
  tokens.erase(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n_prefix));
  tokens.insert(tokens.begin(), saved.begin(), saved.end());
}

void report_calibrations(const std::vector<wavekv::calibration>& layers) {
  if (layers.empty()) return;
  std::fprintf(stderr, "calibrated: errors are, layer by layer,");
  for (const wavekv::calibration& layer : layers) {
    if (layer.n_pairs() < wavekv::calibration::least_pairs) {
      std::fprintf(stderr, " unknown (too few queries of the prompt err: %zu)", layer.n_pairs());
    } else {
      std::fprintf(stderr, " %.2f", double{layer.factor()});
    }
  }
  std::fprintf(stderr, " times what summaries predict\n");
}

read_sequence read_with_progress(engine& engine, const tokenizer& tokenizer, prompt& prompt,
                                 const options& options, const any_bound& bound) {
  read_sequence result;
  const std::string name = model_name(options);
  const double begin = seconds_now();
  if (options.load.empty()) {
    result.read = engine.start(bound);
  } else {
    std::vector<token_id> saved;
    result.read = engine.load(options.load, bound, saved, name);
    join_prompts(saved, prompt, prefix(options, tokenizer, engine.config()).size());
    std::fprintf(stderr, "loaded %zu tokens in %.2f s\n", engine.length(*result.read),
                 seconds_now() - begin);
  }
  const std::size_t n_read = engine.length(*result.read);
  progress bar("prefill", prompt.tokens.size() - n_read);
  try {
    read_prompt(engine, *result.read, std::span(prompt.tokens).subspan(n_read), options.chunk,
                [&](double n_done) { bar.update(n_done); });
    bar.finish();
  } catch (...) {
    bar.finish();
    throw;
  }
  result.seconds = seconds_now() - begin;
  report_calibrations(engine.calibrations(*result.read));
  if (!options.save.empty()) {
    const double saving = seconds_now();
    engine.save(*result.read, options.save, prompt.tokens, name);
    std::fprintf(stderr, "saved %zu tokens in %.2f s: %s\n", engine.length(*result.read),
                 seconds_now() - saving, options.save.c_str());
  }
  return result;
}

stop_options stop_rule(const options& options) {
  const std::size_t fallback = options.needle_tokens > 0 ? 64 : 256;
  return {options.max_tokens > 0 ? options.max_tokens : fallback, !options.ignore_end};
}

sampler make_sampler(const options& options) {
  return sampler({options.temperature, options.top_p, options.seed});
}

/// Prints tokens as text while they come.
class text_printer {
 public:
  explicit text_printer(const tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  void operator()(token_id token) {
    std::cout << stream_.push(tokenizer_.bytes(token)) << std::flush;
  }
  void finish() { std::cout << stream_.finish() << '\n'; }

 private:
  const tokenizer& tokenizer_;
  utf8_stream stream_;
};

std::string answer_of(const generation& generated, const tokenizer& tokenizer,
                      const prompt& prompt) {
  const auto text = tokenizer.decode(generated.tokens);
  return prompt.asked ? leading_number(text) : text;
}

void report_needle(const prompt& prompt, const std::string& answer) {
  if (!prompt.asked) return;
  std::printf("Question: what is the magic number of %s?\n", prompt.asked->word.c_str());
  std::printf("Answer:   %s (expected %s: %s)\n\n", answer.empty() ? "none" : answer.c_str(),
              prompt.asked->number.c_str(), answer == prompt.asked->number ? "right" : "WRONG");
  std::fflush(stdout);
}

void write_json(const options& options, const nlohmann::json& json) {
  if (options.json.empty()) return;
  std::ofstream out(options.json);
  out << json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  if (!out) throw model_error(options.json.string() + ": cannot write");
}

nlohmann::json prompt_json(const options& options, const prompt& prompt, double prefill_seconds) {
  nlohmann::json json = {{"prompt_tokens", prompt.tokens.size()},
                         {"prefill_seconds", prefill_seconds},
                         {"cache", options.cache}};
  if (prompt.asked)
    json["needle"] = {{"word", prompt.asked->word},
                      {"number", prompt.asked->number},
                      {"depth", prompt.asked->depth}};
  return json;
}

/// The plain run: one sequence, text as it comes.
bool run_once(const options& options, engine& engine, const tokenizer& tokenizer, prompt prompt) {
  auto [sequence, prefill_seconds] =
      read_with_progress(engine, tokenizer, prompt, options, make_bound(options.cache, options));
  text_printer printer(tokenizer);
  const bool stream = !prompt.asked;  // of a needle only the number is of interest
  const auto generated = generate(engine, *sequence, prompt.tokens.back(), make_sampler(options),
                                  stop_rule(options), [&](token_id token) {
                                    if (stream) printer(token);
                                  });
  if (stream) printer.finish();
  const side wave{options.cache, answer_of(generated, tokenizer, prompt), generated,
                  engine.record(*sequence)};
  report_needle(prompt, wave.answer);
  std::fprintf(stderr, "prefill %.1f s (%.0f tokens/s), decode %.1f tokens/s\n", prefill_seconds,
               static_cast<double>(prompt.tokens.size()) / prefill_seconds,
               generated.tokens_per_second());
  auto json = prompt_json(options, prompt, prefill_seconds);
  json["run"] = to_json(wave);
  write_json(options, json);
  return !generated.interrupted;
}

/// One decode from a fork of the prompt, answered by `bound`.
side decode_fork(const std::string& name, const any_bound& bound, const options& options,
                 engine& engine, const tokenizer& tokenizer, const prompt& prompt,
                 const sequence& read) {
  const auto forked = engine.fork(read, bound);
  auto generated =
      generate(engine, *forked, prompt.tokens.back(), make_sampler(options), stop_rule(options));
  return {name, answer_of(generated, tokenizer, prompt), generated, engine.record(*forked)};
}

/// The steps of `wave` once more, untimed, each beside full attention on the same cache.
std::vector<float> true_errors(const side& wave, const any_bound& bound, engine& engine,
                               const prompt& prompt, const sequence& read) {
  const auto forked = engine.fork(read, bound, true);
  replay(engine, *forked, prompt.tokens.back(), wave.generated);
  return engine.record(*forked).true_errors;
}

/// A few steps that nobody times: pages of the weights come in, scratch memory grows.
void warm_up(const any_bound& bound, engine& engine, const prompt& prompt, const sequence& read) {
  const auto forked = engine.fork(read, bound);
  generate(engine, *forked, prompt.tokens.back(), sampler({}), {4, false});
}

/// One prefill, then the same decode with full attention and with the bound, each timed alone.
bool run_comparison(const options& options, engine& engine, const tokenizer& tokenizer,
                    prompt prompt) {
  const auto bound = make_bound(options.cache, options);
  auto [read, prefill_seconds] = read_with_progress(engine, tokenizer, prompt, options, bound);
  for (const any_bound& each : {any_bound(wavekv::exact{}), bound})
    warm_up(each, engine, prompt, *read);
  const auto full =
      decode_fork("full attention", wavekv::exact{}, options, engine, tokenizer, prompt, *read);
  auto wave = decode_fork("wave index", bound, options, engine, tokenizer, prompt, *read);
  if (full.generated.interrupted || wave.generated.interrupted) return false;
  wave.record.true_errors = true_errors(wave, bound, engine, prompt, *read);
  if (prompt.asked) {
    report_needle(prompt, wave.answer);
  } else {
    std::cout << wave.answer << "\n\n";
  }
  std::cout << comparison_table(full, wave, prefill_seconds, prompt.tokens.size()) << std::flush;
  auto json = prompt_json(options, prompt, prefill_seconds);
  json["full"] = to_json(full);
  json["wave"] = to_json(wave);
  write_json(options, json);
  return true;
}

int run(const options& options) {
  use_threads(options);
  if (options.calibrate > 0 &&
      !std::holds_alternative<wavekv::error_bound<>>(make_bound(options.cache, options)))
    throw model_error("--calibrate: --cache " + options.cache +
                      " does not go by predicted errors; default and error do");
  const auto engine = make_engine(options, options.tiers);
  tokenizer tokenizer(options.model);
  const auto& config = engine->config();
  const auto prompt = make_prompt(options, tokenizer, config);
  if (prompt.tokens.size() > config.max_positions)
    std::fprintf(stderr, "warning: the prompt has %zu tokens, the model was made for %zu\n",
                 prompt.tokens.size(), config.max_positions);
  const bool complete = options.compare ? run_comparison(options, *engine, tokenizer, prompt)
                                        : run_once(options, *engine, tokenizer, prompt);
  engine->report();
  return complete ? 0 : interrupted_status;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Generates text with a transformer whose KV cache is a wavekv wave index.");
  options options;
  parse_command_line(app, options);
  CLI11_PARSE(app, argc, argv);
  catch_interrupts();
  try {
    return run(options);
  } catch (const interrupted_error&) {
    return interrupted_status;
  } catch (const std::exception& e) {
    std::fflush(stdout);
    std::fprintf(stderr, "wavekv_generate: %s\n", e.what());
    return 1;
  }
}
