// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <utility>

#include <wavekv/buffer/concepts.hpp>

namespace wavekv::transfer {

/// @brief Reads a missing block on the calling thread, at once; models transfer_engine. The baseline
/// that overlapped engines are measured against.
struct inline_read {
  /// @brief Calls fetch(); its exception passes through.
  template <class Fetch>
  void start(Fetch&& fetch) {
    std::forward<Fetch>(fetch)();
  }

  /// @brief Nothing is ever under way.
  void wait() noexcept {}
};

static_assert(transfer_engine<inline_read>);

}  // namespace wavekv::transfer
