// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include <wavekv/attention/exact.hpp>
#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/cache/statistics.hpp>
#include <wavekv/cache/token_rows.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/frontier.hpp>
#include <wavekv/index/search_limits.hpp>
#include <wavekv/index/segment.hpp>
#include <wavekv/index/value_tilt.hpp>

/// @file group_search.hpp
/// @brief One query group's way through the index: score, plan, look up, attend, merge.

namespace wavekv {

/// @brief A partial softmax over memory of n_queries · (value_dim + 2) floats.
inline partial_softmax_view view_partial(float* memory, std::size_t n_queries,
                                         std::size_t value_dim) noexcept {
  return {memory, memory + n_queries, memory + 2 * n_queries, n_queries, value_dim, value_dim};
}

/// @brief What a search is about: one query token's query heads of one KV head, and what they may see.
/// Views only.
template <scalar T, class Handle>
struct search_input {
  std::span<const std::shared_ptr<const segment<T, Handle>>> segments;
  const token_rows<T>* sink = nullptr;
  const token_rows<T>* tail = nullptr;
  std::size_t n_visible_sink = 0;  ///< sink tokens up to and including the query's own
  std::size_t n_visible_tail = 0;  ///< tail tokens up to and including the query's own
  std::size_t head = 0;            ///< KV head
  std::size_t group_size = 1;
  std::size_t key_dim = 0;
  std::size_t value_dim = 0;
  float softcap = 0.0F;
  const head_tilts* tilts = nullptr;  ///< of this head, or null: none known
  const float* queries = nullptr;     ///< [group_size, key_dim], times the logit scale
};

/// @brief The state of one search, reused from step to step so that a step allocates nothing.
///
/// The work falls into *parts* (runs of the steady zone, then segments) that may be done by different
/// threads; each part has a partial softmax of its own, and they are merged in order of the parts, so
/// that the result does not depend on who did what. The stages, in order:
///
///   begin → scan(part)… → { plan → descend(part)… } per level → read(part)… → merge
///
/// scan estimates the top level *while* it scores it: what is opened later is subtracted again. An estimate
/// is at most some 55 times the exact mass that takes its place, so that few digits are lost.
template <scalar T, class Buffer>
class group_search {
 public:
  using reader_type = block_reader<T, Buffer>;
  using handle = typename reader_type::handle;
  using input_type = search_input<T, handle>;
  using lane_type = typename reader_type::lane_type;

  /// @brief One tree level's frontier: columns in segment order, families whole.
  struct level_state {
    std::size_t n_nodes = 0;
    std::vector<std::size_t> offset;   ///< [n_segments + 1] columns of each segment
    std::vector<std::uint32_t> node;   ///< [n_nodes] node id in its segment
    std::vector<const T*> value_mean;  ///< [n_nodes]
    std::vector<float> size;           ///< [n_nodes]
    std::vector<float> dispersion;     ///< [n_nodes]
    std::vector<float> logits;         ///< [group_size, n_nodes]
    std::vector<float> share;          ///< [group_size, n_nodes]
    std::vector<float> error;          ///< [group_size, n_nodes]
    std::vector<float> ranked_share;   ///< [n_nodes]
    std::vector<float> ranked_error;   ///< [n_nodes]
    std::vector<zone> zones;           ///< [n_nodes]
  };

  /// @brief Largest variance of a logit inside a node that errors are predicted from: e^variance stays finite.
  static constexpr float max_expected_variance = 24.0F;

  /// @brief Steady-zone tokens that one part covers.
  static constexpr std::size_t steady_part_tokens = 1024;

  /// @brief Widens limits so that they hold for an input, too. Complexity: O(segments).
  static void widen(search_limits& limits, const input_type& input) noexcept {
    const std::size_t n_steady = input.n_visible_sink + input.n_visible_tail;
    std::array<std::size_t, max_tree_levels> n_nodes{};
    for (const auto& segment : input.segments) {
      const head_index<T>& head = segment->head(input.head);
      for (std::size_t level = 0; level < segment->n_levels(); ++level) {
        n_nodes[level] += head.levels[level].n_nodes;
      }
      limits.n_segment_clusters =
          std::max<std::size_t>(limits.n_segment_clusters, head.levels[0].n_nodes);
    }
    std::size_t n_all_nodes = 0;
    for (std::size_t level = 0; level < max_tree_levels; ++level) {
      limits.n_nodes[level] = std::max(limits.n_nodes[level], n_nodes[level]);
      n_all_nodes += n_nodes[level];
    }
    limits.n_all_nodes = std::max(limits.n_all_nodes, n_all_nodes);
    limits.n_segments = std::max(limits.n_segments, input.segments.size());
    limits.n_parts =
        std::max(limits.n_parts,
                 (n_steady + steady_part_tokens - 1) / steady_part_tokens + input.segments.size());
    limits.group_size = std::max(limits.group_size, input.group_size);
    limits.value_dim = std::max(limits.value_dim, input.value_dim);
  }

  /// @brief Makes room for any search within the limits, so that which nodes a plan opens, and which worker
  /// gets which search, decide nothing about allocation. A quarter more than asked for, when there is too little.
  /// @throw std::bad_alloc
  void reserve(const search_limits& limits) {
    const std::size_t grouped = limits.group_size;
    reserve_room(partials_, limits.n_parts * grouped * (limits.value_dim + 2));
    reserve_room(part_stats_, limits.n_parts);
    for (auto* array :
         {&query_norms_, &log_normalizer_, &output_norm_, &settled_float_, &dropped_}) {
      reserve_room(*array, grouped);
    }
    reserve_room(settled_, grouped);
    reserve_room(merged_, grouped * (limits.value_dim + 2));
    reserve_room(tilt_share_, max_tree_levels * grouped);
    reserve_room(tilt_normalizer_, max_tree_levels * grouped);
    reserve_room(tilts_, max_tree_levels * grouped * limits.value_dim);
    for (std::size_t level = 0; level < max_tree_levels; ++level) {
      level_state& state = levels_[level];
      const std::size_t n = limits.n_nodes[level];
      reserve_room(state.offset, limits.n_segments + 1);
      reserve_room(state.node, n);
      reserve_room(state.value_mean, n);
      reserve_room(state.size, n);
      reserve_room(state.dispersion, n);
      reserve_room(state.ranked_share, n);
      reserve_room(state.ranked_error, n);
      reserve_room(state.zones, n);
      reserve_room(state.logits, n * grouped);
      reserve_room(state.share, n * grouped);
      reserve_room(state.error, n * grouped);
    }
  }

  /// @brief Takes a new input. Complexity: O(parts). Allocates: nothing within the limits reserved.
  void begin(const input_type& input) {
    input_ = input;
    n_steady_parts_ = (n_steady_tokens() + steady_part_tokens - 1) / steady_part_tokens;
    partials_.resize(n_parts() * partial_floats());
    part_stats_.assign(n_parts(), step_stats{});
    for (std::size_t part = 0; part < n_parts(); ++part) {
      reset(partial(part));
    }
    query_norms_.resize(input_.group_size);
    for (std::size_t g = 0; g < input_.group_size; ++g) {
      const float* q = input_.queries + g * input_.key_dim;
      float squared = 0.0F;
      for (std::size_t i = 0; i < input_.key_dim; ++i) {
        squared += q[i] * q[i];
      }
      query_norms_[g] = squared;
    }
    settled_.assign(input_.group_size, 0.0);
    dropped_.assign(input_.group_size, 0.0F);
    tilt_share_.assign(max_tree_levels * input_.group_size, 0.0F);
    tilt_normalizer_.assign(max_tree_levels * input_.group_size, 0.0F);
    n_levels_ = 0;
    n_tokens_ = 0;
    n_clusters_ = 0;
    for (const auto& segment : input_.segments) {
      n_levels_ = std::max(n_levels_, segment->n_levels());
      n_tokens_ += segment->n_tokens();
      n_clusters_ += segment->head(input_.head).levels[0].n_nodes;
    }
    stats_ = {};
    stats_.groups = 1;
    stats_.rounds = 1;
    stats_.tokens_held = n_steady_tokens() + n_tokens_;
    stats_.tokens_read = n_steady_tokens();
    stats_.bytes_read = n_steady_tokens() * row_bytes();
  }

  [[nodiscard]] std::size_t n_parts() const noexcept {
    return n_steady_parts_ + input_.segments.size();
  }
  [[nodiscard]] std::size_t n_levels() const noexcept { return n_levels_; }

  /// @brief Reads every token of the part. The whole search of a bound that reads everything.
  void scan_all(std::size_t part, reader_type& reader, lane_type& lane,
                std::vector<block>& blocks) {
    if (part < n_steady_parts_) {
      attend_steady(part);
      return;
    }
    const auto& segment = *input_.segments[part - n_steady_parts_];
    const std::uint32_t n_clusters = segment.head(input_.head).levels[0].n_nodes;
    blocks.clear();
    for (std::uint32_t cluster = 0; cluster < n_clusters; ++cluster) {
      blocks.push_back(segment.cluster_block(input_.head, cluster));
    }
    read_blocks(part, reader, lane, blocks, [] {});
  }

  /// @brief Reserves the frontier of the top level. Comes before scan of a bound that plans.
  void open_top() {
    level_state& top = levels_[n_levels_ == 0 ? 0 : n_levels_ - 1];
    top.offset.assign(1, 0);
    for (const auto& segment : input_.segments) {
      top.offset.push_back(top.offset.back() +
                           segment->head(input_.head).levels[segment->n_levels() - 1].n_nodes);
    }
    resize(top);
  }

  /// @brief Attends the part's steady tokens, or scores and estimates the top level of its segment.
  /// @tparam Accumulate  false for bounds that drop: estimates are then added once it is known which stay
  template <bool Accumulate>
  void scan(std::size_t part) {
    if (part < n_steady_parts_) {
      attend_steady(part);
      return;
    }
    const std::size_t s = part - n_steady_parts_;
    const std::size_t level = n_levels_ - 1;
    const std::uint32_t n_nodes = input_.segments[s]->head(input_.head).levels[level].n_nodes;
    score_family<Accumulate>(part, level, 0, n_nodes, levels_[level].offset[s]);
  }

  /// @brief Asks the bound about one level's frontier and lays out the next one.
  template <class Bound>
  void plan(std::size_t level, const Bound& bound) {
    level_state& state = levels_[level];
    if (state.n_nodes == 0) {
      close(level);
      return;
    }
    constexpr bool accumulated = !detail::drops<Bound>();
    update_output<accumulated>(state);
    fill_shares<detail::bound_ranking_t<Bound>>(state);
    frontier nodes;
    nodes.level = level;
    nodes.n_nodes = state.n_nodes;
    nodes.group_size = input_.group_size;
    nodes.n_clusters = n_clusters_;
    nodes.n_tokens = n_tokens_;
    nodes.n_steady_tokens = n_steady_tokens();
    nodes.size_data = state.size.data();
    nodes.share_data = state.share.data();
    nodes.error_data = state.error.data();
    nodes.ranked_share_data = state.ranked_share.data();
    nodes.ranked_error_data = state.ranked_error.data();
    settled_float_.assign(settled_.begin(), settled_.end());
    nodes.settled_data = settled_float_.data();
    std::fill_n(state.zones.begin(), state.n_nodes, zone::estimation);
    bound.plan(nodes, std::span<zone>(state.zones.data(), state.n_nodes));
    settle(level);
    close(level);
  }

  /// @brief Opens the part's nodes that the plan of `level` (above 0) chose, and estimates their children.
  template <bool Accumulate>
  void descend(std::size_t part, std::size_t level) {
    if (part < n_steady_parts_) {
      return;
    }
    const std::size_t s = part - n_steady_parts_;
    const level_state& state = levels_[level];
    correct_estimates<Accumulate>(part, level);
    const tree_level<T>& tree = input_.segments[s]->head(input_.head).levels[level];
    std::size_t column = levels_[level - 1].offset[s];
    for (std::size_t i = state.offset[s]; i < state.offset[s + 1]; ++i) {
      if (state.zones[i] == zone::retrieval) {
        const std::uint32_t first = tree.first_child[state.node[i]];
        const std::uint32_t last = tree.first_child[state.node[i] + 1];
        score_family<Accumulate>(part, level - 1, first, last, column);
        column += last - first;
      }
    }
  }

  /// @brief Reads the clusters of the part's retrieval zone; corrects the estimates while blocks travel.
  template <bool Accumulate>
  void read(std::size_t part, reader_type& reader, lane_type& lane, std::vector<block>& blocks) {
    if (part < n_steady_parts_) {
      return;
    }
    const std::size_t s = part - n_steady_parts_;
    const level_state& state = levels_[0];
    blocks.clear();
    for (std::size_t i = state.offset[s]; i < state.offset[s + 1]; ++i) {
      if (state.zones[i] == zone::retrieval) {
        blocks.push_back(input_.segments[s]->cluster_block(input_.head, state.node[i]));
      }
    }
    read_blocks(part, reader, lane, blocks, [&] { correct_estimates<Accumulate>(part, 0); });
  }

  /// @brief Merges the parts, in their order, into `into`, which is reset first.
  void merge(const partial_softmax_view& into) {
    merge_parts(into);
    tilts_.resize(max_tree_levels * input_.group_size * input_.value_dim);
    for (std::size_t level = 0; level < n_levels_; ++level) {
      if (has_tilt(level)) {
        add_tilt(level, into);
      }
    }
  }

  /// @brief What the search did; valid after merge.
  [[nodiscard]] step_stats stats() const {
    step_stats sum = stats_;
    for (const step_stats& part : part_stats_) {
      sum += part;
    }
    for (std::size_t g = 0; g < input_.group_size; ++g) {
      sum.predicted_error =
          std::max(sum.predicted_error, static_cast<float>(std::sqrt(settled_[g])));
      sum.dropped_mass = std::max(sum.dropped_mass, dropped_[g]);
    }
    return sum;
  }

  [[nodiscard]] const input_type& input() const noexcept { return input_; }
  [[nodiscard]] const level_state& level(std::size_t l) const noexcept { return levels_[l]; }
  [[nodiscard]] step_stats& own_stats() noexcept { return stats_; }

  /// @brief Variance of a logit inside a node of a level's frontier, as errors are predicted from it.
  ///
  /// Under a softcap the centroid may be saturated where the tokens are not: the slope at the centroid, which
  /// the estimate itself uses, would then promise an estimate without error. Capped logits lie in [-cap, cap],
  /// and so does their variance below cap² (Popoviciu). Otherwise the limit lies well above that of the
  /// estimate's own correction: what the correction leaves out is an error to expect.
  [[nodiscard]] float variance(const level_state& state, std::size_t g,
                               std::size_t i) const noexcept {
    const float variance = std::min(query_norms_[g] * state.dispersion[i], max_expected_variance);
    return input_.softcap > 0.0F ? std::min(variance, input_.softcap * input_.softcap) : variance;
  }

  /// @brief The dispersion as far as an estimate follows it: where the variance is cut off for the mass, it is for
  /// the value, too. A tilt of second order extrapolates far outside of the node's values otherwise.
  [[nodiscard]] float followed_dispersion(std::size_t g, float dispersion) const noexcept {
    return query_norms_[g] * dispersion > max_logit_variance ? max_logit_variance / query_norms_[g]
                                                             : dispersion;
  }

  /// @brief Direction in which estimates of a level tilt for query head g, per unit of dispersion
  /// [value_dim]; null when none is known. Valid after merge.
  [[nodiscard]] const float* tilt(std::size_t level, std::size_t g) const noexcept {
    return has_tilt(level) ? tilts_.data() + (level * input_.group_size + g) * input_.value_dim
                           : nullptr;
  }

 private:
  [[nodiscard]] std::size_t n_steady_tokens() const noexcept {
    return input_.n_visible_sink + input_.n_visible_tail;
  }
  [[nodiscard]] std::size_t row_bytes() const noexcept {
    return (input_.key_dim + input_.value_dim) * sizeof(T);
  }
  [[nodiscard]] query_rows queries() const noexcept {
    return {input_.queries, input_.group_size, input_.key_dim, input_.key_dim};
  }
  [[nodiscard]] std::size_t partial_floats() const noexcept {
    return input_.group_size * (input_.value_dim + 2);
  }
  [[nodiscard]] partial_softmax_view partial(std::size_t part) const noexcept {
    return view_partial(partials_.data() + part * partial_floats(), input_.group_size,
                        input_.value_dim);
  }

  void merge_parts(const partial_softmax_view& into) const {
    reset(into);
    for (std::size_t part = 0; part < n_parts(); ++part) {
      wavekv::merge(into, partial(part));
    }
  }

  // A softcap bends the logits, and with them the tilt: it is left out then.
  [[nodiscard]] bool has_tilt(std::size_t level) const noexcept {
    return input_.tilts != nullptr && !(*input_.tilts)[level].slope.empty() &&
           input_.softcap == 0.0F;
  }

  // Moves the numerators by what the value means of a level's estimates lack: see value_tilt.
  void add_tilt(std::size_t level, const partial_softmax_view& into) {
    float* tilts = tilts_.data() + level * input_.group_size * input_.value_dim;
    std::fill_n(tilts, input_.group_size * input_.value_dim, 0.0F);
    simd::add_weighted_rows(input_.queries, input_.group_size, input_.key_dim,
                            (*input_.tilts)[level].slope.data(), input_.key_dim, input_.value_dim,
                            tilts, input_.value_dim);
    for (std::size_t g = 0; g < input_.group_size; ++g) {
      const std::size_t at = level * input_.group_size + g;
      if (tilt_share_[at] > 0.0F && !into.is_empty(g)) {
        simd::add_scaled(tilts + g * input_.value_dim, input_.value_dim,
                         tilt_share_[at] * std::exp(tilt_normalizer_[at] - into.max[g]),
                         into.numerator_of(g));
      }
    }
  }

  void resize(level_state& state) {
    state.n_nodes = state.offset.back();
    const std::size_t n = state.n_nodes;
    const std::size_t grouped = n * input_.group_size;
    const auto grow = [](auto& array, std::size_t size) {
      if (array.size() < size) {
        array.resize(size);
      }
    };
    grow(state.node, n);
    grow(state.value_mean, n);
    grow(state.size, n);
    grow(state.dispersion, n);
    grow(state.ranked_share, n);
    grow(state.ranked_error, n);
    grow(state.zones, n);
    grow(state.logits, grouped);
    grow(state.share, grouped);
    grow(state.error, grouped);
  }

  void attend_steady(std::size_t part) {
    const std::size_t first = part * steady_part_tokens;
    const std::size_t last = std::min(first + steady_part_tokens, n_steady_tokens());
    const std::size_t n_sink = input_.n_visible_sink;
    const auto attend = [&](const token_rows<T>& rows, std::size_t from, std::size_t to) {
      if (from < to) {
        attend_rows(queries(), rows.keys(input_.head) + from * input_.key_dim,
                    rows.values(input_.head) + from * input_.value_dim, to - from, input_.softcap,
                    partial(part));
      }
    };
    attend(*input_.sink, std::min(first, n_sink), std::min(last, n_sink));
    attend(*input_.tail, std::max(first, n_sink) - n_sink, std::max(last, n_sink) - n_sink);
  }

  template <class Meanwhile>
  void read_blocks(std::size_t part, reader_type& reader, lane_type& lane,
                   const std::vector<block>& blocks, Meanwhile&& meanwhile) {
    const auto& segment = *input_.segments[part - n_steady_parts_];
    const std::size_t width = input_.key_dim + input_.value_dim;
    step_stats& stats = part_stats_[part];
    const read_counts counts = reader.read(
        segment.rows(), blocks, lane,
        [&](std::size_t i, const T* rows, const T* next) {
          const std::size_t n = blocks[i].n_elements / width;
          attend_rows(queries(), rows, rows + n * input_.key_dim, n, input_.softcap, partial(part),
                      next);
          stats.tokens_read += n;
          stats.bytes_read += n * row_bytes();
        },
        std::forward<Meanwhile>(meanwhile));
    stats.clusters_read += blocks.size();
    stats.hits += counts.hits;
    stats.misses += counts.misses;
    stats.bytes_moved += counts.bytes_moved;
  }

  // Scores the family [first, last) of one level into the frontier's columns from `column` on.
  template <bool Accumulate>
  void score_family(std::size_t part, std::size_t level, std::uint32_t first, std::uint32_t last,
                    std::size_t column) {
    level_state& state = levels_[level];
    const tree_level<T>& tree =
        input_.segments[part - n_steady_parts_]->head(input_.head).levels[level];
    const std::size_t n = last - first;
    const T* centroids = tree.rows + first * (input_.key_dim + input_.value_dim);
    const T* value_means = centroids + n * input_.key_dim;
    float* logits = state.logits.data() + column;
    const summary_rows<float, T> summaries{
        centroids, value_means, tree.size + first, tree.dispersion + first, n, 0};
    if constexpr (Accumulate) {
      estimate_rows(queries(), query_norms_.data(), summaries, input_.softcap, logits,
                    state.n_nodes, partial(part));
    } else {
      score_summaries(queries(), query_norms_.data(), summaries, input_.softcap, logits,
                      state.n_nodes);
    }
    for (std::size_t i = 0; i < n; ++i) {
      state.node[column + i] = first + static_cast<std::uint32_t>(i);
      state.value_mean[column + i] = value_means + i * input_.value_dim;
      state.size[column + i] = tree.size[first + i];
      state.dispersion[column + i] = tree.dispersion[first + i];
    }
    part_stats_[part].summaries_read += n;
    part_stats_[part].bytes_read += n * (row_bytes() + 2 * sizeof(float));
  }

  // The normaliser and the norm of the output as known so far, per query head.
  template <bool Accumulated>
  void update_output(const level_state& state) {
    merged_.resize(partial_floats());
    const partial_softmax_view all =
        view_partial(merged_.data(), input_.group_size, input_.value_dim);
    merge_parts(all);
    log_normalizer_.resize(input_.group_size);
    output_norm_.resize(input_.group_size);
    for (std::size_t g = 0; g < input_.group_size; ++g) {
      double squared = 0.0;
      for (std::size_t i = 0; i < input_.value_dim; ++i) {
        const double x = static_cast<double>(all.numerator_of(g)[i]);
        squared += x * x;
      }
      const float denominator = all.denominator[g];
      output_norm_[g] =
          denominator > 0.0F ? static_cast<float>(std::sqrt(squared)) / denominator : 0.0F;
      log_normalizer_[g] = log_sum_exp(all, g);
      if constexpr (!Accumulated) {
        log_normalizer_[g] = log_sum(log_normalizer_[g], state, g);
      }
    }
  }

  static float log_sum(float start, const level_state& state, std::size_t g) {
    const float* logits = state.logits.data() + g * state.n_nodes;
    float largest = start;
    for (std::size_t i = 0; i < state.n_nodes; ++i) {
      largest = std::max(largest, logits[i]);
    }
    double sum = std::exp(static_cast<double>(start) - static_cast<double>(largest));
    for (std::size_t i = 0; i < state.n_nodes; ++i) {
      sum += static_cast<double>(state.size[i] * std::exp(logits[i] - largest));
    }
    return largest + static_cast<float>(std::log(sum));
  }

  // Expected error of an estimate relative to the node's mass: the scatter of a mean of `size` log-normal
  // weights, and half the bias that the variance's correction takes away, for what it leaves of it.
  static float estimate_error(float variance, float size) noexcept {
    const float scatter = std::expm1(variance) / size;
    const float bias = 0.5F * std::expm1(0.5F * variance);
    return std::sqrt(scatter + bias * bias);
  }

  template <class Ranking>
  void fill_shares(level_state& state) {
    const float spread = value_spread();
    for (std::size_t g = 0; g < input_.group_size; ++g) {
      const float* logits = state.logits.data() + g * state.n_nodes;
      float* share = state.share.data() + g * state.n_nodes;
      float* error = state.error.data() + g * state.n_nodes;
      // How long a value's deviation is beside the output it disturbs; an output of length zero is
      // measured by the values themselves.
      const float relative = output_norm_[g] > 1e-6F * spread ? spread / output_norm_[g] : 1.0F;
      for (std::size_t i = 0; i < state.n_nodes; ++i) {
        share[i] = state.size[i] * std::exp(logits[i] - log_normalizer_[g]);
        error[i] = relative * share[i] * estimate_error(variance(state, g, i), state.size[i]);
      }
      for (std::size_t i = 0; i < state.n_nodes; ++i) {
        state.ranked_share[i] =
            g == 0 ? share[i] : Ranking::combine(state.ranked_share[i], share[i]);
        state.ranked_error[i] =
            g == 0 ? error[i] : Ranking::combine(state.ranked_error[i], error[i]);
      }
    }
  }

  [[nodiscard]] float value_spread() const noexcept {
    double squared = 0.0;
    for (const auto& segment : input_.segments) {
      const auto spread = static_cast<double>(segment->head(input_.head).value_spread);
      squared += spread * spread * static_cast<double>(segment->n_tokens());
    }
    return static_cast<float>(
        std::sqrt(squared / static_cast<double>(std::max<std::size_t>(n_tokens_, 1))));
  }

  // Books what stays at this level: predicted error of the estimated, mass of the dropped.
  void settle(std::size_t level) {
    const level_state& state = levels_[level];
    for (std::size_t i = 0; i < state.n_nodes; ++i) {
      stats_.clusters_estimated += state.zones[i] == zone::estimation ? 1 : 0;
      stats_.clusters_dropped += state.zones[i] == zone::dropped ? 1 : 0;
    }
    for (std::size_t g = 0; g < input_.group_size; ++g) {
      const float* error = state.error.data() + g * state.n_nodes;
      const float* share = state.share.data() + g * state.n_nodes;
      float tilted = 0.0F;
      for (std::size_t i = 0; i < state.n_nodes; ++i) {
        if (state.zones[i] == zone::estimation) {
          settled_[g] += static_cast<double>(error[i]) * static_cast<double>(error[i]);
          tilted += share[i] * followed_dispersion(g, state.dispersion[i]);
        } else if (state.zones[i] == zone::dropped) {
          dropped_[g] += share[i];
        }
      }
      tilt_share_[level * input_.group_size + g] = tilted;
      tilt_normalizer_[level * input_.group_size + g] = log_normalizer_[g];
    }
  }

  // Lays out the frontier below: the children of all opened nodes, in segment order.
  void close(std::size_t level) {
    if (level == 0) {
      return;
    }
    const level_state& state = levels_[level];
    level_state& below = levels_[level - 1];
    below.offset.assign(1, 0);
    for (std::size_t s = 0; s < input_.segments.size(); ++s) {
      const tree_level<T>& tree = input_.segments[s]->head(input_.head).levels[level];
      std::size_t n = below.offset.back();
      for (std::size_t i = state.offset[s]; i < state.offset[s + 1]; ++i) {
        if (state.zones[i] == zone::retrieval) {
          n += tree.first_child[state.node[i] + 1] - tree.first_child[state.node[i]];
        }
      }
      below.offset.push_back(n);
    }
    resize(below);
  }

  // Accumulated estimates: takes those of opened nodes out. Otherwise: adds those of the estimation zone.
  template <bool Accumulated>
  void correct_estimates(std::size_t part, std::size_t level) {
    const std::size_t s = part - n_steady_parts_;
    const level_state& state = levels_[level];
    const partial_softmax_view sum = partial(part);
    constexpr zone wanted = Accumulated ? zone::retrieval : zone::estimation;
    for (std::size_t i = state.offset[s]; i < state.offset[s + 1]; ++i) {
      if (state.zones[i] != wanted) {
        continue;
      }
      accumulate_rows(state.logits.data() + i, state.n_nodes, state.size.data() + i,
                      state.value_mean[i], 1,
                      Accumulated ? accumulation::subtract : accumulation::add, sum);
    }
  }

  input_type input_{};
  std::size_t n_steady_parts_ = 0;
  std::size_t n_levels_ = 0;
  std::size_t n_tokens_ = 0;
  std::size_t n_clusters_ = 0;
  std::array<level_state, max_tree_levels> levels_;
  mutable std::vector<float> partials_;
  std::vector<float> merged_;
  std::vector<float> query_norms_;
  std::vector<float> log_normalizer_;
  std::vector<float> output_norm_;
  std::vector<double> settled_;
  std::vector<float> settled_float_;
  std::vector<float> dropped_;
  std::vector<float> tilt_share_;  // [level, group_size] sum of share · dispersion of the estimated
  std::vector<float>
      tilt_normalizer_;       // [level, group_size] the log normaliser those shares refer to
  std::vector<float> tilts_;  // [level, group_size, value_dim]
  std::vector<step_stats> part_stats_;
  step_stats stats_;
};

}  // namespace wavekv
