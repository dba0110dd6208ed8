// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/caller_rows.cuh>
#include <wavekv/index/search_space.cuh>

/// @file query_leaning.cuh
/// @brief The first launch of an attend: takes the queries, and learns what the covariances inside nodes mean to them. The
/// twin of query_leaning.hpp.

namespace wavekv::device {

/// @brief A sequence of a batch and how many query tokens it has; the last of them sits at its newest token.
template <class T>
struct query_run_view {
  const layer_view<T>* layer = nullptr;
  std::uint32_t n_queries = 0;
  std::uint32_t sequence = 0;
};

/// @brief Takes the queries of a batch. One block a search and level; block (x, y): level x of search y.
/// @tparam T  storage scalar
template <class T>
struct lean_kernel {
  static constexpr unsigned n_threads = 512;
  static constexpr unsigned most_runs = 128;  ///< sequences of one launch

  search_space<T> space;
  caller_rows queries;
  float scale = 1.0F;
  unsigned n_runs = 0;
  query_run_view<T> runs[most_runs];

  [[nodiscard]] std::size_t shared_bytes() const {
    shared_arena arena;
    (void)take(arena);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned level = b.block_x();
    const unsigned number = b.block_y();
    shared_arena arena(b.shared());
    const scratch memory = take(arena);
    const unsigned query = number / space.shape.n_kv_heads;
    const query_place<T> place = find(query);
    if (number % space.shape.n_kv_heads == 0 && level == 0 && b.thread() == 0) {
      space.places[query] = place;
    }
    const unsigned head = number % space.shape.n_kv_heads;
    load_queries(b, memory, query, head);
    if (level == 0) {
      begin(b, memory, place, number, head);
    }
    lean(b, memory, *place.layer, head, number, level);
  }

 private:
  struct scratch {
    float* queries;  // [group_size, key_dim] scaled
    float* sums;     // [n_parts, width] of one query
    float* of_warps;
  };

  static constexpr unsigned rows_at_once = 16;  // of the matrix, that a thread loads together

  // Rows of the matrix fall into as many parts as the block has threads for.
  WAVEKV_HOST_DEVICE unsigned n_parts() const {
    const unsigned n = n_threads / space.shape.width();
    return n > 0 ? n : 1;
  }

  WAVEKV_HOST_DEVICE scratch take(shared_arena& arena) const {
    const model_shape& shape = space.shape;
    return {arena.take<float>(std::size_t{shape.group_size} * shape.key_dim),
            arena.take<float>(std::size_t{n_parts()} * shape.group_size * shape.width()),
            arena.take<float>(n_threads / warp_size)};
  }

  WAVEKV_DEVICE query_place<T> find(unsigned query) const {
    unsigned first = 0;
    unsigned run = 0;
    while (run + 1 < n_runs && first + runs[run].n_queries <= query) {
      first += runs[run++].n_queries;
    }
    const std::uint32_t behind = runs[run].n_queries - 1 - (query - first);
    const std::uint32_t length = runs[run].layer->length;
    return {runs[run].layer, length > behind ? length - behind : 0, runs[run].sequence};
  }

  template <class Block>
  WAVEKV_DEVICE void load_queries(Block& b, const scratch& memory, unsigned query,
                                  unsigned head) const {
    const model_shape& shape = space.shape;
    bool finite = true;
    for (unsigned i = b.thread(); i < shape.group_size * shape.key_dim; i += n_threads) {
      const unsigned g = i / shape.key_dim;
      const float x = queries.load(query, head * shape.group_size + g, i % shape.key_dim) * scale;
      finite = finite && std::isfinite(x);
      memory.queries[i] = x;
    }
    if (!finite) {
      b.atomic_or(&space.report->faults, static_cast<unsigned>(fault::query_not_finite));
    }
    b.sync();
  }

  // What the first of a search's blocks does for all: the queries, brought near 1, and a clean sheet.
  template <class Block>
  WAVEKV_DEVICE void begin(Block& b, const scratch& memory, const query_place<T>& place,
                           unsigned number, unsigned head) const {
    const model_shape& shape = space.shape;
    const std::size_t first = std::size_t{number} * shape.group_size;
    for (unsigned g = b.warp(); g < shape.group_size; g += b.n_warps()) {
      const float* const query = memory.queries + g * shape.key_dim;
      float most = 0.0F;
      for (unsigned i = b.lane(); i < shape.key_dim; i += warp_size) {
        most = std::fabs(query[i]) > most ? std::fabs(query[i]) : most;
      }
      most = b.warp_max(most);
      // A power of two, so that nothing is rounded; magnitudes that vanish beside it count for nothing anyway.
      int exponent = 0;
      if (most > 0.0F && std::isfinite(most)) {
        (void)std::frexp(most, &exponent);
      }
      for (unsigned i = b.lane(); i < shape.key_dim; i += warp_size) {
        space.queries[(first + g) * shape.key_dim + i] = std::ldexp(query[i], -exponent);
      }
      if (b.lane() == 0) {
        space.units[first + g] = std::ldexp(1.0F, exponent);
      }
    }
    if (b.thread() == 0) {
      search_state state;
      const unsigned top = shape.n_levels - 1;
      const index_facts facts = place.layer->facts[head];
      state.n_runs[top] = facts.n_top_runs;
      if (facts.n_top_runs * run_rows > space.levels[top].n_columns) {
        state.n_runs[top] = space.levels[top].n_columns / run_rows;
        b.atomic_or(&space.report->faults, static_cast<unsigned>(fault::workspace_too_small));
      }
      space.states[number] = state;
      const steady_runs<T> steady(*place.layer, head, shape.width(), place.visible);
      step_counts& report = *space.report;
      const unsigned long long row = shape.width() * static_cast<unsigned>(sizeof(T));
      b.atomic_add(&report.groups, 1ULL);
      b.atomic_add(&report.rounds, 1ULL);
      b.atomic_add(&report.tokens_held,
                   static_cast<unsigned long long>(steady.n_tokens()) + facts.n_sealed);
      b.atomic_add(&report.tokens_read, static_cast<unsigned long long>(steady.n_tokens()));
      b.atomic_add(&report.bytes_read, steady.n_tokens() * row);
    }
  }

  // Queries times the level's covariance, and the variance of a logit per unit of dispersion.
  template <class Block>
  WAVEKV_DEVICE void lean(Block& b, const scratch& memory, const layer_view<T>& layer,
                          unsigned head, unsigned number, unsigned level) const {
    const model_shape& shape = space.shape;
    const unsigned width = shape.width();
    const unsigned group = shape.group_size;
    const std::size_t matrix = std::size_t{head} * shape.n_levels + level;
    const float weight = layer.learnt.products != nullptr ? layer.learnt.weights[matrix] : 0.0F;
    const bool known = weight > 1e-30F;
    const unsigned parts = n_parts();
    for (unsigned at = b.thread(); at < parts * width; at += n_threads) {
      const unsigned part = at / width;
      const unsigned column = at % width;
      const float* const products =
          known ? layer.learnt.products + matrix * shape.key_dim * width + column : nullptr;
      for (unsigned g = 0; g < group; g += 4) {
        float sums[4] = {};
        for (unsigned first = part; known && first < shape.key_dim; first += rows_at_once * parts) {
          // All on their way before the first is used.
          float x[rows_at_once];
          WAVEKV_UNROLL
          for (unsigned r = 0; r < rows_at_once; ++r) {
            const unsigned i = first + r * parts;
            x[r] = products[std::size_t{or_last(i, shape.key_dim)} * width];
          }
          WAVEKV_UNROLL
          for (unsigned r = 0; r < rows_at_once; ++r) {
            const unsigned i = first + r * parts;
            WAVEKV_UNROLL
            for (unsigned q = 0; q < 4; ++q) {
              sums[q] += g + q < group && i < shape.key_dim
                             ? memory.queries[(g + q) * shape.key_dim + i] * x[r]
                             : 0.0F;
            }
          }
        }
        WAVEKV_UNROLL
        for (unsigned q = 0; q < 4; ++q) {
          if (g + q < group) {
            memory.sums[(part * group + g + q) * width + column] = sums[q];
          }
        }
      }
    }
    b.sync();
    const std::size_t first = (std::size_t{number} * shape.n_levels + level) * group;
    for (unsigned g = b.warp(); g < group; g += b.n_warps()) {
      float variance = 0.0F;
      for (unsigned column = b.lane(); column < width; column += warp_size) {
        float sum = 0.0F;
        for (unsigned part = 0; part < parts; ++part) {
          sum += memory.sums[(part * group + g) * width + column];
        }
        sum = known ? sum / weight : 0.0F;
        space.leanings[(first + g) * width + column] = sum;
        if (column < shape.key_dim) {
          const float x = memory.queries[g * shape.key_dim + column];
          variance += x * (known ? sum : x);
        }
      }
      variance = b.warp_sum(variance);
      if (b.lane() == 0) {
        space.variances[first + g] = variance > 0.0F ? variance : 0.0F;
      }
    }
  }
};

}  // namespace wavekv::device
