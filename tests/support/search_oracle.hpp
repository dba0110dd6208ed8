// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/core/geometry.hpp>
#include <wavekv/index/cluster_tree_builder.hpp>
#include <wavekv/index/frontier.hpp>

#include "archetypes/bounds.hpp"
#include "support/model.hpp"

/// @file search_oracle.hpp
/// @brief What a search must answer once a bound has chosen zones, from the formula of the estimate, in double.
///
/// The trees are built again from the tokens with the cache's own clusterer; zones come from a recording
/// bound; everything else is computed here by its definition.

namespace wavekv_test {

/// @brief Where the tokens of a layer lie.
struct token_layout {
  std::size_t n_sink = 0;
  std::vector<std::size_t> segments;  ///< tokens of each sealed segment; what is left is the tail

  [[nodiscard]] std::size_t n_sealed() const {
    std::size_t sum = 0;
    for (const std::size_t n : segments) sum += n;
    return sum;
  }
};

/// @brief What one query group's search must have answered.
struct expected_search {
  std::vector<double> out;  ///< [group_size, value_dim]
  std::vector<double> lse;  ///< [group_size], no learned sink
  std::size_t tokens_read = 0;
  std::size_t clusters_read = 0;
  std::size_t nodes_estimated = 0;
  std::size_t nodes_dropped = 0;
  std::size_t summaries_read = 0;
  double dropped_mass = 0.0;  ///< largest over the group, by true masses
};

/// @brief Index: the cache's wave_index. S: its scalar. The query metric must not be known (no queries were given).
template <class S, class Index>
class search_oracle {
 public:
  search_oracle(const wavekv::geometry& sizes, const naive_layer& tokens, token_layout layout)
      : sizes_(sizes), tokens_(tokens), layout_(std::move(layout)) {
    using counts = typename Index::cluster_count_type;
    for (std::size_t level = 0; level < counts::n_levels; ++level) {
      tokens_at_.push_back(counts::tokens_at(level));
    }
    wavekv::clustering_scratch scratch;
    std::size_t first = layout_.n_sink;
    for (const std::size_t n : layout_.segments) {
      for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
        const std::vector<float> keys = rows_of(tokens_.keys, sizes_.key_dim, head, first, n);
        const std::vector<float> values = rows_of(tokens_.values, sizes_.value_dim, head, first, n);
        wavekv::cluster_request request;
        request.keys = keys.data();
        request.key_dim = sizes_.key_dim;
        request.values = values.data();
        request.value_dim = sizes_.value_dim;
        request.n_tokens = n;
        trees_.push_back(wavekv::build_tree(request, typename Index::clusterer_type{},
                                            std::span<const std::size_t>(tokens_at_), scratch));
      }
      first += n;
    }
  }

  /// @brief Clusters of the finest level that a KV head's index holds.
  [[nodiscard]] std::size_t n_clusters(std::size_t head) const {
    std::size_t n = 0;
    for (std::size_t s = 0; s < layout_.segments.size(); ++s) n += tree(s, head).levels[0].n_nodes;
    return n;
  }

  /// @brief One group's search of a query at the newest token.
  /// @param queries  [group_size, key_dim], unscaled
  /// @param plans    the zones of each level, coarsest first
  [[nodiscard]] expected_search search(std::span<const float> queries, std::size_t head,
                                       std::span<const plan_record> plans) const {
    const std::size_t group = sizes_.group_size();
    expected_search expected;
    std::vector<sum> kept(group, sum(sizes_.value_dim));
    std::vector<sum> dropped(group, sum(sizes_.value_dim));
    const auto add_token = [&](std::vector<sum>& to, std::size_t token) {
      for (std::size_t g = 0; g < group; ++g) {
        to[g].add(logit(queries, g, row(tokens_.keys, sizes_.key_dim, token, head)), 1.0,
                  row(tokens_.values, sizes_.value_dim, token, head));
      }
    };
    const std::size_t n_tokens = length_of(sizes_, tokens_);
    for (std::size_t token = 0; token < n_tokens; ++token) {
      if (token < layout_.n_sink || token >= layout_.n_sink + layout_.n_sealed()) {
        add_token(kept, token);
        ++expected.tokens_read;
      }
    }
    std::vector<std::pair<std::size_t, std::size_t>> frontier;  // (segment, node), as columns come
    const std::size_t top = tokens_at_.size() - 1;
    for (std::size_t s = 0; s < layout_.segments.size(); ++s) {
      for (std::size_t i = 0; i < tree(s, head).levels[top].n_nodes; ++i)
        frontier.emplace_back(s, i);
    }
    for (std::size_t level = top + 1; level-- > 0;) {
      const plan_record& plan = plans[top - level];
      std::vector<std::pair<std::size_t, std::size_t>> below;
      expected.summaries_read += frontier.size();
      std::vector<leaning> lean;  // [group_size]
      for (std::size_t g = 0; g < group; ++g) lean.push_back(lean_of(queries, g, head, level));
      for (std::size_t column = 0; column < frontier.size(); ++column) {
        const auto [s, node] = frontier[column];
        const wavekv::cluster_tree_level& nodes = tree(s, head).levels[level];
        switch (plan.zones.at(column)) {
        case wavekv::zone::estimation: {
          ++expected.nodes_estimated;
          const std::vector<float> centroid =
              rounded<S>(std::span(nodes.centroids).subspan(node * sizes_.key_dim, sizes_.key_dim));
          const std::vector<float> mean = rounded<S>(
              std::span(nodes.value_means).subspan(node * sizes_.value_dim, sizes_.value_dim));
          const double dispersion =
              static_cast<double>(nodes.dispersions[node]) + rounding_dispersion(nodes, node);
          for (std::size_t g = 0; g < group; ++g) {
            const double s_mean = logit(queries, g, centroid.data());
            // Neither mass nor value follow a variance beyond 8.
            const double followed = std::min(dispersion, 8.0 / lean[g].variance);
            std::vector<double> value(mean.begin(), mean.end());
            for (std::size_t i = 0; i < value.size(); ++i) {
              value[i] += followed * lean[g].tilt[i];
            }
            double estimate = s_mean + 0.5 * logit_variance(lean[g].variance * dispersion, s_mean);
            if (sizes_.logit_softcap > 0.0F) {
              estimate = std::min(estimate, static_cast<double>(sizes_.logit_softcap));
            }
            kept[g].add(estimate, nodes.sizes[node], value.data());
          }
          break;
        }
        case wavekv::zone::retrieval:
          if (level > 0) {
            for (auto i = nodes.first_child[node]; i < nodes.first_child[node + 1]; ++i) {
              below.emplace_back(s, i);
            }
          } else {
            ++expected.clusters_read;
            expected.tokens_read += nodes.sizes[node];
            for_tokens(s, head, 0, node, [&](std::size_t token) { add_token(kept, token); });
          }
          break;
        case wavekv::zone::dropped:
          ++expected.nodes_dropped;
          for_tokens(s, head, level, node, [&](std::size_t token) { add_token(dropped, token); });
          break;
        }
      }
      frontier = std::move(below);
    }
    for (std::size_t g = 0; g < group; ++g) {
      for (const double x : kept[g].numerator) expected.out.push_back(x / kept[g].denominator);
      expected.lse.push_back(kept[g].max + std::log(kept[g].denominator));
      if (dropped[g].denominator > 0.0) {
        const double ratio =
            std::exp(dropped[g].max - kept[g].max) * dropped[g].denominator / kept[g].denominator;
        expected.dropped_mass = std::max(expected.dropped_mass, ratio / (1.0 + ratio));
      }
    }
    return expected;
  }

  /// @brief The tree of one segment and KV head.
  [[nodiscard]] const wavekv::cluster_tree& tree(std::size_t segment, std::size_t head) const {
    return trees_[segment * sizes_.n_kv_heads + head];
  }

 private:
  struct sum {
    explicit sum(std::size_t dim) : numerator(dim, 0.0) {}
    double max = -HUGE_VAL;
    double denominator = 0.0;
    std::vector<double> numerator;

    template <class Value>
    void add(double logit, double count, const Value* value) {
      if (logit > max) {
        const double factor = max == -HUGE_VAL ? 0.0 : std::exp(max - logit);
        denominator *= factor;
        for (double& x : numerator) x *= factor;
        max = logit;
      }
      const double weight = count * std::exp(logit - max);
      denominator += weight;
      for (std::size_t i = 0; i < numerator.size(); ++i) {
        numerator[i] += weight * static_cast<double>(value[i]);
      }
    }
  };

  [[nodiscard]] double logit(std::span<const float> queries, std::size_t g,
                             const float* key) const {
    const reference_geometry shape = reference_of(sizes_);
    double dot = 0.0;
    for (std::size_t i = 0; i < sizes_.key_dim; ++i) {
      dot += static_cast<double>(queries[g * sizes_.key_dim + i]) * static_cast<double>(key[i]);
    }
    dot *= shape.scale;
    return shape.logit_softcap > 0.0 ? shape.logit_softcap * std::tanh(dot / shape.logit_softcap)
                                     : dot;
  }

  /// ‖scale·q‖²
  [[nodiscard]] double squared_norm(std::span<const float> queries, std::size_t g) const {
    const reference_geometry shape = reference_of(sizes_);
    double squared = 0.0;
    for (std::size_t i = 0; i < sizes_.key_dim; ++i) {
      const double x = shape.scale * static_cast<double>(queries[g * sizes_.key_dim + i]);
      squared += x * x;
    }
    return squared;
  }

  /// Variance of a logit inside a node, times the squared slope of a softcap, at most 8.
  [[nodiscard]] double logit_variance(double variance, double logit) const {
    const reference_geometry shape = reference_of(sizes_);
    double slope = 1.0;
    if (shape.logit_softcap > 0.0) {
      slope = 1.0 - std::pow(logit / shape.logit_softcap, 2.0);
    }
    return std::min(8.0, variance * slope * slope);
  }

  /// What storing a centroid moved it by counts as dispersion, too (no query metric here).
  [[nodiscard]] double rounding_dispersion(const wavekv::cluster_tree_level& nodes,
                                           std::size_t node) const {
    const std::span<const float> centroid =
        std::span(nodes.centroids).subspan(node * sizes_.key_dim, sizes_.key_dim);
    const std::vector<float> stored = rounded<S>(centroid);
    double moved = 0.0;
    for (std::size_t i = 0; i < centroid.size(); ++i) {
      moved += std::pow(static_cast<double>(centroid[i]) - static_cast<double>(stored[i]), 2.0);
    }
    return moved / static_cast<double>(sizes_.key_dim);
  }

  /// What a query meets inside the nodes of a level, per unit of dispersion.
  struct leaning {
    double variance = 0.0;     ///< of its logit
    std::vector<double> tilt;  ///< [value_dim] what the mean value gains
  };

  /// The variance of the logit and its covariance with the values, inside the nodes, over all tokens, divided by
  /// the nodes' dispersions; rounded centroids vary alike along all directions.
  [[nodiscard]] leaning lean_of(std::span<const float> queries, std::size_t g, std::size_t head,
                                std::size_t level) const {
    const reference_geometry shape = reference_of(sizes_);
    leaning lean;
    lean.tilt.assign(sizes_.value_dim, 0.0);
    double weight = 0.0;
    for (std::size_t s = 0; s < layout_.segments.size(); ++s) {
      const wavekv::cluster_tree_level& nodes = tree(s, head).levels[level];
      for (std::size_t node = 0; node < nodes.n_nodes; ++node) {
        const double size = nodes.sizes[node];
        const double rounding = rounding_dispersion(nodes, node);
        weight += size * (static_cast<double>(nodes.dispersions[node]) + rounding);
        lean.variance += size * rounding * squared_norm(queries, g);
        for_tokens(s, head, level, node, [&](std::size_t token) {
          const float* key = row(tokens_.keys, sizes_.key_dim, token, head);
          const float* value = row(tokens_.values, sizes_.value_dim, token, head);
          double along = 0.0;
          for (std::size_t i = 0; i < sizes_.key_dim; ++i) {
            along += shape.scale * static_cast<double>(queries[g * sizes_.key_dim + i]) *
                     (static_cast<double>(key[i]) -
                      static_cast<double>(nodes.centroids[node * sizes_.key_dim + i]));
          }
          lean.variance += along * along;
          for (std::size_t i = 0; i < sizes_.value_dim; ++i) {
            lean.tilt[i] +=
                along * (static_cast<double>(value[i]) -
                         static_cast<double>(nodes.value_means[node * sizes_.value_dim + i]));
          }
        });
      }
    }
    if (weight > 1e-20) {
      lean.variance /= weight;
      for (double& x : lean.tilt) x /= weight;
    } else {
      lean.variance = squared_norm(queries, g);
      lean.tilt.assign(sizes_.value_dim, 0.0);
    }
    if (shape.logit_softcap > 0.0) {  // a softcap bends the tilt; the library leaves it out
      lean.tilt.assign(sizes_.value_dim, 0.0);
    }
    return lean;
  }

  [[nodiscard]] const float* row(const std::vector<float>& rows, std::size_t dim, std::size_t token,
                                 std::size_t head) const {
    return rows.data() + (token * sizes_.n_kv_heads + head) * dim;
  }

  [[nodiscard]] std::vector<float> rows_of(const std::vector<float>& rows, std::size_t dim,
                                           std::size_t head, std::size_t first,
                                           std::size_t n) const {
    std::vector<float> result;
    for (std::size_t token = first; token < first + n; ++token) {
      result.insert(result.end(), row(rows, dim, token, head), row(rows, dim, token, head) + dim);
    }
    return result;
  }

  template <class Each>
  void for_tokens(std::size_t segment, std::size_t head, std::size_t level, std::size_t node,
                  Each&& each) const {
    const wavekv::cluster_tree& nodes = tree(segment, head);
    std::size_t first = node;
    std::size_t last = node + 1;
    for (std::size_t l = level + 1; l-- > 0;) {
      first = nodes.levels[l].first_child[first];
      last = nodes.levels[l].first_child[last];
    }
    std::size_t before = layout_.n_sink;
    for (std::size_t s = 0; s < segment; ++s) before += layout_.segments[s];
    for (std::size_t i = first; i < last; ++i) each(before + nodes.order[i]);
  }

  wavekv::geometry sizes_;
  const naive_layer& tokens_;
  token_layout layout_;
  std::vector<std::size_t> tokens_at_;
  std::vector<wavekv::cluster_tree> trees_;  // [segments, n_kv_heads]
};

}  // namespace wavekv_test
