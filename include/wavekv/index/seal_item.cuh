// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/core/scalar.hpp>
#include <wavekv/index/segment.cuh>

/// @file seal_item.cuh
/// @brief What the device's sealer is given: a run of tokens in a ring, and the memory that becomes their segment.

namespace wavekv::device {

/// @brief One segment to seal; views of device memory.
template <scalar T>
struct seal_item {
  token_ring<T> ring;                ///< holds the tokens until the seal is done
  std::uint32_t first_position = 0;  ///< position of the first token
  std::uint32_t n_tokens = 0;        ///< 1 to 65,536
  segment_view<T> segment;           ///< laid out for n_tokens, written in full
  learnt_view
      learnt;  ///< set, not added to: what this segment alone teaches; products null: not wanted
  metric_view metric;  ///< of the queries seen so far; products null: none known
};

namespace detail {

/// The items of a seal. A *job* is one KV head of one item.
template <scalar T>
struct seal_batch {
  const seal_item<T>* items = nullptr;  // on the device
  unsigned n_heads = 1;
  unsigned n_tokens = 0;  // of each item
  unsigned key_dim = 0;
  unsigned width = 0;

  WAVEKV_DEVICE const seal_item<T>& item(unsigned job) const { return items[job / n_heads]; }
  WAVEKV_DEVICE unsigned head(unsigned job) const { return job % n_heads; }
};

/// One level of the trees of all jobs while they grow. *Ids* are the clusterer's numbers of nodes, *ranks* their places in
/// tree order.
struct growing_level {
  unsigned capacity = 0;  // nodes of a job there may be
  unsigned n_rows = 0;    // rows grouped there may be: tokens, or nodes of the level below
  std::uint32_t* n_nodes = nullptr;  // [n_jobs]
  std::uint32_t* sorted = nullptr;   // [n_jobs, n_rows] row ids by node id, then by row id
  std::uint32_t* first =
      nullptr;             // [n_jobs, capacity + 1] where the rows of a node id begin in `sorted`
  float* means = nullptr;  // [n_jobs, capacity, width] by node id
  float* sizes = nullptr;  // [n_jobs, capacity] tokens, by node id
  std::uint32_t* id_of_rank = nullptr;   // [n_jobs, capacity]
  std::uint32_t* parent_rank = nullptr;  // [n_jobs, n_rows] of the row at each place in tree order
  float* dispersions = nullptr;          // [n_jobs, capacity] by rank, without what rounding adds

  WAVEKV_DEVICE std::size_t node(unsigned job, unsigned id) const {
    return std::size_t{job} * capacity + id;
  }
  WAVEKV_DEVICE std::size_t row(unsigned job, unsigned i) const {
    return std::size_t{job} * n_rows + i;
  }
};

}  // namespace detail

}  // namespace wavekv::device
