// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <wavekv/index/concepts.hpp>

#include "conformance/eviction_law.hpp"
#include "support/rows.hpp"

/// @file summary_law.hpp
/// @brief The law of wavekv::cluster_summary, of those that score clusters. Run your own through it.

namespace wavekv_test {

/// @brief Clusters that own their rows, for tests of summaries.
struct cluster_data {
  std::vector<float> keys;
  std::vector<float> values;
  std::vector<std::uint32_t> first_token;
  wavekv::cluster_rows view;

  /// @brief Rows of a family, cut at random into n_clusters clusters of at least one token.
  static cluster_data random(random_engine& random, key_family family, std::size_t n_tokens,
                             std::size_t n_clusters, std::size_t dim) {
    cluster_data data;
    data.keys = make_keys(random, family, n_tokens, 1, dim);
    data.values = normal_rows(random, n_tokens * dim);
    std::vector<std::uint32_t> cuts(n_tokens - 1);
    for (std::size_t i = 0; i < cuts.size(); ++i) cuts[i] = static_cast<std::uint32_t>(i + 1);
    std::ranges::shuffle(cuts, random);
    cuts.resize(n_clusters - 1);
    std::ranges::sort(cuts);
    data.first_token.push_back(0);
    data.first_token.insert(data.first_token.end(), cuts.begin(), cuts.end());
    data.first_token.push_back(static_cast<std::uint32_t>(n_tokens));
    data.view.keys = data.keys.data();
    data.view.values = data.values.data();
    data.view.key_dim = data.view.value_dim = dim;
    data.view.first_token = data.first_token;
    return data;
  }

  cluster_data() = default;
  cluster_data(const cluster_data&) = delete;
  cluster_data& operator=(const cluster_data&) = delete;
  cluster_data(cluster_data&&) noexcept =
      default;  // vectors keep their memory, and the view its pointers
  cluster_data& operator=(cluster_data&&) noexcept = default;
  ~cluster_data() = default;
};

/// @brief Every cluster gets a score, finite or -infinity, for every head, and nothing else is written; it is the same from what is kept
/// twice, from a copy, and whichever heads ask together.
template <class Summary>
verdict summary_law(const Summary& summary = {}) {
  static_assert(wavekv::cluster_summary<Summary> && wavekv::detail::scores_clusters<Summary>);
  constexpr float poison = std::numeric_limits<float>::quiet_NaN();
  random_engine random(9);
  for (const key_family family : all_families) {
    for (const std::size_t n_tokens : {1U, 2U, 40U, 333U}) {
      for (const std::size_t n_clusters : {std::size_t{1}, (n_tokens + 7) / 8, n_tokens}) {
        for (const std::size_t dim : {8U, 64U}) {
          for (const std::size_t group : {1U, 5U}) {
            const std::string where =
                std::to_string(n_tokens) + " tokens, " + std::to_string(n_clusters) +
                " clusters, dim " + std::to_string(dim) + ", keys " + std::string(name_of(family));
            const cluster_data data =
                cluster_data::random(random, family, n_tokens, n_clusters, dim);
            const std::vector<float> queries = normal_rows(random, group * dim);
            const std::size_t stride = n_clusters + 3;
            const auto scores_of = [&](const Summary& by, std::size_t first, std::size_t n,
                                       std::size_t& bytes) {
              const typename Summary::kept kept = by.keep(data.view);
              std::vector<float> scores(n * stride, poison);
              bytes = by.score(kept, {queries.data() + first * dim, n, dim, dim}, scores.data(),
                               stride);
              return scores;
            };
            std::size_t bytes = 0;
            const std::vector<float> scores = scores_of(summary, 0, group, bytes);
            for (std::size_t i = 0; i < scores.size(); ++i) {
              const bool is_cluster = i % stride < n_clusters;
              const bool is_score =
                  std::isfinite(scores[i]) || scores[i] == -std::numeric_limits<float>::infinity();
              if (is_cluster && !is_score) return "a cluster has no score: " + where;
              if (!is_cluster && !std::isnan(scores[i]))
                return "score writes beside the clusters: " + where;
            }
            const Summary copy = summary;
            std::size_t bytes_again = 0;
            if (!same_bits(scores_of(copy, 0, group, bytes_again), scores) ||
                bytes_again != bytes) {
              return "the same clusters get another score: " + where;
            }
            for (std::size_t g = 0; g < group; ++g) {
              const std::vector<float> alone = scores_of(summary, g, 1, bytes_again);
              for (std::size_t c = 0; c < n_clusters; ++c) {
                const float together = scores[g * stride + c];
                if (!(alone[c] == together ||
                      std::abs(alone[c] - together) <= 1e-5F * (1.0F + std::abs(together)))) {
                  return "a head's score depends on the heads beside it: " + where;
                }
              }
            }
          }
        }
      }
    }
  }
  return {};
}

}  // namespace wavekv_test
