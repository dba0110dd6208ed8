// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/detail/chunked_rows.cuh>
#include <wavekv/index/detail/lloyd.cuh>
#include <wavekv/index/detail/seal_rows.cuh>
#include <wavekv/index/seal_item.cuh>

/// @file cluster_tree_builder.cuh
/// @brief Puts the clusters of all levels, and what they hold, in tree order on the device: the second half of grow_tree in
/// cluster_tree_builder.hpp. Numbers of nodes never leave the device.

namespace wavekv::device::detail {

/// Kernel: gives consecutive ids to the clusters that have rows. Grid: (1, n_jobs).
struct name_nodes {
  static constexpr unsigned n_threads = 512;
  static constexpr bool overlaps = true;
  cluster_set clusters;
  growing_level level;

  std::size_t shared_bytes() const { return n_threads / warp_size * sizeof(unsigned); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const std::uint32_t* const from = clusters.first_of(job);
    std::uint32_t* const to = level.first + std::size_t{job} * (level.capacity + 1);
    unsigned n_nodes = 0;
    for (unsigned done = 0; done < clusters.n_clusters; done += n_threads) {
      const unsigned cluster = done + b.thread();
      const bool has_rows = cluster < clusters.n_clusters && from[cluster + 1] > from[cluster];
      unsigned n = 0;
      const unsigned before =
          block_scan(b, has_rows ? 1U : 0U, reinterpret_cast<unsigned*>(b.shared()), n);
      if (has_rows) {
        to[n_nodes + before] = from[cluster];
      }
      n_nodes += n;
    }
    if (b.thread() == 0) {
      to[n_nodes] = from[clusters.n_clusters];
      level.n_nodes[job] = n_nodes;
    }
  }
};

/// Kernel: sizes and true means of a level's nodes, over their tokens. Grid: (capacity, n_jobs).
/// Sums are double, as on the CPU: the rows are read once, which takes longer than adding them does.
template <class Rows>
struct average_nodes {
  static constexpr unsigned n_threads = 128;
  static constexpr bool overlaps = true;
  Rows rows;
  growing_level level;
  unsigned width = 0;

  std::size_t shared_bytes() const {
    shared_arena arena;
    (void)arena.take<double>(std::size_t{width} * (n_threads / warp_size));
    (void)arena.take<double>(n_threads / warp_size);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned id = b.block_x();
    const unsigned job = b.block_y();
    if (id >= level.n_nodes[job]) {
      return;
    }
    shared_arena arena(b.shared());
    double* const sums = arena.take<double>(std::size_t{width} * (n_threads / warp_size));
    double* const of_warps = arena.take<double>(n_threads / warp_size);
    const std::uint32_t* const first = level.first + std::size_t{job} * (level.capacity + 1) + id;
    const unsigned begin = first[0];
    const unsigned n = first[1] - begin;
    const std::uint32_t* const sorted = level.sorted + level.row(job, begin);
    double mine = 0.0;
    for (unsigned i = b.thread(); i < n; i += n_threads) {
      mine += static_cast<double>(rows.weight(job, sorted[i]));
    }
    const double size = block_sum_of(b, mine, of_warps);
    const double share = 1.0 / size;
    float* const mean = level.means + level.node(job, id) * width;
    add_rows_up<double, 2>(
        b, n, width / 8, sums,
        [&](unsigned i, unsigned piece, double(&sum)[8]) {
          const unsigned row = sorted[i];
          const auto weight = static_cast<double>(rows.weight(job, row));
          float x[8];
          read_eight(b, rows.row(job, row) + 8 * piece, x);
          WAVEKV_UNROLL
          for (unsigned e = 0; e < 8; ++e) {
            sum[e] += weight * static_cast<double>(x[e]);
          }
        },
        [&](unsigned piece, const double(&sum)[8]) {
          float x[8];
          WAVEKV_UNROLL
          for (unsigned e = 0; e < 8; ++e) {
            x[e] = static_cast<float>(sum[e] * share);
          }
          write_eight(b, mean + 8 * piece, x);
        });
    if (b.thread() == 0) {
      level.sizes[level.node(job, id)] = static_cast<float>(size);
    }
  }
};

/// Kernel: the tree order of a level's children, from that of its nodes: where each node's children begin, in the order of
/// the nodes' ranks. Written to the segment. Grid: (1, n_jobs).
template <scalar T>
struct link_children {
  static constexpr unsigned n_threads = 512;
  static constexpr bool overlaps = true;
  seal_batch<T> batch;
  growing_level level;
  unsigned number = 0;  ///< of the level
  bool is_top = false;  ///< ranks are ids

  std::size_t shared_bytes() const { return n_threads / warp_size * sizeof(unsigned); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned head = batch.head(job);
    const level_view<T>& to = batch.item(job).segment.levels[number];
    std::uint32_t* const first_child = to.first_child + std::size_t{head} * (to.capacity + 1);
    const std::uint32_t* const first = level.first + std::size_t{job} * (level.capacity + 1);
    const unsigned n_nodes = level.n_nodes[job];
    unsigned placed = 0;
    for (unsigned done = 0; done < n_nodes; done += n_threads) {
      const unsigned rank = done + b.thread();
      unsigned n_children = 0;
      if (rank < n_nodes) {
        std::uint32_t& id = level.id_of_rank[level.node(job, rank)];
        if (is_top) {
          id = rank;
        }
        n_children = first[id + 1] - first[id];
      }
      unsigned n = 0;
      const unsigned before = block_scan(b, n_children, reinterpret_cast<unsigned*>(b.shared()), n);
      if (rank < n_nodes) {
        first_child[rank] = placed + before;
      }
      placed += n;
    }
    if (b.thread() == 0) {
      first_child[n_nodes] = placed;
      to.n_nodes[head] = n_nodes;
    }
  }
};

/// Kernel: the children of each node at their places, in the order of their ids; writes the ids by rank of the level below,
/// or the segment's order. Grid: (ceil(capacity / 8), n_jobs), a warp for each node.
template <scalar T>
struct place_children {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  seal_batch<T> batch;
  growing_level level;
  growing_level below;  ///< unused at level 0
  unsigned number = 0;

  std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned rank = b.block_x() * (n_threads / warp_size) + b.warp();
    if (rank >= level.n_nodes[job]) {
      return;
    }
    const unsigned head = batch.head(job);
    const segment_view<T>& segment = batch.item(job).segment;
    const level_view<T>& to = segment.levels[number];
    const std::uint32_t* const first_child =
        to.first_child + std::size_t{head} * (to.capacity + 1) + rank;
    const unsigned place = first_child[0];
    const unsigned n = first_child[1] - place;
    const unsigned id = level.id_of_rank[level.node(job, rank)];
    const unsigned begin = level.first[std::size_t{job} * (level.capacity + 1) + id];
    const std::uint32_t* const sorted = level.sorted + level.row(job, begin);
    for (unsigned i = b.lane(); i < n; i += warp_size) {
      level.parent_rank[level.row(job, place + i)] = rank;
      if (number == 0) {
        segment.order[std::size_t{head} * batch.n_tokens + place + i] =
            static_cast<std::uint16_t>(sorted[i]);
      } else {
        below.id_of_rank[below.node(job, place + i)] = sorted[i];
      }
    }
  }
};

/// Kernel: K and V of the tokens in tree order. Grid: (ceil(n_tokens / 8), n_jobs), a warp for each row.
template <scalar T>
struct lay_out_tokens {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  seal_batch<T> batch;

  std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned place = b.block_x() * (n_threads / warp_size) + b.warp();
    if (place >= batch.n_tokens) {
      return;
    }
    const seal_item<T>& item = batch.item(job);
    const std::size_t to = std::size_t{batch.head(job)} * batch.n_tokens + place;
    const T* const from = ring_rows<T>{batch}.row(job, item.segment.order[to]);
    constexpr unsigned n = 16 / sizeof(T);
    for (unsigned column = b.lane() * n; column < batch.width; column += warp_size * n) {
      store16(item.segment.rows + to * batch.width + column, b.load16(from + column));
    }
  }
};

/// Kernel: summaries of a level's nodes in tree order, rounded to T. Grid: (ceil(capacity / 8), n_jobs), a warp for each node.
template <scalar T>
struct lay_out_nodes {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  seal_batch<T> batch;
  growing_level level;
  unsigned number = 0;

  std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned rank = b.block_x() * (n_threads / warp_size) + b.warp();
    if (rank >= level.n_nodes[job]) {
      return;
    }
    const level_view<T>& to = batch.item(job).segment.levels[number];
    const std::size_t node = std::size_t{batch.head(job)} * to.capacity + rank;
    const std::size_t source = level.node(job, level.id_of_rank[level.node(job, rank)]);
    for (unsigned column = b.lane() * 8; column < batch.width; column += warp_size * 8) {
      float x[8];
      read_eight(b, level.means + source * batch.width + column, x);
      write_eight(b, to.rows + node * batch.width + column, x);
    }
    if (b.lane() == 0) {
      to.sizes[node] = level.sizes[source];
    }
  }
};

/// Orders all levels from the top and lays rows out. Enqueues only.
/// @param levels  finest first, clustered
template <scalar T, device_runtime Runtime>
void order_tree(Runtime& runtime, typename Runtime::stream_type stream, const seal_batch<T>& batch,
                unsigned n_jobs, const growing_level* levels, unsigned n_levels) {
  for (unsigned number = n_levels; number-- > 0;) {
    const growing_level& level = levels[number];
    const grid of_nodes{(level.capacity + 7) / 8, n_jobs};
    runtime.launch(stream, grid{1, n_jobs},
                   link_children<T>{batch, level, number, number + 1 == n_levels});
    runtime.launch(stream, of_nodes,
                   place_children<T>{batch, level, levels[number == 0 ? 0 : number - 1], number});
    runtime.launch(stream, of_nodes, lay_out_nodes<T>{batch, level, number});
  }
  runtime.launch(stream, grid{(batch.n_tokens + 7) / 8, n_jobs}, lay_out_tokens<T>{batch});
}

}  // namespace wavekv::device::detail
