// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What <wavekv/cuda/runtime.hpp> promises, of the runtime that has a GPU. Cases that look for work still under way are not
// among the small ones: the sanitizers may wait for each launch.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <thrust/device_ptr.h>
#include <thrust/sort.h>

#include <wavekv/cuda/cuda_runtime.cuh>

#include "cuda/compiled/sample_kernel.cuh"

namespace {

using namespace wavekv;
using wavekv::device::cuda_runtime;

/// Memory that goes back when the test ends, however it ends.
class device_bytes {
 public:
  device_bytes(const cuda_runtime& gpu, std::size_t n, cudaStream_t stream)
      : gpu_(gpu), stream_(stream), n_(n), p_(gpu.allocate(n, stream)) {}
  device_bytes(const device_bytes&) = delete;
  device_bytes& operator=(const device_bytes&) = delete;
  device_bytes(device_bytes&&) = delete;
  device_bytes& operator=(device_bytes&&) = delete;
  ~device_bytes() { gpu_.deallocate(p_, n_, stream_); }

  template <class T = std::byte>
  T* as() const {
    return static_cast<T*>(p_);
  }

 private:
  const cuda_runtime& gpu_;
  cudaStream_t stream_;
  std::size_t n_;
  void* p_;
};

/// Keeps a stream busy for some milliseconds, so that what must wait for it is seen to wait.
struct delay {
  static constexpr unsigned n_threads = 32;
  long long n_cycles;

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& /*b*/) const {
    const long long begin = clock64();
    while (clock64() - begin < n_cycles) {}
  }
};

std::vector<float> counted_from(float first, std::size_t n) {
  std::vector<float> numbers(n);
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}

class counted_memory final : public device::memory_resource {
 public:
  void* allocate(std::size_t bytes, void* stream) override {
    if (bytes > 1U << 20U) throw std::bad_alloc();
    void* p = nullptr;
    device::detail::check_cuda(cudaMallocAsync(&p, bytes, static_cast<cudaStream_t>(stream)),
                               "cudaMallocAsync");
    held += bytes;
    ++n_calls;
    return p;
  }
  void deallocate(void* p, std::size_t bytes, void* stream) noexcept override {
    held -= bytes;
    cudaFreeAsync(p, static_cast<cudaStream_t>(stream));
  }

  std::size_t held = 0;
  std::size_t n_calls = 0;
};

}  // namespace

TEST_CASE("small: bytes go in, across and out, on the default and on the side stream") {
  const cuda_runtime gpu;
  for (cudaStream_t stream : {cudaStream_t{}, gpu.side_stream()}) {
    for (const std::size_t n : {std::size_t{1}, std::size_t{1000}, std::size_t{40'000}}) {
      auto numbers = counted_from(1.0F, n);
      const auto expected = numbers;
      const std::size_t bytes = n * sizeof(float);
      const device_bytes first(gpu, bytes, stream);
      const device_bytes second(gpu, bytes, stream);
      CHECK(reinterpret_cast<std::uintptr_t>(first.as()) % 256 == 0);
      gpu.copy_in(first.as(), numbers.data(), bytes, stream);
      std::fill(numbers.begin(), numbers.end(), -1.0F);  // may be reused at once
      gpu.copy(second.as(), first.as(), bytes, stream);
      gpu.fill(first.as(), 0, bytes, stream);
      gpu.copy_out(numbers.data(), second.as(), bytes, stream);
      CHECK(numbers == expected);
      gpu.copy_out(numbers.data(), first.as(), bytes, stream);
      CHECK(numbers == std::vector<float>(n, 0.0F));
    }
  }
}

TEST_CASE("small: nothing is nothing") {
  const cuda_runtime gpu;
  CHECK(gpu.allocate(0, nullptr) == nullptr);
  gpu.deallocate(nullptr, 0, nullptr);
  gpu.copy_in(nullptr, nullptr, 0, nullptr);
  gpu.copy_out(nullptr, nullptr, 0, nullptr);
  gpu.copy(nullptr, nullptr, 0, nullptr);
  gpu.fill(nullptr, 0, 0, nullptr);
  using kernel = testing::sample_kernel<false>;
  gpu.launch(nullptr, device::grid{0, 1}, kernel{nullptr, nullptr, 1, 128});
  gpu.launch(nullptr, device::grid{1, 0}, kernel{nullptr, nullptr, 1, 128});
  gpu.synchronize(nullptr);
}

TEST_CASE_TEMPLATE("small: a kernel gets its arguments and its shared memory", kernel,
                   testing::sample_kernel<false>, testing::sample_kernel<true>) {
  const cuda_runtime gpu;
  cudaStream_t stream = gpu.side_stream();
  constexpr unsigned n = 300;
  const auto from = counted_from(0.0F, 4 * n);
  const device_bytes device_from(gpu, from.size() * sizeof(float), stream);
  const device_bytes device_to(gpu, n * sizeof(float), stream);
  gpu.copy_in(device_from.as(), from.data(), from.size() * sizeof(float), stream);
  // Up and down again: what a kernel may have must not shrink. 96 KiB is less than every card has.
  for (const unsigned words : {128U, 6144U, 4096U, 128U}) {
    gpu.fill(device_to.as(), 0, n * sizeof(float), stream);
    gpu.launch(stream, device::grid{3},
               kernel{device_from.as<const float>(), device_to.as<float>(), n, words});
    std::vector<float> to(n);
    gpu.copy_out(to.data(), device_to.as(), n * sizeof(float), stream);
    bool right = true;
    for (unsigned i = 0; i < n; ++i) right &= to[i] == 16.0F * static_cast<float>(i) + 6.0F;
    CHECK(right);
  }
}

TEST_CASE("small: launches that overlap keep their order") {
  const cuda_runtime gpu;
  cudaStream_t stream = gpu.side_stream();
  constexpr unsigned n = 128;
  const device_bytes a(gpu, 4 * n * sizeof(float), stream);
  const device_bytes b(gpu, 4 * n * sizeof(float), stream);
  gpu.fill(a.as(), 0, 4 * n * sizeof(float), stream);
  gpu.fill(b.as(), 0, 4 * n * sizeof(float), stream);
  auto left = counted_from(0.0F, 4 * n);
  auto right = std::vector<float>(4 * n, 0.0F);
  gpu.copy_in(a.as(), left.data(), 4 * n * sizeof(float), stream);
  using kernel = testing::sample_kernel<true>;
  for (int i = 0; i < 3; ++i) {  // sums of four of what the launch before wrote
    gpu.launch(stream, device::grid{1}, kernel{a.as<const float>(), b.as<float>(), n, 128});
    gpu.launch(stream, device::grid{1}, kernel{b.as<const float>(), a.as<float>(), n / 4, 128});
    const auto sums = [](const std::vector<float>& from, std::vector<float>& to, unsigned n_sums) {
      for (unsigned k = 0; k < n_sums; ++k) {
        to[k] = from[4 * k] + from[4 * k + 1] + from[4 * k + 2] + from[4 * k + 3];
      }
    };
    sums(left, right, n);
    sums(right, left, n / 4);
  }
  std::vector<float> last(4 * n);
  gpu.copy_out(last.data(), a.as(), 4 * n * sizeof(float), stream);
  CHECK(last == left);
}

TEST_CASE("small: Thrust works in the stream, with this runtime's memory") {
  const auto memory = std::make_shared<counted_memory>();
  const cuda_runtime gpu(memory);
  cudaStream_t stream = gpu.side_stream();
  auto numbers = counted_from(0.0F, 5000);
  std::reverse(numbers.begin(), numbers.end());
  {
    const device_bytes held(gpu, numbers.size() * sizeof(float), stream);
    gpu.copy_in(held.as(), numbers.data(), numbers.size() * sizeof(float), stream);
    const std::size_t n_calls = memory->n_calls;
    gpu.with_policy(stream, [&](const auto& policy) {
      const auto first = thrust::device_pointer_cast(held.as<float>());
      thrust::stable_sort(policy, first, first + 5000);
    });
    CHECK(memory->n_calls > n_calls);
    gpu.copy_out(numbers.data(), held.as(), numbers.size() * sizeof(float), stream);
    CHECK(numbers == counted_from(0.0F, 5000));
  }
  CHECK(memory->held == 0);
}

TEST_CASE("an event orders two streams") {
  const cuda_runtime gpu;
  cudaStream_t side = gpu.side_stream();
  const device_bytes held(gpu, 4, side);
  gpu.fill(held.as(), 0, 4, side);
  gpu.synchronize(side);
  device::cuda_event empty;
  gpu.wait(nullptr, empty);  // marks nothing: no wait

  gpu.launch(side, device::grid{1}, delay{20'000'000});
  gpu.fill(held.as(), 1, 4, side);
  device::cuda_event mark;
  gpu.record(mark, side);
  CHECK(cudaEventQuery(mark.native()) == cudaErrorNotReady);  // the host did not wait
  static_cast<void>(cudaGetLastError());
  device::cuda_event moved = std::move(mark);
  CHECK(mark.native() == nullptr);
  gpu.wait(nullptr, moved);
  std::uint32_t seen = 0;
  gpu.copy_out(&seen, held.as(), 4, nullptr);
  CHECK(seen == 0x0101'0101U);
}

TEST_CASE("copy_in does not wait for the stream") {
  const cuda_runtime gpu;
  cudaStream_t stream = gpu.side_stream();
  const std::vector<float> numbers(
      100'000, 1.0F);  // pageable, and more than the driver takes along with a command
  const device_bytes held(gpu, numbers.size() * sizeof(float), stream);
  gpu.copy_in(held.as(), numbers.data(), numbers.size() * sizeof(float),
              stream);  // makes the buffers
  gpu.synchronize(stream);
  gpu.launch(stream, device::grid{1}, delay{100'000'000});
  gpu.copy_in(held.as(), numbers.data(), numbers.size() * sizeof(float), stream);
  CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);
  static_cast<void>(cudaGetLastError());
  gpu.synchronize(stream);
}

TEST_CASE("copies of more than the staging buffers hold, from several threads") {
  const cuda_runtime gpu;
  constexpr std::size_t n = std::size_t{30} << 20U;  // 120 MiB, not a multiple of a buffer
  const auto copies = [&gpu](float first) {
    cudaStream_t stream{};
    device::detail::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                               "cudaStreamCreateWithFlags");
    bool right = false;
    {
      const auto numbers = counted_from(first, n + 3);
      const device_bytes held(gpu, numbers.size() * sizeof(float), stream);
      gpu.copy_in(held.as(), numbers.data(), numbers.size() * sizeof(float), stream);
      std::vector<float> out(numbers.size());
      gpu.copy_out(out.data(), held.as(), out.size() * sizeof(float), stream);
      right = out == numbers;
    }
    cudaStreamDestroy(stream);
    return right;
  };
  bool right[2] = {false, false};
  std::thread other([&] { right[1] = copies(1000.0F); });
  right[0] = copies(1.0F);
  other.join();
  CHECK(right[0]);
  CHECK(right[1]);
}

TEST_CASE("small: copy_in into a stream that is being captured is refused") {
  const cuda_runtime gpu;
  cudaStream_t stream = gpu.side_stream();
  const device_bytes held(gpu, 4, stream);
  gpu.synchronize(stream);
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  const int number = 1;
  CHECK_THROWS_AS(gpu.copy_in(held.as(), &number, 4, stream), cuda_error);
  gpu.fill(held.as(), 0, 4, stream);  // and the capture goes on
  cudaGraph_t graph{};
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  cudaGraphDestroy(graph);
}

TEST_CASE("what CUDA refuses is a typed error, and leaves none behind") {
  const cuda_runtime gpu;
  try {
    static_cast<void>(gpu.allocate(std::size_t{1} << 50U, nullptr));
    FAIL("a petabyte was allocated");
  } catch (const cuda_error& refusal) {
    CHECK(refusal.call() == "cudaMallocFromPoolAsync");
    CHECK(refusal.code() != 0);
  }
  CHECK(cudaPeekAtLastError() == cudaSuccess);
  using kernel = testing::sample_kernel<false>;
  CHECK_THROWS_AS(  // no card has so much shared memory
      gpu.launch(nullptr, device::grid{1}, kernel{nullptr, nullptr, 0, 1U << 20U}), cuda_error);
  CHECK(cudaPeekAtLastError() == cudaSuccess);
  CHECK_THROWS_AS(cuda_runtime(std::shared_ptr<device::memory_resource>{}), config_error);
  const cuda_runtime with_own(std::make_shared<counted_memory>());
  CHECK_THROWS_AS(static_cast<void>(with_own.allocate(1U << 21U, nullptr)), std::bad_alloc);
}

TEST_CASE("small: copies of a runtime are one runtime") {
  const cuda_runtime first;
  const cuda_runtime second = first;
  CHECK(first.side_stream() == second.side_stream());
  CHECK(first.n_multiprocessors() == second.n_multiprocessors());
  CHECK(first.n_multiprocessors() > 0);
  CHECK(cuda_runtime().side_stream() != first.side_stream());
}
