// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <wavekv/cache/kv_cache.cuh>
#include <wavekv/cuda/backend.cuh>

#include "cuda/topic_rows.cuh"

/// @file llama_cache.cuh
/// @brief A device cache of Llama-3.1-8B's layer shape, filled with rows of topics.

namespace wavekv_bench {

inline constexpr std::size_t n_query_heads = 32;
inline constexpr std::size_t n_kv_heads = 8;
inline constexpr std::size_t dim = 128;
/// @brief Bytes of K and V of a token in one layer.
inline constexpr std::size_t token_bytes = n_kv_heads * 2 * dim * sizeof(wavekv::bf16);

/// @brief Memory of a runtime, given back when it goes.
template <class T>
class device_rows {
 public:
  device_rows(wavekv::device::cuda_runtime runtime, std::size_t n, cudaStream_t stream)
      : block_(runtime, n * sizeof(T), stream) {}
  [[nodiscard]] T* data() const { return block_.template as<T>(); }

 private:
  wavekv::device::device_block<wavekv::device::cuda_runtime> block_;
};

/// @brief A cache with sequences of one length.
class llama_cache {
 public:
  using cache_type =
      wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::wave_buffer<>, wavekv::cuda>;
  static constexpr std::size_t chunk = 8192;  ///< tokens appended together

  llama_cache(wavekv::device::cuda_runtime runtime, std::size_t n_layers, cudaStream_t stream)
      : runtime_(runtime),
        stream_(stream),
        keys_(runtime, chunk * n_kv_heads * dim, stream),
        values_(runtime, chunk * n_kv_heads * dim, stream),
        queries_(runtime, chunk * n_query_heads * dim, stream),
        cache_(sizes(n_layers), options(runtime)) {}

  [[nodiscard]] cache_type& cache() { return cache_; }

  /// @brief A sequence of n tokens in every layer. Queries of the first chunks teach the index, as a prompt's do.
  /// @param timed  called as timed(work) around what seals: append
  template <class Timed>
  wavekv::sequence_id fill(std::size_t n, std::uint64_t seed, const Timed& timed) {
    const wavekv::sequence_id sequence = cache_.create(stream_);
    for (std::size_t layer = 0; layer < cache_.geometry().n_layers; ++layer) {
      for (std::size_t first = 0; first < n; first += chunk) {
        const std::size_t count = std::min(chunk, n - first);
        make(keys_.data(), n_kv_heads, count, first, seed * 64 + layer, 1.0F, 0.8F);
        make(values_.data(), n_kv_heads, count, first, seed * 64 + layer + 1000, 0.5F, 1.0F);
        make(queries_.data(), n_query_heads, count, first, seed * 64 + layer + 2000, 1.0F, 1.0F);
        timed([&] {
          cache_.append(
              sequence, layer,
              wavekv::device_nhd<const wavekv::bf16>(keys_.data(), count, n_kv_heads, dim),
              wavekv::device_nhd<const wavekv::bf16>(values_.data(), count, n_kv_heads, dim),
              wavekv::device_nhd<const wavekv::bf16>(queries_.data(), count, n_query_heads, dim),
              stream_);
        });
      }
    }
    timed([&] { cache_.seal(sequence, stream_); });
    return sequence;
  }

  /// @brief Queries of n tokens.
  void make_queries(wavekv::bf16* to, std::size_t n, std::uint64_t seed) {
    make(to, n_query_heads, n, 0, seed, 1.0F, 1.0F);
  }

 private:
  static wavekv::geometry sizes(std::size_t n_layers) {
    return {.n_layers = n_layers,
            .n_query_heads = n_query_heads,
            .n_kv_heads = n_kv_heads,
            .key_dim = dim,
            .value_dim = dim};
  }
  static cache_type::options_type options(const wavekv::device::cuda_runtime& runtime) {
    cache_type::options_type chosen;
    chosen.runtime = runtime;
    return chosen;
  }

  void make(wavekv::bf16* to, std::size_t n_heads, std::size_t n, std::size_t first,
            std::uint64_t seed, float topic, float noise) {
    topic_rows<wavekv::bf16> kernel;
    kernel.rows = to;
    kernel.n_heads = static_cast<unsigned>(n_heads);
    kernel.dim = dim;
    kernel.seed = seed;
    kernel.first_token = static_cast<std::uint32_t>(first);
    kernel.topic = topic;
    kernel.noise = noise;
    runtime_.launch(stream_, {static_cast<unsigned>(n), 1}, kernel);
  }

  wavekv::device::cuda_runtime runtime_;
  cudaStream_t stream_;
  device_rows<wavekv::bf16> keys_;
  device_rows<wavekv::bf16> values_;
  device_rows<wavekv::bf16> queries_;
  cache_type cache_;
};

}  // namespace wavekv_bench
