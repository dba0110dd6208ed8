// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/query_metric.hpp>
#include <wavekv/index/segment.cuh>

/// @file query_metric.cuh
/// @brief Gathers the query metric on the device: the host decides which tokens count, the device adds their products.

namespace wavekv::device {

/// @brief Tokens of one call whose queries are taken together: first, first + period, … , `count` of them.
struct metric_stretch {
  std::size_t first = 0;  ///< offset in the call
  std::size_t count = 0;
  std::size_t period = 1;  ///< also the weight of each row
};

/// @brief Which tokens' queries a metric takes: the thinning of wavekv::query_metric, without its sums.
///
/// A pure function of how many tokens were seen: however they are split over calls, the same tokens are taken with the same
/// weights. One schedule serves all KV heads of a layer. A fork copies it.
class metric_schedule {
 public:
  /// @param group_size   query heads that share a KV head: rows taken for a token
  /// @param max_queries  as of query_metric
  explicit metric_schedule(std::size_t group_size = 1,
                           std::size_t max_queries = query_metric::default_max_queries)
      : group_size_(group_size), rows_per_period_(std::max<std::size_t>(max_queries / 2, 1)) {}

  /// @brief Sees n_tokens more, and calls visit(metric_stretch) for those that are taken, in order.
  /// Complexity: O(1 + log(tokens seen)) visits. Allocates nothing.
  template <class Visit>
  void advance(std::size_t n_tokens, Visit&& visit) {
    const std::size_t begin = n_tokens_;
    const std::size_t end = begin + n_tokens;
    while (n_tokens_ < end) {
      const std::size_t next = (n_tokens_ + period_ - 1) / period_ * period_;
      if (next >= end) {
        break;
      }
      const std::size_t available = (end - next + period_ - 1) / period_;
      const std::size_t wanted =
          (rows_per_period_ - rows_in_period_ + group_size_ - 1) / group_size_;
      const std::size_t count = std::min(available, wanted);
      visit(metric_stretch{next - begin, count, period_});
      n_tokens_ = next + (count - 1) * period_ + 1;
      rows_in_period_ += count * group_size_;
      if (rows_in_period_ >= rows_per_period_) {
        rows_in_period_ = 0;
        period_ *= 2;
      }
    }
    n_tokens_ = end;
  }

  [[nodiscard]] std::size_t n_tokens() const noexcept { return n_tokens_; }  ///< seen so far
  [[nodiscard]] std::size_t period() const noexcept { return period_; }
  [[nodiscard]] std::size_t rows_in_period() const noexcept { return rows_in_period_; }
  [[nodiscard]] std::size_t rows_per_period() const noexcept { return rows_per_period_; }

  /// @brief Whether both would take the same from now on, and have seen as much.
  friend bool operator==(const metric_schedule&, const metric_schedule&) = default;

  /// @brief Calls visit for every number of its state, in a fixed order: what a file keeps of it.
  template <class Self, class Visit>
  static void visit_state(Self& self, Visit&& visit) {
    visit(self.rows_per_period_);
    visit(self.rows_in_period_);
    visit(self.period_);
    visit(self.n_tokens_);
  }

 private:
  std::size_t group_size_;
  std::size_t rows_per_period_;
  std::size_t rows_in_period_ = 0;
  std::size_t period_ = 1;
  std::size_t n_tokens_ = 0;
};

/// @brief Queries in device memory, elements of a row packed.
template <scalar Q>
struct query_rows {
  const Q* first = nullptr;      ///< [n_tokens, n_query_heads, key_dim]
  std::size_t token_stride = 0;  ///< elements
  std::size_t head_stride = 0;   ///< elements
};

/// @brief Kernel: adds one stretch's queries to the metric of every KV head.
///
/// Each thread adds up four elements of the matrix, row after row, onto what is there: the result is the same however tokens
/// are split over launches. Rows that are not finite, or far longer than any model's, are skipped, as on the CPU. The sums are
/// float on the common cores on purpose: at most some thousand rows are taken of a prompt of any length.
/// Grid: (n_blocks(key_dim), n_kv_heads).
template <scalar Q>
struct add_queries {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  query_rows<Q> queries;
  metric_view metric;
  unsigned key_dim = 0;
  unsigned group_size = 1;
  metric_stretch stretch;
  float scale = 1.0F;

  /// @brief Tiles of the lower half of the matrix.
  static unsigned n_blocks(unsigned key_dim) {
    const unsigned n = (key_dim + tile - 1) / tile;
    return n * (n + 1) / 2;
  }

  std::size_t shared_bytes() const {
    shared_arena arena;
    (void)arena.take<float>(std::size_t{rows_together} * key_dim);
    (void)arena.take<unsigned>(rows_together);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    shared_arena arena(b.shared());
    float* const rows = arena.take<float>(std::size_t{rows_together} * key_dim);
    unsigned* const is_taken = arena.take<unsigned>(rows_together);
    const unsigned head = b.block_y();
    unsigned tile_row = 0;
    unsigned tile_column = b.block_x();
    while (tile_column > tile_row) {
      tile_column -= ++tile_row;
    }
    const unsigned first_row = tile_row * tile + b.thread() / 16 * 2;
    const unsigned first_column = tile_column * tile + b.thread() % 16 * 2;
    const bool is_inside = first_row < key_dim && first_column < key_dim;  // key_dim is even
    float* const products = metric.products + std::size_t{head} * key_dim * key_dim;
    float sums[2][2] = {};
    if (is_inside) {
      for_each_own(first_row, first_column,
                   [&](unsigned i, unsigned j, unsigned row, unsigned column) {
                     sums[i][j] = products[std::size_t{row} * key_dim + column];
                   });
    }
    const bool counts = b.block_x() == 0 && b.thread() == 0;
    float weight = counts ? metric.weights[head] : 0.0F;
    const auto period = static_cast<float>(stretch.period);
    const float factor = scale * scale * period;
    const std::size_t n_rows = stretch.count * group_size;
    for (std::size_t done = 0; done < n_rows; done += rows_together) {
      const auto n =
          static_cast<unsigned>(done + rows_together < n_rows ? rows_together : n_rows - done);
      load(b, head, done, n, rows, is_taken);
      b.sync();
      for (unsigned r = 0; r < n; ++r) {
        weight += is_taken[r] != 0 ? period : 0.0F;
        if (is_inside) {
          const float* const row = rows + r * key_dim;
          const float left[2] = {row[first_row] * factor, row[first_row + 1] * factor};
          const float right[2] = {row[first_column], row[first_column + 1]};
          WAVEKV_UNROLL
          for (unsigned i = 0; i < 2; ++i) {
            WAVEKV_UNROLL
            for (unsigned j = 0; j < 2; ++j) {
              sums[i][j] += left[i] * right[j];
            }
          }
        }
      }
      b.sync();
    }
    if (is_inside) {
      for_each_own(first_row, first_column,
                   [&](unsigned i, unsigned j, unsigned row, unsigned column) {
                     products[std::size_t{row} * key_dim + column] = sums[i][j];
                     products[std::size_t{column} * key_dim + row] = sums[i][j];
                   });
    }
    if (counts) {
      metric.weights[head] = weight;
    }
  }

 private:
  static constexpr unsigned tile = 32;
  static constexpr unsigned rows_together = 32;

  // The elements of a thread's square that lie in the lower half; the upper half is their mirror image.
  template <class Visit>
  WAVEKV_DEVICE static void for_each_own(unsigned first_row, unsigned first_column,
                                         const Visit& visit) {
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 2; ++i) {
      WAVEKV_UNROLL
      for (unsigned j = 0; j < 2; ++j) {
        if (first_column + j <= first_row + i) {
          visit(i, j, first_row + i, first_column + j);
        }
      }
    }
  }

  // A warp a row: zeros in place of one that is skipped.
  template <class Block>
  WAVEKV_DEVICE void load(Block& b, unsigned head, std::size_t done, unsigned n, float* rows,
                          unsigned* is_taken) const {
    constexpr unsigned n_warps = n_threads / warp_size;
    constexpr unsigned rows_each = rows_together / n_warps;
    constexpr unsigned most_each = 8;  // elements of a row that a lane has: keys have at most 256
    // All are on their way before the first is used.
    Q x[rows_each][most_each];
    WAVEKV_UNROLL
    for (unsigned k = 0; k < rows_each; ++k) {
      const unsigned r = b.warp() + k * n_warps;
      const std::size_t row = done + or_last(r, n);
      const std::size_t token = stretch.first + row / group_size * stretch.period;
      const std::size_t query = std::size_t{head} * group_size + row % group_size;
      const Q* const from =
          queries.first + token * queries.token_stride + query * queries.head_stride;
      WAVEKV_UNROLL
      for (unsigned i = 0; i < most_each; ++i) {
        const unsigned column = i * warp_size + b.lane();
        x[k][i] = from[or_last(column, key_dim)];
      }
    }
    WAVEKV_UNROLL
    for (unsigned k = 0; k < rows_each; ++k) {
      const unsigned r = b.warp() + k * n_warps;
      float square = 0.0F;
      WAVEKV_UNROLL
      for (unsigned i = 0; i < most_each; ++i) {
        const bool is_column = i * warp_size + b.lane() < key_dim;
        const float element = is_column ? to_float(x[k][i]) * scale : 0.0F;
        square += element * element;
      }
      square = b.warp_sum(square);
      const bool taken = square * static_cast<float>(stretch.period) < 1e30F;  // NaN is not
      WAVEKV_UNROLL
      for (unsigned i = 0; i < most_each; ++i) {
        const unsigned column = i * warp_size + b.lane();
        if (column < key_dim) {
          rows[r * key_dim + column] = taken && r < n ? to_float(x[k][i]) : 0.0F;
        }
      }
      if (b.lane() == 0) {
        is_taken[r] = taken && r < n ? 1 : 0;
      }
    }
  }
};

/// @brief Takes in the queries of n_tokens consecutive tokens: those that the schedule picks. Enqueues only.
/// Complexity: O(rows taken · key_dim²) per KV head.
/// @param queries  [n_tokens, n_kv_heads · group_size, key_dim] on the device
/// @param scale    the factor applied to logits
template <scalar Q, device_runtime Runtime>
void learn_queries(Runtime& runtime, typename Runtime::stream_type stream, const model_shape& shape,
                   const query_rows<Q>& queries, std::size_t n_tokens, float scale,
                   metric_schedule& schedule, const metric_view& metric) {
  schedule.advance(n_tokens, [&](const metric_stretch& stretch) {
    runtime.launch(
        stream, grid{add_queries<Q>::n_blocks(shape.key_dim), shape.n_kv_heads},
        add_queries<Q>{queries, metric, shape.key_dim, shape.group_size, stretch, scale});
  });
}

}  // namespace wavekv::device
