// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// tests/cache/random_operations_test.cpp, over the cache on a GPU: see support/backend.hpp.
#define WAVEKV_TEST_ON_CUDA
#include "cache/random_operations_test.cpp"
