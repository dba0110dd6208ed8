// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include <wavekv/index/concepts.hpp>
#include <wavekv/index/frontier.hpp>

/// @file bounds.hpp
/// @brief Estimation bounds that make the smallest use of the concept, and one that writes down what it is asked.

namespace wavekv_test {

/// @brief Estimates everything at the top level: leaves all zones as they come in.
struct estimate_all {
  void plan(const wavekv::frontier& /*nodes*/, std::span<wavekv::zone> /*zones*/) const {}
};

/// @brief Opens every coarse node and reads every cluster, one by one.
struct open_all {
  void plan(const wavekv::frontier& /*nodes*/, std::span<wavekv::zone> zones) const {
    std::ranges::fill(zones, wavekv::zone::retrieval);
  }
};

/// @brief Drops all clusters: sink and window are left.
struct drop_all {
  static constexpr bool drops = true;
  void plan(const wavekv::frontier& /*nodes*/, std::span<wavekv::zone> zones) const {
    std::ranges::fill(zones, wavekv::zone::dropped);
  }
};

/// @brief Takes zones in turns, whatever the numbers say. @tparam Drops  whether dropping is one of the turns
template <bool Drops>
struct alternate {
  static constexpr bool drops = Drops;
  std::size_t offset = 0;
  void plan(const wavekv::frontier& nodes, std::span<wavekv::zone> zones) const {
    for (std::size_t i = 0; i < zones.size(); ++i) {
      const std::size_t turn = (i + offset + nodes.level) % (Drops ? 3 : 2);
      zones[i] = turn == 0   ? wavekv::zone::retrieval
                 : turn == 1 ? wavekv::zone::estimation
                             : wavekv::zone::dropped;
    }
  }
};

/// @brief What a bound was asked and what it answered, one level of one query group.
struct plan_record {
  wavekv::query_place place;
  std::size_t head = 0;
  std::size_t level = 0;
  std::size_t group_size = 0;
  std::size_t n_clusters = 0;
  std::size_t n_tokens = 0;
  std::size_t n_steady_tokens = 0;
  std::vector<wavekv::zone> zones;
  std::vector<float> size;
  std::vector<float> share;  ///< [group_size, n_nodes]
  std::vector<float> error;  ///< [group_size, n_nodes]
  std::vector<float> settled;
};

/// @brief Another bound's plans, written down in the order they are made. For one thread.
template <wavekv::estimation_bound Bound>
struct recording {
  static constexpr bool drops = wavekv::detail::drops<Bound>();
  using ranking = wavekv::detail::bound_ranking_t<Bound>;
  Bound bound{};
  std::vector<plan_record>* log = nullptr;

  float scaled_error(float predicted) const {
    return wavekv::detail::scaled_error(bound, predicted);
  }
  bool meets(float predicted) const { return wavekv::detail::meets(bound, predicted); }
  void plan(const wavekv::frontier& nodes, std::span<wavekv::zone> zones) const {
    bound.plan(nodes, zones);
    plan_record record;
    record.place = nodes.place;
    record.head = nodes.head;
    record.level = nodes.level;
    record.group_size = nodes.group_size;
    record.n_clusters = nodes.n_clusters;
    record.n_tokens = nodes.n_tokens;
    record.n_steady_tokens = nodes.n_steady_tokens;
    record.zones.assign(zones.begin(), zones.end());
    record.size.assign(nodes.size().begin(), nodes.size().end());
    for (std::size_t g = 0; g < nodes.group_size; ++g) {
      record.share.insert(record.share.end(), nodes.share(g).begin(), nodes.share(g).end());
      record.error.insert(record.error.end(), nodes.error(g).begin(), nodes.error(g).end());
    }
    record.settled.assign(nodes.settled_squared_error().begin(),
                          nodes.settled_squared_error().end());
    log->push_back(std::move(record));
  }
};

}  // namespace wavekv_test
