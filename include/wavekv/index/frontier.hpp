// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <wavekv/core/ids.hpp>

/// @file frontier.hpp
/// @brief What an estimation bound sees of a search, and the zones it answers with.

namespace wavekv {

/// @brief What becomes of one node of a cluster tree in one step.
enum class zone : std::uint8_t {
  estimation,  ///< taken through its summary
  retrieval,  ///< a cluster: its tokens are read exactly; a coarse node: opened, its children are judged next
  dropped,  ///< left out of the result; its mass is reported
};

/// @brief Where a query stands: what a step's searches are told apart by, beside their KV heads.
struct query_place {
  sequence_id sequence;
  std::uint32_t layer = 0;
  std::uint32_t step = 0;  ///< tokens of the sequence up to and including the query's own
};

/// @brief The nodes of one tree level that await a verdict, over all segments, for one query group.
///
/// All numbers come from summaries alone. Arrays have one entry per node; those of a query head g lie at
/// `share(g)` and `error(g)`, their reduction over the group (the bound's `ranking`) at `share()` and
/// `error()`. A frontier is a view: valid only during the call that got it.
///
/// A bound that remembers (one that keeps a head's choice for the steps to come) tells frontiers apart by `place` and
/// `head`. Nodes stand in the order of their segments, so that on the top level of an index that grew since a step the
/// first n_nodes of that step are the same nodes. The device's twin has neither: bounds there remember nothing.
struct frontier {
  query_place place;           ///< whose query asks
  std::size_t head = 0;        ///< KV head
  std::size_t level = 0;       ///< 0: clusters, whose children are tokens; above: coarser levels
  std::size_t n_nodes = 0;     ///< nodes on this frontier
  std::size_t group_size = 1;  ///< query heads judged together
  std::size_t n_clusters = 0;  ///< clusters (level 0) in the whole index of this head
  std::size_t n_tokens = 0;    ///< tokens in the whole index of this head
  std::size_t n_steady_tokens =
      0;  ///< tokens of the steady zone, read exactly whatever the verdict

  const float* size_data = nullptr;            ///< [n_nodes]
  const float* share_data = nullptr;           ///< [group_size, n_nodes]
  const float* error_data = nullptr;           ///< [group_size, n_nodes]
  const float* nearness_data = nullptr;        ///< [group_size, n_nodes]
  const float* ranked_share_data = nullptr;    ///< [n_nodes]
  const float* ranked_error_data = nullptr;    ///< [n_nodes]
  const float* settled_data = nullptr;         ///< [group_size]
  const float* log_normalizer_data = nullptr;  ///< [group_size]

  /// @brief Tokens under each node.
  [[nodiscard]] std::span<const float> size() const noexcept { return {size_data, n_nodes}; }

  /// @brief Estimated share of each node in query head g's softmax, of everything (steady zone included).
  [[nodiscard]] std::span<const float> share(std::size_t g) const noexcept {
    return {share_data + g * n_nodes, n_nodes};
  }

  /// @brief Expected error of head g's output, relative to that output's norm, if the node is estimated.
  [[nodiscard]] std::span<const float> error(std::size_t g) const noexcept {
    return {error_data + g * n_nodes, n_nodes};
  }

  /// @brief How near to query head g the nearest token of each node is expected to lie: its expected logit, of any sign.
  [[nodiscard]] std::span<const float> nearness(std::size_t g) const noexcept {
    return {nearness_data + g * n_nodes, n_nodes};
  }

  /// @brief share(g) reduced over the group.
  [[nodiscard]] std::span<const float> share() const noexcept {
    return {ranked_share_data, n_nodes};
  }

  /// @brief error(g) reduced over the group.
  [[nodiscard]] std::span<const float> error() const noexcept {
    return {ranked_error_data, n_nodes};
  }

  /// @brief Sum of squared errors, per query head, of nodes that coarser levels left in the estimation zone.
  [[nodiscard]] std::span<const float> settled_squared_error() const noexcept {
    return {settled_data, group_size};
  }

  /// @brief Log normaliser of each query head's softmax, of everything, as known so far: a token of logit s has a share
  /// of e^(s - log normaliser) in it.
  [[nodiscard]] std::span<const float> log_normalizer() const noexcept {
    return {log_normalizer_data, group_size};
  }
};

/// @brief Group ranking: a node is as important as it is to the head that needs it most.
struct rank_by_max {
  static constexpr float combine(float a, float b) noexcept { return a > b ? a : b; }
};

/// @brief Group ranking: the heads' numbers are added (the paper's; it can hide one head's spike).
struct rank_by_sum {
  static constexpr float combine(float a, float b) noexcept { return a + b; }
};

/// @brief Group ranking: each head picks its own best in turn, so that none is hidden by the others. Where one number
/// is wanted, the larger.
struct rank_by_turns : rank_by_max {};

}  // namespace wavekv
