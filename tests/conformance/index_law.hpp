// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <wavekv/index/concepts.hpp>

#include "conformance/eviction_law.hpp"
#include "support/rows.hpp"

/// @file index_law.hpp
/// @brief The laws of wavekv::clusterer, wavekv::estimation_bound, wavekv::segment_sizes and
/// wavekv::cluster_count. Run your own policy through them.

namespace wavekv_test {

/// @brief Every token gets an id below the returned count, every id is used, and the answer depends on the
/// request alone: not on the scratch, not on calls made before.
template <wavekv::clusterer Clusterer>
verdict clusterer_law(const Clusterer& clusterer = {}) {
  random_engine random(3);
  wavekv::clustering_scratch used;
  for (const key_family family : all_families) {
    for (const std::size_t n_tokens : {1U, 2U, 5U, 64U, 333U}) {
      for (const std::size_t dim : {1U, 16U, 33U}) {
        const std::vector<float> keys = make_keys(random, family, n_tokens, 1, dim);
        const std::vector<float> values = normal_rows(random, n_tokens * dim);
        for (const std::size_t n_clusters : {std::size_t{1}, (n_tokens + 3) / 4, n_tokens}) {
          wavekv::cluster_request request;
          request.keys = keys.data();
          request.key_dim = dim;
          request.values = values.data();
          request.value_dim = dim;
          request.n_tokens = n_tokens;
          request.n_clusters = n_clusters;
          std::vector<std::uint32_t> ids(n_tokens, UINT32_MAX);
          const std::size_t n = clusterer.cluster(request, std::span(ids), used);
          const std::string where = std::to_string(n_tokens) + " tokens, " +
                                    std::to_string(n_clusters) + " clusters, keys " +
                                    std::string(name_of(family));
          if (n < 1 || n > n_clusters)
            return "returns " + std::to_string(n) + " clusters: " + where;
          std::vector<bool> seen(n, false);
          for (const std::uint32_t id : ids) {
            if (id >= n) return "an id is not below the count: " + where;
            seen[id] = true;
          }
          if (std::ranges::find(seen, false) != seen.end()) return "an id is left out: " + where;
          wavekv::clustering_scratch fresh;
          std::vector<std::uint32_t> again(n_tokens, 0);
          const Clusterer copy = clusterer;
          if (copy.cluster(request, std::span(again), fresh) != n || again != ids) {
            return "another scratch gives another answer: " + where;
          }
        }
      }
    }
  }
  return {};
}

/// @brief A frontier that owns its numbers, for tests of bounds.
struct frontier_data {
  std::vector<float> size;
  std::vector<float> share;
  std::vector<float> error;
  std::vector<float> nearness;
  std::vector<float> ranked_share;
  std::vector<float> ranked_error;
  std::vector<float> settled;
  std::vector<float> log_normalizer;
  wavekv::frontier view;

  /// @brief A random frontier; shares of a head add up to at most 1. @tparam Ranking the bound's
  template <class Ranking>
  static frontier_data random(random_engine& random, std::size_t level, std::size_t n_nodes,
                              std::size_t group_size, key_family family) {
    frontier_data data;
    const auto number = [&] { return static_cast<float>(random() % 1000003) / 1000003.0F; };
    for (std::size_t i = 0; i < n_nodes; ++i) {
      data.size.push_back(static_cast<float>(1 + random() % 30));
    }
    for (std::size_t g = 0; g < group_size; ++g) {
      std::vector<float> mass(n_nodes);
      float sum = 1e-3F;
      for (float& x : mass) {
        switch (family) {
        case key_family::equal:
          x = 1.0F;
          break;
        case key_family::tiny:
          x = random() % 2 == 0 ? 0.0F : 1e-42F;
          break;
        case key_family::outlier:
          x = random() % n_nodes == 0 ? 1e6F : number();
          break;
        case key_family::needle:
          x = std::exp(40.0F * number());
          break;
        default:
          x = number();
          break;
        }
        sum += x;
      }
      for (const float x : mass) {
        data.share.push_back(x / sum);
        data.error.push_back(x / sum * number());
        data.nearness.push_back(10.0F * static_cast<float>(n_nodes) * x / sum * number());
      }
      data.settled.push_back(0.001F * number());
      // so that some nodes may hold a token worth a look, and some may not
      const float of_one = n_nodes == 0 ? 0.0F : data.nearness[g * n_nodes + random() % n_nodes];
      data.log_normalizer.push_back(of_one + 12.0F * number());
    }
    for (std::size_t i = 0; i < n_nodes; ++i) {
      float share = data.share[i];
      float error = data.error[i];
      for (std::size_t g = 1; g < group_size; ++g) {
        share = Ranking::combine(share, data.share[g * n_nodes + i]);
        error = Ranking::combine(error, data.error[g * n_nodes + i]);
      }
      data.ranked_share.push_back(share);
      data.ranked_error.push_back(error);
    }
    data.view.level = level;
    data.view.n_nodes = n_nodes;
    data.view.group_size = group_size;
    data.view.n_clusters = level == 0 ? n_nodes : 8 * n_nodes;
    for (const float n : data.size) data.view.n_tokens += static_cast<std::size_t>(n);
    data.view.n_steady_tokens = 20;
    data.point();
    return data;
  }

  frontier_data() = default;
  frontier_data(frontier_data&& other) noexcept { *this = std::move(other); }
  frontier_data& operator=(frontier_data&& other) noexcept {
    size = std::move(other.size);
    share = std::move(other.share);
    error = std::move(other.error);
    nearness = std::move(other.nearness);
    ranked_share = std::move(other.ranked_share);
    ranked_error = std::move(other.ranked_error);
    settled = std::move(other.settled);
    log_normalizer = std::move(other.log_normalizer);
    view = other.view;
    point();
    return *this;
  }

 private:
  void point() {
    view.size_data = size.data();
    view.share_data = share.data();
    view.error_data = error.data();
    view.nearness_data = nearness.data();
    view.ranked_share_data = ranked_share.data();
    view.ranked_error_data = ranked_error.data();
    view.settled_data = settled.data();
    view.log_normalizer_data = log_normalizer.data();
  }
};

/// @brief Zones are valid, dropped only by a bound that says it drops, and a function of the frontier, or, of a bound that
/// remembers, of the frontiers so far: two bounds that have seen the same plan the same. The frontier of any shape is fine, an
/// empty one too.
/// @param twin  a bound like the first; of one that remembers, with a memory of its own
template <wavekv::estimation_bound Bound>
verdict bound_law(const Bound& bound, const Bound& twin) {
  using wavekv::zone;
  using ranking = wavekv::detail::bound_ranking_t<Bound>;
  wavekv::detail::validate_bound(bound);
  random_engine random(5);
  std::uint32_t step = 0;
  for (const key_family family : all_families) {
    for (const std::size_t n_nodes : {0U, 1U, 2U, 100U, 1000U}) {
      for (const std::size_t group_size : {1U, 4U}) {
        for (const std::size_t level : {0U, 1U, 2U}) {
          frontier_data data =
              frontier_data::random<ranking>(random, level, n_nodes, group_size, family);
          data.view.place.sequence = {0, 0};
          data.view.place.step = ++step;
          std::vector<zone> zones(n_nodes + 1, zone::estimation);
          bound.plan(data.view, std::span(zones).first(n_nodes));
          if (zones.back() != zone::estimation) return "plan writes past the end";
          for (const zone z : zones) {
            if (z != zone::estimation && z != zone::retrieval && z != zone::dropped) {
              return "plan writes something that is no zone";
            }
            if (z == zone::dropped && !wavekv::detail::drops<Bound>()) {
              return "plan drops a node, but the bound does not say drops = true";
            }
          }
          const Bound copy = twin;
          std::vector<zone> again(n_nodes + 1, zone::estimation);
          copy.plan(data.view, std::span(again).first(n_nodes));
          if (again != zones) return "the same frontier gets another plan";
        }
      }
    }
  }
  return {};
}

/// @brief The law of a bound that remembers nothing: its copy is its twin.
template <wavekv::estimation_bound Bound>
verdict bound_law(const Bound& bound = {}) {
  return bound_law(bound, bound);
}

/// @brief A verifying bound's numbers are usable, and its next round is no laxer.
template <wavekv::verifying_bound Bound>
verdict verifying_bound_law(const Bound& bound = {}) {
  if (verdict broken = bound_law(bound); !broken.empty()) return broken;
  if (bound.n_samples() < 1) return "n_samples() is 0";
  if (bound.max_rounds() < 1) return "max_rounds() is below 1";
  if (!(bound.confidence_deviations() >= 0.0F)) return "confidence_deviations() is negative or NaN";
  if (!bound.accepts(0.0F)) return "an error of 0 is not accepted";
  if (bound.accepts(std::numeric_limits<float>::quiet_NaN())) return "an error of NaN is accepted";
  if (bound.accepts(std::numeric_limits<float>::infinity())) return "an infinite error is accepted";
  Bound next = bound;
  for (int round = 0; round < bound.max_rounds(); ++round) {
    next = next.tightened();
    wavekv::detail::validate_bound(next);
    for (const float error : {1e-6F, 1e-3F, 0.1F, 10.0F}) {
      if (next.accepts(error) && !bound.accepts(error))
        return "a later round accepts a larger error";
    }
  }
  return {};
}

/// @brief 1 <= decode <= prefill.
template <wavekv::segment_sizes Sizes>
verdict segment_sizes_law() {
  if (Sizes::decode < 1 || Sizes::decode > Sizes::prefill) return "decode is not in 1 .. prefill";
  return Sizes::prefill <= 65536 ? "" : "prefill is above 65,536";
}

/// @brief Nodes hold more tokens the coarser the level.
template <wavekv::cluster_count Count>
verdict cluster_count_law() {
  if (Count::tokens_at(0) < 1) return "a cluster holds no token";
  for (std::size_t level = 1; level < Count::n_levels; ++level) {
    if (Count::tokens_at(level) <= Count::tokens_at(level - 1)) {
      return "a coarser level holds no more tokens than the one below";
    }
  }
  return {};
}

}  // namespace wavekv_test
