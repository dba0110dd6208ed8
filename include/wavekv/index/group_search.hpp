// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/attention/exact.hpp>
#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/cache/statistics.hpp>
#include <wavekv/cache/token_rows.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/family_stretches.hpp>
#include <wavekv/index/frontier_level.hpp>
#include <wavekv/index/query_leaning.hpp>
#include <wavekv/index/search_input.hpp>
#include <wavekv/index/search_limits.hpp>
#include <wavekv/index/segment.hpp>
#include <wavekv/index/zone_planner.hpp>

/// @file group_search.hpp
/// @brief One query group's way through the index: score, plan, look up, attend, merge.

namespace wavekv {

/// @brief A partial softmax over memory of n_queries · (value_dim + 2) floats.
inline partial_softmax_view view_partial(float* memory, std::size_t n_queries,
                                         std::size_t value_dim) noexcept {
  return {memory, memory + n_queries, memory + 2 * n_queries, n_queries, value_dim, value_dim};
}

/// @brief The state of one search, reused from step to step so that a step allocates nothing.
///
/// The work falls into *parts* (runs of the steady zone, then segments) that may be done by different
/// threads; each part has a partial softmax of its own, and they are merged in order of the parts, so
/// that the result does not depend on who did what (blocks that come from a slow tier are added as they come: which
/// ones, and in what order, changes the rounding). The stages, in order:
///
///   begin → scan(part)… → { plan → descend(part)… } per level → look_up → read(part)… → arrive → merge → close
///
/// scan estimates the top level *while* it scores it: what is opened later is subtracted again. An estimate
/// is at most some 55 times the exact mass that takes its place, so that few digits are lost.
/// @tparam T        storage scalar
/// @tparam Buffer   a wave_buffer
/// @tparam Summary  what clusters are scored by
template <scalar T, class Buffer, class Summary = mean_summary>
class group_search {
 public:
  using reader_type = block_reader<T, Buffer>;
  using handle = typename reader_type::handle;
  using input_type = search_input<T, handle>;
  using lane_type = typename reader_type::lane_type;

  using level_type = frontier_level<T>;

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
    limits.key_dim = std::max(limits.key_dim, input.key_dim);
    limits.value_dim = std::max(limits.value_dim, input.value_dim);
  }

  /// @brief Makes room for any search within the limits, so that which nodes a plan opens, and which worker
  /// gets which search, decide nothing about allocation. A quarter more than asked for, when there is too little.
  /// @throw std::bad_alloc
  void reserve(const search_limits& limits) {
    const std::size_t partial_floats = limits.group_size * (limits.value_dim + 2);
    reserve_room(partials_, limits.n_parts * partial_floats);
    reserve_room(part_stats_, limits.n_parts);
    reserve_room(merged_, partial_floats);
    reserve_room(first_run_, limits.n_segments + 1);
    if constexpr (reader_type::always_fast) {
      lane_.reserve(limits.n_nodes[0]);  // else memory matters more than a step that allocates
    }
    leaning_.reserve(limits);
    planner_.reserve(limits);
    for (std::size_t level = 0; level < max_tree_levels; ++level) {
      levels_[level].reserve(limits, level);
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
    n_levels_ = 0;
    planned_ = false;
    reader_type::open(lane_);
    std::size_t n_sealed = 0;
    for (const auto& segment : input_.segments) {
      n_levels_ = std::max(n_levels_, segment->n_levels());
      n_sealed += segment->n_tokens();
    }
    stats_ = {};
    stats_.groups = 1;
    stats_.rounds = 1;
    stats_.tokens_held = n_steady_tokens() + n_sealed;
    stats_.tokens_read = n_steady_tokens();
    stats_.bytes_read = n_steady_tokens() * row_bytes();
  }

  [[nodiscard]] std::size_t n_parts() const noexcept {
    return n_steady_parts_ + input_.segments.size();
  }
  [[nodiscard]] std::size_t n_levels() const noexcept { return n_levels_; }

  /// @brief Reads every token of the part, with a lane of the caller's. The whole search of a bound that reads everything.
  void scan_all(std::size_t part, reader_type& reader, lane_type& lane) {
    if (part < n_steady_parts_) {
      attend_steady(part);
      return;
    }
    const auto& segment = *input_.segments[part - n_steady_parts_];
    const std::uint32_t n_clusters = segment.head(input_.head).levels[0].n_nodes;
    reader.open(lane);
    try {
      for (std::uint32_t cluster = 0; cluster < n_clusters; ++cluster) {
        want(part, cluster, reader, lane);
      }
      reader.start(lane);
      attend(lane.runs, part);
      attend_arrivals(reader, lane);
    } catch (...) {
      reader.abandon(lane);
      throw;
    }
    part_stats_[part] += counted(reader.close(lane));
  }

  /// @brief Starts the reads of clusters that the step before used and that are not in the fast tier. Comes after begin; to
  /// be ended by close, or abandon.
  void prefetch(reader_type& reader) {
    used_again_.clear();
    for (const used_cluster& one : input_.used) {
      if (is_there(one, input_.segments, input_.head)) {
        used_again_.push_back(one);
      }
    }
    reader.prefetch(lane_, used_again_.size(), [&](std::size_t i) {
      const auto& segment = *input_.segments[used_again_[i].place];
      return std::pair(&segment.rows(), segment.cluster_block(input_.head, used_again_[i].cluster));
    });
  }

  /// @brief The clusters that were read exactly, in order; valid between plan of level 0 and the next begin.
  void list_used(std::vector<used_cluster>& to) const {
    to.clear();
    const level_type& state = levels_[0];
    for (std::size_t s = 0; planned_ && s < input_.segments.size(); ++s) {
      for (std::size_t i = state.offset[s]; i < state.offset[s + 1]; ++i) {
        if (state.zones[i] == zone::retrieval) {
          to.push_back({input_.segments[s].get(), static_cast<std::uint32_t>(s), state.node[i]});
        }
      }
    }
  }

  /// @brief Lays out the frontier of the top level, and learns what clusters look like along the queries. Comes after
  /// begin, before scan, of a bound that plans.
  void open_top() {
    const head_covariances* const known =
        detail::scores_clusters<Summary> ? nullptr : input_.covariances;
    leaning_.begin(known, queries(), n_levels_, input_.value_dim, input_.softcap);
    planner_.begin(index_facts());
    planned_ = true;
    level_type& top = levels_[n_levels_ == 0 ? 0 : n_levels_ - 1];
    top.offset.assign(1, 0);
    for (const auto& segment : input_.segments) {
      top.offset.push_back(top.offset.back() +
                           segment->head(input_.head).levels[segment->n_levels() - 1].n_nodes);
    }
    top.resize(input_.group_size);
  }

  /// @brief Attends the part's steady tokens, or scores and estimates the top level of its segment.
  /// @tparam Accumulate  false for bounds that drop: estimates are then added once it is known which stay
  template <bool Accumulate>
  void scan(std::size_t part) {
    if (part < n_steady_parts_) {
      attend_steady(part);
      return;
    }
    if constexpr (detail::scores_clusters<Summary>) {
      scan_kept<Accumulate>(part);
      return;
    }
    const std::size_t s = part - n_steady_parts_;
    const std::size_t level = n_levels_ - 1;
    const tree_level<T>& tree = input_.segments[s]->head(input_.head).levels[level];
    const summary_rows<float, T> summaries =
        enter_family(part, level, 0, tree.n_nodes, levels_[level].offset[s]);
    std::size_t next = s;
    auto top_of_next = [&](simd::stretch& to) {
      if (next == input_.segments.size()) {
        return false;
      }
      const tree_level<T>& of_next = input_.segments[next++]->head(input_.head).levels[level];
      to = {of_next.rows, of_next.n_nodes * row_bytes()};
      return true;
    };
    simd::read_ahead then(top_of_next);
    level_type& state = levels_[level];
    float* logits = state.logits.data() + state.offset[s];
    if constexpr (Accumulate) {
      estimate_rows(queries(), leaning_.variances(level), summaries, input_.softcap, logits,
                    state.n_nodes, partial(part), &then);
    } else {
      score_summaries(queries(), leaning_.variances(level), summaries, input_.softcap, logits,
                      state.n_nodes, &then);
    }
  }

  /// @brief Asks the bound about one level's frontier and lays out the next one.
  template <class Bound>
  void plan(std::size_t level, const Bound& bound) {
    level_type& state = levels_[level];
    if (state.n_nodes != 0) {
      merged_.resize(partial_floats());
      const partial_softmax_view so_far =
          view_partial(merged_.data(), input_.group_size, input_.value_dim);
      merge_parts(so_far);
      planner_.plan(level, state, so_far, bound, leaning_);
      const std::span<const zone> zones(state.zones.data(), state.n_nodes);
      stats_.clusters_estimated +=
          static_cast<std::uint64_t>(std::ranges::count(zones, zone::estimation));
      stats_.clusters_dropped +=
          static_cast<std::uint64_t>(std::ranges::count(zones, zone::dropped));
    }
    close(level);
  }

  /// @brief Opens the part's nodes that the plan of `level` (above 0) chose, and estimates their children.
  template <bool Accumulate>
  void descend(std::size_t part, std::size_t level) {
    if (part < n_steady_parts_) {
      return;
    }
    const std::size_t s = part - n_steady_parts_;
    const level_type& state = levels_[level];
    correct_estimates<Accumulate>(part, level);
    const tree_level<T>& tree = input_.segments[s]->head(input_.head).levels[level];
    level_type& below = levels_[level - 1];
    const std::size_t first_column = below.offset[s];
    family_stretches<input_type, T, Accumulate> order(input_, state, s, level);
    simd::read_ahead then(order);
    std::size_t column = first_column;
    for (std::size_t i = state.next_opened(s, state.offset[s]); i < state.offset[s + 1];
         i = state.next_opened(s, i + 1)) {
      const std::uint32_t first = tree.first_child[state.node[i]];
      const std::uint32_t last = tree.first_child[state.node[i] + 1];
      const summary_rows<float, T> family = enter_family(part, level - 1, first, last, column);
      score_summaries(queries(), leaning_.variances(level - 1), family, input_.softcap,
                      below.logits.data() + column, below.n_nodes, &then);
      column += family.n;
    }
    if constexpr (Accumulate) {
      accumulate_rows_at(below.logits.data() + first_column, below.n_nodes,
                         below.size.data() + first_column, below.value_mean.data() + first_column,
                         column - first_column, accumulation::add, partial(part), &then);
    }
  }

  /// @brief Looks up the clusters of the retrieval zone, all parts', and starts the reads of those that are not in the
  /// fast tier. To be ended by close, or abandon.  @throw io_error
  void look_up(reader_type& reader) {
    const level_type& state = levels_[0];
    first_run_.assign(1, 0);
    for (std::size_t s = 0; s < input_.segments.size(); ++s) {
      for (std::size_t i = state.offset[s]; i < state.offset[s + 1]; ++i) {
        if (state.zones[i] == zone::retrieval) {
          want(n_steady_parts_ + s, state.node[i], reader, lane_);
        }
      }
      first_run_.push_back(lane_.runs.size());
    }
    reader.start(lane_);
  }

  /// @brief Corrects the part's estimates, and attends those of its clusters that were in the fast tier.
  template <bool Accumulate>
  void read(std::size_t part) {
    if (part < n_steady_parts_) {
      return;
    }
    const std::size_t s = part - n_steady_parts_;
    correct_estimates<Accumulate>(part, 0);
    attend(std::span(lane_.runs).subspan(first_run_[s], first_run_[s + 1] - first_run_[s]), part);
  }

  /// @brief Attends the clusters that come from the slow tier, as they come.
  /// Blocks: until all have.  @throw io_error
  void arrive(reader_type& reader) { attend_arrivals(reader, lane_); }

  /// @brief Ends what look_up began, once all is attended. May come after merge: what arrived is then offered to the block
  /// cache off the critical path.
  void close(reader_type& reader) noexcept { (void)reader.close(lane_); }

  /// @brief Ends what look_up began, wherever it is.
  void abandon(reader_type& reader) noexcept { reader.abandon(lane_); }

  /// @brief Merges the parts, in their order, into `into`, which is reset first.
  void merge(const partial_softmax_view& into) {
    merge_parts(into);
    if (planned_) {
      leaning_.add_tilts(into);
    }
  }

  /// @brief What the search did; valid after merge.
  [[nodiscard]] step_stats stats() const {
    step_stats sum = stats_;
    sum += counted(reader_type::counts(lane_));
    for (const step_stats& part : part_stats_) {
      sum += part;
    }
    if (planned_) {
      sum.predicted_error = std::max(sum.predicted_error, planner_.predicted_error());
      sum.dropped_mass = std::max(sum.dropped_mass, planner_.dropped_mass());
    }
    return sum;
  }

  /// @brief What a reading did, as part of a step.
  static step_stats counted(const read_counts& counts) noexcept {
    step_stats stats;
    stats.hits = counts.hits;
    stats.misses = counts.misses;
    stats.prefetched = counts.prefetched;
    stats.prefetched_in_vain = counts.prefetched_in_vain;
    stats.bytes_moved = counts.bytes_moved;
    stats.stall_ns = counts.stall_ns;
    return stats;
  }

  [[nodiscard]] const input_type& input() const noexcept { return input_; }
  [[nodiscard]] const level_type& level(std::size_t l) const noexcept { return levels_[l]; }
  /// @brief What clusters look like along the queries; valid after open_top.
  [[nodiscard]] const query_leaning& leaning() const noexcept { return leaning_; }
  [[nodiscard]] step_stats& own_stats() noexcept { return stats_; }

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

  [[nodiscard]] zone_planner::index_facts index_facts() const noexcept {
    zone_planner::index_facts facts;
    facts.place = input_.place;
    facts.head = input_.head;
    facts.group_size = input_.group_size;
    facts.n_steady_tokens = n_steady_tokens();
    facts.softcap = input_.softcap;
    double squared = 0.0;
    for (const auto& segment : input_.segments) {
      const head_index<T>& head = segment->head(input_.head);
      facts.n_clusters += head.levels[0].n_nodes;
      facts.n_tokens += segment->n_tokens();
      const auto spread = static_cast<double>(head.value_spread);
      squared += spread * spread * static_cast<double>(segment->n_tokens());
    }
    const auto n_tokens = static_cast<double>(std::max<std::size_t>(facts.n_tokens, 1));
    facts.value_spread = static_cast<float>(std::sqrt(squared / n_tokens));
    return facts;
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

  // Scores the clusters of the part's segment by what the summary keeps of them; estimates them by those scores.
  template <bool Accumulate>
  void scan_kept(std::size_t part) {
    const std::size_t s = part - n_steady_parts_;
    const auto& segment = *input_.segments[s];
    const tree_level<T>& tree = segment.head(input_.head).levels[0];
    level_type& state = levels_[0];
    const std::size_t column = state.offset[s];
    const std::size_t n = tree.n_nodes;
    state.enter(tree, 0, n, column, input_.key_dim, input_.value_dim);
    std::fill_n(state.dispersion.begin() + static_cast<std::ptrdiff_t>(column), n, 0.0F);
    float* const scores = state.logits.data() + column;
    step_stats& stats = part_stats_[part];
    stats.summaries_read += n;
    stats.bytes_read += Summary{}.score(segment.template kept<Summary>(input_.head), queries(),
                                        scores, state.n_nodes);
    if (input_.softcap > 0.0F) {
      for (std::size_t g = 0; g < input_.group_size; ++g) {
        simd::softcap(scores + g * state.n_nodes, n, input_.softcap);
      }
    }
    if constexpr (Accumulate) {
      stats.bytes_read += n * (input_.value_dim * sizeof(T) + sizeof(float));
      accumulate_rows_at(scores, state.n_nodes, state.size.data() + column,
                         state.value_mean.data() + column, n, accumulation::add, partial(part));
    }
  }

  // Wants a cluster of the part's segment in a lane's reading, and books it.
  void want(std::size_t part, std::uint32_t cluster, reader_type& reader, lane_type& lane) {
    const auto& segment = *input_.segments[part - n_steady_parts_];
    const block which = segment.cluster_block(input_.head, cluster);
    reader.look_up(lane, segment.rows(), which, part);
    step_stats& stats = part_stats_[part];
    stats.tokens_read += which.n_tokens;
    stats.bytes_read += which.n_tokens * row_bytes();
    ++stats.clusters_read;
  }

  void attend(std::span<const token_run<T>> runs, std::size_t part) {
    const auto run_at = [&](std::size_t i) { return runs[i]; };
    attend_runs(queries(), runs.size(), run_at, input_.softcap, partial(part));
  }

  // The blocks of one arrival are neighbours: all of one part.
  void attend_arrivals(reader_type& reader, lane_type& lane) {
    for (auto arrived = reader.next(lane); !arrived.empty(); arrived = reader.next(lane)) {
      const auto run_at = [&](std::size_t i) { return arrived[i].tokens; };
      attend_runs(queries(), arrived.size(), run_at, input_.softcap, partial(arrived[0].tag));
    }
  }

  // Enters a family of the part's segment into the level's frontier, all but its logits, and books the reading.
  summary_rows<float, T> enter_family(std::size_t part, std::size_t level, std::uint32_t first,
                                      std::uint32_t last, std::size_t column) {
    const tree_level<T>& tree =
        input_.segments[part - n_steady_parts_]->head(input_.head).levels[level];
    const std::size_t n = last - first;
    part_stats_[part].summaries_read += n;
    part_stats_[part].bytes_read += n * (row_bytes() + 2 * sizeof(float));
    return levels_[level].enter(tree, first, n, column, input_.key_dim, input_.value_dim);
  }

  // Lays out the frontier below: the children of all opened nodes, in segment order.
  void close(std::size_t level) {
    if (level == 0) {
      return;
    }
    const level_type& state = levels_[level];
    level_type& below = levels_[level - 1];
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
    below.resize(input_.group_size);
  }

  // Accumulated estimates: takes those of opened nodes out. Otherwise: adds those of the estimation zone.
  template <bool Accumulated>
  void correct_estimates(std::size_t part, std::size_t level) {
    if constexpr (detail::scores_clusters<Summary> && !Accumulated) {
      const std::size_t s = part - n_steady_parts_;
      const auto of_segment =
          std::span(levels_[0].zones).first(levels_[0].offset[s + 1]).subspan(levels_[0].offset[s]);
      const auto n = static_cast<std::uint64_t>(std::ranges::count(of_segment, zone::estimation));
      part_stats_[part].bytes_read += n * (input_.value_dim * sizeof(T) + sizeof(float));
    }
    levels_[level].accumulate(
        part - n_steady_parts_, Accumulated ? zone::retrieval : zone::estimation,
        Accumulated ? accumulation::subtract : accumulation::add, partial(part));
  }

  input_type input_{};
  std::size_t n_steady_parts_ = 0;
  std::size_t n_levels_ = 0;
  bool planned_ =
      false;  // whether open_top came since begin: leaning_ and planner_ are this search's
  std::array<level_type, max_tree_levels> levels_;
  query_leaning leaning_;
  zone_planner planner_;
  mutable std::vector<float> partials_;
  std::vector<float> merged_;
  lane_type lane_;  // what look_up began
  std::vector<used_cluster> used_again_;
  std::vector<std::size_t> first_run_;  // [segments + 1] of each segment, in the lane's runs
  std::vector<step_stats> part_stats_;
  step_stats stats_;
};

}  // namespace wavekv
