// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Selection on a GPU against sorting. The emulated device has the same code; what a compiler for devices makes of it can
// only be seen on one (nvcc 13 turned std::countr_zero into the constant 32).
#include <algorithm>
#include <cstddef>
#include <functional>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cuda/cuda_runtime.cuh>
#include <wavekv/index/detail/select.cuh>

#include "cuda/device_rows.hpp"

namespace {

using wavekv::device::cuda_runtime;
using wavekv::device::plan_memory;
using wavekv::device::selection;
using wavekv_test::device_rows;

/// Selects from each row as many as the budget allows, at a cost of 1 each. One block.
struct select_kernel {
  static constexpr unsigned n_threads = 256;
  const float* values;  // [n_rows, n]
  selection* selections;
  unsigned n = 0;
  unsigned n_rows = 1;
  unsigned budget = 0;

  static plan_memory take(std::byte* shared, std::size_t* bytes) {
    wavekv::device::shared_arena arena(shared);
    const plan_memory memory = plan_memory::take(arena, n_threads / 32, 1);
    *bytes = arena.used();
    return memory;
  }

  [[nodiscard]] std::size_t shared_bytes() const {
    std::size_t bytes = 0;
    (void)take(nullptr, &bytes);
    return bytes;
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    wavekv::device::shared_arena arena(b.shared());
    const plan_memory memory = plan_memory::take(arena, b.n_warps(), 1);
    const auto value = [&](unsigned row, unsigned i) { return values[std::size_t{row} * n + i]; };
    const auto one = [](unsigned /*i*/) { return 1U; };
    wavekv::device::select_largest(b, n_rows, n, value, one, budget, memory);
    for (unsigned row = b.thread(); row < n_rows; row += b.n_threads()) {
      selections[row] = wavekv::device::selected(memory, row);
    }
  }
};

void check(unsigned n, unsigned n_rows, unsigned budget, bool with_ties, std::mt19937_64& random) {
  CAPTURE(n);
  CAPTURE(n_rows);
  CAPTURE(budget);
  CAPTURE(with_ties);
  std::normal_distribution<float> normal(-3.0F, 2.0F);  // of both signs
  std::vector<float> values(std::size_t{n_rows} * n);
  for (float& x : values)
    x = with_ties ? static_cast<float>(static_cast<int>(normal(random))) : normal(random);
  const cuda_runtime gpu;
  cudaStream_t stream = gpu.side_stream();
  const device_rows<cuda_runtime> on_device(gpu, values, stream);
  device_rows<cuda_runtime, selection> found(gpu, n_rows, stream);
  gpu.fill(found.data(), 0xFF, n_rows * sizeof(selection), stream);
  gpu.launch(stream, {1, 1}, select_kernel{on_device.data(), found.data(), n, n_rows, budget});
  const std::vector<selection> selections = found.read(stream);
  for (unsigned row = 0; row < n_rows; ++row) {
    const float* const of_row = values.data() + std::size_t{row} * n;
    std::vector<std::size_t> expected(n);
    for (std::size_t i = 0; i < n; ++i) expected[i] = i;
    std::ranges::stable_sort(expected, std::greater<>(), [&](std::size_t i) { return of_row[i]; });
    expected.resize(std::min(n, budget));
    std::ranges::sort(expected);
    std::vector<std::size_t> got;
    for (unsigned i = 0; i < n; ++i) {
      // What selection::holds says, here on the host.
      const std::uint32_t key = wavekv::device::order_key(of_row[i]);
      if (key > selections[row].key || (key == selections[row].key && i < selections[row].limit))
        got.push_back(i);
    }
    CHECK(got == expected);
  }
}

}  // namespace

TEST_CASE("small: a block selects what sorting would") {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  for (const unsigned n : {1U, 7U, 250U, 1000U, 5000U}) {
    for (const unsigned n_rows : {1U, 3U, plan_memory::n_heads}) {
      for (const unsigned budget : {0U, 1U, 24U, n / 2, n}) {
        check(n, n_rows, budget, false, random);
        check(n, n_rows, budget, true, random);
      }
    }
  }
}
