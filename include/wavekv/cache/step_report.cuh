// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cstddef>
#include <utility>

#include <wavekv/cache/statistics.hpp>
#include <wavekv/core/errors.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/device_block.hpp>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/search_space.cuh>

/// @file step_report.cuh
/// @brief What steps on a device did, and what only they could see: kept there until the host asks.

namespace wavekv::device {

/// @brief Moves counts out of a report, which is zero then. What steps in other streams add meanwhile is in one or the other.
struct take_counts_kernel {
  static constexpr unsigned n_threads = warp_size;

  step_counts* report = nullptr;
  step_counts* taken = nullptr;

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    constexpr unsigned n_sums = offsetof(step_counts, predicted_error) / sizeof(unsigned long long);
    constexpr unsigned n_words = (sizeof(step_counts) - offsetof(step_counts, predicted_error)) / 4;
    static_assert(n_sums + n_words <= n_threads);
    b.await_previous();
    const unsigned i = b.thread();
    if (i < n_sums) {
      reinterpret_cast<unsigned long long*>(taken)[i] =
          b.atomic_exchange(reinterpret_cast<unsigned long long*>(report) + i, 0ULL);
    } else if (i < n_sums + n_words) {
      const unsigned at = 2 * n_sums + (i - n_sums);
      reinterpret_cast<unsigned*>(taken)[at] =
          b.atomic_exchange(reinterpret_cast<unsigned*>(report) + at, 0U);
    }
  }
};

/// @brief The report of all steps of a cache.
template <device_runtime Runtime>
class step_report {
 public:
  using stream_type = typename Runtime::stream_type;

  /// @brief Nothing was done yet.  @throw cuda_error
  step_report(Runtime runtime, stream_type stream)
      : runtime_(std::move(runtime)), counts_(runtime_, sizeof(step_counts), stream) {
    runtime_.fill(counts_.data(), 0, counts_.bytes(), stream);
  }

  /// @brief Where kernels write.
  [[nodiscard]] step_counts* on_device() const noexcept {
    return counts_.template as<step_counts>();
  }

  /// @brief What was done since it was last taken.  Blocks: until the stream has come here.
  /// @tparam T  storage scalar, which a message names
  /// @throw cuda_error; value_error, capacity_error: what steps saw; what they did is then forgotten, too
  template <scalar T>
  step_stats take(stream_type stream) {
    step_counts counts{};
    const device_block<Runtime> taken(runtime_, sizeof(counts), stream);
    runtime_.launch(stream, grid{},
                    take_counts_kernel{on_device(), taken.template as<step_counts>()});
    runtime_.copy_out(&counts, taken.data(), sizeof(counts), stream);
    const auto has = [&](fault one) { return (counts.faults & static_cast<unsigned>(one)) != 0; };
    if (has(fault::query_not_finite)) {
      throw value_error("attend: a query element is not finite; allowed: finite numbers");
    }
    if (has(fault::key_not_finite)) {
      throw value_error(wavekv::detail::message(
          "append: a key or value element is not finite as ", scalar_traits<T>::name,
          "; allowed: finite numbers that fit; it was stored as 0"));
    }
    if (has(fault::workspace_too_small)) {
      throw capacity_error("attend: a sequence has outgrown its workspace; allowed: as many tokens "
                           "as it was made for");
    }
    step_stats stats;
    stats.groups = counts.groups;
    stats.tokens_held = counts.tokens_held;
    stats.tokens_read = counts.tokens_read;
    stats.tokens_sampled = counts.tokens_sampled;
    stats.clusters_read = counts.clusters_read;
    stats.clusters_estimated = counts.clusters_estimated;
    stats.clusters_dropped = counts.clusters_dropped;
    stats.summaries_read = counts.summaries_read;
    stats.bytes_read = counts.bytes_read;
    stats.hits = counts.clusters_read;
    stats.rounds = counts.rounds;
    stats.capped = counts.capped;
    stats.predicted_error = std::bit_cast<float>(counts.predicted_error);
    stats.sampled_error = std::bit_cast<float>(counts.sampled_error);
    stats.dropped_mass = std::bit_cast<float>(counts.dropped_mass);
    return stats;
  }

 private:
  Runtime runtime_;
  device_block<Runtime> counts_;
};

}  // namespace wavekv::device
