// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include <wavekv/core/host_device.hpp>
#include <wavekv/core/scalar.hpp>

/// @file block.hpp
/// @brief The words that kernels are written in: what a thread of a block may ask for.
///
/// A kernel is a trivially copyable struct whose members are its arguments, with
///
/// | expression           | semantics                                                                             |
/// |----------------------|---------------------------------------------------------------------------------------|
/// | `K::n_threads`       | threads of a block, a multiple of 32                                                  |
/// | `k.shared_bytes()`   | on the host: shared memory of a block                                                 |
/// | `k(b)`               | what each thread does; `b` is that thread's own handle and models thread_block        |
///
/// and nothing in it names CUDA. The words are implemented with CUDA's instructions in <wavekv/cuda/hardware_block.cuh>;
/// the tests have a second implementation, on the CPU, that runs a block's threads in any order.

namespace wavekv::device {

/// @brief Threads that run in step.
inline constexpr unsigned warp_size = 32;

/// @brief i, or behind the end the last of n indices. For loads that are to be on their way together: behind a branch each
/// would be waited for before the next, so none is asked; what lies behind the end is the last element once more, and counts for
/// nothing where it is used.
/// @param n  at least 1
WAVEKV_HOST_DEVICE constexpr unsigned or_last(unsigned i, unsigned n) noexcept {
  return i < n ? i : n - 1;
}

/// @brief Sixteen bytes, as they are loaded at once.
struct alignas(16) words4 {
  std::uint32_t word[4];
};

/// @brief A thread's handle on its block.
///
/// Words marked *warp* are called by all 32 threads of a warp together, words marked *block* by all threads of the block;
/// the others by each thread on its own.
///
/// | expression                         | semantics                                                                   |
/// |------------------------------------|-----------------------------------------------------------------------------|
/// | `b.thread()`, `b.n_threads()`      | number of the thread in its block; threads of the block                      |
/// | `b.lane()`, `b.warp()`, `b.n_warps()` | its number in its warp; its warp's; warps of the block                    |
/// | `b.block_x()`, `b.block_y()`, `b.n_blocks_x()`, `b.n_blocks_y()` | the block's place in the grid, and the grid    |
/// | `b.shared()`                       | the block's shared memory, `std::byte*`, 16-byte aligned, indeterminate       |
/// | `b.sync()`                         | *block*: everyone waits for everyone; memory written before is seen after    |
/// | `b.sync_warp()`                    | *warp*: likewise                                                            |
/// | `b.shuffle(x, lane)`               | *warp*: another lane's x; x of 4 or 8 bytes                                 |
/// | `b.shuffle_xor(x, mask)`           | *warp*: x of lane ^ mask                                                    |
/// | `b.ballot(predicate)`              | *warp*: bit i is lane i's predicate                                         |
/// | `b.warp_sum(x)`, `b.warp_max(x)`   | *warp*: over all lanes, in a fixed order; float, int or unsigned             |
/// | `b.load16(p)`                      | 16 bytes of global memory, p 16-byte aligned                                |
/// | `b.copy_async16(shared, global)`   | starts to copy 16 bytes                                                     |
/// | `b.commit_copies()`                | what this thread started since the last commit is one group                 |
/// | `b.template wait_copies<N>()`      | waits until at most N of this thread's groups are on their way              |
/// | `b.atomic_add(p, x)`, `b.atomic_max(p, x)`, `b.atomic_or(p, x)` | global or shared, unsigned (add: also unsigned long long); the old value |
/// | `b.atomic_exchange(p, x)`          | likewise, unsigned or unsigned long long: *p is x; the old value            |
/// | `b.fence()`                        | what this thread wrote to global memory is seen before what it writes later   |
/// | `b.load_fresh(p)`                  | a 4- or 8-byte word of global memory that other blocks may have written     |
/// | `b.template multiply<T>(d, a, b)`  | *warp*: d += a·b of 16-bit T (bf16 or f16) with float sums: the m16n8k16 tile of the PTX manual, `mma.sync` |
/// | `b.template pack<T>(x, y)`         | x (in the lower half word) and y rounded to 16-bit T                        |
/// | `b.template unpack<T>(word, x, y)` | the floats that a packed word stands for                                    |
/// | `b.await_previous()`               | what the launch before this one wrote is seen after                         |
/// | `b.release_next()`                 | the next launch may start, up to its await_previous                         |
///
/// In a tile, with i = lane / 4 and j = lane % 4: a[0] holds row i, columns 2j and 2j+1 (the lower half word first), a[1]
/// row i+8, a[2] row i, columns 2j+8 and 2j+9, a[3] row i+8 of these; b[0] column i, rows 2j and 2j+1, b[1] rows 2j+8
/// and 2j+9; d[0], d[1] row i, columns 2j and 2j+1, d[2], d[3] row i+8.
template <class B>
concept thread_block =
    requires(B& b, float x, unsigned u, void* shared, const void* global, unsigned* counter,
             float (&d)[4], const std::uint32_t (&left)[4], const std::uint32_t (&right)[2]) {
      { b.thread() } -> std::same_as<unsigned>;
      { b.n_threads() } -> std::same_as<unsigned>;
      { b.lane() } -> std::same_as<unsigned>;
      { b.warp() } -> std::same_as<unsigned>;
      { b.n_warps() } -> std::same_as<unsigned>;
      { b.block_x() } -> std::same_as<unsigned>;
      { b.block_y() } -> std::same_as<unsigned>;
      { b.n_blocks_x() } -> std::same_as<unsigned>;
      { b.n_blocks_y() } -> std::same_as<unsigned>;
      { b.shared() } -> std::same_as<std::byte*>;
      b.sync();
      b.sync_warp();
      { b.shuffle(x, u) } -> std::same_as<float>;
      { b.shuffle_xor(x, u) } -> std::same_as<float>;
      { b.ballot(true) } -> std::same_as<std::uint32_t>;
      { b.warp_sum(x) } -> std::same_as<float>;
      { b.warp_max(x) } -> std::same_as<float>;
      { b.load16(global) } -> std::same_as<words4>;
      b.copy_async16(shared, global);
      b.commit_copies();
      b.template wait_copies<0>();
      { b.atomic_add(counter, u) } -> std::same_as<unsigned>;
      { b.atomic_max(counter, u) } -> std::same_as<unsigned>;
      { b.atomic_or(counter, u) } -> std::same_as<unsigned>;
      { b.atomic_exchange(counter, u) } -> std::same_as<unsigned>;
      b.fence();
      { b.load_fresh(counter) } -> std::same_as<unsigned>;
      b.template multiply<bf16>(d, left, right);
      b.template multiply<f16>(d, left, right);
      { b.template pack<bf16>(x, x) } -> std::same_as<std::uint32_t>;
      b.template unpack<bf16>(left[0], d[0], d[1]);
      b.await_previous();
      b.release_next();
    };

/// @brief Blocks of a launch.
struct grid {
  unsigned x = 1;
  unsigned y = 1;
};

/// @brief *block*: whether this block is the last of the n that come here with this counter. What they wrote to global
/// memory before is then seen; the counter is zero again. Needs one unsigned of shared memory.
template <class Block>
WAVEKV_DEVICE bool arrives_last(Block& b, unsigned* counter, unsigned n, unsigned* shared) {
  b.fence();
  b.sync();
  if (b.thread() == 0) {
    *shared = b.atomic_add(counter, 1U);
    if (*shared == n - 1) {
      *counter = 0;
    }
  }
  b.sync();
  const bool last = *shared == n - 1;
  b.sync();
  if (last) {
    b.fence();
  }
  return last;
}

/// @brief *block*: the sum of x over the block's threads, in a fixed order, known to all. Needs n_warps floats of shared memory.
template <class Block>
WAVEKV_DEVICE float block_sum(Block& b, float x, float* shared) {
  const float of_warp = b.warp_sum(x);
  b.sync();  // shared may still be read
  if (b.lane() == 0) {
    shared[b.warp()] = of_warp;
  }
  b.sync();
  float sum = 0.0F;
  for (unsigned w = 0; w < b.n_warps(); ++w) {
    sum += shared[w];
  }
  return sum;
}

/// @brief *block*: the sum of an unsigned over the block's threads, known to all. Needs n_warps unsigned of shared memory.
template <class Block>
WAVEKV_DEVICE unsigned block_count(Block& b, unsigned x, unsigned* of_warps) {
  const unsigned of_warp = b.warp_sum(x);
  b.sync();  // they may still be read
  if (b.lane() == 0) {
    of_warps[b.warp()] = of_warp;
  }
  b.sync();
  unsigned sum = 0;
  for (unsigned w = 0; w < b.n_warps(); ++w) {
    sum += of_warps[w];
  }
  return sum;
}

/// @brief *block*: how much the threads before this one have, and in `total` how much all have. Needs n_warps unsigned
/// of shared memory.
template <class Block>
WAVEKV_DEVICE unsigned block_scan(Block& b, unsigned x, unsigned* shared, unsigned& total) {
  unsigned before = 0;
  unsigned running = x;
  for (unsigned step = 1; step < warp_size; step *= 2) {
    const unsigned from = b.shuffle(running, b.lane() >= step ? b.lane() - step : b.lane());
    running += b.lane() >= step ? from : 0;
  }
  b.sync();  // shared may still be read
  if (b.lane() == warp_size - 1) {
    shared[b.warp()] = running;
  }
  b.sync();
  total = 0;
  for (unsigned w = 0; w < b.n_warps(); ++w) {
    before += w < b.warp() ? shared[w] : 0;
    total += shared[w];
  }
  return before + running - x;
}

/// @brief Hands out shared memory piece by piece, in the same way on the host, which asks how much it is, and in the kernel.
class shared_arena {
 public:
  WAVEKV_HOST_DEVICE explicit shared_arena(std::byte* base = nullptr) : base_(base) {}

  /// @brief n elements, aligned to 16 bytes; null on the host.
  template <class T>
  WAVEKV_HOST_DEVICE T* take(std::size_t n) {
#if defined(__CUDA_ARCH__)
    T* const taken =
        reinterpret_cast<T*>(base_ + used_);  // a test for null would hide that it is shared memory
#else
    T* const taken = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
#endif
    used_ += (n * sizeof(T) + 15) / 16 * 16;
    return taken;
  }

  /// @brief Bytes handed out.
  WAVEKV_HOST_DEVICE std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

}  // namespace wavekv::device
