// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <utility>

#include <wavekv/cache/kv_cache.cuh>
#include <wavekv/core/scalar.hpp>

#include "cuda/emulated_runtime.hpp"
#include "linear.cuh"

/// @file device_machine.hpp
/// @brief The example's device on the CPU: what device_model asks of a machine, emulated.

namespace test {

using wavekv::testing::emulated_runtime;

/// What a stream was given once, to be given again.
class captured_graph {
 public:
  template <class Work>
  static captured_graph capture(emulated_runtime& runtime, emulated_runtime::stream_type stream,
                                const Work& work) {
    runtime.begin_capture(stream);
    work();
    return {runtime, runtime.end_capture(stream)};
  }
  void launch(emulated_runtime::stream_type stream) { runtime_.launch_graph(graph_, stream); }

 private:
  captured_graph(emulated_runtime runtime, wavekv::testing::emulated_graph graph)
      : runtime_(std::move(runtime)), graph_(std::move(graph)) {}

  emulated_runtime runtime_;
  wavekv::testing::emulated_graph graph_;
};

/// products[c, r] = rows[r] · columns[c]. Block (x, y): rows from n_threads x on, column y.
template <class T>
struct product_kernel {
  static constexpr unsigned n_threads = 64;

  const T* rows = nullptr;
  const T* columns = nullptr;
  unsigned n_rows = 0;
  unsigned depth = 0;
  float* products = nullptr;

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  void operator()(Block& b) const {
    const unsigned r = b.block_x() * n_threads + b.thread();
    if (r >= n_rows) return;
    const T* const row = rows + std::size_t{r} * depth;
    const T* const column = columns + std::size_t{b.block_y()} * depth;
    float sum = 0.0F;
    for (unsigned i = 0; i < depth; ++i)
      sum += wavekv::to_float(row[i]) * wavekv::to_float(column[i]);
    products[std::size_t{b.block_y()} * n_rows + r] = sum;
  }
};

/// Matrix products as they are written down.
class plain_product {
 public:
  explicit plain_product(emulated_runtime runtime, emulated_runtime::stream_type /*stream*/ = {})
      : runtime_(std::move(runtime)) {}

  template <class T>
  void operator()(emulated_runtime::stream_type stream, const transformer::device_matrix& w,
                  const T* columns, std::size_t n_columns, float* products) {
    product_kernel<T> kernel;
    kernel.rows = static_cast<const T*>(w.data);
    kernel.columns = columns;
    kernel.n_rows = static_cast<unsigned>(w.n_rows);
    kernel.depth = static_cast<unsigned>(w.n_cols);
    kernel.products = products;
    runtime_.launch(stream,
                    {transformer::n_blocks_of(w.n_rows, product_kernel<T>::n_threads),
                     static_cast<unsigned>(n_columns)},
                    kernel);
  }

 private:
  emulated_runtime runtime_;
};

/// @tparam Captures  whether decode steps are captured
template <class Scalar, class Index, bool Captures>
struct emulated_machine {
  using runtime_type = emulated_runtime;
  using cache_type =
      wavekv::kv_cache<Scalar, Index, wavekv::wave_buffer<>, wavekv::basic_cuda<runtime_type>>;
  using product_type = plain_product;
  using graph_type = captured_graph;
  static constexpr bool captures = Captures;
};

}  // namespace test
