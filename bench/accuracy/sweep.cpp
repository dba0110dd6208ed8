// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// wavekv_rule_sweep: every rule over a sweep of its budget, on one layer after the other: error of the output against
// bytes read and against time; and how often verified_bound keeps its promise. One line of JSON a point, written as it comes; a run
// that was cut short goes on where it was.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "accuracy/json_lines.hpp"
#include "accuracy/promise.hpp"
#include "accuracy/rule.hpp"
#include "data/captured.hpp"
#include "data/diffuse.hpp"

namespace {

using namespace wavekv_bench;
using nlohmann::json;

struct options {
  std::vector<std::size_t> lengths = {8192, 32768, 131072};
  std::vector<std::string> data = {"model", "diffuse"};
  std::vector<std::string> rules;  // empty: all
  std::size_t n_questions = 64;
  std::filesystem::path model = WAVEKV_SOURCE_DIR "/examples/models/needle";
  std::filesystem::path haystack = WAVEKV_SOURCE_DIR;
  std::size_t n_promise_questions = 256;  // 0: none
  std::filesystem::path out = "sweep.jsonl";
  std::uint64_t seed = 1;
};

std::vector<std::unique_ptr<rule>> all_rules() {
  std::vector<std::unique_ptr<rule>> all;
  for (auto* part : {&wave_rules, &page_rules, &token_rules}) {
    auto some = (*part)();
    std::ranges::move(some, std::back_inserter(all));
  }
  return all;
}

/// What is on record: (data, tokens, rule, its first budget).
using done_set = std::set<std::string>;
std::string key_of(const std::string& data, std::size_t n_tokens, const std::string& rule,
                   double budget) {
  return json{data, n_tokens, rule, budget}.dump();
}

json to_json(const measured_point& point) {
  json heads = json::array();
  for (const std::vector<float>& errors : point.errors) {
    heads.push_back({{"p50", quantile(errors, 0.5)}, {"p95", quantile(errors, 0.95)}});
  }
  return {{"budget", point.budget},
          {"bytes_share", point.bytes_share},
          {"read_share", point.read_share},
          {"time_us", point.time_us},
          {"predicted_error", point.predicted_error},
          {"n_erring", point.as_is.n_erring},
          {"n_predicted", point.as_is.n_predicted},
          {"n_erring_calibrated", point.calibrated.n_erring},
          {"n_predicted_calibrated", point.calibrated.n_predicted},
          {"error_scale", point.error_scale},
          {"heads", std::move(heads)}};
}

/// The rules that were asked for and are not on record for a layer.
std::vector<std::unique_ptr<rule>> rules_left(const options& options, const std::string& data,
                                              std::size_t n_tokens, const done_set& done) {
  std::vector<std::unique_ptr<rule>> left = all_rules();
  std::erase_if(left, [&](const std::unique_ptr<rule>& rule) {
    const auto is_done = [&](double budget) {
      return done.contains(key_of(data, n_tokens, rule->name(), budget));
    };
    return (!options.rules.empty() &&
            std::ranges::find(options.rules, rule->name()) == options.rules.end()) ||
           rule->is_done(is_done);
  });
  return left;
}

/// The promise is on record as the rule "verified_bound", its budget the first ε.
constexpr const char* promise_name = "verified_bound";
bool is_promise_left(const options& options, const std::string& data, std::size_t n_tokens,
                     const done_set& done) {
  return options.n_promise_questions != 0 &&
         !done.contains(key_of(data, n_tokens, promise_name, 0.0));
}

bool is_left(const options& options, const std::string& data, std::size_t n_tokens,
             const done_set& done) {
  return !rules_left(options, data, n_tokens, done).empty() ||
         is_promise_left(options, data, n_tokens, done);
}

void sweep_layer(const options& options, const attention_data& data, const done_set& done,
                 std::ofstream& file) {
  const auto left = rules_left(options, data.name, data.n_tokens, done);
  if (left.empty()) return;
  const asked_layer layer = ask_exactly(data, options.n_questions);
  std::fprintf(stderr, "%s, %zu tokens:", data.name.c_str(), data.n_tokens);
  for (const auto& rule : left) {
    std::fprintf(stderr, " %s", rule->name().c_str());
    std::fflush(stderr);
    for (const measured_point& point : rule->sweep(layer)) {
      json row = to_json(point);
      row["data"] = data.name;
      row["tokens"] = data.n_tokens;
      row["rule"] = rule->name();
      file << row.dump() << '\n';
    }
    file.flush();
    if (!file) throw std::runtime_error(options.out.string() + ": cannot write");
  }
  std::fprintf(stderr, "\n");
}

void promise_layer(const options& options, const attention_data& data, const done_set& done,
                   std::ofstream& file) {
  if (!is_promise_left(options, data.name, data.n_tokens, done)) return;
  std::fprintf(stderr, "%s, %zu tokens: the promise\n", data.name.c_str(), data.n_tokens);
  json promises = json::array();
  for (const promise_point& point :
       measure_promise(ask_exactly(data, options.n_promise_questions))) {
    promises.push_back({{"epsilon", point.epsilon},
                        {"delta", point.delta},
                        {"within", point.within},
                        {"bytes_share", point.measured.bytes_share},
                        {"time_us", point.measured.time_us}});
  }
  const json row = {{"data", data.name},
                    {"tokens", data.n_tokens},
                    {"rule", promise_name},
                    {"budget", 0.0},
                    {"questions", options.n_promise_questions},
                    {"promises", std::move(promises)}};
  file << row.dump() << '\n';
  file.flush();
  if (!file) throw std::runtime_error(options.out.string() + ": cannot write");
}

void measure_layer(const options& options, const attention_data& data, const done_set& done,
                   std::ofstream& file) {
  sweep_layer(options, data, done, file);
  promise_layer(options, data, done, file);
}

void run(const options& options) {
  done_set done;
  const bool ends_line = read_json_lines(options.out, [&](const json& row) {
    done.insert(key_of(row.at("data"), row.at("tokens"), row.at("rule"), row.at("budget")));
  });
  std::ofstream file = continue_json_lines(options.out, ends_line);
  const auto wanted = [&](const char* name) {
    return std::ranges::find(options.data, name) != options.data.end();
  };
  for (const std::size_t n_tokens : options.lengths) {
    const auto left = [&](const std::string& name) {
      return is_left(options, name, n_tokens, done);
    };
    if (wanted("model") && std::ranges::any_of(captured_names(options.model), left)) {
      for (const attention_data& layer :
           capture_model(options.model, options.haystack, n_tokens, options.seed))
        measure_layer(options, layer, done, file);
    }
    diffuse_options how;
    how.seed = options.seed;
    if (wanted("diffuse") && left(how.name())) {
      measure_layer(options, make_diffuse(n_tokens, how), done, file);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Sweeps the budget of every rule: error of the attention output against bytes read "
               "and time.");
  options options;
  app.add_option("--lengths", options.lengths, "Context lengths")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(512, 4'194'304));
  app.add_option("--data", options.data, "Data sets: model, diffuse")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"model", "diffuse"}));
  app.add_option("--rules", options.rules, "Only these rules")->delimiter(';');
  app.add_option("--questions", options.n_questions, "Queries asked of each layer")
      ->capture_default_str()
      ->check(CLI::Range(2, 100'000));
  app.add_option("--promise-questions", options.n_promise_questions,
                 "Queries that verified_bound is asked, for each promise; 0: none")
      ->capture_default_str()
      ->check(CLI::Range(0, 100'000));
  app.add_option("--model", options.model, "Model that makes the data set `model`")
      ->capture_default_str()
      ->check(CLI::ExistingDirectory);
  app.add_option("--haystack", options.haystack, "Text it reads, a file or a directory")
      ->capture_default_str()
      ->check(CLI::ExistingPath);
  app.add_option("--out", options.out,
                 "File of one JSON object a line; what it holds already is not measured again")
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of the data")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "wavekv_rule_sweep: %s\n", e.what());
    return 1;
  }
}
