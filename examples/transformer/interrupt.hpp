// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <atomic>
#include <csignal>
#include <exception>

namespace transformer {

/// @brief Ctrl-C while the prompt was read; there is nothing to show yet.
struct interrupted_error : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

namespace detail {
inline std::atomic<bool> interrupt_seen = false;
static_assert(std::atomic<bool>::is_always_lock_free,
              "a signal handler may only touch lock-free atomics");
}  // namespace detail

/// @brief From now on Ctrl-C asks for a clean stop; a second one ends the program at once.
inline void catch_interrupts() {
  std::signal(SIGINT, [](int) {
    detail::interrupt_seen = true;
    std::signal(SIGINT, SIG_DFL);
  });
}

/// @brief True once Ctrl-C was pressed.
inline bool interrupted() noexcept { return detail::interrupt_seen; }

/// @brief The exit status of a program that SIGINT stopped.
inline constexpr int interrupted_status = 130;

}  // namespace transformer
