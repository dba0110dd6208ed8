// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include <wavekv/core/scalar.hpp>
#include <wavekv/core/tensor_view.hpp>

/// @file rows.hpp
/// @brief Rows [token, head, dim] for tests: families of keys that search meets or fears, and their
/// storage in any scalar.

namespace wavekv_test {

using random_engine = std::mt19937_64;

/// @brief What keys look like.
enum class key_family {
  uniform,    ///< independent normal numbers: nothing to find
  clustered,  ///< a dozen directions with a little noise, as topics make them
  equal,      ///< one key, over and over
  outlier,    ///< normal, but one key a hundred times as long
  needle,     ///< a common direction, and two tokens that point elsewhere
  tiny,       ///< zeros of both signs and denormal numbers
};

inline constexpr key_family all_families[] = {key_family::uniform, key_family::clustered,
                                              key_family::equal,   key_family::outlier,
                                              key_family::needle,  key_family::tiny};

inline std::string_view name_of(key_family family) {
  constexpr std::string_view names[] = {"uniform", "clustered", "equal",
                                        "outlier", "needle",    "tiny"};
  return names[static_cast<std::size_t>(family)];
}

/// @brief Whether floats are the same, bit for bit.
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::ranges::equal(a, b, [](float x, float y) {
    return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
  });
}

/// @brief n independent normal numbers.
inline std::vector<float> normal_rows(random_engine& random, std::size_t n, float sigma = 1.0F) {
  std::normal_distribution<float> normal(0.0F, sigma);
  std::vector<float> rows(n);
  std::ranges::generate(rows, [&] { return normal(random); });
  return rows;
}

/// @brief Keys [n_tokens, n_heads, dim] of a family.
inline std::vector<float> make_keys(random_engine& random, key_family family, std::size_t n_tokens,
                                    std::size_t n_heads, std::size_t dim) {
  const std::size_t width = n_heads * dim;
  std::vector<float> keys = normal_rows(random, n_tokens * width);
  switch (family) {
  case key_family::uniform:
    break;
  case key_family::clustered: {
    const std::vector<float> topics = normal_rows(random, 12 * width, 2.0F);
    for (std::size_t t = 0; t < n_tokens; ++t) {
      const std::size_t topic = random() % 12;
      for (std::size_t i = 0; i < width; ++i) {
        keys[t * width + i] = 0.3F * keys[t * width + i] + topics[topic * width + i];
      }
    }
    break;
  }
  case key_family::equal:
    for (std::size_t t = 1; t < n_tokens; ++t) {
      std::copy_n(keys.data(), width, keys.data() + t * width);
    }
    break;
  case key_family::outlier:
    if (n_tokens != 0) {
      const std::size_t t = random() % n_tokens;
      for (std::size_t i = 0; i < width; ++i) keys[t * width + i] *= 100.0F;
    }
    break;
  case key_family::needle: {
    const std::vector<float> common = normal_rows(random, width, 2.0F);
    const std::vector<float> elsewhere = normal_rows(random, width, 3.0F);
    const std::size_t needle = n_tokens < 2 ? 0 : random() % (n_tokens - 1);
    for (std::size_t t = 0; t < n_tokens; ++t) {
      const bool is_needle = t == needle || t == needle + 1;
      for (std::size_t i = 0; i < width; ++i) {
        keys[t * width + i] = 0.1F * keys[t * width + i] + (is_needle ? elsewhere[i] : common[i]);
      }
    }
    break;
  }
  case key_family::tiny:
    for (float& x : keys) {
      const std::uint64_t kind = random() % 4;
      x = kind == 0 ? 0.0F : kind == 1 ? -0.0F : kind == 2 ? 1e-41F : -3e-42F;
    }
    break;
  }
  return keys;
}

/// @brief The rows in a storage scalar.
template <wavekv::scalar S>
std::vector<S> as_scalar(std::span<const float> rows) {
  std::vector<S> stored(rows.size());
  std::ranges::transform(rows, stored.begin(), [](float x) { return wavekv::from_float<S>(x); });
  return stored;
}

/// @brief The floats that rows in a scalar stand for.
template <wavekv::scalar S>
std::vector<float> as_float(std::span<const S> rows) {
  std::vector<float> floats(rows.size());
  std::ranges::transform(rows, floats.begin(), [](S x) { return wavekv::to_float(x); });
  return floats;
}

/// @brief The floats that are left of rows once they were stored in S: what the oracle has to see.
template <wavekv::scalar S>
std::vector<float> rounded(std::span<const float> rows) {
  return as_float<S>(std::span<const S>(as_scalar<S>(rows)));
}

/// @brief Tokens [first, first + n) of packed rows [n_tokens, n_heads, dim], as a view.
template <class T>
wavekv::tensor_view<const T, 3> tokens_of(const std::vector<T>& rows, std::size_t first,
                                          std::size_t n, std::size_t n_heads, std::size_t dim) {
  return wavekv::nhd<const T>(rows.data() + first * n_heads * dim, n, n_heads, dim);
}

}  // namespace wavekv_test
