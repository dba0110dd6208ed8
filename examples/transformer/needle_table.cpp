// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// wavekv_needle_table: how many needles are found, by length of the haystack and by bound.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine.hpp"
#include "generation.hpp"
#include "interrupt.hpp"
#include "needle.hpp"
#include "run_options.hpp"
#include "tiers.hpp"
#include "tokenizer.hpp"

namespace {

using namespace transformer;

struct options : run_options {
  std::vector<std::size_t> lengths = {1024, 4096, 16384, 32768};
  std::vector<std::string> bounds = {"default", "fixed", "none"};
  std::size_t per_length = 200;
  std::size_t needles = 0;  // in a haystack; 0: by length
  std::filesystem::path json;
};

/// Counts over the questions of one length.
struct tally {
  std::size_t found = 0;
  std::size_t equal = 0;  // to the answer of full attention
};

struct table_row {
  std::size_t length = 0;
  std::size_t n_questions = 0;
  double prefill_seconds = 0;
  std::vector<tally> tallies;  // full attention first, then the bounds
};

/// The number that a fork of the read haystack answers, by one bound.
std::string answer(engine& engine, const tokenizer& tokenizer, const sequence& asked, token_id last,
                   const any_bound& bound) {
  const auto forked = engine.fork(asked, bound);
  constexpr std::size_t n_digits = 5;
  const auto generated = generate(engine, *forked, last, sampler({}), {n_digits, true});
  if (generated.interrupted) throw interrupted_error();
  return leading_number(tokenizer.decode(generated.tokens));
}

/// Asks for every needle of one haystack: it is read once, and each question is a fork of it.
void ask_all(const options& options, engine& engine, tokenizer& tokenizer, needle_maker& maker,
             const haystack& hay, table_row& row) {
  const auto read = engine.start(wavekv::exact{});
  std::vector<token_id> all = hay.tokens;
  all.push_back(
      0);  // read_prompt leaves the last token to decode; the haystack has to be read whole
  row.prefill_seconds += read_prompt(engine, *read, all, options.chunk);

  for (const auto& needle : hay.needles) {
    if (row.n_questions == options.per_length) return;
    const auto question = maker.question(needle.word);
    const auto asked = engine.fork(*read, wavekv::exact{});
    engine.prefill(*asked, std::span(question).first(question.size() - 1));
    const auto full = answer(engine, tokenizer, *asked, question.back(), wavekv::exact{});
    row.tallies[0].found += full == needle.number;
    row.tallies[0].equal += 1;
    for (std::size_t i = 0; i < options.bounds.size(); ++i) {
      const auto found = answer(engine, tokenizer, *asked, question.back(),
                                make_bound(options.bounds[i], options));
      row.tallies[i + 1].found += found == needle.number;
      row.tallies[i + 1].equal += found == full;
    }
    ++row.n_questions;
  }
}

table_row measure(const options& options, engine& engine, tokenizer& tokenizer, needle_maker& maker,
                  std::size_t length) {
  table_row row{length, 0, 0, std::vector<tally>(options.bounds.size() + 1)};
  const std::size_t n_needles = options.needles > 0 ? options.needles : default_needles(length);
  for (std::uint64_t i = 0; row.n_questions < options.per_length; ++i) {
    ask_all(options, engine, tokenizer, maker, maker.make(length, n_needles, options.seed + i),
            row);
    std::fprintf(stderr, "%zu tokens: %zu of %zu questions\n", length, row.n_questions,
                 options.per_length);
  }
  return row;
}

std::string percent(std::size_t n, std::size_t of) {
  char text[32];
  std::snprintf(text, sizeof text, "%zu/%zu (%.1f %%)", n, of,
                100.0 * static_cast<double>(n) / static_cast<double>(of));
  return text;
}

void print_header(const options& options) {
  std::printf("| tokens | full attention found |");
  for (const auto& bound : options.bounds)
    std::printf(" %s found | %s as full |", bound.c_str(), bound.c_str());
  std::printf("\n|---|---|");
  for (std::size_t i = 0; i < options.bounds.size(); ++i) std::printf("---|---|");
  std::printf("\n");
}

void print_row(const table_row& row) {
  std::printf("| %zu | %s |", row.length, percent(row.tallies[0].found, row.n_questions).c_str());
  for (std::size_t i = 1; i < row.tallies.size(); ++i)
    std::printf(" %s | %s |", percent(row.tallies[i].found, row.n_questions).c_str(),
                percent(row.tallies[i].equal, row.n_questions).c_str());
  std::printf("\n");
  std::fflush(stdout);
}

nlohmann::json to_json(const options& options, const table_row& row) {
  nlohmann::json json = {{"tokens", row.length},
                         {"questions", row.n_questions},
                         {"prefill_seconds", row.prefill_seconds},
                         {"full_found", row.tallies[0].found}};
  for (std::size_t i = 0; i < options.bounds.size(); ++i)
    json[options.bounds[i]] = {{"found", row.tallies[i + 1].found},
                               {"equal", row.tallies[i + 1].equal}};
  return json;
}

void run(const options& options) {
  use_threads(options);
  const auto engine = make_engine(options, tier_options{});
  tokenizer tokenizer(options.model);
  needle_maker maker(tokenizer, haystack_text(haystack_path(options)), needle_words(options.model));
  print_header(options);
  auto json = nlohmann::json::array();
  for (const std::size_t length : options.lengths) {
    const auto row = measure(options, *engine, tokenizer, maker, length);
    print_row(row);
    json.push_back(to_json(options, row));
  }
  if (!options.json.empty()) std::ofstream(options.json) << json.dump(2) << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Hides facts in long texts, asks a model for each, and prints how many it finds, by "
               "length and by bound.");
  options options;
  add_common_options(app, options);
  add_device_option(app, options);
  app.add_option("--lengths", options.lengths, "Haystack lengths in tokens")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(128, 16'777'216));
  app.add_option("--bounds", options.bounds, "Bounds to compare with full attention")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember(bound_names()));
  app.add_option("--per-length", options.per_length, "Questions per length")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--needles", options.needles, "Facts in one haystack (default: by length)")
      ->check(CLI::Range(1, 10'000));
  app.add_option("--json", options.json, "Write the counts to this file");
  CLI11_PARSE(app, argc, argv);
  catch_interrupts();
  try {
    run(options);
    return 0;
  } catch (const interrupted_error&) {
    return interrupted_status;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "wavekv_needle_table: %s\n", e.what());
    return 1;
  }
}
