// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// bound_accuracy: how far the answers of each bound lie from full attention's, and what they read for it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <wavekv/wavekv.hpp>

#include "data/asked_layer.hpp"
#include "data/captured.hpp"
#include "data/diffuse.hpp"

namespace {

using namespace wavekv_bench;
using nlohmann::json;

struct options {
  std::size_t n_tokens = 32768;
  std::size_t n_questions = 64;
  std::vector<std::string> data = {"diffuse", "model"};
  std::vector<std::string> indexes = {"flat", "two_level"};
  std::vector<std::string> clusterers = {"spherical", "query_metric"};
  std::vector<float> temperatures = {10.0F, 8.0F};
  std::filesystem::path model;
  std::filesystem::path haystack;
  std::string capture;   // prefix of files to write the model's data to
  std::string captured;  // prefix of files to read them from
  std::filesystem::path json_file;
  std::uint64_t seed = 1;
};

using any_bound = std::variant<wavekv::exact, wavekv::fixed_budget, wavekv::error_bound<>,
                               wavekv::verified_bound<>>;

/// A bound, what the table calls it, and what it was told.
struct rule {
  std::string name;
  std::string parameters;
  any_bound bound;
  float epsilon = 0;  ///< what it aims at; 0: nothing
};

std::string print(const char* format, double a, double b = 0) {
  char text[64];
  std::snprintf(text, sizeof text, format, a, b);
  return text;
}

std::vector<rule> all_rules() {
  std::vector<rule> rules;
  rules.push_back({"exact", "", wavekv::exact{}});
  rules.push_back({"fixed_budget", "1.8 % read, 23.2 % estimated", wavekv::fixed_budget{}});
  rules.push_back({"fixed_budget, nothing dropped", "2 % read, 98 % estimated",
                   wavekv::fixed_budget{.retrieve = 0.02F, .estimate = 0.98F}});
  for (const float share : {0.005F, 0.01F, 0.02F, 0.05F}) {  // no target: the largest errors first
    wavekv::error_bound<> bound;
    bound.epsilon = 1e-9F;
    bound.free_tokens = 0;
    bound.max_read = share;
    rules.push_back({"error_bound, budget", print("%.1f %% read", 100.0 * double{share}), bound});
  }
  for (const float epsilon : {0.2F, 0.1F, 0.05F, 0.02F, 0.01F}) {
    wavekv::error_bound<> bound;
    bound.epsilon = epsilon;
    rules.push_back({"error_bound", print("epsilon %.2f", double{epsilon}), bound, epsilon});
    bound.max_open = bound.max_read = 1;
    rules.push_back(
        {"error_bound, no caps", print("epsilon %.2f", double{epsilon}), bound, epsilon});
  }
  for (const float epsilon : {0.2F, 0.1F, 0.05F}) {
    wavekv::verified_bound<> bound;
    bound.epsilon = bound.rule.epsilon = epsilon;
    rules.push_back({"verified_bound",
                     print("epsilon %.2f, delta %.2f", double{epsilon}, double{bound.delta}), bound,
                     epsilon});
  }
  return rules;
}

/// One row of the table.
struct result {
  std::string data, index, clusterer, rule, parameters;
  float epsilon = 0;
  double read_share = 0;   // of the tokens
  double bytes_share = 0;  // of the bytes of all K and V
  float error_p50 = 0, error_p95 = 0;
  float ratio_p05 = 0, ratio_p50 = 0, ratio_p95 = 0;
  double coverage = 0;
  double capped_share = 0;
  std::vector<float> errors;  // of every query head and question
  std::vector<float> ratios;  // predicted or sampled over the worst head's, of every question

  /// What follows from errors and ratios.
  void summarize() {
    const auto within = std::ranges::count_if(errors, [&](float e) { return e <= epsilon; });
    error_p50 = quantile(errors, 0.5);
    error_p95 = quantile(errors, 0.95);
    ratio_p05 = quantile(ratios, 0.05);
    ratio_p50 = quantile(ratios, 0.5);
    ratio_p95 = quantile(ratios, 0.95);
    coverage = static_cast<double>(within) / static_cast<double>(errors.size());
  }
};

/// One layer in a cache, its questions, and full attention's answers.
template <class Cache>
class measured_layer {
 public:
  measured_layer(const attention_data& data, std::size_t n_questions)
      : data_(data),
        cache_(geometry_of(data)),
        sequence_(append_taught(cache_, data)),
        asked_(ask_exactly(cache_, sequence_, data, n_questions)) {}

  result measure(const rule& rule) {
    result found;
    found.rule = rule.name;
    found.parameters = rule.parameters;
    found.epsilon = rule.epsilon;
    const auto take = [&](const asked_step& step) {
      found.errors.insert(found.errors.end(), step.errors.begin(), step.errors.end());
      const float said =
          step.stats.sampled_error > 0 ? step.stats.sampled_error : step.stats.predicted_error;
      if (step.worst > 0 && said > 0) found.ratios.push_back(said / step.worst);
    };
    const wavekv::step_stats total = std::visit(
        [&](const auto& bound) { return ask_each(cache_, sequence_, asked_, bound, take); },
        rule.bound);
    found.read_share = read_share(total);
    found.bytes_share = bytes_share(total, data_);
    found.capped_share = static_cast<double>(total.capped) / static_cast<double>(total.groups);
    found.summarize();
    return found;
  }

 private:
  const attention_data& data_;
  Cache cache_;
  wavekv::sequence_id sequence_;
  asked_layer asked_;
};

void print_header() {
  std::printf(
      "\n| data | index | clusterer | rule | parameters | tokens read | bytes read | error p50 "
      "| p95 | predicted/true p5 | p50 | p95 | within epsilon | capped |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
}

void print_row(const result& row) {
  std::printf("| %s | %s | %s | %s | %s | %.2f %% | %.2f %% | %.4f | %.4f |", row.data.c_str(),
              row.index.c_str(), row.clusterer.c_str(), row.rule.c_str(), row.parameters.c_str(),
              100 * row.read_share, 100 * row.bytes_share, double{row.error_p50},
              double{row.error_p95});
  if (row.ratio_p50 > 0) {
    std::printf(" %.2f | %.2f | %.2f |", double{row.ratio_p05}, double{row.ratio_p50},
                double{row.ratio_p95});
  } else {
    std::printf(" | | |");
  }
  if (row.epsilon > 0) {
    std::printf(" %.1f %% | %.0f %% |\n", 100 * row.coverage, 100 * row.capped_share);
  } else {
    std::printf(" | |\n");
  }
  std::fflush(stdout);
}

json to_json(const result& row) {
  json object = {{"data", row.data},
                 {"index", row.index},
                 {"clusterer", row.clusterer},
                 {"rule", row.rule},
                 {"parameters", row.parameters},
                 {"read_share", row.read_share},
                 {"bytes_share", row.bytes_share},
                 {"error_p50", row.error_p50},
                 {"error_p95", row.error_p95},
                 {"predicted_over_true",
                  {{"p05", row.ratio_p05}, {"p50", row.ratio_p50}, {"p95", row.ratio_p95}}},
                 {"capped_share", row.capped_share}};
  if (row.epsilon > 0) {
    object["epsilon"] = row.epsilon;
    object["coverage"] = row.coverage;
  }
  return object;
}

template <class TokensPerCluster, class Clusterer>
void measure_index(const options& options, const attention_data& data, const std::string& index,
                   const std::string& clusterer, std::vector<result>& results) {
  if (std::ranges::find(options.indexes, index) == options.indexes.end() ||
      std::ranges::find(options.clusterers, clusterer) == options.clusterers.end())
    return;
  using cache_type =
      wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<wavekv::segment_size<8192, 1024>,
                                                        TokensPerCluster, Clusterer>>;
  measured_layer<cache_type> layer(data, options.n_questions);
  for (const rule& rule : all_rules()) {
    result row = layer.measure(rule);
    row.data = data.name;
    row.index = index;
    row.clusterer = clusterer;
    print_row(row);
    results.push_back(std::move(row));
  }
}

void measure_data(const options& options, const attention_data& data,
                  std::vector<result>& results) {
  using flat = wavekv::tokens_per_cluster<16>;
  using two_level = wavekv::tokens_per_cluster<16, 128>;
  using spherical = wavekv::spherical_kmeans<10>;
  using metric = wavekv::query_metric_kmeans<5>;
  std::printf("\n%s: %zu tokens, %zu query heads over %zu KV heads of %zu; 90 %% of the mass of a "
              "query lies on (median, by head)",
              data.name.c_str(), data.n_tokens, data.n_query_heads, data.n_kv_heads, data.dim);
  for (const std::size_t n : tokens_holding(data)) std::printf(" %zu", n);
  std::printf(" tokens\n");
  print_header();
  measure_index<flat, spherical>(options, data, "flat", "spherical", results);
  measure_index<flat, metric>(options, data, "flat", "query_metric", results);
  measure_index<two_level, spherical>(options, data, "two_level", "spherical", results);
  measure_index<two_level, metric>(options, data, "two_level", "query_metric", results);
}

/// The rows of several layers as one, over all their heads and questions.
std::vector<result> pooled(const std::vector<result>& rows, const std::string& name) {
  std::vector<result> all;
  std::vector<double> n_rows;
  for (const result& row : rows) {
    const auto same = std::ranges::find_if(all, [&](const result& other) {
      return std::tie(other.index, other.clusterer, other.rule, other.parameters) ==
             std::tie(row.index, row.clusterer, row.rule, row.parameters);
    });
    if (same == all.end()) {
      all.push_back(row);
      all.back().data = name;
      n_rows.push_back(1);
      continue;
    }
    same->errors.insert(same->errors.end(), row.errors.begin(), row.errors.end());
    same->ratios.insert(same->ratios.end(), row.ratios.begin(), row.ratios.end());
    same->read_share += row.read_share;
    same->bytes_share += row.bytes_share;
    same->capped_share += row.capped_share;
    ++n_rows[static_cast<std::size_t>(same - all.begin())];
  }
  for (std::size_t i = 0; i < all.size(); ++i) {  // the layers hold as many tokens each
    for (double* share : {&all[i].read_share, &all[i].bytes_share, &all[i].capped_share})
      *share /= n_rows[i];
    all[i].summarize();
  }
  return all;
}

void run(const options& options) {
  std::vector<result> results;
  const auto wanted = [&](const char* name) {
    return std::ranges::find(options.data, name) != options.data.end();
  };
  if (wanted("diffuse")) {
    for (const float temperature : options.temperatures) {
      diffuse_options how;
      how.temperature = temperature;
      how.seed = options.seed;
      measure_data(options, make_diffuse(options.n_tokens, how), results);
    }
  }
  if (wanted("model")) {
    const std::vector<attention_data> layers =
        options.captured.empty()
            ? capture_model(options.model, options.haystack, options.n_tokens, options.seed)
            : read_captured(options.captured);
    if (!options.capture.empty()) write_captured(options.capture, layers);
    std::vector<result> of_layers;
    for (const attention_data& layer : layers) measure_data(options, layer, of_layers);
    std::printf("\nAll of the model's layers\n");
    print_header();
    std::vector<result> of_all = pooled(of_layers, "model, all layers");
    std::ranges::for_each(of_all, print_row);
    std::ranges::move(of_layers, std::back_inserter(results));
    std::ranges::move(of_all, std::back_inserter(results));
  }
  if (!options.json_file.empty()) {
    std::ofstream file(options.json_file);
    json rows = json::array();
    for (const result& row : results) rows.push_back(to_json(row));
    file << json{{"bound_accuracy", rows}, {"tokens", options.n_tokens}}.dump(1) << '\n';
    if (!file) throw std::runtime_error(options.json_file.string() + ": cannot write");
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Measures each estimation bound against full attention: relative error of the output, "
      "and the share of tokens and bytes read for it.");
  options options;
  options.model = WAVEKV_SOURCE_DIR "/examples/models/needle";
  options.haystack = WAVEKV_SOURCE_DIR;
  app.add_option("--tokens", options.n_tokens, "Context length")
      ->capture_default_str()
      ->check(CLI::Range(512, 4'194'304));
  app.add_option("--questions", options.n_questions, "Queries asked of each layer")
      ->capture_default_str()
      ->check(CLI::Range(2, 100'000));
  app.add_option("--data", options.data, "Data sets")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"diffuse", "model"}));
  app.add_option("--temperatures", options.temperatures, "Of the diffuse data, one set each")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--indexes", options.indexes, "Levels of the index")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"flat", "two_level"}));
  app.add_option("--clusterers", options.clusterers, "Clusterers")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"spherical", "query_metric"}));
  app.add_option("--model", options.model, "Model that makes the data set `model`")
      ->capture_default_str()
      ->check(CLI::ExistingDirectory);
  app.add_option("--haystack", options.haystack, "Text it reads, a file or a directory")
      ->capture_default_str()
      ->check(CLI::ExistingPath);
  app.add_option("--capture", options.capture,
                 "Write the model's data to PREFIX.json and PREFIX.<layer>.{q,k,v} (raw float)");
  app.add_option("--captured", options.captured, "Read such files instead of running the model");
  app.add_option("--json", options.json_file, "Write the results to this file");
  app.add_option("--seed", options.seed, "Of the data")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bound_accuracy: %s\n", e.what());
    return 1;
  }
}
