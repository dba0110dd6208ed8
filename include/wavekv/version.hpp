// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

/// @file version.hpp
/// @brief The library's version, readable by the preprocessor and by CMake.

#define WAVEKV_VERSION_MAJOR 0
#define WAVEKV_VERSION_MINOR 1
#define WAVEKV_VERSION_PATCH 0
#define WAVEKV_VERSION_STRING "0.1.0"
