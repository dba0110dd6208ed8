// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <memory>

#include "cuda_engine.hpp"
#include "cuda_machine.cuh"
#include "device_engine.cuh"

namespace transformer {
namespace {

// The stream outlives what is done in it.
struct own_stream {
  cuda_stream stream;
};

class cuda_engine final : own_stream, public device_engine<cuda_machine> {
 public:
  explicit cuda_engine(const std::filesystem::path& directory)
      : device_engine<cuda_machine>(directory, wavekv::device::cuda_runtime{}, stream.get()) {}
};

}  // namespace

bool has_cuda_engine() noexcept { return true; }

std::unique_ptr<engine> make_cuda_engine(const std::filesystem::path& directory) {
  return std::make_unique<cuda_engine>(directory);
}

}  // namespace transformer
