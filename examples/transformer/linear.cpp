// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "linear.hpp"

#include <algorithm>

#include <Eigen/Core>
#include <omp.h>

#include <wavekv/cpu/simd.hpp>

namespace transformer {
namespace {

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr std::size_t few_tokens = 8;      // up to here reading W costs more than the arithmetic
constexpr std::size_t rows_per_task = 64;  // of a vector product
constexpr std::size_t min_parallel_elements =
    1 << 16;  // below this, waking threads costs more than the product
constexpr std::size_t max_panel_rows = 256;  // rows of W that are widened at once

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
#pragma omp parallel for schedule(static) if (w.n_rows * w.n_cols >= min_parallel_elements)
  for (std::size_t task = 0; task < n_tasks; ++task) {
    const std::size_t first = task * rows_per_task;
    const std::size_t n = std::min(rows_per_task, w.n_rows - first);
    visit_rows(w, first, [&](const auto* rows) {
      wavekv::simd::score_rows(x, n_tokens, w.n_cols, rows, n, w.n_cols, y + first, w.n_rows);
    });
  }
}

void matrix_product(const matrix_ref& w, const float* x, std::size_t n_tokens, float* y) {
  const auto n_threads = static_cast<std::size_t>(omp_get_max_threads());
  const std::size_t share = (w.n_rows + n_threads - 1) / n_threads;
  const std::size_t panel_rows = std::min(max_panel_rows, share);
  const std::size_t n_panels = (w.n_rows + panel_rows - 1) / panel_rows;
  const Eigen::Map<const row_major> in(x, n_tokens, w.n_cols);
  Eigen::Map<row_major> out(y, n_tokens, w.n_rows);
#pragma omp parallel
  {
    row_major panel(panel_rows, w.n_cols);
#pragma omp for schedule(dynamic)
    for (std::size_t p = 0; p < n_panels; ++p) {
      const std::size_t first = p * panel_rows;
      const std::size_t n = std::min(panel_rows, w.n_rows - first);
      visit_rows(w, first, [&](const auto* rows) {
        wavekv::simd::to_float(panel.data(), rows, n * w.n_cols);
      });
      out.middleCols(first, n).noalias() = in * panel.topRows(n).transpose();
    }
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
