// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <stdexcept>

namespace transformer {

/// @brief A model directory that cannot be used. what() is one line that names the file and what is
/// wrong in it.
struct model_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace transformer
