// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include <wavekv/core/errors.hpp>

/// @file geometry.hpp
/// @brief The run-time sizes of one model, as far as attention sees it.

namespace wavekv {

/// @brief Sizes of one model. Only layers that use the cache count: a layer with a short sliding window
/// keeps its own small buffer in the engine.
struct geometry {
  std::size_t n_layers = 1;          ///< attention layers served by the cache
  std::size_t n_query_heads = 1;     ///< query heads a layer; a multiple of n_kv_heads
  std::size_t n_kv_heads = 1;        ///< KV heads a layer (MHA: = n_query_heads, MQA: 1)
  std::size_t key_dim = 64;          ///< elements of one key and query
  std::size_t value_dim = 64;        ///< elements of one value and output; may differ from key_dim
  float scale = 0.0F;                ///< factor on q·k; 0 stands for 1/sqrt(key_dim)
  float logit_softcap = 0.0F;        ///< logits become cap·tanh(logit/cap); 0: none
  std::vector<float> sink_logits{};  ///< learned sinks [n_layers · n_query_heads], or empty: none

  /// @brief Query heads that share one KV head (GQA).
  [[nodiscard]] std::size_t group_size() const noexcept { return n_query_heads / n_kv_heads; }

  /// @brief The factor on q·k that is really used.
  [[nodiscard]] float logit_scale() const noexcept {
    return scale != 0.0F ? scale : 1.0F / std::sqrt(static_cast<float>(key_dim));
  }

  /// @brief Checks every field against its range and the others.
  /// @throw config_error naming the field, the value seen and the values allowed
  void validate() const {
    const auto positive = [](const char* name, std::size_t value, std::size_t most) {
      if (value < 1 || value > most) {
        throw config_error(
            detail::message("geometry: ", name, " is ", value, "; allowed: 1 to ", most));
      }
    };
    positive("n_layers", n_layers, 1U << 16U);
    positive("n_query_heads", n_query_heads, 1U << 16U);
    positive("n_kv_heads", n_kv_heads, 1U << 16U);
    positive("key_dim", key_dim, 1U << 14U);
    positive("value_dim", value_dim, 1U << 14U);
    if (n_query_heads % n_kv_heads != 0) {
      throw config_error(detail::message("geometry: n_query_heads is ", n_query_heads,
                                         "; allowed: a multiple of n_kv_heads, which is ",
                                         n_kv_heads));
    }
    if (!std::isfinite(scale) || scale < 0.0F) {
      throw config_error(
          detail::message("geometry: scale is ", scale,
                          "; allowed: 0 (for 1/sqrt(key_dim)) or a finite positive number"));
    }
    if (!std::isfinite(logit_softcap) || logit_softcap < 0.0F) {
      throw config_error(detail::message("geometry: logit_softcap is ", logit_softcap,
                                         "; allowed: 0 (none) or a finite positive number"));
    }
    if (!sink_logits.empty() && sink_logits.size() != n_layers * n_query_heads) {
      throw config_error(
          detail::message("geometry: sink_logits has ", sink_logits.size(),
                          " elements; allowed: 0 or n_layers * n_query_heads, which is ",
                          n_layers * n_query_heads));
    }
    for (const float logit : sink_logits) {
      if (!std::isfinite(logit)) {
        throw config_error(
            detail::message("geometry: sink_logits holds ", logit, "; allowed: finite numbers"));
      }
    }
  }
};

}  // namespace wavekv
