// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/core/aligned_storage.hpp>

namespace wavekv::placement {

/// @brief Everything stays in the fast tier; models placement_policy. Nothing ever moves or is evicted.
struct resident {
  /// @brief Nothing to choose.
  struct options_type {
    void validate() const noexcept {}
  };

  template <scalar T, eviction_policy /*Eviction*/>
  class tiers {
   public:
    using handle = aligned_storage<T>;
    static constexpr bool always_fast = true;

    /// @brief Where a block is.
    struct lease {
      const T* rows = nullptr;
      explicit operator bool() const noexcept { return rows != nullptr; }
    };

    tiers(const options_type& /*options*/, std::size_t key_dim, std::size_t /*value_dim*/) noexcept
        : key_dim_(key_dim) {}

    /// @brief Keeps the rows where they are. Complexity: O(1).
    handle keep(aligned_storage<T> rows, std::span<const block> /*blocks*/) const noexcept {
      return rows;
    }

    /// @brief Always finds. Complexity: O(1).
    lease look_up(const handle& rows, const block& which) const noexcept {
      return {rows.data() + which.offset};
    }

    /// @brief One run.
    template <class Run>
    void for_runs(const lease& found, std::size_t n_tokens, Run&& run) const {
      run(token_run<T>{found.rows, found.rows + n_tokens * key_dim_, n_tokens});
    }

    /// @brief Nothing to do.
    void release(std::span<const lease> /*leases*/) const noexcept {}

    /// @brief Copies elements [offset, offset + to.size()) of the rows.
    void copy(const handle& rows, std::size_t offset, std::span<T> to) const noexcept {
      std::copy_n(rows.data() + offset, to.size(), to.data());
    }

   private:
    std::size_t key_dim_;
  };
};

}  // namespace wavekv::placement
