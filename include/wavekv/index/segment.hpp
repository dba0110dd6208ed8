// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
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
    };
    std::size_t n_tokens = 0;
    std::size_t n_levels = 1;
    aligned_storage<T>
        token_rows;  ///< [n_heads] runs of n_tokens · (key_dim + value_dim), in tree order
    std::vector<head_part> heads;
  };

  /// @brief Seals the parts: summaries of all heads move into one arena, so that a step walks few pages.
  /// @param first_token  position in the sequence of the segment's first token
  template <class Keep>
  segment(std::size_t first_token, std::size_t key_dim, std::size_t value_dim, parts made,
          Keep&& keep)
      : first_token_(first_token),
        n_tokens_(made.n_tokens),
        n_levels_(made.n_levels),
        width_(key_dim + value_dim) {
    pack_summaries(made);
    for (auto& part : made.heads) {
      head_index<T> head;
      order_.push_back(std::move(part.order));
      head.order = order_.back().data();
      head.value_spread = part.value_spread;
      heads_.push_back(head);
    }
    link_levels(made);
    kv_bytes_ = made.token_rows.bytes();
    rows_ = keep(std::move(made.token_rows));
  }

  segment(const segment&) = delete;
  segment& operator=(const segment&) = delete;
  segment(segment&&) = delete;
  segment& operator=(segment&&) = delete;
  ~segment() = default;

  [[nodiscard]] std::size_t first_token() const noexcept { return first_token_; }
  [[nodiscard]] std::size_t n_tokens() const noexcept { return n_tokens_; }
  [[nodiscard]] std::size_t n_levels() const noexcept { return n_levels_; }
  [[nodiscard]] const head_index<T>& head(std::size_t h) const noexcept { return heads_[h]; }
  [[nodiscard]] const Handle& rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t kv_bytes() const noexcept { return kv_bytes_; }
  [[nodiscard]] std::size_t index_bytes() const noexcept { return index_bytes_; }

  /// @brief Tokens of a cluster of one head, in tree positions [first, last).
  [[nodiscard]] std::pair<std::uint32_t, std::uint32_t> cluster_tokens(
      std::size_t h, std::uint32_t cluster) const noexcept {
    const std::uint32_t* first = heads_[h].levels[0].first_child;
    return {first[cluster], first[cluster + 1]};
  }

  /// @brief The block that holds a cluster's tokens.
  [[nodiscard]] block cluster_block(std::size_t h, std::uint32_t cluster) const noexcept {
    const auto [first, last] = cluster_tokens(h, cluster);
    return {(h * n_tokens_ + first) * width_, (last - first) * width_};
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
  void pack_summaries(const parts& made) {
    std::size_t n_elements = 0;
    std::size_t n_floats = 0;
    std::size_t n_links = 0;
    for (const auto& part : made.heads) {
      for (std::size_t level = 0; level < n_levels_; ++level) {
        n_elements += part.rows[level].size();
        n_floats += 2 * part.size[level].size();
        n_links += part.first_child[level].size();
      }
    }
    summaries_ = aligned_storage<T>(n_elements);
    numbers_ = aligned_storage<float>(n_floats);
    links_ = aligned_storage<std::uint32_t>(n_links);
    index_bytes_ = summaries_.bytes() + numbers_.bytes() + links_.bytes() +
                   made.heads.size() * n_tokens_ * sizeof(std::uint16_t);
    order_.reserve(made.heads.size());
    heads_.reserve(made.heads.size());
  }

  template <class Element, class Source>
  static const Element* place(Element*& to, const Source& from) noexcept {
    const Element* start = to;
    std::copy_n(from.data(), from.size(), to);
    to += from.size();
    return start;
  }

  void link_levels(const parts& made) {
    T* row = summaries_.data();
    float* number = numbers_.data();
    std::uint32_t* link = links_.data();
    for (std::size_t level = n_levels_;
         level-- > 0;) {  // top levels of all heads first: every step reads them
      for (std::size_t h = 0; h < made.heads.size(); ++h) {
        const auto& part = made.heads[h];
        tree_level<T>& target = heads_[h].levels[level];
        target.n_nodes = part.n_nodes[level];
        target.rows = place(row, part.rows[level]);
        target.size = place(number, part.size[level]);
        target.dispersion = place(number, part.dispersion[level]);
        target.first_child = place(link, part.first_child[level]);
      }
    }
  }

  std::size_t first_token_;
  std::size_t n_tokens_;
  std::size_t n_levels_;
  std::size_t width_;
  std::size_t kv_bytes_ = 0;
  std::size_t index_bytes_ = 0;
  aligned_storage<T> summaries_;
  aligned_storage<float> numbers_;
  aligned_storage<std::uint32_t> links_;
  std::vector<std::vector<std::uint16_t>> order_;
  std::vector<head_index<T>> heads_;
  Handle rows_;
};

}  // namespace wavekv
