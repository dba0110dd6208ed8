// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <string>

#include <unistd.h>

namespace transformer {

/// @brief A progress bar with tokens per second on stderr; on something that is no terminal, a line
/// per tenth.
class progress {
 public:
  progress(std::string label, std::size_t n_tokens)
      : label_(std::move(label)), n_tokens_(std::max<std::size_t>(n_tokens, 1)) {}

  /// @brief Shows how many tokens are done; fractions come from layers within a chunk.
  void update(double n_done) {
    const double share = std::min(n_done / static_cast<double>(n_tokens_), 1.0);
    const double rate = n_done / std::max(seconds(), 1e-9);
    if (terminal_) {
      constexpr int width = 30;
      const int filled = static_cast<int>(share * width);
      const std::string bar = std::string(static_cast<std::size_t>(filled), '#') +
                              std::string(static_cast<std::size_t>(width - filled), '.');
      std::fprintf(stderr, "\r%s [%s] %3.0f %%  %.0f/%zu tokens  %.0f tokens/s ", label_.c_str(),
                   bar.c_str(), 100 * share, n_done, n_tokens_, rate);
      std::fflush(stderr);
    } else if (const int tenth = static_cast<int>(share * 10);
               tenth > tenth_ && n_tokens_ >= min_tokens_for_lines) {
      tenth_ = tenth;
      std::fprintf(stderr, "%s %d %%, %.0f tokens/s\n", label_.c_str(), 10 * tenth, rate);
    }
  }

  /// @brief Ends the line. Call it also when interrupted.
  void finish() const {
    if (terminal_) std::fputc('\n', stderr);
  }

  /// @brief Seconds since the start.
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  static constexpr std::size_t min_tokens_for_lines = 4096;  // less is over before one could read

  std::string label_;
  std::size_t n_tokens_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  int tenth_ = 0;
};

}  // namespace transformer
