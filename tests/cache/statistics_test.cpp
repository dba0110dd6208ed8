// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cache/prometheus.hpp>
#include <wavekv/wavekv.hpp>

#include "support/model.hpp"

// What a cache tells of itself: adds up, and reads as text.

using namespace wavekv_test;

namespace {

using buffer = wavekv::wave_buffer<wavekv::placement::tiered_over<wavekv::memory_store>>;
using cache_type = wavekv::kv_cache<
    float,
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::spherical_kmeans<3>, wavekv::error_bound<>>,
    buffer, wavekv::cpu<wavekv::serial_executor>>;

wavekv::geometry sizes() {
  wavekv::geometry made;
  made.n_query_heads = 4;
  made.n_kv_heads = 2;
  made.key_dim = 16;
  made.value_dim = 12;
  return made;
}

/// The metrics of a text, by name; what Prometheus asks of each line is checked on the way.
std::map<std::string, double> metrics_of(const std::string& text, const std::string& labels) {
  std::map<std::string, double> metrics;
  std::set<std::string> described;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    CAPTURE(line);
    std::istringstream words(line);
    std::string first;
    std::string second;
    words >> first >> second;
    if (first == "#") {
      std::string name;
      words >> name;
      REQUIRE((second == "HELP" || second == "TYPE"));
      described.insert(second + " " + name);
      if (second == "TYPE") {
        std::string type;
        words >> type;
        CHECK((type == "counter" || type == "gauge"));
        CHECK((type == "counter") == name.ends_with("_total"));
      }
      continue;
    }
    if (!labels.empty()) {
      const std::size_t at = first.find('{');
      REQUIRE(at != std::string::npos);
      CHECK(first.substr(at) == "{" + labels + "}");
      first.resize(at);
    }
    CHECK(described.contains("HELP " + first));
    CHECK(described.contains("TYPE " + first));
    CHECK(metrics.emplace(first, std::stod(second)).second);
  }
  return metrics;
}

}  // namespace

TEST_CASE("a cache's statistics add up over steps, sequences that were released included") {
  cache_type::options_type options;
  options.window_tokens = 16;
  options.placement.fast_bytes = 20000;
  cache_type cache(sizes(), options);
  random_engine random(51);
  wavekv::step_stats sum;
  for (int i = 0; i < 3; ++i) {
    const auto sequence = cache.create();
    append_rows(cache, sequence, 0, normal_rows(random, 300 * 2 * 16),
                normal_rows(random, 300 * 2 * 12));
    cache.flush();
    for (int step = 0; step < 4; ++step) {
      sum +=
          attend_counted(cache, sequence, 0, normal_rows(random, 4 * 16), wavekv::exact{}).second;
    }
    if (i != 2) cache.release(sequence);
  }
  const wavekv::cache_statistics stats = cache.stats();
  CHECK(stats.sequences == 1);
  CHECK(stats.steps == 12);
  CHECK(stats.total.hits == sum.hits);
  CHECK(stats.total.misses == sum.misses);
  CHECK(stats.total.bytes_moved == sum.bytes_moved);
  CHECK(stats.total.stall_ns == sum.stall_ns);
  CHECK(sum.misses > 0);
  CHECK(stats.tiers.evictions > 0);
  CHECK(stats.tiers.waiting_bytes == 0);
  CHECK(stats.tiers.cache_bytes > 0);
  CHECK(stats.tiers.cache_bytes <= 20000);
  // 284 tokens of each sequence were sealed in whole segments of 64: 256, K and V of two heads in floats.
  CHECK(stats.tiers.written_bytes == 3 * 256 * 2 * 28 * sizeof(float));

  for (const std::string labels : {"", "model=\"8b\",rank=\"0\""}) {
    const auto metrics = metrics_of(wavekv::to_prometheus(stats, labels), labels);
    CHECK(metrics.at("wavekv_sequences") == 1);
    CHECK(metrics.at("wavekv_attend_calls_total") == 12);
    CHECK(metrics.at("wavekv_block_hits_total") == static_cast<double>(sum.hits));
    CHECK(metrics.at("wavekv_block_misses_total") == static_cast<double>(sum.misses));
    CHECK(metrics.at("wavekv_transfer_bytes_total") == static_cast<double>(sum.bytes_moved));
    CHECK(metrics.at("wavekv_transfer_stall_seconds_total") ==
          doctest::Approx(static_cast<double>(sum.stall_ns) * 1e-9));
    CHECK(metrics.at("wavekv_block_evictions_total") == static_cast<double>(stats.tiers.evictions));
    CHECK(metrics.at("wavekv_write_back_bytes_total") ==
          static_cast<double>(stats.tiers.written_bytes));
    CHECK(metrics.at("wavekv_write_back_waiting_bytes") == 0);
    CHECK(metrics.size() == 24);
  }
}
