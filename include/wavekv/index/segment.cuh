// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/index/segment.hpp>

/// @file segment.cuh
/// @brief A sealed segment in device memory: the same tree as <wavekv/index/segment.hpp>, laid out for a warp's loads.
///
/// A row is a key and its value behind each other, of a token or of a node (centroid and value mean): one pointer leads to
/// both, and to the rows that follow, whatever cluster they belong to. Numbers of nodes are known to the device alone, so
/// that sealing never makes the host wait; what is laid out by number has room for as many as there can be.

namespace wavekv::device {

/// @brief The sizes that kernels of one cache share.
struct model_shape {
  unsigned n_kv_heads = 1;
  unsigned group_size = 1;
  unsigned key_dim = 0;    ///< a multiple of 8, at most 256
  unsigned value_dim = 0;  ///< likewise
  unsigned n_levels = 1;
  float softcap = 0.0F;

  /// @brief Elements of a row.
  [[nodiscard]] WAVEKV_HOST_DEVICE unsigned width() const { return key_dim + value_dim; }
};

/// @brief One level of the trees of all KV heads.
template <class T>
struct level_view {
  T* rows = nullptr;             ///< [n_kv_heads, capacity, width]
  float* sizes = nullptr;        ///< [n_kv_heads, capacity] tokens under a node
  float* dispersions = nullptr;  ///< [n_kv_heads, capacity]
  std::uint32_t* first_child =
      nullptr;  ///< [n_kv_heads, capacity + 1] into the level below; at level 0 into tokens
  std::uint32_t* n_nodes = nullptr;  ///< [n_kv_heads]
  std::uint32_t capacity = 0;        ///< nodes there may be
};

/// @brief A segment: all KV heads of one layer.
template <class T>
struct segment_view {
  std::uint32_t first_token = 0;  ///< position in the sequence of its first token
  std::uint32_t n_tokens = 0;
  T* rows = nullptr;  ///< [n_kv_heads, n_tokens, width] in tree order
  std::uint16_t* order =
      nullptr;  ///< [n_kv_heads, n_tokens] offset from first_token, by tree position
  float* value_spread = nullptr;          ///< [n_kv_heads]
  level_view<T> levels[max_tree_levels];  ///< finest first
};

/// @brief What segments teach about how keys and values vary together inside their nodes (see cluster_covariance), as sums,
/// so that what several have learnt is added up.
struct learnt_view {
  float* products =
      nullptr;               ///< [n_kv_heads, n_levels, key_dim, width] sum of deviations' products
  float* weights = nullptr;  ///< [n_kv_heads, n_levels] sum of size · dispersion

  /// @brief Floats of `products`.
  static std::size_t n_products(const model_shape& shape) {
    return std::size_t{shape.n_kv_heads} * shape.n_levels * shape.key_dim * shape.width();
  }
};

/// @brief Nodes that a level of n tokens may have.
template <class ClusterCount>
constexpr std::uint32_t most_nodes(std::size_t n_tokens, std::size_t level) {
  const std::size_t per_node = ClusterCount::tokens_at(level);
  return static_cast<std::uint32_t>((n_tokens + per_node - 1) / per_node);
}

/// @brief Gives pieces of one allocation, each aligned to 256 bytes; or only counts them, from a null pointer on.
class device_arena {
 public:
  explicit device_arena(void* base) : base_(static_cast<std::byte*>(base)) {}

  /// @brief n elements; null while counting.
  template <class T>
  T* take(std::size_t n) {
    T* const taken = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (n * sizeof(T) + 255) / 256 * 256;
    return taken;
  }

  /// @brief Bytes given so far.
  [[nodiscard]] std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

/// @brief Lays a segment out in an arena.
template <class T, class ClusterCount>
segment_view<T> lay_out_segment(device_arena& arena, const model_shape& shape,
                                std::size_t first_token, std::size_t n_tokens) {
  const std::size_t n_heads = shape.n_kv_heads;
  segment_view<T> segment;
  segment.first_token = static_cast<std::uint32_t>(first_token);
  segment.n_tokens = static_cast<std::uint32_t>(n_tokens);
  segment.rows = arena.take<T>(n_heads * n_tokens * shape.width());
  segment.order = arena.take<std::uint16_t>(n_heads * n_tokens);
  segment.value_spread = arena.take<float>(n_heads);
  for (std::size_t l = 0; l < ClusterCount::n_levels; ++l) {
    level_view<T>& level = segment.levels[l];
    level.capacity = most_nodes<ClusterCount>(n_tokens, l);
    level.rows = arena.take<T>(n_heads * level.capacity * shape.width());
    level.sizes = arena.take<float>(n_heads * level.capacity);
    level.dispersions = arena.take<float>(n_heads * level.capacity);
    level.first_child = arena.take<std::uint32_t>(n_heads * (level.capacity + 1));
    level.n_nodes = arena.take<std::uint32_t>(n_heads);
  }
  return segment;
}

/// @brief Bytes of a segment.
template <class T, class ClusterCount>
std::size_t segment_bytes(const model_shape& shape, std::size_t n_tokens) {
  device_arena count(nullptr);
  (void)lay_out_segment<T, ClusterCount>(count, shape, 0, n_tokens);
  return count.used();
}

/// @brief Where the rows lie that a segment is sealed from: a ring of one layer's newest tokens.
template <class T>
struct token_ring {
  T* rows =
      nullptr;  ///< [n_kv_heads, capacity, width]; the token at position p lies at slot p % capacity
  std::uint32_t capacity = 0;  ///< tokens

  /// @brief The row of a token.
  [[nodiscard]] WAVEKV_HOST_DEVICE T* row(unsigned head, std::uint32_t position,
                                          unsigned width) const {
    return rows + (std::size_t{head} * capacity + position % capacity) * width;
  }
};

/// @brief The sums of a query metric (see query_metric) on the device: M = mean of q·qᵀ, per KV head.
struct metric_view {
  float* products =
      nullptr;  ///< [n_kv_heads, key_dim, key_dim] weighted sum of q·qᵀ, both halves written
  float* weights = nullptr;  ///< [n_kv_heads] sum of the weights of the rows taken; 0: nothing seen
};

}  // namespace wavekv::device
