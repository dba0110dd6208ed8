// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "comparison.hpp"

#include <algorithm>
#include <cstdio>

#include <nlohmann/json.hpp>

namespace transformer {
namespace {

template <class... Args>
std::string print(const char* format, Args... args) {
  char text[256];
  std::snprintf(text, sizeof text, format, args...);
  return text;
}

std::string row(const std::string& label, const std::string& full, const std::string& wave) {
  return print("%-38s %18s %18s\n", label.c_str(), full.c_str(), wave.c_str());
}

double per_step(std::uint64_t total, const side& side) {
  return static_cast<double>(total) /
         static_cast<double>(std::max<std::size_t>(side.generated.n_steps, 1));
}

std::string megabytes(const side& side) {
  return print("%.3f MB", per_step(side.record.total.bytes_read, side) / 1e6);
}
std::string count(std::uint64_t total, const side& side) {
  return print("%.0f", per_step(total, side));
}

std::string errors(const std::vector<float>& values) {
  if (values.empty()) return "-";
  return print("%.4f / %.4f", double{quantile(values, 0.5)}, double{quantile(values, 0.95)});
}

std::string clipped(std::string text) {
  constexpr std::size_t width = 18;
  std::ranges::replace(text, '\n', ' ');
  return text.size() > width ? text.substr(0, width - 3) + "..." : text;
}

}  // namespace

float quantile(std::vector<float> values, double q) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1) + 0.5);
  std::ranges::nth_element(values, values.begin() + at);
  return values[static_cast<std::size_t>(at)];
}

std::string comparison_table(const side& full, const side& wave, double prefill_seconds,
                             std::size_t n_prompt) {
  const auto speed = [](const side& side) {
    return print("%.1f", side.generated.tokens_per_second());
  };
  std::string table = row("", full.name, wave.name);
  table += row("answer", clipped(full.answer), clipped(wave.answer));
  table +=
      row(print("prefill of %zu tokens, shared", n_prompt), print("%.1f s", prefill_seconds), "");
  table += row("decode, tokens/s", speed(full), speed(wave));
  table += row("KV and index read per token", megabytes(full), megabytes(wave));
  table += row("clusters read per token", "-", count(wave.record.total.clusters_read, wave));
  table +=
      row("clusters estimated per token", "-", count(wave.record.total.clusters_estimated, wave));
  table += row("clusters dropped per token", "-", count(wave.record.total.clusters_dropped, wave));
  table += row("predicted error, worst head (p50/p95)", "-", errors(wave.record.predicted_errors));
  table += row("true error, all heads (p50/p95)", "-", errors(wave.record.true_errors));
  const double faster =
      wave.generated.tokens_per_second() / std::max(full.generated.tokens_per_second(), 1e-9);
  const double less = per_step(full.record.total.bytes_read, full) /
                      std::max(per_step(wave.record.total.bytes_read, wave), 1e-9);
  table += print("%.1f times the speed, %.0f times less read; ", faster, less);
  if (full.answer == wave.answer) return table + "the answer is the same.\n";
  const auto& a = full.generated.tokens;
  const auto& b = wave.generated.tokens;
  const auto n_same = std::ranges::mismatch(a, b).in1 - a.begin();
  return table + print("the answers part after %td tokens.\n", n_same);
}

nlohmann::json to_json(const side& side) {
  const auto& total = side.record.total;
  return {{"name", side.name},
          {"answer", side.answer},
          {"tokens", side.generated.tokens},
          {"steps", side.generated.n_steps},
          {"decode_seconds", side.generated.seconds},
          {"decode_tokens_per_second", side.generated.tokens_per_second()},
          {"bytes_read_per_token", per_step(total.bytes_read, side)},
          {"tokens_read_per_token", per_step(total.tokens_read, side)},
          {"clusters_read_per_token", per_step(total.clusters_read, side)},
          {"clusters_estimated_per_token", per_step(total.clusters_estimated, side)},
          {"clusters_dropped_per_token", per_step(total.clusters_dropped, side)},
          {"predicted_error_p50", quantile(side.record.predicted_errors, 0.5)},
          {"predicted_error_p95", quantile(side.record.predicted_errors, 0.95)},
          {"true_error_p50", quantile(side.record.true_errors, 0.5)},
          {"true_error_p95", quantile(side.record.true_errors, 0.95)}};
}

}  // namespace transformer
