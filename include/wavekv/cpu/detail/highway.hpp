// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// No leaf needs AES or carry-less multiplication, and without this -march=x86-64-v3 would fall back to SSSE3.
#ifndef HWY_DISABLE_PCLMUL_AES
#define HWY_DISABLE_PCLMUL_AES
#endif
// Highway 1.0 knows that a compiler's flags reach this target (Ice Lake with AVX-VNNI and on), but leaves it out of
// those it allows unless asked, and then stops: "best baseline should be included in dynamic targets".
#if defined(__AVXVNNI__) && defined(__AVX512BITALG__) && !defined(HWY_WANT_AVX3_DL)
#define HWY_WANT_AVX3_DL
#endif
#include <hwy/highway.h>

/// @file highway.hpp
/// @brief Highway, and what it has to be told first; a translation unit that includes it on its own does so after this.

#if HWY_HAVE_SCALABLE
#error                                                                                             \
    "wavekv: the leaves keep vectors in arrays, which scalable vectors (SVE, RVV) do not allow; define HWY_DISABLED_TARGETS to leave those targets out"
#endif
