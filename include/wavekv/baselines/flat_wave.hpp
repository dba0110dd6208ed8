// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/index/wave_index.hpp>

/// @file flat_wave.hpp
/// @brief RetroInfer's wave index as its paper has it.

namespace wavekv::baselines {

/// @brief Spherical k-means, one level, 1.8 % of the clusters read, 23.2 % estimated, three quarters dropped. The query heads of a
/// group take turns; the paper adds their scores up: basic_fixed_budget<rank_by_sum>.
/// Source: RetroInfer, arXiv 2505.02922, sections 4 and 5.
using flat_wave_index = paper_defaults;

}  // namespace wavekv::baselines
