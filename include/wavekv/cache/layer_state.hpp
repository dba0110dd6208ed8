// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <wavekv/cache/checks.hpp>
#include <wavekv/cache/statistics.hpp>
#include <wavekv/cache/token_rows.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/core/tensor_view.hpp>
#include <wavekv/index/cluster_covariance.hpp>
#include <wavekv/index/query_metric.hpp>
#include <wavekv/index/sealer.hpp>
#include <wavekv/index/search_input.hpp>

/// @file layer_state.hpp
/// @brief What one layer of one sequence holds: sink, sealed segments, tail.

namespace wavekv {

/// @brief A segment that is sealed over several decode steps, some chores in each; its tokens stay in the tail until
/// it is finished. Copyable: a fork goes on where its parent was.
template <scalar T, class Segment>
class seal_in_progress {
 public:
  /// @param due  tokens of the layer at which the first chores were due
  seal_in_progress(unfinished_segment<Segment> begun, std::size_t due) noexcept
      : segment(std::move(begun)), due_length(due) {}
  seal_in_progress(const seal_in_progress& other) : due_length(other.due_length) {
    segment.run = other.segment.run;
    segment.clusters = other.segment.clusters;
    segment.n_chores_done = other.segment.n_chores_done;
    segment.covariances = other.segment.covariances;
    const auto& from = other.segment.parts;
    auto& to = segment.parts;
    to.n_tokens = from.n_tokens;
    to.n_levels = from.n_levels;
    to.token_rows = copy(from.token_rows);
    to.heads.resize(from.heads.size());
    for (std::size_t head = 0; head < from.heads.size(); ++head) {
      to.heads[head].n_nodes = from.heads[head].n_nodes;
      to.heads[head].size = from.heads[head].size;
      to.heads[head].dispersion = from.heads[head].dispersion;
      to.heads[head].first_child = from.heads[head].first_child;
      to.heads[head].order = from.heads[head].order;
      to.heads[head].value_spread = from.heads[head].value_spread;
      for (std::size_t level = 0; level < max_tree_levels; ++level) {
        to.heads[head].rows[level] = copy(from.heads[head].rows[level]);
      }
    }
  }
  seal_in_progress(seal_in_progress&&) noexcept = default;
  seal_in_progress& operator=(const seal_in_progress& other) {
    *this = seal_in_progress(other);
    return *this;
  }
  seal_in_progress& operator=(seal_in_progress&&) noexcept = default;
  ~seal_in_progress() = default;

  /// @brief Bytes held.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t sum = segment.parts.token_rows.bytes();
    for (const auto& head : segment.parts.heads) {
      for (const auto& rows : head.rows) {
        sum += rows.bytes();
      }
    }
    for (const token_clusters& clusters : segment.clusters) {
      sum += clusters.assignment.capacity() * sizeof(std::uint32_t);
    }
    return sum;
  }

  unfinished_segment<Segment> segment;
  std::size_t due_length;

 private:
  static aligned_storage<T> copy(const aligned_storage<T>& from) {
    aligned_storage<T> to(from.size());
    if (from.size() != 0) {
      std::memcpy(to.data(), from.data(), from.bytes());
    }
    return to;
  }
};

/// @brief One (sequence, layer). Tokens in order: the sink's, the segments', the tail's.
/// Copying shares the segments and copies sink and tail: what a fork does.
template <scalar T, class Segment>
struct layer_state {
  token_rows<T> sink;
  std::vector<std::shared_ptr<const Segment>> segments;
  token_rows<T> tail;
  std::optional<seal_in_progress<T, Segment>> sealing;  ///< of the tail's oldest tokens
  std::vector<query_metric>
      metrics;  ///< [n_kv_heads], or empty when the clusterer does not ask for queries
  /// [n_kv_heads] how keys and values vary inside clusters, learnt from every segment sealed so far; null before the first
  std::shared_ptr<const std::vector<head_covariances>> covariances;
  std::vector<std::vector<used_cluster>>
      used;  ///< [n_kv_heads] read exactly by the last attend, where there is a slow tier
  bool prefetch_pays =
      true;               ///< whether half of what was last read ahead for that reason was wanted
  step_stats last;        ///< what the last attend did
  step_stats total;       ///< what all of them did
  std::size_t steps = 0;  ///< attend calls

  /// @brief Tokens held by sealed segments.
  [[nodiscard]] std::size_t n_sealed() const noexcept {
    return segments.empty()
               ? 0
               : segments.back()->first_token() + segments.back()->n_tokens() - sink.size();
  }

  /// @brief What the next attend should read ahead: nothing while that does not pay, but for a try from time to time (an
  /// eviction policy may have let these blocks go for good reasons).
  [[nodiscard]] std::span<const used_cluster> to_prefetch(std::size_t head) const noexcept {
    constexpr std::size_t steps_between_tries = 32;
    if (head >= used.size() || (!prefetch_pays && steps % steps_between_tries != 0)) {
      return {};
    }
    return used[head];
  }

  /// @brief Bytes of what was learnt from queries and sealed tokens.
  [[nodiscard]] std::size_t learnt_bytes() const noexcept {
    std::size_t sum = 0;
    for (const query_metric& metric : metrics) {
      sum += metric.bytes();
    }
    if (covariances != nullptr) {
      for (const head_covariances& head : *covariances) {
        for (const cluster_covariance& level : head) {
          sum += level.bytes();
        }
      }
    }
    return sum;
  }

  /// @brief Tokens held.
  [[nodiscard]] std::size_t length() const noexcept {
    return sink.size() + n_sealed() + tail.size();
  }
};

namespace detail {

/// @brief Writes the rows of new tokens behind the end of the tail, where they are not part of it yet.
/// Converts to the storage scalar.
/// @throw value_error when a finite input does not fit the scalar; std::bad_alloc. The tail's tokens are unchanged.
template <scalar T, class K, class V>
void stage_rows(token_rows<T>& tail, const tensor_view<K, 3>& keys,
                const tensor_view<V, 3>& values) {
  const std::size_t n = keys.extent(0);
  tail.reserve(tail.size() + n);
  const auto stage = [&](std::string_view name, const auto& rows, auto&& target) {
    const std::size_t dim = rows.extent(2);
    for (std::size_t head = 0; head < rows.extent(1); ++head) {
      T* to = target(head) + tail.size() * dim;
      for (std::size_t token = 0; token < n; ++token, to += dim) {
        const auto* from = &rows(token, head, 0U);
        convert_row(to, from, dim);
        const std::size_t bad = simd::all_finite(to, dim);
        if (bad != dim) {
          throw value_error(message(name, "[", token, ", ", head, ", ", bad, "] is ",
                                    to_float(from[bad]), "; allowed: finite numbers that fit ",
                                    scalar_traits<T>::name));
        }
      }
    }
  };
  stage("keys", keys, [&](std::size_t head) { return tail.keys(head); });
  stage("values", values, [&](std::size_t head) { return tail.values(head); });
}

/// @brief How many of the tokens that wait form the segment that is sealed next while decoding; 0: not enough of them.
///
/// Segments of a layer end at every decode size, counted from the sink, and layers take turns: the ends of layer l lie l
/// of n_layers parts of a segment later, so that no step seals all of them and no layer waits for its turn with a longer
/// tail. Where a prompt's last segment ends is arbitrary; the first one while decoding is therefore anything from half of
/// a segment to one and a half. When more than that waits, all of it becomes one segment.
/// @param first    tokens after the sink that are sealed already
/// @param pending  tokens beyond these and before the window
template <class SegmentSize>
constexpr std::size_t decode_seal_size(std::size_t first, std::size_t pending, std::size_t layer,
                                       std::size_t n_layers) noexcept {
  constexpr std::size_t whole = SegmentSize::decode;
  const std::size_t turn = whole * layer / n_layers;
  std::size_t size = whole - (first + whole - turn) % whole;
  if (2 * size < whole) {
    size += whole;
  }
  return pending < size ? 0 : size + (pending - size) / whole * whole;
}

}  // namespace detail
}  // namespace wavekv
