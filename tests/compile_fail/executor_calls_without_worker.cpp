// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: (no match for call|no matching function)
#include <cstddef>

#include <wavekv/cpu/backend.hpp>

// The concept cannot look inside a template: what it cannot see, the first use must say.
struct caller {
  [[nodiscard]] std::size_t concurrency() const { return 1; }
  template <class F>
  void parallel_for(std::size_t n, F&& f) {
#ifdef WAVEKV_COMPILE_PASS
    for (std::size_t i = 0; i < n; ++i) f(i, std::size_t{0});
#else
    for (std::size_t i = 0; i < n; ++i) f(i);
#endif
  }
};

void use(caller& executor) {
  executor.parallel_for(2, [](std::size_t /*task*/, std::size_t /*worker*/) {});
}
