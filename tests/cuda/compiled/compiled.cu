// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A program with every kernel in it. Where there is no GPU the runtime must say so by a typed error; where there is one, the
// sample kernel must compute what it should, in each way a kernel is launched.
#include <cmath>
#include <cstdio>
#include <string_view>
#include <vector>

#include <thrust/device_ptr.h>
#include <thrust/sort.h>

#include <wavekv/cuda/cuda_runtime.cuh>

#include "sample_kernel.cuh"

namespace {

using namespace wavekv;

template <bool Overlaps>
bool computes(const device::cuda_runtime& gpu, unsigned n, unsigned shared_words4) {
  cudaStream_t stream = gpu.side_stream();
  std::vector<float> from(4 * std::size_t{n});
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i % 1009);
  std::vector<float> to(n);
  void* const device_from = gpu.allocate(from.size() * sizeof(float), stream);
  void* const device_to = gpu.allocate(to.size() * sizeof(float), stream);
  gpu.copy_in(device_from, from.data(), from.size() * sizeof(float), stream);
  using kernel = testing::sample_kernel<Overlaps>;
  const device::grid blocks{(n + kernel::n_threads - 1) / kernel::n_threads};
  gpu.launch(stream, blocks,
             kernel{static_cast<const float*>(device_from), static_cast<float*>(device_to), n,
                    shared_words4});
  gpu.launch(stream, device::grid{0, 1}, kernel{nullptr, nullptr, 0, shared_words4});
  gpu.with_policy(stream, [&](const auto& policy) {
    const auto first = thrust::device_pointer_cast(static_cast<float*>(device_to));
    thrust::stable_sort(policy, first, first + n);
  });
  gpu.copy_out(to.data(), device_to, to.size() * sizeof(float), stream);
  gpu.deallocate(device_from, from.size() * sizeof(float), stream);
  gpu.deallocate(device_to, to.size() * sizeof(float), stream);

  std::vector<float> expected(n);
  for (std::size_t i = 0; i < n; ++i) {
    expected[i] = from[4 * i] + from[4 * i + 1] + from[4 * i + 2] + from[4 * i + 3];
  }
  std::sort(expected.begin(), expected.end());
  const bool right = to == expected;
  std::printf("%s: %u sums, %u KiB of shared memory%s\n", right ? "right" : "WRONG", n,
              shared_words4 / 64, Overlaps ? ", overlapping" : "");
  return right;
}

}  // namespace

int main() {
  try {
    const device::cuda_runtime gpu;
    std::printf("device %d, %u multiprocessors\n", gpu.device(), gpu.n_multiprocessors());
    bool right = computes<false>(gpu, 1000, 128);
    right &= computes<true>(gpu, 1000, 128);
    right &=
        computes<false>(gpu, 3'000'000, 4096);  // more than one staging buffer, more than 48 KiB
    right &= computes<true>(gpu, 1000, 5120);
    return right ? 0 : 1;
  } catch (const cuda_error& refusal) {
    const bool named = refusal.call().starts_with("cuda") && refusal.code() != 0 &&
                       std::string_view(refusal.what()).starts_with(refusal.call());
    // No driver, or no device: what a machine without a GPU answers. Anything else is a fault.
    const bool no_gpu =
        refusal.code() == cudaErrorInsufficientDriver || refusal.code() == cudaErrorNoDevice;
    std::printf("%s: %s\n", named && no_gpu ? "no GPU" : "FAILED", refusal.what());
    return named && no_gpu ? 0 : 1;
  }
}
