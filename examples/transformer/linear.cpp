// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "linear.hpp"

#include <algorithm>
#include <vector>

#include <Eigen/Core>
#include <omp.h>

#include <wavekv/cpu/simd.hpp>

#include "row_dots.hpp"

namespace transformer {
namespace {

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using wavekv::simd::panel_columns;

constexpr std::size_t few_tokens = 8;      // up to here reading W costs more than the arithmetic
constexpr std::size_t rows_per_task = 64;  // of a vector product
constexpr std::size_t min_parallel_elements =
    1 << 16;  // below this, waking threads costs more than the product

// Of a matrix product; see multiply_rows().
constexpr std::size_t tokens_at_once = 512;  // so that packed tokens stay in the last-level cache
constexpr std::size_t max_block_rows = 192;  // widened, with depth columns: fits the second level
constexpr std::size_t depth = panel_columns <= 32 ? 256 : 128;  // a panel of tokens: the first

/// Calls f with a typed pointer to the first element of row r.
template <class F>
void visit_rows(const matrix_ref& matrix, std::size_t r, const F& f) {
  const std::byte* row = matrix.row(r);
  switch (matrix.type) {
  case dtype::f32:
    return f(reinterpret_cast<const float*>(row));
  case dtype::f16:
    return f(reinterpret_cast<const wavekv::f16*>(row));
  case dtype::bf16:
    return f(reinterpret_cast<const wavekv::bf16*>(row));
  }
}

void vector_product(const matrix_ref& w, const float* x, std::size_t n_tokens, float* y) {
  const std::size_t n_tasks = (w.n_rows + rows_per_task - 1) / rows_per_task;
  // bf16 rows: a token at a time, while a task's rows are in the second-level cache. score_rows may round tokens to two
  // bf16 terms, as good as it gets for a query and not enough here; and a token's products are the same in any company.
  std::vector<split_vector> splits;
  for (std::size_t t = 0; w.type == dtype::bf16 && t < n_tokens; ++t)
    splits.emplace_back(x + t * w.n_cols, w.n_cols);
#pragma omp parallel for schedule(dynamic) if (w.n_rows * w.n_cols >= min_parallel_elements)
  for (std::size_t task = 0; task < n_tasks; ++task) {
    const std::size_t first = task * rows_per_task;
    const std::size_t n = std::min(rows_per_task, w.n_rows - first);
    if (!splits.empty()) {
      const auto* rows = reinterpret_cast<const wavekv::bf16*>(w.row(first));
      for (std::size_t t = 0; t < n_tokens; ++t)
        dot_rows(splits[t], rows, n, y + t * w.n_rows + first);
      continue;
    }
    visit_rows(w, first, [&](const auto* rows) {
      wavekv::simd::score_rows(x, n_tokens, w.n_cols, rows, n, w.n_cols, y + first, w.n_rows);
    });
  }
}

/// Tokens as the right factor of tile products: for each `depth` input channels, panels
/// [channels, tokens] of panel_columns tokens. A last panel that is narrower is filled up to whole
/// vectors with zeros.
class packed_tokens {
 public:
  /// @param x [n_tokens, n_channels]
  packed_tokens(const float* x, std::size_t n_tokens, std::size_t n_channels)
      : n_tokens_(n_tokens), n_channels_(n_channels), n_columns_(columns(n_tokens)) {
    if (memory().size() < n_columns_ * n_channels) memory().resize(n_columns_ * n_channels);
    data_ = memory().data();
    const std::size_t n_parts = (n_channels + depth - 1) / depth;
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (std::size_t part = 0; part < n_parts; ++part) {
      for (std::size_t p = 0; p < n_panels(); ++p) {
        float* to = data_ + n_columns_ * part * depth + p * panel_columns * channels(part);
        if (width(p) != tokens(p)) std::fill_n(to, width(p) * channels(part), 0.0F);
        wavekv::simd::pack_transposed(x + p * panel_columns * n_channels + part * depth, tokens(p),
                                      channels(part), n_channels, to, width(p));
      }
    }
  }

  std::size_t n_panels() const { return (n_tokens_ + panel_columns - 1) / panel_columns; }
  std::size_t n_columns() const { return n_columns_; }
  /// Tokens of panel p, and columns it has.
  std::size_t tokens(std::size_t p) const {
    return std::min(panel_columns, n_tokens_ - p * panel_columns);
  }
  std::size_t width(std::size_t p) const { return columns(tokens(p)); }
  std::size_t channels(std::size_t part) const {
    return std::min(depth, n_channels_ - part * depth);
  }
  const float* panel(std::size_t part, std::size_t p) const {
    return data_ + n_columns_ * part * depth + p * panel_columns * channels(part);
  }

 private:
  static std::size_t columns(std::size_t n) {
    return (n + wavekv::simd::n_lanes - 1) / wavekv::simd::n_lanes * wavekv::simd::n_lanes;
  }
  /// Kept from product to product: fresh pages cost as much as the packing.
  static std::vector<float>& memory() {
    thread_local std::vector<float> memory;
    return memory;
  }

  std::size_t n_tokens_;
  std::size_t n_channels_;
  std::size_t n_columns_;
  float* data_;
};

/// Rows [first, first + n) of the product, for all tokens. W's rows are the left factor as they lie,
/// widened `depth` columns at a time; what comes out is transposed and goes to y at the end.
void multiply_rows(const matrix_ref& w, std::size_t first, std::size_t n, const packed_tokens& x,
                   float* y) {
  constexpr std::size_t stride = depth + 16;  // rows begin in different sets of the cache
  thread_local std::vector<float> widened;
  thread_local std::vector<float> products;  // [panel][n][width]
  widened.resize(max_block_rows * stride);
  products.resize(std::max(products.size(), x.n_columns() * n));
  for (std::size_t c = 0; c < w.n_cols; c += depth) {
    const std::size_t n_channels = x.channels(c / depth);
    visit_rows(w, first, [&](const auto* rows) {
      wavekv::simd::pack_rows(rows + c, n, n_channels, w.n_cols, widened.data(), stride);
    });
    for (std::size_t p = 0; p < x.n_panels(); ++p)
      wavekv::simd::tile_product(widened.data(), n, stride, x.panel(c / depth, p), n_channels,
                                 x.width(p), products.data() + p * panel_columns * n, x.width(p),
                                 c != 0);
  }
  for (std::size_t p = 0; p < x.n_panels(); ++p)
    wavekv::simd::pack_transposed(products.data() + p * panel_columns * n, n, x.tokens(p),
                                  x.width(p), y + p * panel_columns * w.n_rows + first, w.n_rows);
}

void matrix_product(const matrix_ref& w, const float* x, std::size_t n_tokens, float* y) {
  const auto n_threads = static_cast<std::size_t>(omp_get_max_threads());
  // As many blocks for each thread, of whole tiles of rows.
  const std::size_t n_blocks =
      ((w.n_rows + max_block_rows - 1) / max_block_rows + n_threads - 1) / n_threads * n_threads;
  constexpr std::size_t tile_rows = 6;
  const std::size_t block_rows =
      ((w.n_rows + n_blocks - 1) / n_blocks + tile_rows - 1) / tile_rows * tile_rows;
  for (std::size_t t = 0; t < n_tokens; t += tokens_at_once) {
    const packed_tokens packed(x + t * w.n_cols, std::min(tokens_at_once, n_tokens - t), w.n_cols);
#pragma omp parallel for schedule(dynamic)
    for (std::size_t first = 0; first < w.n_rows; first += block_rows)
      multiply_rows(w, first, std::min(block_rows, w.n_rows - first), packed, y + t * w.n_rows);
  }
}

}  // namespace

void apply(const linear& layer, const float* x, std::size_t n_tokens, float* y) {
  if (n_tokens <= few_tokens) {
    vector_product(layer.weight, x, n_tokens, y);
  } else {
    matrix_product(layer.weight, x, n_tokens, y);
  }
  if (layer.bias.empty()) return;
  const std::size_t n_out = layer.weight.n_rows;
  const Eigen::Map<const Eigen::RowVectorXf> bias(layer.bias.data(), n_out);
  Eigen::Map<row_major>(y, n_tokens, n_out).rowwise() += bias;
}

void copy_row(const matrix_ref& matrix, std::size_t r, float* out) {
  visit_rows(matrix, r, [&](const auto* row) { wavekv::simd::to_float(out, row, matrix.n_cols); });
}

}  // namespace transformer
