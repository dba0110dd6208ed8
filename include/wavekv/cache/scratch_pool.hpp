// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

/// @file scratch_pool.hpp
/// @brief Working memory that calls borrow and give back, so that it outlives them.

namespace wavekv {

/// @brief Lends scratches; as many are made as calls run at once.
template <class Scratch>
class scratch_pool {
 public:
  /// @brief A scratch for the length of a call.
  class loan {
   public:
    explicit loan(scratch_pool& owner) : owner_(owner), scratch_(owner.take()) {}
    loan(const loan&) = delete;
    loan& operator=(const loan&) = delete;
    loan(loan&&) = delete;
    loan& operator=(loan&&) = delete;
    ~loan() { owner_.give_back(std::move(scratch_)); }

    Scratch& operator*() const noexcept { return *scratch_; }
    Scratch* operator->() const noexcept { return scratch_.get(); }

   private:
    scratch_pool& owner_;
    std::unique_ptr<Scratch> scratch_;
  };

  /// @brief Borrows a scratch. Blocks: for a mutex. Allocates: when all are out.  @throw std::bad_alloc
  [[nodiscard]] loan borrow() { return loan(*this); }

 private:
  std::unique_ptr<Scratch> take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) {
      idle_.reserve(n_made_ + 1);  // so that giving back need not allocate
      auto made = std::make_unique<Scratch>();
      ++n_made_;
      return made;
    }
    std::unique_ptr<Scratch> taken = std::move(idle_.back());
    idle_.pop_back();
    return taken;
  }

  void give_back(std::unique_ptr<Scratch> scratch) noexcept {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(scratch));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> idle_;
  std::size_t n_made_ = 0;
};

}  // namespace wavekv
