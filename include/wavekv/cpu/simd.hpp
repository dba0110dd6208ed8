// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/cpu/elementwise.hpp>
#include <wavekv/cpu/read_ahead.hpp>
#include <wavekv/cpu/rows.hpp>
#include <wavekv/cpu/thresholds.hpp>
#include <wavekv/cpu/tile_product.hpp>

/// @file simd.hpp
/// @brief All SIMD leaves (namespace wavekv::simd), on Highway with static dispatch: the target is the one the
/// translation unit is compiled for (-march=…). Correct on every fixed-width target, one lane included.

namespace wavekv::simd {

/// @brief Name of the vector target these leaves were compiled for ("AVX3_DL", "AVX2", "SCALAR", …).
inline const char* target_name() noexcept { return hwy::TargetName(HWY_TARGET); }

/// @brief Floats in one vector of that target.
inline constexpr std::size_t n_lanes = detail::lanes;

}  // namespace wavekv::simd
