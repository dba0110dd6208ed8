// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

namespace wavekv {

/// @brief Fixed segment sizes; models segment_sizes.
/// @tparam Prefill  tokens of a segment while a prompt is read
/// @tparam Decode   tokens of a segment while decoding
/// Source: RetroInfer, arXiv 2505.02922, section 4.2: segmented clustering, 8K at prefill, 1K updates.
template <std::size_t Prefill = 8192, std::size_t Decode = (Prefill < 1024 ? Prefill : 1024)>
struct segment_size {
  static constexpr std::size_t prefill = Prefill;
  static constexpr std::size_t decode = Decode;
};

}  // namespace wavekv
