// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <utility>
#include <vector>

#include <wavekv/core/errors.hpp>
#include <wavekv/core/ids.hpp>

namespace wavekv {

/// @brief The sequences of a cache by id. Safe for concurrent use; a found state stays where it is until it is
/// taken out.
template <class State>
class sequence_table {
 public:
  /// @brief Enters a state under a new id.  @throw capacity_error when `most` states are in the table
  sequence_id enter(std::unique_ptr<State> state, std::size_t most) {
    const std::unique_lock lock(mutex_);
    if (slots_.size() - free_.size() >= most) {
      throw capacity_error(detail::message("create: ", most, " sequences are alive; allowed: ",
                                           most, " (cache_options::max_sequences)"));
    }
    if (free_.empty()) {
      free_.reserve(slots_.size() + 1);  // so that take() need not allocate
      slots_.emplace_back();
      free_.push_back(static_cast<std::uint32_t>(slots_.size() - 1));
    }
    const std::uint32_t slot = free_.back();
    free_.pop_back();
    slots_[slot].state = std::move(state);
    return {slot, slots_[slot].generation};
  }

  /// @brief The state under an id.  @throw sequence_error
  [[nodiscard]] State& find(sequence_id id) const {
    const std::shared_lock lock(mutex_);
    return *checked(id).state;
  }

  /// @brief States in the table.
  [[nodiscard]] std::size_t size() const {
    const std::shared_lock lock(mutex_);
    return slots_.size() - free_.size();
  }

  /// @brief Takes a state out; its id becomes invalid for good.  @throw sequence_error
  std::unique_ptr<State> take(sequence_id id) {
    const std::unique_lock lock(mutex_);
    (void)checked(id);
    entry& left = slots_[id.slot];
    ++left.generation;
    free_.push_back(id.slot);
    return std::move(left.state);
  }

 private:
  struct entry {
    std::unique_ptr<State> state;
    std::uint32_t generation = 0;
  };

  const entry& checked(sequence_id id) const {
    if (id.slot >= slots_.size() || slots_[id.slot].generation != id.generation ||
        !slots_[id.slot].state) {
      throw sequence_error(detail::message(
          "sequence ", id, " is not alive; allowed: ids from create or fork that were ",
          "not released (", slots_.size() - free_.size(), " are alive)"));
    }
    return slots_[id.slot];
  }

  mutable std::shared_mutex mutex_;
  std::vector<entry> slots_;
  std::vector<std::uint32_t> free_;
};

}  // namespace wavekv
