// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <wavekv/cache/kv_cache.cuh>
#include <wavekv/core/scalar.hpp>

#include "cuda/emulated_runtime.hpp"
#include "linear.cuh"

/// @file device_machine.hpp
/// @brief The example's device on the CPU: what device_model asks of a machine, emulated.

namespace test {

/// An emulated_runtime whose streams can be captured: launches are kept instead of made. What a capture forbids throws.
class capturing_runtime : public wavekv::testing::emulated_runtime {
 public:
  using base = wavekv::testing::emulated_runtime;
  using work_list = std::vector<std::function<void()>>;

  capturing_runtime() = default;
  explicit capturing_runtime(const wavekv::testing::emulation_options& options) : base(options) {}

  [[nodiscard]] bool is_capturing(stream_type /*stream*/) const { return *capture_ != nullptr; }
  void begin_capture(work_list& to) const { *capture_ = &to; }
  void end_capture() const { *capture_ = nullptr; }

  void* allocate(std::size_t bytes, stream_type stream) const {
    forbid("allocate");
    return base::allocate(bytes, stream);
  }
  void copy_in(void* to, const void* from, std::size_t bytes, stream_type stream) const {
    forbid("copy_in");
    base::copy_in(to, from, bytes, stream);
  }
  void copy_out(void* to, const void* from, std::size_t bytes, stream_type stream) const {
    forbid("copy_out");
    base::copy_out(to, from, bytes, stream);
  }
  void copy(void* to, const void* from, std::size_t bytes, stream_type stream) const {
    give([=, *this] { base::copy(to, from, bytes, stream); });
  }
  void fill(void* p, int byte, std::size_t bytes, stream_type stream) const {
    give([=, *this] { base::fill(p, byte, bytes, stream); });
  }
  template <class Kernel>
  void launch(stream_type stream, wavekv::device::grid blocks, const Kernel& kernel) const {
    give([=, *this] { base::launch(stream, blocks, kernel); });
  }
  template <class Work>
  void with_policy(stream_type stream, Work&& work) const {
    forbid("with_policy");
    base::with_policy(stream, std::forward<Work>(work));
  }
  void record(event_type& event, stream_type stream) const {
    forbid("record");
    base::record(event, stream);
  }
  void wait(stream_type stream, const event_type& event) const {
    forbid("wait");
    base::wait(stream, event);
  }
  void synchronize(stream_type stream) const {
    forbid("synchronize");
    base::synchronize(stream);
  }

 private:
  void forbid(const char* what) const {
    if (*capture_ != nullptr)
      throw wavekv::testing::emulation_error(std::string(what) + " in a capture");
  }
  template <class Work>
  void give(const Work& work) const {
    if (*capture_ == nullptr) return work();
    (*capture_)->push_back(work);
  }

  std::shared_ptr<work_list*> capture_ = std::make_shared<work_list*>(nullptr);
};

/// What a stream was given once, to be given again.
class captured_graph {
 public:
  template <class Work>
  static captured_graph capture(capturing_runtime& runtime,
                                capturing_runtime::stream_type /*stream*/, const Work& work) {
    captured_graph graph;
    runtime.begin_capture(graph.work_);
    work();
    runtime.end_capture();
    return graph;
  }
  void launch(capturing_runtime::stream_type /*stream*/) {
    for (const auto& one : work_) one();
  }

 private:
  capturing_runtime::work_list work_;
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
  explicit plain_product(capturing_runtime runtime, capturing_runtime::stream_type /*stream*/ = {})
      : runtime_(std::move(runtime)) {}

  template <class T>
  void operator()(capturing_runtime::stream_type stream, const transformer::device_matrix& w,
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
  capturing_runtime runtime_;
};

/// @tparam Captures  whether decode steps are captured
template <class Scalar, class Index, bool Captures>
struct emulated_machine {
  using runtime_type = capturing_runtime;
  using cache_type =
      wavekv::kv_cache<Scalar, Index, wavekv::wave_buffer<>, wavekv::basic_cuda<runtime_type>>;
  using product_type = plain_product;
  using graph_type = captured_graph;
  static constexpr bool captures = Captures;
};

}  // namespace test
