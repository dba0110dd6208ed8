// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include <wavekv/cache/statistics.hpp>

/// @file prometheus.hpp
/// @brief Statistics of a cache for whoever watches a server.

namespace wavekv {

/// @brief A cache's statistics in Prometheus' text format, version 0.0.4.
/// Every metric begins with "wavekv_"; counters only grow while the cache lives, gauges do not.
/// @param labels  put on every metric, as Prometheus writes them: `model="8b",rank="0"`; may be empty
/// @throw std::bad_alloc
/// Source: https://prometheus.io/docs/instrumenting/exposition_formats.
inline std::string to_prometheus(const cache_statistics& stats, std::string_view labels = {}) {
  std::ostringstream text;
  text.precision(17);
  const auto put = [&](std::string_view name, std::string_view type, std::string_view help,
                       auto value) {
    text << "# HELP wavekv_" << name << ' ' << help << "\n# TYPE wavekv_" << name << ' ' << type
         << "\nwavekv_" << name;
    if (!labels.empty()) {
      text << '{' << labels << '}';
    }
    text << ' ' << value << '\n';
  };
  const auto counter = [&](std::string_view name, std::string_view help, auto value) {
    put(name, "counter", help, value);
  };
  const auto gauge = [&](std::string_view name, std::string_view help, std::uint64_t value) {
    put(name, "gauge", help, value);
  };
  const step_stats& total = stats.total;
  gauge("sequences", "Sequences alive.", stats.sequences);
  counter("attend_calls_total", "Attend calls.", stats.steps);
  counter("groups_total", "Query groups answered.", total.groups);
  counter("tokens_held_total", "Tokens full attention would have read.", total.tokens_held);
  counter("tokens_read_total", "Tokens read exactly.", total.tokens_read);
  counter("clusters_read_total", "Clusters of the retrieval zone.", total.clusters_read);
  counter("clusters_estimated_total", "Clusters and nodes of the estimation zone.",
          total.clusters_estimated);
  counter("clusters_dropped_total", "Clusters and nodes left out.", total.clusters_dropped);
  counter("summaries_read_total", "Summary rows scored.", total.summaries_read);
  counter("bytes_read_total", "Bytes of K, V and summaries read.", total.bytes_read);
  counter("rounds_total", "Plans made.", total.rounds);
  counter("capped_total", "Groups whose bound met a cap before its target.", total.capped);
  counter("block_hits_total", "Blocks found in the fast tier.", total.hits);
  counter("block_misses_total", "Blocks fetched from the slow tier.", total.misses);
  counter("block_prefetches_total", "Blocks whose fetch began before they were wanted.",
          total.prefetched);
  counter("block_prefetches_in_vain_total", "Of these, blocks that were not wanted in the end.",
          total.prefetched_in_vain);
  counter("transfer_bytes_total", "Bytes read from the slow tier.", total.bytes_moved);
  counter("transfer_stall_seconds_total", "Time spent on starting and awaiting fetches.",
          static_cast<double>(total.stall_ns) * 1e-9);
  const tier_statistics& tiers = stats.tiers;
  gauge("block_cache_bytes", "Memory of the block cache.", tiers.cache_bytes);
  counter("block_evictions_total", "Blocks that left the block cache for others.", tiers.evictions);
  counter("block_refusals_total", "Blocks not admitted, since all others were in use.",
          tiers.refusals);
  gauge("write_back_waiting_bytes", "Sealed rows that wait to be written.", tiers.waiting_bytes);
  counter("write_back_bytes_total", "Bytes written to the slow tier.", tiers.written_bytes);
  counter("write_back_failures_total", "Writes to the slow tier that failed.",
          tiers.write_failures);
  return std::move(text).str();
}

}  // namespace wavekv
