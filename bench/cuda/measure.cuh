// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include <wavekv/cuda/cuda_runtime.cuh>

/// @file measure.cuh
/// @brief What the benches of a GPU share: their command line, medians of times, the file they write.

namespace wavekv_bench {

/// @brief `--short`, `--json FILE`.
struct bench_options {
  std::string json;
  bool is_short = false;

  /// @brief Reads a command line; false, and a line on stderr, where it is wrong.
  bool read(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      if (std::string_view(argv[i]) == "--json" && i + 1 < argc) {
        json = argv[++i];
      } else if (std::string_view(argv[i]) == "--short") {
        is_short = true;
      } else {
        std::fprintf(stderr, "usage: %s [--short] [--json FILE]\n", argv[0]);
        return false;
      }
    }
    return true;
  }

  /// @brief Writes what was measured, where a file was named; false when that fails.
  [[nodiscard]] bool write(const std::string& text) const {
    if (json.empty()) return true;
    std::FILE* const out = std::fopen(json.c_str(), "w");
    if (out == nullptr || std::fputs(text.c_str(), out) < 0 || std::fclose(out) != 0) {
      std::fprintf(stderr, "%s could not be written\n", json.c_str());
      return false;
    }
    return true;
  }
};

/// @brief A stopwatch in a stream.
class stream_clock {
 public:
  explicit stream_clock(cudaStream_t stream) : stream_(stream) {
    wavekv::device::detail::check_cuda(cudaEventCreate(&begin_), "cudaEventCreate");
    wavekv::device::detail::check_cuda(cudaEventCreate(&end_), "cudaEventCreate");
  }
  stream_clock(const stream_clock&) = delete;
  stream_clock& operator=(const stream_clock&) = delete;
  ~stream_clock() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }

  /// @brief Seconds of what work gives the stream; blocks until done.
  template <class Work>
  double seconds(const Work& work) {
    using wavekv::device::detail::check_cuda;
    check_cuda(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    work();
    check_cuda(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(end_), "cudaEventSynchronize");
    float milliseconds = 0.0F;
    check_cuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return static_cast<double>(milliseconds) * 1e-3;
  }

  /// @brief The median of n times, after three that wake the card up.
  template <class Work>
  double median_seconds(int n, const Work& work) {
    std::vector<double> times;
    for (int i = 0; i < n + 3; ++i) {
      const double once = seconds(work);
      if (i >= 3) times.push_back(once);
    }
    std::nth_element(times.begin(), times.begin() + n / 2, times.end());
    return times[static_cast<std::size_t>(n / 2)];
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_{};
  cudaEvent_t end_{};
};

}  // namespace wavekv_bench
