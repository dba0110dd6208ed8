// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/baselines/oracle.hpp>
#include <wavekv/baselines/top_p_budget.hpp>
#include <wavekv/index/wave_index.hpp>

/// @file oracle_top_p.hpp
/// @brief The fewest tokens that hold a given part of the softmax mass: the limit of every rule whose budget follows the mass.

namespace wavekv::baselines {

/// @brief Every token is a cluster of its own, and top_p_budget knows its mass.
using oracle_top_p_index =
    wave_index<segment_size<>, tokens_per_cluster<1>, consecutive, top_p_budget, oracle>;

}  // namespace wavekv::baselines
