// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <utility>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/errors.hpp>

namespace wavekv::placement {

/// @brief Everything stays in the fast tier; models placement_policy. Nothing ever moves or is evicted.
struct resident {
  template <scalar T, eviction_policy /*Eviction*/>
  class tiers {
   public:
    using handle = aligned_storage<T>;
    static constexpr bool always_fast = true;

    /// @brief Keeps the rows where they are. Complexity: O(1).
    handle keep(aligned_storage<T> rows) const noexcept { return rows; }

    /// @brief Never null. Complexity: O(1).
    const T* lookup(const handle& rows, block which) const noexcept {
      return rows.data() + which.offset;
    }

    /// @brief Never called by a reader, since lookup always finds.  @throw io_error always
    [[noreturn]] void fetch(const handle& /*rows*/, block which, T* /*to*/) const {
      throw io_error(
          wavekv::detail::message("placement::resident: block at element ", which.offset,
                                  " was fetched; allowed: none, every block is in the fast tier"));
    }

    /// @brief Nothing to do.
    void admit(const handle& /*rows*/, block /*which*/, const T* /*fetched*/) const noexcept {}
  };
};

}  // namespace wavekv::placement
