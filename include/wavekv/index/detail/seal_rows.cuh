// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/index/detail/chunked_rows.cuh>
#include <wavekv/index/seal_item.cuh>

/// @file seal_rows.cuh
/// @brief The rows that sealing works on, as kernels see them: tokens and nodes, whole and as deviations from a mean.
///
/// Rows:        `n(job)`, `row(job, i)`, a pointer to [width] elements, `weight(job, i)`, tokens that it stands for.
/// Deviations:  `n(job)`, `weight(job, i)`, `load(b, job, i, column, scale, x)`: eight columns of row i less its mean, times
///              scale. Both are scaled before they are subtracted, so that nothing overflows that need not.

namespace wavekv::device::detail {

/// Tokens in their own order, from the ring.
template <scalar T>
struct ring_rows {
  using element = T;
  seal_batch<T> batch;

  WAVEKV_DEVICE unsigned n(unsigned) const { return batch.n_tokens; }
  WAVEKV_DEVICE float weight(unsigned, unsigned) const { return 1.0F; }
  WAVEKV_DEVICE const T* row(unsigned job, unsigned i) const {
    const seal_item<T>& item = batch.item(job);
    return item.ring.row(batch.head(job), item.first_position + i, batch.width);
  }
};

/// The nodes of a level, by id.
struct node_rows {
  using element = float;
  growing_level level;
  unsigned width = 0;

  WAVEKV_DEVICE unsigned n(unsigned job) const { return level.n_nodes[job]; }
  WAVEKV_DEVICE float weight(unsigned job, unsigned i) const {
    return level.sizes[level.node(job, i)];
  }
  WAVEKV_DEVICE const float* row(unsigned job, unsigned i) const {
    return level.means + level.node(job, i) * width;
  }
};

/// Eight columns of a row less those of a mean.
template <scalar T, class Block>
WAVEKV_DEVICE void read_deviation(Block& b, const T* row, const float* mean, float scale,
                                  float (&x)[8]) {
  float center[8];
  read_eight(b, row, x);
  read_eight(b, mean, center);
  WAVEKV_UNROLL
  for (unsigned i = 0; i < 8; ++i) {
    x[i] = x[i] * scale - center[i] * scale;
  }
}

/// Rows less the mean of all.
template <class Rows>
struct from_mean_of_all {
  Rows rows;
  const float* means = nullptr;  // [n_jobs, width]
  unsigned width = 0;

  WAVEKV_DEVICE unsigned n(unsigned job) const { return rows.n(job); }
  template <class Block>
  WAVEKV_DEVICE void load(Block& b, unsigned job, unsigned i, unsigned column, float scale,
                          float (&x)[8]) const {
    read_deviation(b, rows.row(job, i) + column, means + std::size_t{job} * width + column, scale,
                   x);
  }
};

/// Tokens in tree order less the mean of their cluster.
template <scalar T>
struct tokens_from_clusters {
  seal_batch<T> batch;
  growing_level clusters;

  WAVEKV_DEVICE unsigned n(unsigned) const { return batch.n_tokens; }
  WAVEKV_DEVICE float weight(unsigned, unsigned) const { return 1.0F; }
  template <class Block>
  WAVEKV_DEVICE void load(Block& b, unsigned job, unsigned i, unsigned column, float scale,
                          float (&x)[8]) const {
    const T* const rows =
        batch.item(job).segment.rows + std::size_t{batch.head(job)} * batch.n_tokens * batch.width;
    const unsigned rank = clusters.parent_rank[clusters.row(job, i)];
    const unsigned id = clusters.id_of_rank[clusters.node(job, rank)];
    read_deviation(b, rows + std::size_t{i} * batch.width + column,
                   clusters.means + clusters.node(job, id) * batch.width + column, scale, x);
  }
};

/// Nodes of a level in tree order less the mean of their parent.
struct nodes_from_parents {
  growing_level nodes;
  growing_level parents;
  unsigned width = 0;

  WAVEKV_DEVICE unsigned n(unsigned job) const { return nodes.n_nodes[job]; }
  WAVEKV_DEVICE std::size_t node(unsigned job, unsigned i) const {
    return nodes.node(job, nodes.id_of_rank[nodes.node(job, i)]);
  }
  WAVEKV_DEVICE float weight(unsigned job, unsigned i) const { return nodes.sizes[node(job, i)]; }
  template <class Block>
  WAVEKV_DEVICE void load(Block& b, unsigned job, unsigned i, unsigned column, float scale,
                          float (&x)[8]) const {
    const unsigned rank = parents.parent_rank[parents.row(job, i)];
    const unsigned id = parents.id_of_rank[parents.node(job, rank)];
    read_deviation(b, nodes.means + node(job, i) * width + column,
                   parents.means + parents.node(job, id) * width + column, scale, x);
  }
};

/// Nodes of a level in tree order as T stores them less what they are.
template <scalar T>
struct rounding_of_nodes {
  growing_level nodes;
  unsigned width = 0;

  WAVEKV_DEVICE unsigned n(unsigned job) const { return nodes.n_nodes[job]; }
  template <class Block>
  WAVEKV_DEVICE void load(Block& b, unsigned job, unsigned i, unsigned column, float scale,
                          float (&x)[8]) const {
    const unsigned id = nodes.id_of_rank[nodes.node(job, i)];
    read_eight(b, nodes.means + nodes.node(job, id) * width + column, x);
    WAVEKV_UNROLL
    for (unsigned e = 0; e < 8; ++e) {
      x[e] = rounded_to<T>(x[e]) * scale - x[e] * scale;
    }
  }
};

}  // namespace wavekv::device::detail
