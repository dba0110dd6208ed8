// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// tests/cache/laws_test.cpp, over the cache on a GPU: see support/backend.hpp.
#define WAVEKV_TEST_ON_CUDA
#include "cache/laws_test.cpp"
