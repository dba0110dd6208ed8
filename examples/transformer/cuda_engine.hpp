// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <filesystem>
#include <memory>

/// @file cuda_engine.hpp
/// @brief The engine on a CUDA device, for what g++ compiles. cuda_engine.cu has it, or cuda_engine_missing.cpp stands in.

namespace transformer {

class engine;

/// @brief Whether there is one in this program.
bool has_cuda_engine() noexcept;

/// @brief Opens a model on the current CUDA device.
/// @throw model_error, also when this program was built without CUDA; wavekv::cuda_error
std::unique_ptr<engine> make_cuda_engine(const std::filesystem::path& directory);

}  // namespace transformer
