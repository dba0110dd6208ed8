// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Somebody's engine that hands wavekv its own device memory and runs a kernel of its own through it. Exits non-zero when
// something does not hold; a machine without a GPU must be told so by a typed error.
#include <cstddef>
#include <cstdio>
#include <memory>
#include <vector>

#include <wavekv/cuda/cuda_runtime.cuh>
#include <wavekv/wavekv.hpp>

bool says_why(const wavekv::cuda_error& refusal);

namespace {

/// Counts what is handed out.
class counted_memory final : public wavekv::device::memory_resource {
 public:
  void* allocate(std::size_t bytes, void* stream) override {
    void* p = nullptr;
    if (const cudaError_t code = cudaMallocAsync(&p, bytes, static_cast<cudaStream_t>(stream));
        code != cudaSuccess) {
      throw wavekv::cuda_error("cudaMallocAsync", code, cudaGetErrorString(code));
    }
    held_bytes += bytes;
    return p;
  }
  void deallocate(void* p, std::size_t bytes, void* stream) noexcept override {
    held_bytes -= bytes;
    cudaFreeAsync(p, static_cast<cudaStream_t>(stream));
  }

  std::size_t held_bytes = 0;
};

struct twice {
  static constexpr unsigned n_threads = 64;
  float* numbers;
  unsigned n;

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    const unsigned i = b.block_x() * b.n_threads() + b.thread();
    if (i < n) numbers[i] = wavekv::to_float(wavekv::from_float<wavekv::bf16>(2.0F * numbers[i]));
  }
};

bool check(bool holds, const char* what) {
  std::printf("%s: %s\n", holds ? "holds" : "DOES NOT HOLD", what);
  return holds;
}

}  // namespace

int main() {
  const auto memory = std::make_shared<counted_memory>();
  try {
    const wavekv::device::cuda_runtime gpu(memory);
    cudaStream_t stream = nullptr;
    std::vector<float> numbers(1000, 3.0F);
    const std::size_t bytes = numbers.size() * sizeof(float);
    void* const held = gpu.allocate(bytes, stream);
    gpu.copy_in(held, numbers.data(), bytes, stream);
    gpu.launch(stream, {16}, twice{static_cast<float*>(held), 1000});
    gpu.copy_out(numbers.data(), held, bytes, stream);
    bool holds = check(memory->held_bytes == bytes, "memory came from the engine");
    gpu.deallocate(held, bytes, stream);
    holds &= check(memory->held_bytes == 0, "and went back to it");
    holds &= check(numbers == std::vector<float>(1000, 6.0F), "its kernel ran");
    return holds ? 0 : 1;
  } catch (const wavekv::cuda_error& refusal) {
    const bool no_gpu =
        refusal.code() == cudaErrorInsufficientDriver || refusal.code() == cudaErrorNoDevice;
    std::printf("%s\n", refusal.what());
    return check(no_gpu && says_why(refusal), "there is no GPU, and it says so") ? 0 : 1;
  }
}
