// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/index/query_metric.hpp>

/// @file cluster_request.hpp
/// @brief What a clusterer is given: the keys and values of one KV head of one segment, and memory to work in.

namespace wavekv {

/// @brief One clustering task. Views only: everything belongs to the caller and is not changed.
///
/// A clusterer is called as `clusterer.cluster(request, assignment, scratch)`, where `assignment` is a
/// `std::span<std::uint32_t>` of n_tokens elements. It writes a cluster id for every token and returns the
/// number of clusters; the ids are 0 .. n-1 and every one of them is used. Keys and values must be finite.
struct cluster_request {
  const float* keys = nullptr;  ///< [n_tokens, key_dim], row-major and packed
  std::size_t key_dim = 0;      ///< elements of a key
  const float* values =
      nullptr;  ///< [n_tokens, value_dim], row-major and packed; may be null when value_dim is 0
  std::size_t value_dim = 0;   ///< elements of a value
  std::size_t n_tokens = 0;    ///< rows of keys and values
  std::size_t n_clusters = 1;  ///< asked for; a clusterer may return fewer, but never none
  const query_metric* metric = nullptr;  ///< the queries seen so far, or null when there were none
};

/// @brief Memory that clusterers and the tree builder reuse from call to call. It grows and never shrinks.
///
/// One scratch serves one thread at a time. Contents mean nothing between calls, and results never depend
/// on them. A user's own clusterer is free to ignore it.
class clustering_scratch {
 public:
  /// @brief Grow-only array of trivial elements; contents indeterminate after every call of `take`.
  template <class T>
  class buffer {
   public:
    /// @brief At least n elements, aligned to a cache line.  @throw std::bad_alloc
    T* take(std::size_t n) {
      if (storage_.size() < n) {
        storage_ = aligned_storage<T>();  // free first: the old contents are not needed
        storage_ = aligned_storage<T>(n);
      }
      return storage_.data();
    }

   private:
    aligned_storage<T> storage_;
  };

  buffer<float> scaled_keys;         ///< keys brought into a safe range, when they are not
  buffer<float> points;              ///< [n_tokens, dim]: rows in the space that is clustered
  buffer<float> blocks;              ///< points again, packed for the micro-kernel
  buffer<float> panels;              ///< centroids packed for the micro-kernel
  buffer<float> biases;              ///< one per centroid
  buffer<float> padded_biases;       ///< the same, padded to whole panels
  buffer<float> centroids;           ///< [n_clusters, dim]
  buffer<float> pool;                ///< points that seeds are drawn from
  buffer<double> seed_weights;       ///< one per point of the pool
  buffer<std::uint32_t> seeds;       ///< one per cluster
  buffer<double> sums;               ///< [n_clusters, dim]
  buffer<double> mean;               ///< [dim]
  buffer<float> misfits;             ///< one per point
  buffer<std::uint32_t> counts;      ///< one per cluster
  buffer<std::uint32_t> previous;    ///< one per point
  buffer<std::uint32_t> candidates;  ///< one per point
  buffer<float> scores;              ///< two per point: of its centroid, and a bound of the others
  buffer<std::uint8_t> is_changed;   ///< one per cluster
  buffer<std::uint32_t> changed;     ///< ids of the clusters that changed
  buffer<std::uint32_t> misfit_order;  ///< one per point
  buffer<float> factor;                ///< [key_dim, key_dim]: Cholesky factor of the query metric
  buffer<float> factor_panels;         ///< the factor packed for the micro-kernel
  query_metric factorized;             ///< whose factor that is
  buffer<std::int8_t> quantized_blocks;     ///< points in eight bits
  buffer<std::int8_t> quantized_panels;     ///< centroids in eight bits
  buffer<std::int32_t> quantized_offsets;   ///< one per centroid
  buffer<std::int32_t> quantized_products;  ///< of a block of points with all centroids
};

}  // namespace wavekv
