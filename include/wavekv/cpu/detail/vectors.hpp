// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/detail/highway.hpp>

/// @file vectors.hpp
/// @brief Loads of stored scalars as float vectors, and sums over lanes; the ground the leaves stand on.
///
/// Static dispatch: the vector width is that of the flags a translation unit is compiled with, so all
/// translation units of a program that use the library must be compiled with the same -m flags.

namespace wavekv::simd::detail {

namespace hn = hwy::HWY_NAMESPACE;

using float_tag = hn::ScalableTag<float>;
using float_vector = hn::Vec<float_tag>;

/// Floats in a vector.
inline constexpr std::size_t lanes = hn::MaxLanes(float_tag{});

/// Vectors that the target can name; decides the tiles, which must stay in registers.
#if HWY_TARGET <= HWY_AVX3_DL || HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM_A64
inline constexpr std::size_t n_registers = 32;
#else
inline constexpr std::size_t n_registers = 16;
#endif

/// Whether the target converts f16 by an instruction.
#if HWY_TARGET <= HWY_AVX2 || HWY_ARCH_ARM_A64
inline constexpr bool native_f16 = true;
#else
inline constexpr bool native_f16 = false;
#endif

/// Where a masked load does not touch what the mask leaves out.
#if HWY_TARGET <= HWY_AVX3
inline constexpr bool masked_memory = true;
#else
inline constexpr bool masked_memory = false;
#endif

template <scalar S>
inline constexpr bool is_16_bit = std::is_same_v<S, bf16> || std::is_same_v<S, f16>;

using half_tag =
    hn::Rebind<std::uint16_t, float_tag>;  ///< as many 16-bit lanes as float_tag has floats

/// Widens 16-bit patterns; exact, subnormals included.
template <scalar S>
HWY_INLINE float_vector widen(hn::Vec<half_tag> bits) {
  static_assert(is_16_bit<S>);
  constexpr float_tag d{};
  constexpr hn::RebindToUnsigned<float_tag> du{};
  if constexpr (std::is_same_v<S, bf16>) {
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
  } else if constexpr (native_f16) {
    return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, float_tag>{}, bits));
  } else {
    // Exponent and fraction moved into a float's place count 2^112 times too little; the multiplication puts
    // subnormals right as well. Infinity and NaN come out as 2^16 and above and get a full exponent.
    const auto wide = hn::PromoteTo(du, bits);
    const auto magnitude = hn::ShiftLeft<13>(hn::And(wide, hn::Set(du, 0x7FFFU)));
    const auto scaled = hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112F));
    const auto special = hn::IfThenElseZero(hn::Ge(scaled, hn::Set(d, 0x1p16F)),
                                            hn::BitCast(d, hn::Set(du, 0x7F80'0000U)));
    const auto sign = hn::ShiftLeft<16>(hn::And(wide, hn::Set(du, 0x8000U)));
    return hn::Or(hn::Or(scaled, special), hn::BitCast(d, sign));
  }
}

#if HWY_TARGET == HWY_AVX2
/// Eight bf16 as floats, each moved into the upper half of its word by one shuffle of bytes: the load itself puts
/// them into both halves of the vector. Widening and shifting takes two instructions on the units that multiply.
HWY_INLINE float_vector load_bf16(const bf16* from) {
  alignas(32) static constexpr std::uint8_t places[32] = {
      0x80, 0x80, 0, 1, 0x80, 0x80, 2,  3,  0x80, 0x80, 4,  5,  0x80, 0x80, 6,  7,
      0x80, 0x80, 8, 9, 0x80, 0x80, 10, 11, 0x80, 0x80, 12, 13, 0x80, 0x80, 14, 15};
  constexpr hn::Repartition<std::uint8_t, float_tag> bytes{};
  const auto both = hn::LoadDup128(bytes, reinterpret_cast<const std::uint8_t*>(from));
  return hn::BitCast(float_tag{}, hn::TableLookupBytesOr0(both, hn::Load(bytes, places)));
}
#endif

/// A full vector of stored scalars, as floats. No alignment promise.
template <scalar S>
HWY_INLINE float_vector load(const S* from) {
  constexpr float_tag d{};
  if constexpr (std::is_same_v<S, float>) {
    return hn::LoadU(d, from);
#if HWY_TARGET == HWY_AVX2
  } else if constexpr (std::is_same_v<S, bf16>) {
    return load_bf16(from);
#endif
  } else if constexpr (is_16_bit<S>) {
    return widen<S>(hn::LoadU(half_tag{}, reinterpret_cast<const std::uint16_t*>(from)));
  } else {
    HWY_ALIGN float buffer[lanes];
    for (std::size_t i = 0; i < lanes; ++i) buffer[i] = wavekv::to_float<S>(from[i]);
    return hn::Load(d, buffer);
  }
}

/// The first n (< lanes) elements; the other lanes are zero, and nothing past from + n is read.
template <scalar S>
HWY_INLINE float_vector load_first(const S* from, std::size_t n) {
  constexpr float_tag d{};
  if constexpr (masked_memory && std::is_same_v<S, float>) {
    return hn::MaskedLoad(hn::FirstN(d, n), d, from);
  } else if constexpr (masked_memory && is_16_bit<S>) {
    constexpr half_tag dh{};
    return widen<S>(
        hn::MaskedLoad(hn::FirstN(dh, n), dh, reinterpret_cast<const std::uint16_t*>(from)));
  } else {
    HWY_ALIGN float buffer[lanes] = {};
    for (std::size_t i = 0; i < n; ++i) buffer[i] = wavekv::to_float<S>(from[i]);
    return hn::Load(d, buffer);
  }
}

/// Stores the first n (< lanes) lanes; nothing past to + n is written.
HWY_INLINE void store_first(float_vector v, float* to, std::size_t n) {
  constexpr float_tag d{};
  if constexpr (masked_memory) {
    hn::BlendedStore(v, hn::FirstN(d, n), d, to);
  } else {
    HWY_ALIGN float buffer[lanes];
    hn::Store(v, d, buffer);
    for (std::size_t i = 0; i < n; ++i) to[i] = buffer[i];
  }
}

#if HWY_TARGET != HWY_SCALAR
/// Adds the 128-bit blocks of a vector into one.
template <class D>
HWY_INLINE auto sum_of_blocks(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D{}) <= 4) {
    (void)d;
    return v;
  } else {
    const hn::Half<D> half{};
    return sum_of_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}
#endif

#if HWY_TARGET != HWY_SCALAR
/// The sums over the lanes of four vectors.
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> four_sums(float_vector a, float_vector b, float_vector c,
                                                     float_vector e) {
  constexpr float_tag d{};
  constexpr hn::Repartition<double, float_tag> pairs{};
  const auto ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const auto ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto ab2 = hn::BitCast(pairs, ab);
  const auto ce2 = hn::BitCast(pairs, ce);
  return sum_of_blocks(d, hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, ab2, ce2)),
                                  hn::BitCast(d, hn::InterleaveUpper(pairs, ab2, ce2))));
}
#endif

/// Stores the sums over the lanes of four vectors, the first two to to[0..1], the others to then[0..1].
///
/// The order of the additions is the same for each of the four, so that a logit does not depend on
/// where in a tile its row was.
HWY_INLINE void store_sums(float_vector a, float_vector b, float_vector c, float_vector e,
                           float* to, float* then) {
#if HWY_TARGET == HWY_SCALAR
  to[0] = hn::GetLane(a);
  to[1] = hn::GetLane(b);
  then[0] = hn::GetLane(c);
  then[1] = hn::GetLane(e);
#else
  constexpr hn::Half<hn::FixedTag<float, 4>> two{};
  const auto sums = four_sums(a, b, c, e);
  hn::StoreU(hn::LowerHalf(two, sums), two, to);
  hn::StoreU(hn::UpperHalf(two, sums), two, then);
#endif
}

/// Stores the sums over the lanes of four vectors to to[0..3], likewise.
HWY_INLINE void store_sums(float_vector a, float_vector b, float_vector c, float_vector e,
                           float* to) {
#if HWY_TARGET == HWY_SCALAR
  store_sums(a, b, c, e, to, to + 2);
#else
  hn::StoreU(four_sums(a, b, c, e), hn::FixedTag<float, 4>{}, to);
#endif
}

/// The sum over the lanes of a vector, in the order of store_sums.
HWY_INLINE float sum(float_vector v) {
  HWY_ALIGN float sums[4];
  store_sums(v, v, v, v, sums);
  return sums[0];
}

/// Rows that are scored against a tile of queries together: enough sums to hide the latency of a multiply-add, few
/// enough to stay in registers.
template <std::size_t n_tile_queries>
inline constexpr std::size_t tile_rows = (n_registers == 32 ? 16 : 8) / n_tile_queries;

/// Stores the sums over the lanes of a tile's vectors.
template <std::size_t n_tile_rows, std::size_t n_tile_queries>
HWY_INLINE void store_tile(const float_vector (&sums)[n_tile_rows][n_tile_queries], float* logits,
                           std::size_t logits_stride) {
  if constexpr (n_tile_rows % 4 == 0) {
    HWY_UNROLL(8)
    for (std::size_t g = 0; g < n_tile_queries; ++g) {
      HWY_UNROLL(8)
      for (std::size_t r = 0; r < n_tile_rows; r += 4)
        store_sums(sums[r][g], sums[r + 1][g], sums[r + 2][g], sums[r + 3][g],
                   logits + g * logits_stride + r);
    }
  } else if constexpr (n_tile_rows == 2 && n_tile_queries == 4) {
    HWY_UNROLL(2)
    for (std::size_t g = 0; g < 4; g += 2)
      store_sums(sums[0][g], sums[1][g], sums[0][g + 1], sums[1][g + 1], logits + g * logits_stride,
                 logits + (g + 1) * logits_stride);
  } else {
    HWY_ALIGN float of_queries[4];
    HWY_UNROLL(8)
    for (std::size_t r = 0; r < n_tile_rows; ++r) {
      store_sums(sums[r][0], sums[r][n_tile_queries > 1 ? 1 : 0],
                 sums[r][n_tile_queries > 2 ? 2 : 0], sums[r][n_tile_queries > 3 ? 3 : 0],
                 of_queries);
      HWY_UNROLL(8)
      for (std::size_t g = 0; g < n_tile_queries; ++g)
        logits[g * logits_stride + r] = of_queries[g];
    }
  }
}

/// Keeps a vector that several multiply-adds use in a register. Left alone, g++ 12 folds its load into each
/// of them, and the tile is bound by the one 512-bit load a cycle instead of by the multiply-adds.
HWY_INLINE float_vector in_register(float_vector v) {
#if HWY_COMPILER_GCC_ACTUAL && HWY_ARCH_X86 && HWY_TARGET <= HWY_SSSE3
  asm("" : "+v"(v.raw));
#endif
  return v;
}

/// Address arithmetic that may leave the array, in both directions (modulo the address space): only for
/// prefetches.
template <class T>
HWY_INLINE const void* ahead(const T* p, std::size_t bytes) {
  return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) + bytes);
}

/// Asks for the cache line at an address that may lie past the end of an array, into the second-level
/// cache: asked into the first, far more lines are under way than it has miss buffers, and the stream
/// runs at half of memory's bandwidth (measured on Zen 4).
HWY_INLINE void prefetch(const void* address) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  __builtin_prefetch(address, 0, 2);
#else
  hwy::Prefetch(static_cast<const char*>(address));
#endif
}

}  // namespace wavekv::simd::detail
