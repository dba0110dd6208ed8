// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The half of the engine that no CUDA compiler sees.
#include <wavekv/cuda/errors.hpp>
#include <wavekv/wavekv.hpp>

bool says_why(const wavekv::cuda_error& refusal) {
  return refusal.code() != 0 && !refusal.call().empty();
}
