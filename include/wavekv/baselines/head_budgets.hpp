// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/frontier.hpp>

/// @file head_budgets.hpp
/// @brief HeteroCache: heads that choose alike step after step get a small budget and a selection that is kept.

namespace wavekv::baselines {

/// @brief How steadily a KV head chooses; observed: not known yet.
enum class head_class : std::uint8_t { observed, steady, unsteady };

/// @brief What is known of one KV head.
struct head_report {
  head_class found = head_class::observed;
  float steadiness = 0.0F;      ///< median overlap of n_observed steps' choices with the first one
  std::size_t n_refreshed = 0;  ///< times that a steady head's selection was replaced by another
};

/// @brief What head_budgets remembers of a cache's heads; all memory is made at construction, a byte a cluster and head. Overlap of two
/// choices: clusters read by both over those of the smaller one; 1 where both are empty, 0 where one is.
/// Threads: any; queries of one head that are asked at once take turns in no fixed order.
class head_steadiness {
 public:
  struct settings {
    std::size_t n_sequences = 1;      ///< those with slots below are remembered; 1 or more
    std::size_t max_clusters = 8192;  ///< of a head; a larger index is not remembered; 1 or more
    std::size_t n_observed = 16;      ///< steps after the first, then a head is classed; 1 or more
    std::size_t check_every = 4;      ///< steps of a steady head from check to check; 1 or more
    float threshold = 0.5F;           ///< least overlap that counts as alike; 0 to 1
  };

  /// @param sizes  the cache's
  /// @throw config_error, std::bad_alloc
  head_steadiness(const geometry& sizes, const settings& given)
      : given_(checked(given)),
        n_layers_(sizes.n_layers),
        n_kv_heads_(sizes.n_kv_heads),
        heads_(1 + given.n_sequences * n_layers_ * n_kv_heads_) {
    for (head_state& head : heads_) {
      head.kept.reserve(given.max_clusters);
      head.overlaps.reserve(std::max(given.n_observed, given.check_every));
    }
  }

  /// @brief What is known of a KV head of the place's sequence and layer; nothing of one that is not remembered.
  [[nodiscard]] head_report of(const query_place& place, std::size_t head) const noexcept {
    const head_state& state = heads_[index_of(place, head)];
    const std::lock_guard lock(state.mutex);
    return state.owner == place.sequence ? state.report : head_report{};
  }

  /// @brief Makes a head's choice in one step; plan(head_class) writes into zones what a head of that class chooses now.
  /// Complexity: O(n_nodes) beside plan. Allocates: nothing.
  template <class Plan>
  void choose(const frontier& nodes, std::span<zone> zones, const Plan& plan) noexcept {
    const std::size_t at = index_of(nodes.place, nodes.head);
    const bool is_flat = nodes.level == 0 && nodes.n_nodes == nodes.n_clusters;
    if (at == 0 || !is_flat || zones.empty() || zones.size() > given_.max_clusters) {
      plan(head_class::observed);
      return;
    }
    head_state& head = heads_[at];
    const std::lock_guard lock(head.mutex);
    if (head.owner != nodes.place.sequence) {  // another one has the slot
      head.owner = nodes.place.sequence;
      head.report = {};
      head.kept.clear();
    }
    plan(head.report.found);
    if (head.report.found == head_class::unsteady) {
      return;
    }
    const bool is_steady = head.report.found == head_class::steady;
    // Clusters of an index that shrank may be others now; those that one grew by, a selection knows nothing of.
    bool renew = head.kept.empty() || zones.size() < head.kept.size() ||
                 (is_steady && zones.size() != head.kept.size());
    if (!renew) {
      head.overlaps.push_back(overlap(head.kept, zones));
      const std::size_t n_asked = is_steady ? given_.check_every : given_.n_observed;
      if (head.overlaps.size() == n_asked) {
        std::ranges::sort(head.overlaps);
        const float median = 0.5F * (head.overlaps[(n_asked - 1) / 2] + head.overlaps[n_asked / 2]);
        renew = median < given_.threshold;
        head.overlaps.clear();
        if (!is_steady) {
          head.report = {renew ? head_class::unsteady : head_class::steady, median, 0};
          head.kept.clear();  // the next step selects by the class's own rule
        }
      }
    }
    if (renew) {
      head.report.n_refreshed += is_steady && !head.kept.empty() ? 1 : 0;
      head.kept.assign(zones.begin(), zones.end());  // within its capacity, as overlaps are
      head.overlaps.clear();
    } else if (is_steady) {
      std::ranges::copy(head.kept, zones.begin());
    }
  }

 private:
  struct head_state {
    mutable std::mutex mutex;
    sequence_id owner;
    head_report report;
    std::vector<zone> kept;       // the first choice, then the selection; may be none
    std::vector<float> overlaps;  // with it, since it was kept or checked
  };

  static settings checked(const settings& given) {
    const auto check = [](bool holds, const char* name, auto seen, const char* allowed) {
      if (!holds) {
        throw config_error(detail::message("head_steadiness: ", name, " is ", seen, allowed));
      }
    };
    check(given.n_sequences >= 1, "n_sequences", given.n_sequences, "; allowed: 1 or more");
    check(given.max_clusters >= 1, "max_clusters", given.max_clusters, "; allowed: 1 or more");
    check(given.n_observed >= 1, "n_observed", given.n_observed, "; allowed: 1 or more");
    check(given.check_every >= 1, "check_every", given.check_every, "; allowed: 1 or more");
    const bool is_part = given.threshold >= 0.0F && given.threshold <= 1.0F;
    check(is_part, "threshold", given.threshold, "; allowed: 0 to 1");
    return given;
  }

  [[nodiscard]] std::size_t index_of(const query_place& place, std::size_t head) const noexcept {
    const std::size_t slot = place.sequence.slot;
    const bool is_in = slot < given_.n_sequences && place.layer < n_layers_ && head < n_kv_heads_;
    return is_in ? 1 + (slot * n_layers_ + place.layer) * n_kv_heads_ + head : 0;
  }

  static float overlap(std::span<const zone> kept, std::span<const zone> all) noexcept {
    std::size_t n_both = 0;
    for (std::size_t i = 0; i < kept.size(); ++i) {
      n_both += kept[i] == zone::retrieval && all[i] == zone::retrieval ? 1 : 0;
    }
    const auto [least, most] = std::minmax(
        {std::ranges::count(kept, zone::retrieval), std::ranges::count(all, zone::retrieval)});
    return least > 0 ? static_cast<float>(n_both) / static_cast<float>(least)
                     : static_cast<float>(most == 0);
  }

  settings given_;
  std::size_t n_layers_;
  std::size_t n_kv_heads_;
  std::vector<head_state> heads_;  // nobody's, then [n_sequences, n_layers, n_kv_heads]
};

/// @brief Gives steady and unsteady KV heads a budget each, and keeps a steady head's selection until what it would choose drifts.
///
/// A head is observed by unsteady's budget, then classed. A steady head's selection (a base bound's zones) stands until a fresh choice,
/// in the median of check_every steps, overlaps it by less than the threshold, or the index grows or shrinks.
/// What the paper does otherwise: it classes heads on calibration data, by the choice of the prompt's last query; prompts are not planned
/// here, and each sequence's first step stands for that. Its unsteady heads keep everything, its steady ones share a budget by the inverse
/// of their steadiness; here a class has a budget. There heads watch for others of their layer; here each for itself.
/// Models estimation_bound of a flat index (heads of a tree go by `unsteady`), over any bound that does not check its answers.
/// Complexity: the base's, and O(n_nodes). Allocates: nothing.
/// Source: HeteroCache, arXiv 2601.13684, section 4; the threshold, check_every and the median of a check are its code's.
template <estimation_bound Bound>
  requires(!verifying_bound<Bound>)
struct head_budgets {
  using ranking = detail::bound_ranking_t<Bound>;
  static constexpr bool drops = detail::drops<Bound>();

  Bound steady{};                           ///< of steady heads
  Bound unsteady{};                         ///< of the others: more
  std::shared_ptr<head_steadiness> memory;  ///< shared by copies; not null

  /// @brief Checks both bounds and that there is a memory.  @throw config_error
  void validate() const {
    if (memory == nullptr) {
      throw config_error("head_budgets: memory is null; allowed: a head_steadiness");
    }
    detail::validate_bound(steady);
    detail::validate_bound(unsteady);
  }

  /// @brief What is reported of an error that summaries predict: the larger of what both report.
  [[nodiscard]] float scaled_error(float predicted) const {
    return std::max(detail::scaled_error(steady, predicted),
                    detail::scaled_error(unsteady, predicted));
  }
  [[nodiscard]] bool meets(float predicted) const {
    return detail::meets(steady, predicted) && detail::meets(unsteady, predicted);
  }

  void plan(const frontier& nodes, std::span<zone> zones) const noexcept {
    memory->choose(nodes, zones, [&](head_class found) {
      (found == head_class::steady ? steady : unsteady).plan(nodes, zones);
    });
  }
};

}  // namespace wavekv::baselines
