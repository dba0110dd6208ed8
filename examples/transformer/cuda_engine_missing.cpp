// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "cuda_engine.hpp"
#include "engine.hpp"
#include "error.hpp"

namespace transformer {

bool has_cuda_engine() noexcept { return false; }

std::unique_ptr<engine> make_cuda_engine(const std::filesystem::path& /*directory*/) {
  throw model_error("built without CUDA (configure with -DWAVEKV_CUDA=ON)");
}

}  // namespace transformer
