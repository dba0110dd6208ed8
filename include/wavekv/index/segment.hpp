// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/scalar.hpp>

/// @file segment.hpp
/// @brief A sealed run of tokens of one layer with its index: immutable, shared by forks.

namespace wavekv {

/// @brief Most levels a cluster tree may have.
inline constexpr std::size_t max_tree_levels = 3;

/// @brief One level of one KV head's cluster tree: the summaries of its nodes. A view into the segment.
///
/// Summaries lie in *families*: the children of one parent (at the top: all nodes) are one run
/// `[n × key_dim]` centroids followed by `[n × value_dim]` value means, so that opening a node reads one
/// run. A block of tokens has the same form. The value mean stands in for the value sum of the design:
/// same bytes, the same result through the size, and no overflow in f16.
template <scalar T>
struct tree_level {
  std::uint32_t n_nodes = 0;
  const T* rows = nullptr;            ///< families, in node order
  const float* size = nullptr;        ///< [n_nodes] tokens under a node
  const float* dispersion = nullptr;  ///< [n_nodes] variance of a key along a mean query direction
  const std::uint32_t* first_child =
      nullptr;  ///< [n_nodes + 1] into the level below; at level 0 into tokens
};

/// @brief One KV head of a segment.
template <scalar T>
struct head_index {
  std::array<tree_level<T>, max_tree_levels> levels{};  ///< finest first
  const std::uint16_t* order =
      nullptr;  ///< [n_tokens] offset from the segment's first token, by tree position
  float value_spread = 0.0F;  ///< root mean square distance of a value from the head's mean value
};

/// @brief A sealed segment. Everything is in tree order per KV head; order gives the tokens' own offsets.
/// @tparam T       storage scalar
/// @tparam Handle  how a block store names the kept rows
template <scalar T, class Handle>
class segment {
 public:
  /// @brief Rows and summaries of all heads while a segment is made; heads may be filled by different threads.
  struct parts {
    struct head_part {
      std::array<std::uint32_t, max_tree_levels> n_nodes{};
      std::array<aligned_storage<T>, max_tree_levels> rows;
      std::array<std::vector<float>, max_tree_levels> size;
      std::array<std::vector<float>, max_tree_levels> dispersion;
      std::array<std::vector<std::uint32_t>, max_tree_levels> first_child;
      std::vector<std::uint16_t> order;
      float value_spread = 0.0F;
      std::shared_ptr<const void> kept;  ///< by a summary that scores clusters; else null
      std::size_t kept_bytes = 0;        ///< of its memory
    };
    std::size_t n_tokens = 0;
    std::size_t n_levels = 1;
    aligned_storage<T>
        token_rows;  ///< [n_heads] runs of n_tokens · (key_dim + value_dim), in tree order
    std::vector<head_part> heads;
  };

  /// @brief A segment's index without its rows, as it lies in memory and in a file: the summaries of all heads in one
  /// arena, so that a step walks few pages; the top levels of all heads first, which every step reads.
  struct image {
    std::size_t first_token = 0;  ///< position in the sequence of the segment's first token
    std::size_t n_tokens = 0;
    std::size_t n_levels = 1;
    std::vector<std::array<std::uint32_t, max_tree_levels>> n_nodes;  ///< [n_heads]
    std::vector<float> value_spread;                                  ///< [n_heads]
    aligned_storage<T> summaries;          ///< per level from the top, per head: its families
    aligned_storage<float> numbers;        ///< likewise: sizes, then dispersions
    aligned_storage<std::uint32_t> links;  ///< likewise: first children
    std::vector<std::uint16_t> order;      ///< [n_heads, n_tokens]

    [[nodiscard]] std::size_t n_heads() const noexcept { return n_nodes.size(); }
    /// @brief Nodes of all heads and levels.
    [[nodiscard]] std::size_t n_all_nodes() const noexcept {
      std::size_t sum = 0;
      for (const auto& head : n_nodes) {
        sum = std::accumulate(head.begin(), head.end(), sum);
      }
      return sum;
    }

    /// @brief Makes the arenas, uninitialised, once all numbers before them are there.
    /// @param width  key_dim + value_dim
    /// @throw std::bad_alloc
    void make_arenas(std::size_t width) {
      const std::size_t n = n_all_nodes();
      summaries = aligned_storage<T>(n * width);
      numbers = aligned_storage<float>(2 * n);
      links = aligned_storage<std::uint32_t>(n + n_levels * n_heads());
      order.resize(n_heads() * n_tokens);
    }
  };

  /// @brief Seals the parts.
  /// @param first_token  position in the sequence of the segment's first token
  /// @param keep  keep(rows, blocks) -> Handle: takes the rows, cut into blocks
  template <class Keep>
  segment(std::size_t first_token, std::size_t key_dim, std::size_t value_dim, parts made,
          Keep&& keep)
      : width_(key_dim + value_dim), image_(packed(first_token, width_, made)) {
    link_levels();
    for (auto& part : made.heads) {
      kept_.push_back(std::move(part.kept));
      kept_bytes_ += part.kept_bytes;
    }
    rows_ = keep(std::move(made.token_rows), std::span<const block>(list_blocks()));
  }

  /// @brief A segment that was sealed before.
  /// @param from  whole and sound: see <wavekv/file/segment_part.hpp>
  /// @param keep  keep(blocks) -> Handle: gives the rows
  template <class Keep>
  segment(std::size_t key_dim, std::size_t value_dim, image from, Keep&& keep)
      : width_(key_dim + value_dim), image_(std::move(from)) {
    link_levels();
    rows_ = keep(std::span<const block>(list_blocks()));
  }

  segment(const segment&) = delete;
  segment& operator=(const segment&) = delete;
  segment(segment&&) = delete;
  segment& operator=(segment&&) = delete;
  ~segment() = default;

  [[nodiscard]] std::size_t first_token() const noexcept { return image_.first_token; }
  [[nodiscard]] std::size_t n_tokens() const noexcept { return image_.n_tokens; }
  [[nodiscard]] std::size_t n_levels() const noexcept { return image_.n_levels; }
  /// @brief The index as it is saved.
  [[nodiscard]] const image& index_image() const noexcept { return image_; }
  [[nodiscard]] const head_index<T>& head(std::size_t h) const noexcept { return heads_[h]; }
  [[nodiscard]] const Handle& rows() const noexcept { return rows_; }
  /// @brief What the index's summary keeps of a head's clusters.
  /// @tparam Summary  the index's, one that scores clusters
  template <class Summary>
  [[nodiscard]] const typename Summary::kept& kept(std::size_t h) const noexcept {
    return *static_cast<const typename Summary::kept*>(kept_[h].get());
  }
  /// @brief Bytes of K and V.
  [[nodiscard]] std::size_t kv_bytes() const noexcept {
    return heads_.size() * n_tokens() * width_ * sizeof(T);
  }
  /// @brief Bytes of everything else, what a summary keeps included.
  [[nodiscard]] std::size_t index_bytes() const noexcept {
    return image_.summaries.bytes() + image_.numbers.bytes() + image_.links.bytes() +
           image_.order.size() * sizeof(std::uint16_t) + kept_bytes_;
  }

  /// @brief Tokens of a cluster of one head, in tree positions [first, last).
  [[nodiscard]] std::pair<std::uint32_t, std::uint32_t> cluster_tokens(
      std::size_t h, std::uint32_t cluster) const noexcept {
    const std::uint32_t* first = heads_[h].levels[0].first_child;
    return {first[cluster], first[cluster + 1]};
  }

  /// @brief The block that holds a cluster's tokens.
  [[nodiscard]] block cluster_block(std::size_t h, std::uint32_t cluster) const noexcept {
    const auto [first, last] = cluster_tokens(h, cluster);
    return {first_block_[h] + cluster, (h * n_tokens() + first) * width_, last - first};
  }

  /// @brief Blocks of all heads.
  [[nodiscard]] std::size_t n_blocks() const noexcept { return first_block_.back(); }

  /// @brief All blocks, in the order of their rows.  @throw std::bad_alloc
  [[nodiscard]] std::vector<block> list_blocks() const {
    std::vector<block> blocks;
    blocks.reserve(n_blocks());
    for (std::size_t h = 0; h < heads_.size(); ++h) {
      for (std::uint32_t cluster = 0; cluster < heads_[h].levels[0].n_nodes; ++cluster) {
        blocks.push_back(cluster_block(h, cluster));
      }
    }
    return blocks;
  }

  /// @brief The clusters under a node of any level, as [first, last).
  [[nodiscard]] std::pair<std::uint32_t, std::uint32_t> clusters_under(
      std::size_t h, std::size_t level, std::uint32_t node) const noexcept {
    std::uint32_t first = node;
    std::uint32_t last = node + 1;
    for (; level > 0; --level) {
      first = heads_[h].levels[level].first_child[first];
      last = heads_[h].levels[level].first_child[last];
    }
    return {first, last};
  }

 private:
  template <class Element, class Source>
  static Element* copy(const Source& from, Element* to) noexcept {
    return std::copy_n(from.data(), from.size(), to);
  }

  static image packed(std::size_t first_token, std::size_t width, const parts& made) {
    image to;
    to.first_token = first_token;
    to.n_tokens = made.n_tokens;
    to.n_levels = made.n_levels;
    for (const auto& part : made.heads) {
      to.n_nodes.push_back(part.n_nodes);
      to.value_spread.push_back(part.value_spread);
    }
    to.make_arenas(width);
    T* row = to.summaries.data();
    float* number = to.numbers.data();
    std::uint32_t* link = to.links.data();
    std::uint16_t* token = to.order.data();
    for (std::size_t level = made.n_levels; level-- > 0;) {
      for (const auto& part : made.heads) {
        row = copy(part.rows[level], row);
        number = copy(part.dispersion[level], copy(part.size[level], number));
        link = copy(part.first_child[level], link);
      }
    }
    for (const auto& part : made.heads) {
      token = copy(part.order, token);
    }
    return to;
  }

  // Points the levels of all heads at the image.
  void link_levels() {
    const T* row = image_.summaries.data();
    const float* number = image_.numbers.data();
    const std::uint32_t* link = image_.links.data();
    heads_.resize(image_.n_heads());
    for (std::size_t level = image_.n_levels; level-- > 0;) {
      for (std::size_t h = 0; h < heads_.size(); ++h) {
        const std::uint32_t n = image_.n_nodes[h][level];
        heads_[h].levels[level] = {n, row, number, number + n, link};
        row += n * width_;
        number += 2 * std::size_t{n};
        link += n + 1;
      }
    }
    first_block_.assign(1, 0);
    for (std::size_t h = 0; h < heads_.size(); ++h) {
      heads_[h].order = image_.order.data() + h * image_.n_tokens;
      heads_[h].value_spread = image_.value_spread[h];
      first_block_.push_back(first_block_.back() + heads_[h].levels[0].n_nodes);
    }
  }

  std::size_t width_;
  image image_;
  std::vector<head_index<T>> heads_;
  std::vector<std::size_t> first_block_;  // [n_heads + 1] of each head
  std::vector<std::shared_ptr<const void>>
      kept_;  // [n_heads], or none of a segment that was loaded
  std::size_t kept_bytes_ = 0;
  Handle rows_;
};

}  // namespace wavekv
