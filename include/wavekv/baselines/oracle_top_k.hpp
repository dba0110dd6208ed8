// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <wavekv/baselines/oracle.hpp>
#include <wavekv/baselines/top_k.hpp>
#include <wavekv/index/wave_index.hpp>

/// @file oracle_top_k.hpp
/// @brief The tokens with the k largest logits: the limit of every rule that selects so many and drops the rest.

namespace wavekv::baselines {

/// @brief Every token is a cluster of its own, and top_k knows its logit.
using oracle_top_k_index =
    wave_index<segment_size<>, tokens_per_cluster<1>, consecutive, top_k, oracle>;

}  // namespace wavekv::baselines
