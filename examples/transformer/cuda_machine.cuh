// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <utility>

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <wavekv/cache/kv_cache.cuh>
#include <wavekv/cuda/backend.cuh>
#include <wavekv/cuda/device_block.hpp>
#include <wavekv/cuda/errors.hpp>

#include "linear.cuh"

/// @file cuda_machine.cuh
/// @brief What device_model asks of a machine, in CUDA's and cuBLAS's own functions.

namespace transformer {

/// @brief Throws wavekv::cuda_error where cuBLAS or CUDA refuse.
inline void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw wavekv::cuda_error(call, static_cast<int>(status), cublasGetStatusString(status));
}
inline void check(cudaError_t code, const char* call) {
  if (code != cudaSuccess)
    throw wavekv::cuda_error(call, static_cast<int>(code), cudaGetErrorString(code));
}

/// @brief A stream of one's own, which a graph can be captured from.
class cuda_stream {
 public:
  cuda_stream() {
    check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  cuda_stream(const cuda_stream&) = delete;
  cuda_stream& operator=(const cuda_stream&) = delete;
  ~cuda_stream() { static_cast<void>(cudaStreamDestroy(handle_)); }

  [[nodiscard]] cudaStream_t get() const noexcept { return handle_; }

 private:
  cudaStream_t handle_ = nullptr;
};

/// @brief Matrix products of cuBLAS, with float sums. Of the one stream that it was made for.
class cublas_product {
 public:
  using runtime_type = wavekv::device::cuda_runtime;

  cublas_product(const runtime_type& runtime, cudaStream_t stream)
      : workspace_(runtime, workspace_bytes, stream) {
    check(cublasCreate(&handle_), "cublasCreate");
    try {
      check(cublasSetStream(handle_, stream), "cublasSetStream");
      // One that stays where it is: captured products go on using it.
      check(cublasSetWorkspace(handle_, workspace_.data(), workspace_.bytes()),
            "cublasSetWorkspace");
    } catch (...) {
      static_cast<void>(cublasDestroy(handle_));
      throw;
    }
  }
  cublas_product(const cublas_product&) = delete;
  cublas_product& operator=(const cublas_product&) = delete;
  ~cublas_product() { static_cast<void>(cublasDestroy(handle_)); }

  /// @brief products[c, r] = W[r] · columns[c]: see apply in linear.cuh. cuBLAS lays matrices out by columns, so that W
  /// is its own transpose there.
  template <class T>
  void operator()(cudaStream_t /*stream*/, const device_matrix& w, const T* columns,
                  std::size_t n_columns, float* products) {
    const cudaDataType type = w.type == dtype::f32   ? CUDA_R_32F
                              : w.type == dtype::f16 ? CUDA_R_16F
                                                     : CUDA_R_16BF;
    const auto n_rows = static_cast<int>(w.n_rows);
    const auto depth = static_cast<int>(w.n_cols);
    const float one = 1.0F;
    const float zero = 0.0F;
    check(cublasGemmEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, n_rows, static_cast<int>(n_columns),
                       depth, &one, w.data, type, depth, columns, type, depth, &zero, products,
                       CUDA_R_32F, n_rows, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "cublasGemmEx");
  }

 private:
  static constexpr std::size_t workspace_bytes = std::size_t{32} << 20U;  // what cuBLAS asks for

  wavekv::device::device_block<runtime_type> workspace_;
  cublasHandle_t handle_ = nullptr;
};

/// @brief What a stream was given once, to be launched again.
class cuda_graph {
 public:
  /// @brief Captures what work() gives the stream.  @throw wavekv::cuda_error
  template <class Work>
  static cuda_graph capture(wavekv::device::cuda_runtime& /*runtime*/, cudaStream_t stream,
                            const Work& work) {
    cudaGraph_t captured = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
    try {
      work();
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream, &captured));
      if (captured != nullptr) static_cast<void>(cudaGraphDestroy(captured));
      throw;
    }
    check(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture");
    cuda_graph made;
    const cudaError_t code = cudaGraphInstantiate(&made.executable_, captured, 0);
    static_cast<void>(cudaGraphDestroy(captured));
    check(code, "cudaGraphInstantiate");
    return made;
  }

  cuda_graph(cuda_graph&& other) noexcept
      : executable_(std::exchange(other.executable_, nullptr)) {}
  cuda_graph& operator=(cuda_graph&& other) noexcept {
    std::swap(executable_, other.executable_);
    return *this;
  }
  cuda_graph(const cuda_graph&) = delete;
  cuda_graph& operator=(const cuda_graph&) = delete;
  ~cuda_graph() {
    if (executable_ != nullptr) static_cast<void>(cudaGraphExecDestroy(executable_));
  }

  void launch(cudaStream_t stream) {
    check(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
  }

 private:
  cuda_graph() = default;

  cudaGraphExec_t executable_ = nullptr;
};

/// @brief Whether a runtime says that a stream is being captured, which a cache has to know; without, there are no graphs.
template <class Runtime>
concept tells_captures = requires(const Runtime& runtime, typename Runtime::stream_type stream) {
  runtime.is_capturing(stream);
};

/// @brief The current CUDA device; see device_model.
struct cuda_machine {
  using runtime_type = wavekv::device::cuda_runtime;
  using cache_type =
      wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::wave_buffer<>, wavekv::cuda>;
  using product_type = cublas_product;
  using graph_type = cuda_graph;
  static constexpr bool captures = tells_captures<runtime_type>;
};

}  // namespace transformer
