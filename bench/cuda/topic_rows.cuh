// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <wavekv/core/random.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cuda/block.hpp>

/// @file topic_rows.cuh
/// @brief Keys, values and queries for benches, made where they are used: what is measured needs gigabytes of them.

namespace wavekv_bench {

/// @brief Rows [n_tokens, n_heads, dim] around a direction that stays for some tokens, as a text stays with its topic. One
/// block a token; block_x is the token.
template <class T>
struct topic_rows {
  static constexpr unsigned n_threads = 256;
  static constexpr unsigned tokens_per_topic = 48;
  static constexpr unsigned n_topics = 512;

  T* rows = nullptr;
  unsigned n_heads = 1;
  unsigned dim = 0;
  std::uint64_t seed = 0;
  std::uint32_t first_token = 0;  ///< position of the first row's token
  float topic = 1.0F;             ///< length of a topic's direction, an element
  float noise = 1.0F;             ///< of what is a row's own

  [[nodiscard]] std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    const std::uint32_t token = first_token + b.block_x();
    const std::uint32_t which =
        wavekv::philox(seed, {token / tokens_per_topic, 0U, 0U, 1U})[0] % n_topics;
    for (unsigned i = b.thread(); i < n_heads * dim; i += n_threads) {
      const float x = topic * normal({which, i, 0U, 2U}) + noise * normal({token, i, 0U, 3U});
      rows[std::size_t{b.block_x()} * n_heads * dim + i] = wavekv::from_float<T>(x);
    }
  }

 private:
  // Box and Muller.
  WAVEKV_DEVICE float normal(std::array<std::uint32_t, 4> counter) const {
    const auto bits = wavekv::philox(seed, counter);
    const float u = 1.0F - wavekv::unit_float(bits[0]);
    return std::sqrt(-2.0F * std::log(u)) * std::cos(6.2831853F * wavekv::unit_float(bits[1]));
  }
};

}  // namespace wavekv_bench
