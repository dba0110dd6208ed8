// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <wavekv/attention/node_formulas.hpp>
#include <wavekv/attention/row_tile.cuh>
#include <wavekv/core/random.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/index/node_weights.cuh>
#include <wavekv/index/search_answer.cuh>
#include <wavekv/index/search_space.cuh>
#include <wavekv/index/search_stage.cuh>

/// @file error_sampler.cuh
/// @brief Checks an answer against tokens drawn from what was not read: the twin of error_sampler.hpp, which has the method. The
/// same frontier gives the same draws here and there, but where a rounding decides.

namespace wavekv::device {

/// @brief Names a check's draws, beside the search's own numbers: see sample_key.
struct draw_key {
  std::uint64_t seed = 0;
  std::uint32_t layer = 0;
  std::uint32_t round = 0;
};

/// @brief A token that was drawn.
template <class T>
struct drawn_token {
  const T* token = nullptr;       ///< its row; null: none was drawn
  const T* node = nullptr;        ///< its node's
  const float* logits = nullptr;  ///< the node's, one every `stride`
  std::uint32_t stride = 0;
  std::uint32_t level = 0;
  float dispersion = 0.0F;
  float log_factor = 0.0F;  ///< of the node's size over the draw's probability
};

/// @brief Checks the answers of a round, and writes those that are accepted.
///
/// All blocks of a search weigh its nodes; the last one draws, a warp a batch, in tiles of sixteen tokens, and goes on
/// drawing while only the standard error stands in the way.
template <class T, class Bound, unsigned MaxDim>
struct check_kernel {
  using stage = search_stage<T, MaxDim>;
  static constexpr unsigned n_threads = stage::n_threads;
  static constexpr unsigned n_warps = stage::n_warps;
  static constexpr bool overlaps = true;

  search_space<T> space;
  Bound bound;
  answer_arrays answer;
  draw_key key;
  unsigned n_samples = 0;   ///< of the first draw
  float deviations = 0.0F;  ///< standard errors to add

  [[nodiscard]] std::size_t shared_bytes() const {
    shared_arena arena;
    (void)take(arena);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned number = b.block_y();
    const search_view<T> search(space, number);
    if (search.state->done != 0) {
      return;
    }
    shared_arena arena(b.shared());
    const scratch memory = take(arena);
    const node_weights<T> nodes(space, search, number, memory.weights);
    nodes.weigh(b);
    if (!arrives_last(b, search.counter, space.n_splits, memory.last)) {
      return;
    }
    add_tilts(b, search);
    b.sync();
    if (accepts_sample(b, memory, search, nodes)) {
      book_errors(b, space, search, bound);
      write_answer(b, search, number / space.shape.n_kv_heads, answer);
      if (b.thread() == 0) {
        search.state->done = 1;
      }
    }
  }

 private:
  struct scratch {
    typename node_weights<T>::scratch weights;
    float* errors;  // [2, group_size] with their deviations, and without
    unsigned* last;
    drawn_token<T>* drawn;  // [n_warps, tile_rows]
    words4* queries;        // [shared_words4]
    float* states;          // [n_warps, tile_queries, 2 + value_dim]
  };

  WAVEKV_HOST_DEVICE scratch take(shared_arena& arena) const {
    const model_shape& shape = space.shape;
    scratch memory;
    memory.weights = node_weights<T>::scratch::take(arena, space, n_warps);
    memory.errors = arena.take<float>(2 * std::size_t{shape.group_size});
    memory.last = arena.take<unsigned>(1);
    memory.drawn = arena.take<drawn_token<T>>(n_warps * tile_rows);
    memory.queries = arena.take<words4>(search_warp<T, MaxDim>::shared_words4);
    memory.states =
        arena.take<float>(std::size_t{n_warps} * tile_queries * state_floats(shape.value_dim));
    return memory;
  }

  // --- draws

  // *block*: whether every head's sampled error is accepted. Books the draws, and the error if so.
  template <class Block>
  WAVEKV_DEVICE bool accepts_sample(Block& b, const scratch& memory, const search_view<T>& search,
                                    const node_weights<T>& nodes) const {
    nodes.sum_parts(b);
    if (!(nodes.total() > 0.0)) {
      return true;  // nothing was estimated, or nothing that could err
    }
    const bool is_finite = nodes.total() < std::numeric_limits<double>::infinity();
    const unsigned group = space.shape.group_size;
    const unsigned n_sums = n_sample_batches * group * batch_floats(space.shape.value_dim);
    for (unsigned i = b.thread(); i < n_sums; i += n_threads) {
      search.batch_sums[i] = 0.0F;
    }
    b.sync();
    const unsigned least = (n_samples + n_sample_batches - 1) / n_sample_batches;
    unsigned drawn = 0;  // of each batch
    bool accepted = true;
    float most = 0.0F;
    for (unsigned wanted = least;; wanted *= 2) {
      for (unsigned first = 0; first < group; first += tile_queries) {
        search_warp<T, MaxDim> warp(b, search, first, memory.queries);
        for (unsigned batch = b.warp(); batch < n_sample_batches; batch += n_warps) {
          add_draws(b, memory, search, nodes, warp, batch, first, drawn, wanted);
          warp.clear();
        }
      }
      drawn = wanted;
      b.sync();
      for (unsigned g = b.warp(); g < group; g += n_warps) {
        bound_error(b, memory, search, g, drawn);
      }
      b.sync();
      accepted = is_finite;
      bool may_accept = is_finite && wanted < 8 * least;
      most = 0.0F;
      for (unsigned g = 0; g < group; ++g) {
        const float error = memory.errors[g];
        accepted = accepted && bound.accepts(error);
        may_accept = may_accept && bound.accepts(memory.errors[group + g]);
        most = error > most ? error : most;
      }
      if (accepted || !may_accept) {
        break;
      }
    }
    if (b.thread() == 0) {
      step_counts& report = *space.report;
      const unsigned long long n = drawn * n_sample_batches;
      b.atomic_add(&report.tokens_sampled, n);
      b.atomic_add(&report.tokens_read, n);
      b.atomic_add(&report.bytes_read, n * space.shape.width() * static_cast<unsigned>(sizeof(T)));
      if (accepted) {
        b.atomic_max(&report.sampled_error, std::bit_cast<unsigned>(most));
      }
    }
    return accepted;
  }

  // *warp*: adds a batch's draws [drawn, wanted) to its sums, for query heads [first, first + tile_queries).
  template <class Block>
  WAVEKV_DEVICE void add_draws(Block& b, const scratch& memory, const search_view<T>& search,
                               const node_weights<T>& nodes, search_warp<T, MaxDim>& warp,
                               unsigned batch, unsigned first, unsigned drawn,
                               unsigned wanted) const {
    const unsigned floats = state_floats(space.shape.value_dim);
    drawn_token<T>* const tile = memory.drawn + b.warp() * tile_rows;
    float* const states = memory.states + std::size_t{b.warp()} * tile_queries * floats;
    float followed[max_tree_levels] = {};  // dispersions of this lane's estimates, weighted
    for (unsigned i = drawn; i < wanted; i += tile_rows) {
      if (b.lane() < tile_rows) {
        const unsigned number = (i + b.lane()) * n_sample_batches + batch;
        tile[b.lane()] = i + b.lane() < wanted ? draw(search, nodes, number) : drawn_token<T>{};
      }
      b.sync_warp();
      add_residuals(b, memory, search, warp, first, tile, followed);
      b.sync_warp();  // before the next ones are drawn
    }
    warp.store(b, states);
    WAVEKV_UNROLL
    for (unsigned level = 0; level < max_tree_levels; ++level) {
      followed[level] += b.shuffle_xor(followed[level], 1U);
      followed[level] += b.shuffle_xor(followed[level], 2U);
    }
    b.sync_warp();
    for (unsigned q = 0; q < warp.n(); ++q) {
      const float* const state = states + q * floats;
      float* const to =
          search.batch_sums + (std::size_t{batch} * space.shape.group_size + first + q) *
                                  batch_floats(space.shape.value_dim);
      const float scale =
          state[0] > -std::numeric_limits<float>::infinity() ? std::exp(state[0]) : 1.0F;
      WAVEKV_UNROLL
      for (unsigned level = 0; level < max_tree_levels; ++level) {
        const float of_query = b.shuffle(followed[level], 4 * q);
        if (b.lane() == 0) {
          to[1 + level] += of_query;
        }
      }
      for (unsigned at = 1 + b.lane(); at < floats; at += warp_size) {
        to[at == 1 ? 0 : max_tree_levels - 1 + at] += scale * state[at];
      }
    }
    b.sync_warp();
  }

  // *warp*: adds what a tile of tokens weighs, and takes out what their nodes' estimates do.
  template <class Block>
  WAVEKV_DEVICE void add_residuals(Block& b, const scratch& memory, const search_view<T>& search,
                                   search_warp<T, MaxDim>& warp, unsigned first,
                                   const drawn_token<T>* tile,
                                   float (&followed)[max_tree_levels]) const {
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    const unsigned i = b.lane() / 4;
    const unsigned j = b.lane() % 4;
    const bool mine = i < warp.n();
    const unsigned query = first + (mine ? i : 0);
    const auto drawn_at = [&](unsigned e) -> const drawn_token<T>& {
      return tile[e / 2 * run_rows + 2 * j + e % 2];
    };
    const auto shift = [&](const drawn_token<T>& drawn) {
      return drawn.log_factor - memory.weights.log_normalizers[query];
    };
    float logits[4];
    const T* rows[4];
    warp.score(b, {tile[i].token, tile[tile_queries + i].token}, logits);
    WAVEKV_UNROLL
    for (unsigned e = 0; e < 4; ++e) {
      const drawn_token<T>& drawn = drawn_at(e);
      logits[e] = mine && drawn.token != nullptr ? logits[e] + shift(drawn) : nothing;
      rows[e] = drawn.token != nullptr ? drawn.token + space.shape.key_dim : nullptr;
    }
    warp.add(b, logits, rows, 1.0F);
    WAVEKV_UNROLL
    for (unsigned e = 0; e < 4; ++e) {
      const drawn_token<T>& drawn = drawn_at(e);
      rows[e] = drawn.token != nullptr ? drawn.node + space.shape.key_dim : nullptr;
      logits[e] = nothing;
      if (!mine || drawn.token == nullptr) {
        continue;
      }
      logits[e] = drawn.logits[std::size_t{query} * drawn.stride] + shift(drawn);
      if (space.shape.softcap == 0.0F) {  // else there is no tilt
        const float most =
            detail::most_dispersion(search.variances[drawn.level * space.shape.group_size + query]);
        const float dispersion = drawn.dispersion < most ? drawn.dispersion : most;
        WAVEKV_UNROLL
        for (unsigned level = 0; level < max_tree_levels; ++level) {
          followed[level] += drawn.level == level ? std::exp(logits[e]) * dispersion : 0.0F;
        }
      }
    }
    warp.add(b, logits, rows, -1.0F);
  }

  // The draw of one number: a node by its weight, a token uniformly inside it.
  WAVEKV_DEVICE drawn_token<T> draw(const search_view<T>& search, const node_weights<T>& nodes,
                                    unsigned number) const {
    const auto bits = philox(key.seed, {number | (key.round << 24U), search.place.visible,
                                        search.place.sequence, (key.layer << 16U) ^ search.head});
    const double total = nodes.total();
    const unsigned place =
        nodes.find((static_cast<double>(bits[0]) + 0.5) * 0x1p-32 * total, n_warps);
    const double weight = nodes.weight(place);
    drawn_token<T> drawn;
    if (weight == 0.0) {  // a rounding error led beside the node
      return drawn;
    }
    unsigned level = 0;
    const unsigned column = nodes.column_of(place, level);
    const frontier_columns<T> columns = nodes.of_level(level);
    const node_run<T>& run = columns.runs[column / run_rows];
    const segment_view<T>& segment = search.place.layer->segments[run.segment];
    drawn.level = level;
    // Nodes under it, level by level; then tokens.
    std::uint32_t first = run.first_node + column % run_rows;
    std::uint32_t last = first + 1;
    for (++level; level-- > 0;) {
      const level_view<T>& of_level = segment.levels[level];
      const std::uint32_t* const children =
          of_level.first_child + std::size_t{search.head} * (of_level.capacity + 1);
      first = children[first];
      last = children[last];
    }
    const auto token =
        first + static_cast<std::uint32_t>((std::uint64_t{bits[1]} * (last - first)) >> 32U);
    const unsigned width = space.shape.width();
    drawn.token = segment.rows + (std::size_t{search.head} * segment.n_tokens + token) * width;
    drawn.node = run.rows + std::size_t{column % run_rows} * width;
    drawn.logits = columns.logits + column;
    drawn.stride = columns.n_columns;
    drawn.dispersion = columns.dispersions[column];
    drawn.log_factor = std::log(columns.sizes[column] / static_cast<float>(weight / total));
    return drawn;
  }

  // --- errors

  template <class Block>
  WAVEKV_DEVICE static double warp_sum(Block& b, double x) {
    for (unsigned mask = warp_size / 2; mask > 0; mask /= 2) {
      x += b.shuffle_xor(x, mask);
    }
    return x;
  }

  // *warp*: the relative error of query head g from the batches drawn so far, each of `drawn` tokens.
  template <class Block>
  WAVEKV_DEVICE_CALL void bound_error(Block& b, const scratch& memory, const search_view<T>& search,
                                      unsigned g, unsigned drawn) const {
    const model_shape& shape = space.shape;
    const float* const merged = search.merged + g * state_floats(shape.value_dim);
    const std::size_t stride = std::size_t{shape.group_size} * batch_floats(shape.value_dim);
    const float* const sums = search.batch_sums + g * batch_floats(shape.value_dim);
    const float* const leanings = search.leanings + std::size_t{g} * shape.width() + shape.key_dim;
    const std::size_t per_level = std::size_t{shape.group_size} * shape.width();
    // The products of a batch with all others are those with the sum of all, its own taken out.
    double row_sums[n_sample_batches] = {};
    double output_squared = 0.0;
    for (unsigned i = b.lane(); i < shape.value_dim; i += warp_size) {
      const float output = merged[1] > 0.0F ? merged[2 + i] / merged[1] : 0.0F;
      output_squared += static_cast<double>(output) * static_cast<double>(output);
      double residuals[n_sample_batches];
      double all = 0.0;
      WAVEKV_UNROLL
      for (unsigned batch = 0; batch < n_sample_batches; ++batch) {
        const float* const of_batch = sums + batch * stride;
        float residual = of_batch[1 + max_tree_levels + i] - of_batch[0] * output;
        for (unsigned level = 0; level < shape.n_levels; ++level) {
          residual -= of_batch[1 + level] * leanings[level * per_level + i];
        }
        residuals[batch] = static_cast<double>(residual);
        all += residuals[batch];
      }
      WAVEKV_UNROLL
      for (unsigned batch = 0; batch < n_sample_batches; ++batch) {
        row_sums[batch] += residuals[batch] * (all - residuals[batch]);
      }
    }
    const auto per_batch = static_cast<double>(drawn);
    double sum = 0.0;
    WAVEKV_UNROLL
    for (unsigned batch = 0; batch < n_sample_batches; ++batch) {
      row_sums[batch] = warp_sum(b, row_sums[batch]) / (per_batch * per_batch);
      sum += row_sums[batch];
    }
    constexpr auto n = static_cast<double>(n_sample_batches);
    const double squared = sum / (n * (n - 1.0));
    double variance = 0.0;
    WAVEKV_UNROLL
    for (unsigned batch = 0; batch < n_sample_batches; ++batch) {
      const double left_out = (sum - 2.0 * row_sums[batch]) / ((n - 1.0) * (n - 2.0));
      variance += (left_out - squared) * (left_out - squared) * (n - 1.0) / n;
    }
    output_squared = warp_sum(b, output_squared);
    const double unit = output_squared > 0.0 ? output_squared : 1.0;
    const double upper = squared + static_cast<double>(deviations) * std::sqrt(variance);
    if (b.lane() == 0) {  // not a number: neither is accepted
      memory.errors[g] = static_cast<float>(std::sqrt((upper < 0.0 ? 0.0 : upper) / unit));
      memory.errors[shape.group_size + g] =
          static_cast<float>(std::sqrt((squared < 0.0 ? 0.0 : squared) / unit));
    }
  }
};

}  // namespace wavekv::device
