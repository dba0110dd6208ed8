// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <wavekv/attention/node_formulas.hpp>
#include <wavekv/attention/row_tile.cuh>
#include <wavekv/cuda/block.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/frontier.cuh>
#include <wavekv/index/search_space.cuh>

/// @file zone_planner.cuh
/// @brief The plan stage of one search, by one block: merge what is known, price the nodes of a level, ask the bound, list what
/// comes next. The twin of zone_planner.hpp.

namespace wavekv::device {

namespace detail {

using wavekv::detail::drops;

/// Natural-log log-sum-exp of a state.
WAVEKV_DEVICE float log_sum_exp(const float* state) {
  return state[1] > 0.0F ? state[0] + std::log(state[1]) : -std::numeric_limits<float>::infinity();
}

/// What of a dispersion an estimate follows at most: see query_leaning.
WAVEKV_DEVICE float most_dispersion(float variance) {
  return variance > 0.0F ? max_logit_variance / variance : std::numeric_limits<float>::max();
}

}  // namespace detail

/// @brief Plans one level of one search. All functions are *block*.
///
/// One block does it while the search's others have ended: it must not take long. So what a node's errors are made of is
/// worked out where it is scored, by all blocks; here each (column, head) costs one exponential, sums of all heads and
/// thresholds share a meeting, and the links that lead to children, four loads behind each other, are followed for what was
/// opened alone. Predicted for 8,192 columns and 8 heads on an H100: some 30 µs; on an H200 and with 4 heads it was nearly 300
/// (bench/README.md, "CUDA").
template <class T, class Block>
class zone_planner {
 public:
  /// @param heads  shared memory, [3, group_size]
  WAVEKV_DEVICE zone_planner(const search_space<T>& space, const search_view<T>& search,
                             unsigned number, unsigned level, float* heads,
                             const plan_memory& memory)
      : space_(space),
        search_(search),
        columns_(space, search, number, level),
        memory_(memory),
        normalizers_(heads),
        relatives_(heads + space.shape.group_size),
        settled_(heads + 2 * space.shape.group_size),
        level_(level) {}

  /// @brief Elements of `heads`.
  [[nodiscard]] WAVEKV_HOST_DEVICE static std::size_t head_floats(const model_shape& shape) {
    return 3 * std::size_t{shape.group_size};
  }

  /// @brief Chooses zones and lists what the next stage reads. Expects: splits are merged.
  template <class Bound>
  WAVEKV_DEVICE void plan(Block& b, const Bound& bound) {
    measure<!detail::drops<Bound>()>(b);
    price<wavekv::detail::bound_ranking_t<Bound>>(b);
    choose(b, bound);
  }

  /// @brief The same from the prices of an earlier plan of this level, with another bound of the same type.
  template <class Bound>
  WAVEKV_DEVICE void plan_again(Block& b, const Bound& bound) {
    choose(b, bound);
  }

 private:
  [[nodiscard]] WAVEKV_DEVICE unsigned n_columns() const {
    return search_.state->n_runs[level_] * run_rows;
  }
  // Nothing was planned before the top level.
  [[nodiscard]] WAVEKV_DEVICE bool is_top() const { return level_ + 1 == search_.shape.n_levels; }
  [[nodiscard]] WAVEKV_DEVICE bool is_node(unsigned column) const {
    return columns_.sizes[column] > 0.0F;
  }

  // The normaliser and the norm of the output as known so far, per query head.
  template <bool Accumulated>
  WAVEKV_DEVICE void measure(Block& b) {
    const model_shape& shape = search_.shape;
    const index_facts& facts = search_.place.layer->facts[search_.head];
    const float n_sealed = facts.n_sealed > 0 ? static_cast<float>(facts.n_sealed) : 1.0F;
    const float spread = std::sqrt(facts.squared_spread / n_sealed);
    for (unsigned g = b.warp(); g < shape.group_size; g += b.n_warps()) {
      const float* const state = search_.merged + g * state_floats(shape.value_dim);
      float squared = 0.0F;
      for (unsigned i = b.lane(); i < shape.value_dim; i += warp_size) {
        const float x = state[1] > 0.0F ? state[2 + i] / state[1] : 0.0F;
        squared += x * x;
      }
      const float norm = std::sqrt(b.warp_sum(squared));
      float normalizer = detail::log_sum_exp(state);
      if constexpr (!Accumulated) {
        normalizer = with_nodes(b, normalizer, g);
      }
      if (b.lane() == 0) {
        normalizers_[g] = normalizer;
        search_.normalizers[level_ * shape.group_size + g] = normalizer;
        // An output of length zero is measured by the values themselves.
        relatives_[g] = norm > 1e-6F * spread ? spread / norm : 1.0F;
        search_.relatives[level_ * shape.group_size + g] = relatives_[g];
      }
    }
    b.sync();
  }

  // A normaliser and the mass of the level's nodes, by one warp.
  WAVEKV_DEVICE float with_nodes(Block& b, float normalizer, unsigned g) {
    const float* const logits = columns_.logits + std::size_t{g} * columns_.n_columns;
    const unsigned n = n_columns();
    float most = normalizer;
    for (unsigned i = b.lane(); i < n; i += warp_size) {
      most = is_node(i) && logits[i] > most ? logits[i] : most;
    }
    most = b.warp_max(most);
    float sum = 0.0F;
    for (unsigned i = b.lane(); i < n; i += warp_size) {
      sum += is_node(i) ? columns_.sizes[i] * std::exp(logits[i] - most) : 0.0F;
    }
    sum = b.warp_sum(sum);
    sum +=
        normalizer > -std::numeric_limits<float>::infinity() ? std::exp(normalizer - most) : 0.0F;
    return sum > 0.0F ? most + std::log(sum) : normalizer;
  }

  // Shares, errors and their rankings. Errors come as what they are per share of an output as long as a value's deviation.
  template <class Ranking>
  WAVEKV_DEVICE void price(Block& b) {
    const unsigned n = n_columns();
    for (unsigned i = b.thread(); i < n; i += b.n_threads()) {
      const float size = columns_.sizes[i];
      float ranked_share = 0.0F;
      float ranked_error = 0.0F;
      constexpr unsigned heads = 4;  // whose numbers are loaded together
      for (unsigned first = 0; first < search_.shape.group_size; first += heads) {
        float logits[heads];
        float errors[heads];
        WAVEKV_UNROLL
        for (unsigned q = 0; q < heads; ++q) {
          const unsigned g = or_last(first + q, search_.shape.group_size);
          logits[q] = columns_.logits[std::size_t{g} * columns_.n_columns + i];
          errors[q] = columns_.errors[std::size_t{g} * columns_.n_columns + i];
        }
        WAVEKV_UNROLL
        for (unsigned q = 0; q < heads; ++q) {
          const unsigned g = first + q;
          if (g < search_.shape.group_size) {
            const std::size_t at = std::size_t{g} * columns_.n_columns + i;
            const float share = size > 0.0F ? size * std::exp(logits[q] - normalizers_[g]) : 0.0F;
            const float error = relatives_[g] * share * errors[q];
            columns_.shares[at] = share;
            columns_.errors[at] = error;
            ranked_share = g == 0 ? share : Ranking::combine(ranked_share, share);
            ranked_error = g == 0 ? error : Ranking::combine(ranked_error, error);
          }
        }
      }
      columns_.ranked_shares[i] = ranked_share;
      columns_.ranked_errors[i] = ranked_error;
    }
  }

  template <class Bound>
  WAVEKV_DEVICE void choose(Block& b, const Bound& bound) {
    const unsigned group = search_.shape.group_size;
    const unsigned n = n_columns();
    unsigned n_nodes = 0;
    for (unsigned i = b.thread(); i < n; i += b.n_threads()) {
      columns_.zones[i] = zone::estimation;
      n_nodes += is_node(i) ? 1U : 0U;
    }
    for (unsigned g = b.thread(); g < group; g += b.n_threads()) {
      settled_[g] = is_top() ? 0.0F : search_.settled[g];
    }
    n_nodes = block_count(b, n_nodes, memory_.of_warps);  // and all is written when it returns
    if (n_nodes != 0) {
      ask(b, bound, n_nodes);
    }
    b.sync();
    settle(b);
    list<detail::drops<Bound>()>(b);
  }

  template <class Bound>
  WAVEKV_DEVICE void ask(Block& b, const Bound& bound, unsigned n_nodes) {
    const layer_view<T>& layer = *search_.place.layer;
    const index_facts& facts = layer.facts[search_.head];
    frontier_view nodes;
    nodes.level = level_;
    nodes.n_columns = n_columns();
    nodes.n_nodes = n_nodes;
    nodes.group_size = search_.shape.group_size;
    nodes.n_clusters = facts.n_clusters;
    nodes.n_tokens = facts.n_sealed;
    nodes.n_steady_tokens =
        steady_runs<T>(layer, search_.head, search_.shape.width(), search_.place.visible)
            .n_tokens();
    nodes.stride = columns_.n_columns;
    nodes.sizes = columns_.sizes;
    nodes.shares = columns_.shares;
    nodes.errors = columns_.errors;
    nodes.nearnesses = columns_.nearnesses;
    nodes.ranked_shares = columns_.ranked_shares;
    nodes.ranked_errors = columns_.ranked_errors;
    nodes.settled = settled_;
    nodes.log_normalizers = search_.normalizers + level_ * search_.shape.group_size;
    if constexpr (plans_on_device<Bound, Block>) {
      plan_on_device(b, bound, nodes, columns_.zones, memory_);
    } else {
      static_assert(plans_on_device<Bound, Block>,
                    "wavekv: Bound, the estimation bound, has no plan_on_device; see "
                    "<wavekv/index/frontier.cuh>. The library's own bounds have theirs in "
                    "<wavekv/index/bounds/*.cuh>");
    }
  }

  // Books what stays at this level.
  WAVEKV_DEVICE void settle(Block& b) {
    const unsigned group = search_.shape.group_size;
    const unsigned n = n_columns();
    const auto place = [&](unsigned sum, unsigned warp, unsigned g) -> float& {
      return memory_.sums[(sum * b.n_warps() + warp) * group + g];
    };
    for (unsigned g = 0; g < group; ++g) {
      const float most = detail::most_dispersion(search_.variances[level_ * group + g]);
      const float relative = search_.relatives[level_ * group + g];
      // of squared errors, of followed dispersions, of what is dropped, of typical errors' squares
      float sums[4] = {};
      constexpr unsigned at_once = 4;  // columns whose numbers are loaded together
      for (unsigned first = b.thread(); first < n; first += at_once * b.n_threads()) {
        float shares[at_once];
        float errors[at_once];
        float dispersions[at_once];
        zone zones[at_once];
        WAVEKV_UNROLL
        for (unsigned k = 0; k < at_once; ++k) {
          const unsigned i = or_last(first + k * b.n_threads(), n);
          shares[k] = columns_.shares[std::size_t{g} * columns_.n_columns + i];
          errors[k] = columns_.errors[std::size_t{g} * columns_.n_columns + i];
          dispersions[k] = columns_.dispersions[i];
          zones[k] = columns_.zones[i];
        }
        WAVEKV_UNROLL
        for (unsigned k = 0; k < at_once; ++k) {
          const bool is_column = first + k * b.n_threads() < n;
          const bool stays = is_column && zones[k] == zone::estimation;
          const bool is_dropped = is_column && zones[k] == zone::dropped;
          const float dispersion = dispersions[k] < most ? dispersions[k] : most;
          sums[0] += stays ? errors[k] * errors[k] : 0.0F;
          sums[1] += stays ? shares[k] * dispersion : 0.0F;
          sums[2] += is_dropped ? shares[k] : 0.0F;
          sums[3] += stays ? typical_square(errors[k], relative * shares[k]) : 0.0F;
        }
      }
      WAVEKV_UNROLL
      for (unsigned sum = 0; sum < 4; ++sum) {
        const float of_warp = b.warp_sum(sums[sum]);
        if (b.lane() == 0) {
          place(sum, b.warp(), g) = of_warp;
        }
      }
    }
    b.sync();
    for (unsigned g = b.thread(); g < group; g += b.n_threads()) {
      float sums[4] = {};
      for (unsigned w = 0; w < b.n_warps(); ++w) {
        WAVEKV_UNROLL
        for (unsigned sum = 0; sum < 4; ++sum) {
          sums[sum] += place(sum, w, g);
        }
      }
      search_.settled[g] = settled_[g] + sums[0];
      search_.typical[g] = (is_top() ? 0.0F : search_.typical[g]) + sums[3];
      search_.followed[level_ * group + g] = sums[1];
      search_.dropped[g] = (is_top() ? 0.0F : search_.dropped[g]) + sums[2];
    }
    unsigned n_estimated = 0;
    unsigned n_dropped = 0;
    for (unsigned i = b.thread(); i < n; i += b.n_threads()) {
      n_estimated += is_node(i) && columns_.zones[i] == zone::estimation ? 1U : 0U;
      n_dropped += is_node(i) && columns_.zones[i] == zone::dropped ? 1U : 0U;
    }
    report(b, &space_.report->clusters_estimated, n_estimated);
    report(b, &space_.report->clusters_dropped, n_dropped);
  }

  // *warp*: adds what its lanes have to a counter.
  WAVEKV_DEVICE void report(Block& b, unsigned long long* counter, unsigned n) const {
    const unsigned of_warp = b.warp_sum(n);
    if (b.lane() == 0 && of_warp != 0) {
      b.atomic_add(counter, static_cast<unsigned long long>(of_warp));
    }
  }

  // Lists, in the order of columns, what comes next: the columns whose estimates have to be corrected, and the runs of opened
  // nodes' children (of tokens, at level 0).
  template <bool Drops>
  WAVEKV_DEVICE void list(Block& b) {
    const unsigned n = n_columns();
    const unsigned per_thread = (n + b.n_threads() - 1) / b.n_threads();
    const unsigned begin = b.thread() * per_thread < n ? b.thread() * per_thread : n;
    const unsigned end = begin + per_thread < n ? begin + per_thread : n;
    const auto is_in = [&](unsigned i, zone of) { return is_node(i) && columns_.zones[i] == of; };
    unsigned n_opened = 0;
    unsigned n_corrected = 0;
    for (unsigned i = begin; i < end; ++i) {
      n_opened += is_in(i, zone::retrieval) ? 1U : 0U;
      n_corrected += Drops && is_in(i, zone::estimation) ? 1U : 0U;
    }
    // Estimates are added late when some are dropped; otherwise those of opened nodes are taken out again: one list.
    unsigned* const corrected = columns_.corrected;
    unsigned* const last_opened = columns_.corrected + columns_.n_columns - 1;
    const auto enter_opened = [&](unsigned place, unsigned column) {
      (Drops ? last_opened[-static_cast<std::ptrdiff_t>(place)] : corrected[place]) = column;
    };
    unsigned all_opened = 0;
    unsigned all_corrected = 0;
    unsigned opened_before = block_scan(b, n_opened, memory_.of_warps, all_opened);
    unsigned corrected_before = 0;
    if constexpr (Drops) {
      corrected_before = block_scan(b, n_corrected, memory_.of_warps, all_corrected);
    } else {
      all_corrected = all_opened;
    }
    for (unsigned i = begin; i < end; ++i) {
      if (is_in(i, zone::retrieval)) {
        enter_opened(opened_before++, i);
      } else if (Drops && is_in(i, zone::estimation)) {
        corrected[corrected_before++] = i;
      }
    }
    b.sync();
    unsigned n_runs = 0;
    unsigned n_below = 0;  // children: nodes, or tokens
    for (unsigned first = 0; first < all_opened; first += b.n_threads()) {
      const unsigned i = first + b.thread();
      children of{};
      if (i < all_opened) {
        of = children_of(Drops ? last_opened[-static_cast<std::ptrdiff_t>(i)] : corrected[i]);
        n_below += of.n;
      }
      unsigned total = 0;
      unsigned place =
          n_runs + block_scan(b, (of.n + run_rows - 1) / run_rows, memory_.of_warps, total);
      n_runs += total;
      for (unsigned r = 0; r < of.n; r += run_rows, ++place) {
        write_run(of, r, place);
      }
    }
    report_children(b, n_below);
    if (b.thread() == 0) {
      book(b, n_runs, all_corrected, all_opened);
    }
    b.sync();
  }

  struct children {
    const segment_view<T>* segment;
    unsigned place;  // of the segment
    unsigned first;
    unsigned n;
  };

  WAVEKV_DEVICE children children_of(unsigned column) const {
    const node_run<T>& run = columns_.runs[column / run_rows];
    const segment_view<T>* const segment = search_.place.layer->segments + run.segment;
    const level_view<T>& level = segment->levels[level_];
    const std::uint32_t* const first = level.first_child +
                                       std::size_t{search_.head} * (level.capacity + 1) +
                                       run.first_node + column % run_rows;
    return {segment, run.segment, first[0], first[1] - first[0]};
  }

  // Enters the run of children from the r-th on at place i of the next list.
  WAVEKV_DEVICE void write_run(const children& of, unsigned r, unsigned i) {
    const unsigned n = of.n - r < run_rows ? of.n - r : run_rows;
    if (level_ == 0) {
      if (i < space_.n_token_runs) {
        const std::size_t row = std::size_t{search_.head} * of.segment->n_tokens + of.first + r;
        search_.token_runs[i] = {of.segment->rows + row * search_.shape.width(), n};
      }
      return;
    }
    const level_space<T>& below = space_.levels[level_ - 1];
    if (i < below.n_columns / run_rows) {
      const level_view<T>& nodes = of.segment->levels[level_ - 1];
      const std::size_t node = std::size_t{search_.head} * nodes.capacity + of.first + r;
      node_run<T> run;
      run.rows = nodes.rows + node * search_.shape.width();
      run.sizes = nodes.sizes + node;
      run.dispersions = nodes.dispersions + node;
      run.n = n;
      run.segment = of.place;
      run.first_node = of.first + r;
      below.runs[std::size_t{number()} * (below.n_columns / run_rows) + i] = run;
    }
  }

  [[nodiscard]] WAVEKV_DEVICE unsigned number() const {
    return static_cast<unsigned>(search_.state - space_.states);
  }

  WAVEKV_DEVICE unsigned long long row_bytes() const {
    return static_cast<unsigned long long>(search_.shape.width()) *
           static_cast<unsigned>(sizeof(T));
  }

  // *warp*: what the lanes' children will be to read.
  WAVEKV_DEVICE void report_children(Block& b, unsigned n_below) const {
    const unsigned n = b.warp_sum(n_below);
    if (b.lane() != 0 || n == 0) {
      return;
    }
    step_counts& counts = *space_.report;
    b.atomic_add(level_ == 0 ? &counts.tokens_read : &counts.summaries_read,
                 static_cast<unsigned long long>(n));
    b.atomic_add(&counts.bytes_read, n * (row_bytes() + (level_ == 0 ? 0 : 8)));
  }

  WAVEKV_DEVICE void book(Block& b, unsigned n_runs, unsigned n_corrected, unsigned n_opened) {
    const unsigned room =
        level_ == 0 ? space_.n_token_runs : space_.levels[level_ - 1].n_columns / run_rows;
    if (n_runs > room) {
      n_runs = room;
      b.atomic_or(&space_.report->faults, static_cast<unsigned>(fault::workspace_too_small));
    }
    search_.state->n_corrected[level_] = n_corrected;
    if (level_ == 0) {
      search_.state->n_token_runs = n_runs;
      b.atomic_add(&space_.report->clusters_read, static_cast<unsigned long long>(n_opened));
    } else {
      search_.state->n_runs[level_ - 1] = n_runs;
    }
  }

  const search_space<T>& space_;
  const search_view<T>& search_;
  frontier_columns<T> columns_;
  const plan_memory& memory_;
  float* normalizers_;
  float* relatives_;
  float* settled_;
  unsigned level_;
};

/// @brief *block*: a zone_planner's plan.
/// @param again  plan_again
template <class T, class Block, class Bound>
WAVEKV_DEVICE_CALL void plan_level(Block& b, const search_space<T>& space, const Bound& bound,
                                   unsigned number, unsigned level, float* heads,
                                   const plan_memory& memory, bool again = false) {
  const search_view<T> search(space, number);
  zone_planner<T, Block> planner(space, search, number, level, heads, memory);
  if (again) {
    planner.plan_again(b, bound);
  } else {
    planner.plan(b, bound);
  }
}

}  // namespace wavekv::device
