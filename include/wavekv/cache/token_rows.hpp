// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/scalar.hpp>

namespace wavekv {

/// @brief Keys and values of consecutive tokens in token order: the sink and the tail of one layer.
///
/// Memory: per KV head one run of keys [capacity, key_dim] and one of values [capacity, value_dim].
/// Copyable (a fork copies its tail). Grows by doubling; never shrinks on its own.
template <scalar T>
class token_rows {
 public:
  token_rows() = default;
  token_rows(std::size_t n_heads, std::size_t key_dim, std::size_t value_dim) noexcept
      : n_heads_(n_heads), key_dim_(key_dim), value_dim_(value_dim) {}

  token_rows(const token_rows& other)
      : token_rows(other.n_heads_, other.key_dim_, other.value_dim_) {
    reserve(other.size_);
    size_ = other.size_;
    copy_rows(other, 0, *this, 0, size_);
  }
  token_rows(token_rows&&) noexcept = default;
  token_rows& operator=(const token_rows& other) {
    *this = token_rows(other);
    return *this;
  }
  token_rows& operator=(token_rows&&) noexcept = default;
  ~token_rows() = default;

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return storage_.bytes(); }

  [[nodiscard]] const T* keys(std::size_t head) const noexcept {
    return storage_.data() + head * capacity_ * key_dim_;
  }
  [[nodiscard]] const T* values(std::size_t head) const noexcept {
    return storage_.data() + capacity_ * (n_heads_ * key_dim_ + head * value_dim_);
  }
  [[nodiscard]] T* keys(std::size_t head) noexcept {
    return storage_.data() + head * capacity_ * key_dim_;
  }
  [[nodiscard]] T* values(std::size_t head) noexcept {
    return storage_.data() + capacity_ * (n_heads_ * key_dim_ + head * value_dim_);
  }

  /// @brief Room for n tokens in all; rows are kept.  @throw std::bad_alloc, nothing changed
  void reserve(std::size_t n) {
    if (n <= capacity_) {
      return;
    }
    token_rows grown(n_heads_, key_dim_, value_dim_);
    grown.capacity_ = std::max({n, capacity_ + capacity_ / 2, std::size_t{64}});
    grown.storage_ = aligned_storage<T>(grown.capacity_ * n_heads_ * (key_dim_ + value_dim_));
    grown.size_ = size_;
    copy_rows(*this, 0, grown, 0, size_);
    *this = std::move(grown);
  }

  /// @brief Makes rows written behind the end part of the run. Expects: size() + n <= capacity().
  void commit(std::size_t n) noexcept { size_ += n; }

  /// @brief Keeps the first n tokens. Expects: n <= size().
  void truncate(std::size_t n) noexcept { size_ = n; }

  /// @brief Drops the n oldest tokens. Complexity: O(rows that stay). Expects: n <= size().
  void drop_front(std::size_t n) noexcept {
    const std::size_t left = size_ - n;
    for (std::size_t head = 0; head < n_heads_; ++head) {
      std::memmove(keys(head), keys(head) + n * key_dim_, left * key_dim_ * sizeof(T));
      std::memmove(values(head), values(head) + n * value_dim_, left * value_dim_ * sizeof(T));
    }
    size_ = left;
  }

  /// @brief Copies n tokens; expects room in the target, which need not be committed yet.
  static void copy_rows(const token_rows& from, std::size_t first, token_rows& to, std::size_t at,
                        std::size_t n) noexcept {
    if (n == 0) {
      return;
    }
    for (std::size_t head = 0; head < from.n_heads_; ++head) {
      std::memcpy(to.keys(head) + at * to.key_dim_, from.keys(head) + first * from.key_dim_,
                  n * from.key_dim_ * sizeof(T));
      std::memcpy(to.values(head) + at * to.value_dim_, from.values(head) + first * from.value_dim_,
                  n * from.value_dim_ * sizeof(T));
    }
  }

 private:
  std::size_t n_heads_ = 0;
  std::size_t key_dim_ = 0;
  std::size_t value_dim_ = 0;
  std::size_t capacity_ = 0;
  std::size_t size_ = 0;
  aligned_storage<T> storage_;
};

}  // namespace wavekv
