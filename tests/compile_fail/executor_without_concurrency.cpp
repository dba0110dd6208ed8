// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expected-error: cpu: Executor must model wavekv::executor .*concurrency.*see <wavekv/cpu/executor.hpp>
#include <cstddef>

#include <wavekv/cpu/backend.hpp>

struct caller {
#ifdef WAVEKV_COMPILE_PASS
  [[nodiscard]] std::size_t concurrency() const { return 1; }
#endif
  template <class F>
  void parallel_for(std::size_t n, F&& f) {
    for (std::size_t i = 0; i < n; ++i) f(i, 0);
  }
};

template struct wavekv::cpu<caller>;
