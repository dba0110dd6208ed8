// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include <wavekv/buffer/memory_store.hpp>
#include <wavekv/buffer/tiered.hpp>

#include "replay/trace.hpp"

/// @file trace_recorder.hpp
/// @brief A placement that notes which blocks are read: a policy of the bench's own.

namespace wavekv_bench {

/// @brief Where a recording placement writes to. One reader at a time.
struct recording {
  block_trace* trace = nullptr;  ///< null: nothing is noted
  bool ended = false;            ///< set it where a step ends
};

/// @brief Two tiers without a fast one: every block that is read is looked up, fetched, and so noted.
struct recording_placement {
  /// @brief Where to write.
  struct options_type {
    recording* to = nullptr;
    void validate() const noexcept {}
  };

  template <wavekv::scalar T, wavekv::eviction_policy Eviction>
  class tiers : public wavekv::placement::tiered_over<wavekv::memory_store>::tiers<T, Eviction> {
   public:
    using base = wavekv::placement::tiered_over<wavekv::memory_store>::tiers<T, Eviction>;
    using typename base::handle;
    using typename base::lease;

    tiers(const options_type& options, std::size_t key_dim, std::size_t value_dim)
        : base({.fast_bytes = 0}, key_dim, value_dim), to_(options.to) {}

    lease look_up(const handle& rows, const wavekv::block& which) noexcept {
      if (to_->trace != nullptr) {
        begin_reading_if_new(rows, which);
        const auto [found, is_new] = numbers_.try_emplace(
            std::pair(static_cast<const void*>(&rows), which.index), numbers_.size());
        to_->trace->readings.back().push_back({static_cast<std::uint32_t>(found->second),
                                               static_cast<std::uint32_t>(which.n_tokens)});
      }
      return base::look_up(rows, which);
    }

   private:
    // A search looks up its blocks in the order of segments and rows: one that comes out of order is the next search's.
    void begin_reading_if_new(const handle& rows, const wavekv::block& which) {
      const bool same = seen_.size() != 0 && seen_.back() == &rows;
      const bool again = std::find(seen_.begin(), seen_.end(), &rows) != seen_.end();
      if (seen_.empty() || to_->ended || (same ? which.index <= last_ : again)) {
        to_->trace->readings.emplace_back();
        to_->ended = false;
        seen_.clear();
      }
      if (seen_.empty() || !same) seen_.push_back(&rows);
      last_ = which.index;
    }

    recording* to_;
    std::vector<const handle*> seen_;  // by this reading
    std::size_t last_ = 0;
    std::map<std::pair<const void*, std::size_t>, std::size_t> numbers_;
  };
};

}  // namespace wavekv_bench
