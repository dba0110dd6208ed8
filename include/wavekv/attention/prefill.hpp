// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/detail/exp_negative.hpp>
#include <wavekv/cpu/simd.hpp>

/// @file prefill.hpp
/// @brief Exact causal attention of many query rows of one KV head: the work of one prefill task.
///
/// Tiles of keys and values, copied as floats, pass by a tile of query rows, whose outputs stay in cache, with an
/// online softmax (FlashAttention, arXiv 2205.14135). Everything is kept transposed, queries along the vector:
/// logits = K · Qᵀ and outputs = Vᵀ · P take keys and values in the order they lie in, and maxima, sums and
/// rescaling need no sums across a vector.

namespace wavekv {

/// @brief Query rows of one KV head while keys and values pass by.
///
/// Use, for one task:
/// `begin(n_rows, …)`, `set_query` for each row, any number of `add_run` and `add_causal_run`, then
/// `finish_row` for each row or `store_state`. Reusable; nothing is allocated after the constructor.
///
/// A row is one query head at one token. Rows are numbered token by token: row r is query head
/// r % rows_per_token of the group at token r / rows_per_token.
class prefill_tile {
 public:
  /// @brief Rows that are attended together; also the unit in which rows are padded. As many as a tile of the
  /// products takes at once: with more, every step of a product's sum would skip over the others'.
  static constexpr std::size_t panel_rows = std::max<std::size_t>(16, simd::panel_columns);
  /// @brief Keys that are attended together.
  static constexpr std::size_t key_tile = 64;
  /// @brief Rows of a task that make good use of a core: each key is converted once for all of them.
  static constexpr std::size_t preferred_rows = 256;

  prefill_tile() = default;

  /// @brief Allocates for tasks of up to max_rows rows, about 4 · max_rows · (key_dim + value_dim) bytes.
  /// @throw std::bad_alloc
  prefill_tile(std::size_t max_rows, std::size_t key_dim, std::size_t value_dim)
      : key_dim_(key_dim),
        value_dim_(value_dim),
        max_rows_(max_rows),
        queries_(padded(max_rows) * key_dim),
        outputs_(padded(max_rows) * value_dim),
        max_(padded(max_rows)),
        denominator_(padded(max_rows)),
        token_(padded(max_rows)),
        keys_(key_tile * copy_stride(key_dim)),
        values_(key_tile * copy_stride(value_dim)),
        logits_(key_tile * panel_rows) {}

  /// @brief Rows that begin() may be given.
  [[nodiscard]] std::size_t max_rows() const noexcept { return max_rows_; }

  /// @brief Tokens a task should take, so that it has about preferred_rows rows.
  [[nodiscard]] static constexpr std::size_t preferred_tokens(std::size_t rows_per_token) noexcept {
    return std::max<std::size_t>(1, preferred_rows / rows_per_token);
  }

  /// @brief Starts a task; every row's state is empty and its query zero.
  /// @param n_rows  at most max_rows
  /// @param rows_per_token  query heads of the group; n_rows is a multiple of it
  /// @param first_position  position of the first row's token, in the numbering that add_causal_run uses
  /// @param softcap  cap of the logits; 0: none
  void begin(std::size_t n_rows, std::size_t rows_per_token, std::size_t first_position,
             float softcap) noexcept {
    n_rows_ = n_rows;
    first_position_ = first_position;
    last_position_ = first_position + (n_rows == 0 ? 0 : (n_rows - 1) / rows_per_token);
    softcap_ = softcap;
    const std::size_t n = padded(n_rows);
    std::fill_n(queries_.data(), n * key_dim_, 0.0F);
    std::fill_n(outputs_.data(), n * value_dim_, 0.0F);
    std::fill_n(max_.data(), n, lowest);
    std::fill_n(denominator_.data(), n, 0.0F);
    for (std::size_t r = 0; r < n; ++r) {
      const std::size_t row = std::min(r, n_rows == 0 ? 0 : n_rows - 1);
      token_[r] = static_cast<std::int32_t>(row / rows_per_token);
    }
  }

  /// @brief Sets the query of a row. query: [key_dim] contiguous; scale is multiplied in.
  template <scalar T>
  void set_query(std::size_t row, const T* query, float scale) noexcept {
    float* to = queries_.data() + row / panel_rows * panel_rows * key_dim_ + row % panel_rows;
    for (std::size_t c = 0; c < key_dim_; ++c)
      to[c * panel_rows] = scale * wavekv::to_float<T>(query[c]);
  }

  /// @brief Attends n tokens that every row sees.
  /// Complexity: n · n_rows · (key_dim + value_dim) multiply-adds. Allocates nothing.
  /// @param keys  [n, key_dim] with key_stride elements from row to row
  /// @param values  [n, value_dim] with value_stride elements from row to row
  template <scalar K, scalar V>
  void add_run(const K* keys, std::size_t key_stride, const V* values, std::size_t value_stride,
               std::size_t n) noexcept {
    add_tiles<false>(keys, key_stride, values, value_stride, n, 0);
  }

  /// @brief Attends n tokens at positions first_key_position, first_key_position + 1, …; a row sees those up to
  /// and including its own token's position. Tokens that no row sees are not read.
  template <scalar K, scalar V>
  void add_causal_run(const K* keys, std::size_t key_stride, const V* values,
                      std::size_t value_stride, std::size_t n,
                      std::size_t first_key_position) noexcept {
    if (first_key_position > last_position_) return;
    const std::size_t n_seen = std::min(n, last_position_ - first_key_position + 1);
    add_tiles<true>(keys, key_stride, values, value_stride, n_seen, first_key_position);
  }

  /// @brief Adds a learned sink to a row: e^logit in the denominator, no value. After the runs.
  void add_sink_logit(std::size_t row, float logit) noexcept {
    if (!(logit > max_[row])) {
      denominator_[row] += std::exp(logit - max_[row]);
      return;
    }
    const float factor = std::exp(max_[row] - logit);
    float* out = output_of(row);
    for (std::size_t c = 0; c < value_dim_; ++c) out[c * panel_rows] *= factor;
    denominator_[row] = denominator_[row] * factor + 1.0F;
    max_[row] = logit;
  }

  /// @brief Writes the attention output of a row, zeros when it has seen nothing. out: [value_dim].
  template <scalar T>
  void finish_row(std::size_t row, T* out) const noexcept {
    const float inverse = denominator_[row] > 0.0F ? 1.0F / denominator_[row] : 0.0F;
    const float* from = output_of(row);
    for (std::size_t c = 0; c < value_dim_; ++c)
      out[c] = wavekv::from_float<T>(from[c * panel_rows] * inverse);
  }

  /// @brief Natural-log log-sum-exp of the logits a row has seen; -inf when it has seen nothing.
  [[nodiscard]] float log_sum_exp(std::size_t row) const noexcept {
    if (!(denominator_[row] > 0.0F)) return -std::numeric_limits<float>::infinity();
    return max_[row] + std::log(denominator_[row]);
  }

  /// @brief Writes rows [first, first + state.n_queries) as partial softmaxes, to be merged with others.
  void store_state(std::size_t first, const partial_softmax_view& state) const noexcept {
    for (std::size_t i = 0; i < state.n_queries; ++i) {
      const std::size_t row = first + i;
      const bool is_empty = !(denominator_[row] > 0.0F);
      state.max[i] = is_empty ? -std::numeric_limits<float>::infinity() : max_[row];
      state.denominator[i] = denominator_[row];
      const float* from = output_of(row);
      float* to = state.numerator_of(i);
      for (std::size_t c = 0; c < value_dim_; ++c) to[c] = from[c * panel_rows];
    }
  }

 private:
  // Stands for the empty state's -inf: differences from it are never NaN.
  static constexpr float lowest = std::numeric_limits<float>::lowest();

  static constexpr std::size_t padded(std::size_t rows) noexcept {
    return (rows + panel_rows - 1) / panel_rows * panel_rows;
  }

  [[nodiscard]] float* output_of(std::size_t row) noexcept {
    return outputs_.data() + row / panel_rows * panel_rows * value_dim_ + row % panel_rows;
  }
  [[nodiscard]] const float* output_of(std::size_t row) const noexcept {
    return outputs_.data() + row / panel_rows * panel_rows * value_dim_ + row % panel_rows;
  }

  /// Floats from row to row of a tile's copy. Rows begin in different sets of the first-level cache: a product
  /// reads a column of the values, and at a power of two they would push each other out.
  static constexpr std::size_t copy_stride(std::size_t dim) noexcept { return dim + 16; }

  template <bool causal, scalar K, scalar V>
  void add_tiles(const K* keys, std::size_t key_stride, const V* values, std::size_t value_stride,
                 std::size_t n, std::size_t first_key_position) noexcept {
    for (std::size_t first = 0; first < n; first += key_tile) {
      const std::size_t n_keys = std::min(key_tile, n - first);
      const std::size_t key_step = copy_stride(key_dim_);
      const std::size_t value_step = copy_stride(value_dim_);
      simd::pack_rows(keys + first * key_stride, n_keys, key_dim_, key_stride, keys_.data(),
                      key_step);
      simd::pack_rows(values + first * value_stride, n_keys, value_dim_, value_stride,
                      values_.data(), value_step);
      for (std::size_t row = 0; row < n_rows_; row += panel_rows) {
        std::size_t n_seen = n_keys;
        std::size_t n_seen_by_all = n_keys;
        if constexpr (causal) {
          // How many of the tile's keys the panel's last row sees, and how many its first row does.
          const std::size_t position = first_key_position + first;
          const auto last = static_cast<std::size_t>(token_[row + panel_rows - 1]);
          n_seen = seen(position, first_position_ + last, n_keys);
          n_seen_by_all =
              seen(position, first_position_ + static_cast<std::size_t>(token_[row]), n_keys);
          if (n_seen == 0) continue;
        }
        simd::tile_product(keys_.data(), n_seen, key_step, queries_.data() + row * key_dim_,
                           key_dim_, panel_rows, logits_.data(), panel_rows, false);
        if (softcap_ > 0.0F) simd::softcap(logits_.data(), n_seen * panel_rows, softcap_);
        if (causal && n_seen_by_all < n_seen)
          mask(row, n_seen_by_all, n_seen, first_key_position + first);
        add_logits(row, n_seen);
        simd::tile_product_transposed(values_.data(), value_dim_, value_step, logits_.data(),
                                      n_seen, panel_rows, outputs_.data() + row * value_dim_,
                                      panel_rows, true);
      }
    }
  }

  /// Keys of n at first_key, first_key + 1, … that are not past a position.
  static std::size_t seen(std::size_t first_key, std::size_t position, std::size_t n) noexcept {
    return first_key > position ? 0 : std::min(n, position - first_key + 1);
  }

  /// Sets the logits of keys past a row's position to -inf; keys before n_seen_by_all need no look.
  void mask(std::size_t row, std::size_t n_seen_by_all, std::size_t n_seen,
            std::size_t position) noexcept {
    for (std::size_t k = n_seen_by_all; k < n_seen; ++k) {
      // Key k is past the panel's first row, so that its place from first_position_ on is not negative.
      const auto key_token = static_cast<std::int32_t>(position + k - first_position_);
      float* logits = logits_.data() + k * panel_rows;
      for (std::size_t i = 0; i < panel_rows; ++i) {
        if (key_token > token_[row + i]) logits[i] = -std::numeric_limits<float>::infinity();
      }
    }
  }

  /// Turns a panel's logits into weights, and brings its states under the new maxima.
  void add_logits(std::size_t row, std::size_t n_keys) noexcept {
    namespace hn = simd::detail::hn;
    constexpr simd::detail::float_tag d{};
    constexpr std::size_t lanes = simd::detail::lanes;
    HWY_ALIGN float factors[panel_rows];
    bool any_raised = false;
    for (std::size_t i = 0; i < panel_rows; i += lanes) {
      float* logits = logits_.data() + i;
      const auto old_max = hn::LoadU(d, max_.data() + row + i);
      auto max = old_max;
      for (std::size_t k = 0; k < n_keys; ++k)
        max = hn::Max(max, hn::LoadU(d, logits + k * panel_rows));
      auto sum = hn::Zero(d);
      for (std::size_t k = 0; k < n_keys; ++k) {
        const auto weight =
            simd::detail::exp_negative(hn::Sub(hn::LoadU(d, logits + k * panel_rows), max));
        hn::StoreU(weight, d, logits + k * panel_rows);
        sum = hn::Add(sum, weight);
      }
      const auto factor = simd::detail::exp_negative(hn::Sub(old_max, max));
      float* denominators = denominator_.data() + row + i;
      hn::StoreU(hn::MulAdd(hn::LoadU(d, denominators), factor, sum), d, denominators);
      hn::StoreU(max, d, max_.data() + row + i);
      hn::StoreU(factor, d, factors + i);
      any_raised = any_raised || !hn::AllTrue(d, hn::Eq(old_max, max));
    }
    if (!any_raised) return;
    float* outputs = outputs_.data() + row * value_dim_;
    for (std::size_t i = 0; i < panel_rows; i += lanes) {
      const auto factor = hn::LoadU(d, factors + i);
      for (std::size_t c = 0; c < value_dim_; ++c) {
        float* at = outputs + c * panel_rows + i;
        hn::StoreU(hn::Mul(hn::LoadU(d, at), factor), d, at);
      }
    }
  }

  std::size_t key_dim_ = 0;
  std::size_t value_dim_ = 0;
  std::size_t max_rows_ = 0;
  std::size_t n_rows_ = 0;
  std::size_t first_position_ = 0;
  std::size_t last_position_ = 0;
  float softcap_ = 0.0F;

  aligned_storage<float> queries_;       // [panel][key_dim][panel_rows], scaled
  aligned_storage<float> outputs_;       // [panel][value_dim][panel_rows]
  aligned_storage<float> max_;           // [rows]
  aligned_storage<float> denominator_;   // [rows]
  aligned_storage<std::int32_t> token_;  // [rows], from first_position_ on; not decreasing
  aligned_storage<float> keys_;          // [key_tile][copy_stride(key_dim)]
  aligned_storage<float> values_;        // [key_tile][copy_stride(value_dim)]
  aligned_storage<float> logits_;        // [key_tile][panel_rows]
};

}  // namespace wavekv
