// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/cache/kv_cache.cuh>
#include <wavekv/wavekv.hpp>

#include "cuda/device_rows.hpp"
#include "cuda/emulated_runtime.hpp"
#include "support/model.hpp"
#include "support/rows.hpp"

/// @file small_device_cache.hpp
/// @brief A cache on the emulated device, small enough that every edge is met within a few hundred tokens, and its calls
/// with rows that lie on the host.

namespace wavekv_test {

template <class S>
using small_device_cache = wavekv::kv_cache<
    S,
    wavekv::wave_index<wavekv::segment_size<64, 32>, wavekv::tokens_per_cluster<4, 16>,
                       wavekv::query_metric_kmeans<2>, wavekv::error_bound<>>,
    wavekv::wave_buffer<>, wavekv::basic_cuda<wavekv::testing::emulated_runtime>>;

/// @brief Decoded tokens between the one that makes a segment of the small cache due and the one that it is there for.
inline constexpr std::size_t small_seal_lag = 32 / 8;

inline wavekv::geometry small_device_geometry(std::size_t n_layers = 1) {
  wavekv::geometry sizes;
  sizes.n_layers = n_layers;
  sizes.n_query_heads = 2;
  sizes.n_kv_heads = 1;
  sizes.key_dim = 16;
  sizes.value_dim = 8;
  return sizes;
}

/// @brief Options with a bound that estimates in so small an index, too.
template <class Cache>
typename Cache::options_type small_device_options(
    const wavekv::testing::emulated_runtime& runtime) {
  typename Cache::options_type options;
  options.window_tokens = 16;
  options.bound.epsilon = 0.01F;
  options.bound.free_tokens = 8;
  options.bound.max_read = 0.2F;
  options.bound.hidden_share = 0.0F;
  options.n_splits = 2;
  options.runtime = runtime;
  return options;
}

/// @brief Tokens as a host has them.
struct host_tokens {
  std::size_t n = 0;
  std::vector<float> keys;
  std::vector<float> values;
  std::vector<float> queries;

  host_tokens(const wavekv::geometry& sizes, std::size_t count, std::uint64_t seed) : n(count) {
    random_engine random(seed);
    keys = make_keys(random, key_family::clustered, n, sizes.n_kv_heads, sizes.key_dim);
    values = normal_rows(random, n * sizes.n_kv_heads * sizes.value_dim);
    queries = normal_rows(random, n * sizes.n_query_heads * sizes.key_dim, 2.0F);
  }
};

/// @brief Calls of a cache in a stream, with memory that lasts as long as the calls need it.
template <class Cache>
class caller {
 public:
  using stream_type = typename Cache::stream_type;
  using runtime_type = typename Cache::runtime_type;

  caller(Cache& cache, stream_type stream)
      : cache_(&cache), runtime_(cache.options().runtime), stream_(stream) {}

  [[nodiscard]] stream_type stream() const { return stream_; }

  /// @brief Tokens [first, first + n).
  void append(wavekv::sequence_id sequence, std::size_t layer, const host_tokens& tokens,
              std::size_t first, std::size_t n) {
    const wavekv::query_run run{sequence, n};
    append(std::span(&run, 1), layer, tokens, first);
  }
  /// @brief The same for a batch, whose rows lie behind each other from `first` on.
  void append(std::span<const wavekv::query_run> batch, std::size_t layer,
              const host_tokens& tokens, std::size_t first) {
    const wavekv::geometry& sizes = cache_->geometry();
    std::size_t n = 0;
    for (const wavekv::query_run& run : batch) n += run.n_queries;
    const device_rows<runtime_type> keys(
        runtime_, part(tokens.keys, first, n, sizes.n_kv_heads * sizes.key_dim), stream_);
    const device_rows<runtime_type> values(
        runtime_, part(tokens.values, first, n, sizes.n_kv_heads * sizes.value_dim), stream_);
    cache_->append(
        batch, layer,
        wavekv::device_nhd<const float>(keys.data(), n, sizes.n_kv_heads, sizes.key_dim),
        wavekv::device_nhd<const float>(values.data(), n, sizes.n_kv_heads, sizes.value_dim),
        wavekv::device_view<const float, 3>{}, stream_);
  }

  /// @brief Enqueues one query's attend, whose answer lies on the device: out, then lse.
  template <class... More>
  device_rows<runtime_type> attend(wavekv::sequence_id sequence, std::size_t layer,
                                   const host_tokens& tokens, std::size_t at, More&&... more) {
    const wavekv::geometry& sizes = cache_->geometry();
    const std::size_t heads = sizes.n_query_heads;
    const device_rows<runtime_type> queries(
        runtime_, part(tokens.queries, at, 1, heads * sizes.key_dim), stream_);
    device_rows<runtime_type> answer(runtime_, heads * (sizes.value_dim + 1), stream_);
    cache_->attend(sequence, layer,
                   wavekv::device_nhd<const float>(queries.data(), 1, heads, sizes.key_dim),
                   wavekv::device_nhd(answer.data(), 1, heads, sizes.value_dim),
                   wavekv::device_view<float, 2>(answer.data() + heads * sizes.value_dim,
                                                 {std::size_t{1}, heads}),
                   std::forward<More>(more)..., stream_);
    return answer;
  }

  /// @brief The same, waited for.
  template <class... More>
  std::vector<float> answer(wavekv::sequence_id sequence, std::size_t layer,
                            const host_tokens& tokens, std::size_t at, More&&... more) {
    return attend(sequence, layer, tokens, at, std::forward<More>(more)...).read(stream_);
  }

 private:
  static std::vector<float> part(const std::vector<float>& rows, std::size_t first, std::size_t n,
                                 std::size_t width) {
    const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(first * width);
    return {begin, begin + static_cast<std::ptrdiff_t>(n * width)};
  }

  Cache* cache_;
  runtime_type runtime_;
  stream_type stream_;
};
template <class Cache>
caller(Cache&, typename Cache::stream_type) -> caller<Cache>;

}  // namespace wavekv_test
