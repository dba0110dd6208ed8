// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/cpu/executor.hpp>
#include <wavekv/cpu/simd.hpp>

/// @file memory.hpp
/// @brief Main memory, for benches: reading all of a buffer, which also empties the caches of anything else.

namespace wavekv_bench {

/// @brief Larger than the last-level cache of the machines this is run on.
inline constexpr std::size_t cold_bytes = std::size_t{128} << 20U;

/// @brief A buffer that is read from end to end, in parts of 1 MB.
class memory_sweep {
 public:
  explicit memory_sweep(std::size_t bytes = cold_bytes) : words_(bytes / sizeof(std::uint32_t)) {
    for (std::size_t i = 0; i < words_.size(); ++i) words_[i] = static_cast<std::uint32_t>(i);
  }

  [[nodiscard]] std::size_t bytes() const noexcept { return words_.size() * sizeof(std::uint32_t); }

  /// @brief Reads every word once; returns something of all of them, so that no read is left out.
  template <class Executor>
  std::uint32_t read(Executor& executor) const {
    constexpr std::size_t part = (std::size_t{1} << 20U) / sizeof(std::uint32_t);
    std::atomic<std::uint32_t> all{0};
    executor.parallel_for(words_.size() / part, [&](std::size_t task, std::size_t /*worker*/) {
      all.fetch_xor(read_part(words_.data() + task * part, part), std::memory_order_relaxed);
    });
    return all.load();
  }

 private:
  static std::uint32_t read_part(const std::uint32_t* words, std::size_t n) noexcept {
    namespace hn = wavekv::simd::detail::hn;
    const hn::ScalableTag<std::uint32_t> d;
    const std::size_t step = hn::MaxLanes(d);
    auto a = hn::Zero(d);
    auto b = a;
    for (std::size_t i = 0; i < n; i += 2 * step) {
      __builtin_prefetch(words + i + 1024);
      a = hn::Xor(a, hn::LoadU(d, words + i));
      b = hn::Xor(b, hn::LoadU(d, words + i + step));
    }
    return hn::GetLane(hn::SumOfLanes(d, hn::Xor(a, b)));
  }

  wavekv::aligned_storage<std::uint32_t> words_;
};

}  // namespace wavekv_bench
