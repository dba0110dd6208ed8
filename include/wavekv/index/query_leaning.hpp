// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <wavekv/attention/exact.hpp>
#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/cluster_covariance.hpp>
#include <wavekv/index/search_limits.hpp>

/// @file query_leaning.hpp
/// @brief What the covariances inside clusters mean to the queries of one group.

namespace wavekv {

/// @brief Per tree level and query head: the variance of a logit and the tilt of the mean value, both per unit of a
/// node's dispersion. Reused from step to step.
class query_leaning {
 public:
  /// @brief Makes room for any group within the limits.  @throw std::bad_alloc
  void reserve(const search_limits& limits) {
    const std::size_t rows = max_tree_levels * limits.group_size;
    reserve_room(variance_, rows);
    reserve_room(share_, rows);
    reserve_room(log_normalizer_, rows);
    reserve_room(rows_, rows * (limits.key_dim + limits.value_dim));
  }

  /// @brief Takes new queries.
  /// Complexity: n_levels · group_size · key_dim · (key_dim + value_dim) multiply-adds.
  /// @param covariances  of the KV head, or null: none known
  /// @param softcap      a softcap bends the logits, and with them the tilt: it is left out then
  void begin(const head_covariances* covariances, const query_rows& queries, std::size_t n_levels,
             std::size_t value_dim, float softcap) {
    group_size_ = queries.n;
    key_dim_ = queries.dim;
    width_ = key_dim_ + value_dim;
    tilted_.fill(false);
    variance_.resize(max_tree_levels * group_size_);
    share_.assign(max_tree_levels * group_size_, 0.0F);
    log_normalizer_.assign(max_tree_levels * group_size_, 0.0F);
    rows_.assign(max_tree_levels * group_size_ * width_, 0.0F);
    std::size_t next = 0;
    auto matrices = [&](simd::stretch& to) {
      if (covariances == nullptr || next == n_levels) {
        return false;
      }
      const auto& matrix = (*covariances)[next++].matrix;
      to = {matrix.data(), matrix.size() * sizeof(float)};
      return true;
    };
    simd::read_ahead then(matrices);
    for (std::size_t level = 0; level < n_levels; ++level) {
      const bool known = covariances != nullptr && !(*covariances)[level].matrix.empty();
      tilted_[level] = known && softcap == 0.0F;
      float* rows = rows_.data() + level * group_size_ * width_;
      if (known) {
        simd::add_weighted_rows(queries.data, group_size_, queries.stride,
                                (*covariances)[level].matrix.data(), key_dim_, width_, rows, width_,
                                &then);
      }
      for (std::size_t g = 0; g < group_size_; ++g) {
        const float* q = queries.data + g * queries.stride;
        const float* seen = known ? rows + g * width_ : q;
        float sum = 0.0F;
        simd::score_rows(q, 1, key_dim_, seen, 1, key_dim_, &sum, 1);
        variance_[level * group_size_ + g] = std::max(sum, 0.0F);  // rounding may go below
      }
    }
  }

  /// @brief [group_size] variance of a level's logits, per unit of dispersion.
  [[nodiscard]] const float* variances(std::size_t level) const noexcept {
    return variance_.data() + level * group_size_;
  }

  /// @brief [value_dim] what the mean value of a level's nodes gains for query head g per unit of dispersion; null when
  /// that is not known.
  [[nodiscard]] const float* tilt(std::size_t level, std::size_t g) const noexcept {
    return tilted_[level] ? rows_.data() + (level * group_size_ + g) * width_ + key_dim_ : nullptr;
  }

  /// @brief The most dispersion that an estimate follows: where the variance is cut off for the mass, it is for
  /// the value, too. A tilt of second order extrapolates far outside of the node's values otherwise.
  [[nodiscard]] float most_dispersion(std::size_t level, std::size_t g) const noexcept {
    const float variance = variances(level)[g];
    return variance > 0.0F ? max_logit_variance / variance : std::numeric_limits<float>::max();
  }

  /// @brief Books what a level's estimates hold together: the sum of share · followed dispersion, and the log
  /// normaliser that those shares refer to.
  void book(std::size_t level, std::size_t g, float share, float log_normalizer) noexcept {
    share_[level * group_size_ + g] = share;
    log_normalizer_[level * group_size_ + g] = log_normalizer;
  }

  /// @brief Moves the numerators by what the value means of all booked estimates lack.
  void add_tilts(const partial_softmax_view& into) const {
    for (std::size_t level = 0; level < max_tree_levels; ++level) {
      for (std::size_t g = 0; tilted_[level] && g < group_size_; ++g) {
        const std::size_t at = level * group_size_ + g;
        if (share_[at] > 0.0F && !into.is_empty(g)) {
          // Where nearly everything is dropped, shares are tiny and what they refer to is far above the maximum.
          const float factor = std::exp(std::log(share_[at]) + (log_normalizer_[at] - into.max[g]));
          simd::add_scaled(tilt(level, g), width_ - key_dim_, factor, into.numerator_of(g));
        }
      }
    }
  }

 private:
  std::size_t group_size_ = 0;
  std::size_t key_dim_ = 0;
  std::size_t width_ = 0;
  std::array<bool, max_tree_levels> tilted_{};
  std::vector<float> variance_;  // [level, group_size]
  std::vector<float> share_;
  std::vector<float> log_normalizer_;
  std::vector<float>
      rows_;  // [level, group_size, key_dim + value_dim] queries times the covariance
};

}  // namespace wavekv
