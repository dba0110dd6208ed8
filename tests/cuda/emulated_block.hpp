// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>
#include <utility>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>

#include "cuda/block_machine.hpp"

/// @file emulated_block.hpp
/// @brief The words of <wavekv/cuda/block.hpp> on the CPU, for tests.

namespace wavekv::testing {

/// @brief A thread of a block on the CPU; models device::thread_block. Breaking a rule throws emulation_error.
class emulated_block {
 public:
  emulated_block(block_machine& machine, unsigned thread)
      : machine_(&machine), thread_(thread), lane_(thread % lanes), warp_(thread / lanes) {}
  emulated_block(const emulated_block&) = delete;
  emulated_block& operator=(const emulated_block&) = delete;

  // The words: see block.hpp. The last argument, where there is one, names the line in messages, and tells two calls of
  // one word apart that diverging lanes have come to.
  using place = std::source_location;

  [[nodiscard]] unsigned thread() const { return thread_; }
  [[nodiscard]] unsigned n_threads() const { return machine_->launch_.n_threads; }
  [[nodiscard]] unsigned lane() const { return lane_; }
  [[nodiscard]] unsigned warp() const { return warp_; }
  [[nodiscard]] unsigned n_warps() const { return n_threads() / lanes; }
  [[nodiscard]] unsigned block_x() const { return machine_->block_x_; }
  [[nodiscard]] unsigned block_y() const { return machine_->block_y_; }
  [[nodiscard]] unsigned n_blocks_x() const { return machine_->launch_.blocks.x; }
  [[nodiscard]] unsigned n_blocks_y() const { return machine_->launch_.blocks.y; }
  [[nodiscard]] std::byte* shared() const { return machine_->shared_.data(); }

  void sync(const place& at = place::current()) {
    machine_->arrive(meeting::sync, at);
    machine_->move_on(thread_);
  }
  void sync_warp(const place& at = place::current()) {
    machine_->arrive(meeting::sync_warp, at);
    machine_->move_on(thread_);
  }

  template <class T>
  T shuffle(T x, unsigned lane, const place& at = place::current()) {
    return exchange(x, lane, meeting::shuffle, at);
  }
  template <class T>
  T shuffle_xor(T x, unsigned mask, const place& at = place::current()) {
    return exchange(x, lane_ ^ mask, meeting::shuffle_xor, at);
  }
  std::uint32_t ballot(bool predicate, const place& at = place::current()) {
    return reduce<std::uint32_t>(std::uint32_t{predicate} << lane_, meeting::ballot, at,
                                 [](std::uint32_t x, std::uint32_t y) { return x | y; });
  }
  template <class T>
  T warp_sum(T x, const place& at = place::current()) {
    return reduce<T>(x, meeting::warp_sum, at, [](T a, T b) {
      if constexpr (std::is_integral_v<T>) {  // wraps, as the GPU's does
        using bits = std::make_unsigned_t<T>;
        return static_cast<T>(static_cast<bits>(a) + static_cast<bits>(b));
      } else {
        return a + b;
      }
    });
  }
  template <class T>
  T warp_max(T x, const place& at = place::current()) {
    return reduce<T>(x, meeting::warp_max, at, [](T a, T b) { return b > a ? b : a; });
  }

  device::words4 load16(const void* global) const {
    check_aligned(global, 16, "load16");
    device::words4 words;
    std::memcpy(&words, global, sizeof words);
    return words;
  }

  void copy_async16(void* shared, const void* global) {
    check_aligned(shared, 16, "copy_async16 to");
    check_aligned(global, 16, "copy_async16 from");
    if (!machine_->shared_.contains(shared, 16)) outside_shared(shared);
    machine_->start_copy(fiber(), shared, global);
  }
  void commit_copies() { machine_->commit_copies(fiber()); }
  template <int N>
  void wait_copies() {
    static_assert(N >= 0);
    machine_->wait_copies(fiber(), N);
  }

  template <class T>
    requires std::same_as<T, unsigned> || std::same_as<T, unsigned long long>
  T atomic_add(T* at, T x) const {
    return std::exchange(*at, *at + x);
  }
  unsigned atomic_max(unsigned* at, unsigned x) const {
    return std::exchange(*at, std::max(*at, x));
  }
  unsigned atomic_or(unsigned* at, unsigned x) const { return std::exchange(*at, *at | x); }
  template <class T>
    requires std::same_as<T, unsigned> || std::same_as<T, unsigned long long>
  T atomic_exchange(T* at, T x) const {
    return std::exchange(*at, x);
  }
  void fence() const {}
  template <class T>
  T load_fresh(const T* at) const {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    return *static_cast<const volatile T*>(at);
  }

  template <class T>
  void multiply(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                const place& at = place::current()) {
    machine_->left_[lane_] = a;
    machine_->right_[lane_] = b;
    machine_->sums_[lane_] = d;
    if (machine_->arrive(meeting::multiply, at)) multiply_tile<T>();
    machine_->move_on(thread_);
  }

  template <class T>
  std::uint32_t pack(float x, float y) const {
    return wavekv::from_float<T>(x).bits | std::uint32_t{wavekv::from_float<T>(y).bits} << 16U;
  }
  template <class T>
  void unpack(std::uint32_t packed, float& x, float& y) const {
    x = wavekv::to_float(T{static_cast<std::uint16_t>(packed & 0xFFFFU)});
    y = wavekv::to_float(T{static_cast<std::uint16_t>(packed >> 16U)});
  }

  void await_previous() const { machine_->awaited_ = true; }
  void release_next() const {}

 private:
  static constexpr unsigned lanes = device::warp_size;

  [[nodiscard]] block_machine::thread_fiber& fiber() const { return machine_->fibers_[thread_]; }

  // What throws is out of line, as in block_machine.
  static void check_aligned(const void* p, std::size_t alignment, const char* word) {
    if (reinterpret_cast<std::uintptr_t>(p) % alignment != 0) misaligned(p, alignment, word);
  }
  [[noreturn, gnu::noinline]] static void misaligned(const void* p, std::size_t alignment,
                                                     const char* word) {
    throw emulation_error(
        wavekv::detail::message(word, " ", p, ", which is not aligned to ", alignment, " bytes"));
  }
  [[noreturn, gnu::noinline]] void outside_shared(const void* p) const {
    throw emulation_error(wavekv::detail::message("copy_async16 to ", p, ", outside the ",
                                                  machine_->shared_.size(),
                                                  " bytes of the block's shared memory"));
  }
  [[noreturn, gnu::noinline]] static void no_lane(meeting word, unsigned lane) {
    throw emulation_error(
        wavekv::detail::message(name_of(word), " with lane ", lane, " of ", lanes));
  }

  template <class T>
  static std::uint64_t to_word(T x) {
    static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
    std::uint64_t word = 0;
    std::memcpy(&word, &x, sizeof x);
    return word;
  }
  template <class T>
  static T from_word(std::uint64_t word) {
    T x;
    std::memcpy(&x, &word, sizeof x);
    return x;
  }
  template <class T>
  T result() const {
    return from_word<T>(machine_->results_[thread_]);
  }

  template <class T>
  T exchange(T x, unsigned source, meeting word, const place& at) {
    if (source >= lanes) no_lane(word, source);
    block_machine& m = *machine_;
    m.operands_[lane_] = to_word(x);
    m.sources_[lane_] = source;
    if (m.arrive(word, at)) {
      for (unsigned i = 0; i < lanes; ++i) {
        m.results_[warp_ * lanes + i] = m.operands_[m.sources_[i]];
      }
    }
    m.move_on(thread_);
    return result<T>();
  }

  /// @brief Each lane's own result of the exchange with lane ^ 16, ^ 8, ... ^ 1: the GPU's order, bit for bit.
  template <class T, class Combine>
  T reduce(T x, meeting word, const place& at, Combine combine) {
    static_assert(std::is_arithmetic_v<T>);
    block_machine& m = *machine_;
    m.operands_[lane_] = to_word(x);
    if (m.arrive(word, at)) combine_all<T>(combine);
    m.move_on(thread_);
    return result<T>();
  }
  template <class T, class Combine>
  [[gnu::noinline]] WAVEKV_TEST_UNCHECKED void combine_all(Combine combine) const {
    T mine[lanes];
    T before[lanes];
    for (unsigned i = 0; i < lanes; ++i) mine[i] = from_word<T>(machine_->operands_[i]);
    for (unsigned mask = lanes / 2; mask > 0; mask /= 2) {
      for (unsigned i = 0; i < lanes; ++i) before[i] = mine[i];
      for (unsigned i = 0; i < lanes; ++i) mine[i] = combine(before[i], before[i ^ mask]);
    }
    for (unsigned i = 0; i < lanes; ++i) machine_->results_[warp_ * lanes + i] = to_word(mine[i]);
  }

  /// @brief d += a·b for the warp's tile, with the lanes' fragments as block.hpp lays them out.
  template <class T>
  [[gnu::noinline]] WAVEKV_TEST_UNCHECKED void multiply_tile() const {
    static_assert(std::same_as<T, bf16> || std::same_as<T, f16>);
    float left[16][16];  // [row][k]
    float right[16][8];  // [k][column]
    float sums[16][8];   // [row][column]
    for (unsigned l = 0; l < lanes; ++l) {
      const unsigned i = l / 4;
      const unsigned j = l % 4 * 2;
      for (unsigned part = 0; part < 4; ++part) {
        float* const two = &left[i + part % 2 * 8][j + part / 2 * 8];
        unpack<T>(machine_->left_[l][part], two[0], two[1]);
        sums[i + part / 2 * 8][j + part % 2] = machine_->sums_[l][part];
      }
      for (unsigned part = 0; part < 2; ++part) {
        const unsigned k = j + part * 8;
        unpack<T>(machine_->right_[l][part], right[k][i], right[k + 1][i]);
      }
    }
    for (unsigned row = 0; row < 16; ++row) {
      for (unsigned k = 0; k < 16; ++k) {
        for (unsigned column = 0; column < 8; ++column) {
          sums[row][column] += left[row][k] * right[k][column];
        }
      }
    }
    for (unsigned l = 0; l < lanes; ++l) {
      for (unsigned part = 0; part < 4; ++part) {
        machine_->sums_[l][part] = sums[l / 4 + part / 2 * 8][l % 4 * 2 + part % 2];
      }
    }
  }

  block_machine* machine_;
  unsigned thread_;
  unsigned lane_;
  unsigned warp_;
};

static_assert(device::thread_block<emulated_block>);

/// @brief Runs a kernel on the CPU at once. Throws what a thread throws, emulation_error where the kernel breaks a rule.
template <class Kernel>
void emulate(device::grid blocks, const Kernel& kernel, schedule order = schedule::forwards,
             std::uint64_t seed = 1) {
  static_assert(std::is_trivially_copyable_v<Kernel>, "a kernel's arguments travel as bytes");
  static_assert(Kernel::n_threads >= device::warp_size && Kernel::n_threads <= 1024 &&
                    Kernel::n_threads % device::warp_size == 0,
                "a block has 32 to 1024 threads, whole warps");
  bool overlaps = false;
  if constexpr (requires { Kernel::overlaps; }) overlaps = Kernel::overlaps;
  const auto run = [](const void* k, block_machine& machine, unsigned thread) {
    emulated_block block(machine, thread);
    (*static_cast<const Kernel*>(k))(block);
  };
  block_machine::of_this_thread().run(
      {blocks, Kernel::n_threads, kernel.shared_bytes(), &kernel, run, overlaps}, order, seed);
}

}  // namespace wavekv::testing
