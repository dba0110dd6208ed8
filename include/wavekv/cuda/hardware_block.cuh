// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <cuda_runtime.h>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>

/// @file hardware_block.cuh
/// @brief The words of <wavekv/cuda/block.hpp> in CUDA's own instructions, for sm_80 and above.

namespace wavekv::device {

/// @brief A thread of a CUDA block; models thread_block. Holds nothing but where shared memory lies.
class hardware_block {
 public:
  __device__ __forceinline__ explicit hardware_block(std::byte* shared) : shared_(shared) {}

  __device__ __forceinline__ unsigned thread() const { return threadIdx.x; }
  __device__ __forceinline__ unsigned n_threads() const { return blockDim.x; }
  __device__ __forceinline__ unsigned lane() const { return threadIdx.x % warp_size; }
  __device__ __forceinline__ unsigned warp() const { return threadIdx.x / warp_size; }
  __device__ __forceinline__ unsigned n_warps() const { return blockDim.x / warp_size; }
  __device__ __forceinline__ unsigned block_x() const { return blockIdx.x; }
  __device__ __forceinline__ unsigned block_y() const { return blockIdx.y; }
  __device__ __forceinline__ unsigned n_blocks_x() const { return gridDim.x; }
  __device__ __forceinline__ unsigned n_blocks_y() const { return gridDim.y; }
  __device__ __forceinline__ std::byte* shared() const { return shared_; }

  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void sync_warp() const { __syncwarp(); }

  template <class T>
  __device__ __forceinline__ T shuffle(T x, unsigned lane) const {
    return __shfl_sync(all_lanes, x, static_cast<int>(lane));
  }
  template <class T>
  __device__ __forceinline__ T shuffle_xor(T x, unsigned mask) const {
    return __shfl_xor_sync(all_lanes, x, static_cast<int>(mask));
  }
  __device__ __forceinline__ std::uint32_t ballot(bool predicate) const {
    return __ballot_sync(all_lanes, predicate);
  }
  template <class T>
  __device__ __forceinline__ T warp_sum(T x) const {
    if constexpr (std::is_same_v<T, unsigned> || std::is_same_v<T, int>) {
      return __reduce_add_sync(all_lanes, x);
    } else {
      WAVEKV_UNROLL
      for (unsigned mask = warp_size / 2; mask > 0; mask /= 2) {
        x += shuffle_xor(x, mask);
      }
      return x;
    }
  }
  template <class T>
  __device__ __forceinline__ T warp_max(T x) const {
    if constexpr (std::is_same_v<T, unsigned> || std::is_same_v<T, int>) {
      return __reduce_max_sync(all_lanes, x);
    } else {
      WAVEKV_UNROLL
      for (unsigned mask = warp_size / 2; mask > 0; mask /= 2) {
        const T other = shuffle_xor(x, mask);
        x = other > x ? other : x;
      }
      return x;
    }
  }

  __device__ __forceinline__ words4 load16(const void* global) const {
    __builtin_assume(__isGlobal(
        global));  // rows are found through pointers in memory, of which nvcc knows nothing
    const uint4 loaded = *static_cast<const uint4*>(
        global);  // not .nc: an earlier launch may write until await_previous
    return {{loaded.x, loaded.y, loaded.z, loaded.w}};
  }

  __device__ __forceinline__ void copy_async16(void* shared, const void* global) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(shared))),
                 "l"(__cvta_generic_to_global(global))
                 : "memory");
  }
  __device__ __forceinline__ void commit_copies() const {
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  template <int N>
  __device__ __forceinline__ void wait_copies() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
  }

  template <class T>
  __device__ __forceinline__ T atomic_add(T* at, T x) const {
    return atomicAdd(at, x);
  }
  __device__ __forceinline__ unsigned atomic_max(unsigned* at, unsigned x) const {
    return atomicMax(at, x);
  }
  __device__ __forceinline__ unsigned atomic_or(unsigned* at, unsigned x) const {
    return atomicOr(at, x);
  }
  template <class T>
  __device__ __forceinline__ T atomic_exchange(T* at, T x) const {
    return atomicExch(at, x);
  }
  __device__ __forceinline__ void fence() const { __threadfence(); }
  template <class T>
  __device__ __forceinline__ T load_fresh(const T* at) const {
    return *static_cast<const volatile T*>(at);
  }

  template <class T>
  __device__ __forceinline__ void multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                           const std::uint32_t (&b)[2]) const {
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
    if constexpr (std::is_same_v<T, bf16>) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }

  template <class T>
  __device__ __forceinline__ std::uint32_t pack(float x, float y) const {
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
    std::uint32_t packed;
    if constexpr (std::is_same_v<T, bf16>) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(y), "f"(x));
    } else {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(y), "f"(x));
    }
    return packed;
  }
  template <class T>
  __device__ __forceinline__ void unpack(std::uint32_t packed, float& x, float& y) const {
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
    if constexpr (std::is_same_v<T, bf16>) {
      x = __uint_as_float(packed << 16U);
      y = __uint_as_float(packed & 0xFFFF'0000U);
    } else {
      asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, "
          "high;}"
          : "=f"(x), "=f"(y)
          : "r"(packed));
    }
  }

  __device__ __forceinline__ void await_previous() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  }
  __device__ __forceinline__ void release_next() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  }

 private:
  static constexpr unsigned all_lanes = 0xFFFF'FFFFU;

  std::byte* shared_;
};

#if defined(__CUDA_ARCH__) || defined(__CUDACC__)
static_assert(thread_block<hardware_block>);
#endif

/// @brief The __global__ function of a kernel.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::n_threads,
                                  1)  // 1: without it ptxas spills to make room for a second block
    run_kernel(const __grid_constant__ Kernel kernel) {
  extern __shared__ __align__(16) std::byte shared[];
  hardware_block block(shared);
  kernel(block);
}

}  // namespace wavekv::device
