// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include <wavekv/core/geometry.hpp>

#include "data/attention_data.hpp"

/// @file llama_layer.hpp
/// @brief One layer of the Llama-3.1-8B shape whose attention is that of the example's model.

namespace wavekv_bench {

/// @brief 8 KV heads of 4 query heads each, 128 elements a head.
inline wavekv::geometry llama_geometry(float scale = 0.0F) {
  wavekv::geometry sizes;
  sizes.n_query_heads = 32;
  sizes.n_kv_heads = 8;
  sizes.key_dim = 128;
  sizes.value_dim = 128;
  sizes.scale = scale;
  return sizes;
}

/// @brief Puts captured layers together to one of the Llama-3.1-8B shape: every KV head is one of a captured layer's, keys
/// and values padded with zeros, so that its logits, and with them what is read, are those of the model (with the
/// scale of the captured dimension), and its bytes those of Llama. There are fewer captured heads than eight: a head that
/// is used again sees the trace from `lag` tokens earlier on, so that no two heads ask the same at the same step. Query
/// heads of a group repeat.
/// @throw std::runtime_error when the layers do not fit
inline attention_data make_llama_layer(const std::vector<attention_data>& captured,
                                       std::size_t lag) {
  constexpr std::size_t n_heads = 8;
  constexpr std::size_t group = 4;
  constexpr std::size_t dim = 128;
  struct source {
    const attention_data* layer;
    std::size_t head;
  };
  std::vector<source> sources;
  for (const attention_data& layer : captured) {
    for (std::size_t head = 0; head < layer.n_kv_heads; ++head) sources.push_back({&layer, head});
  }
  if (sources.empty()) throw std::runtime_error("no captured layers");
  const std::size_t lags = (n_heads - 1) / sources.size();
  const std::size_t n = captured.front().n_tokens;
  if (lags * lag >= n) throw std::runtime_error("captured layers are shorter than the lags");
  attention_data made;
  made.name = "the example's model in the Llama-3.1-8B layer shape";
  made.n_tokens = n - lags * lag;
  made.n_query_heads = n_heads * group;
  made.n_kv_heads = n_heads;
  made.dim = dim;
  made.keys.assign(made.n_tokens * n_heads * dim, 0.0F);
  made.values.assign(made.n_tokens * n_heads * dim, 0.0F);
  made.queries.assign(made.n_tokens * n_heads * group * dim, 0.0F);
  for (std::size_t head = 0; head < n_heads; ++head) {
    const auto& [layer, from] = sources[head % sources.size()];
    if (layer->n_tokens != n || layer->dim > dim) {
      throw std::runtime_error("captured layers differ in length, or have too wide heads");
    }
    const std::size_t first = (lags - head / sources.size()) * lag;
    for (std::size_t t = 0; t < made.n_tokens; ++t) {
      const std::size_t at = ((t + first) * layer->n_kv_heads + from) * layer->dim;
      std::copy_n(layer->keys.data() + at, layer->dim,
                  made.keys.data() + (t * n_heads + head) * dim);
      std::copy_n(layer->values.data() + at, layer->dim,
                  made.values.data() + (t * n_heads + head) * dim);
      for (std::size_t g = 0; g < group; ++g) {
        const std::size_t query = from * layer->group_size() + g % layer->group_size();
        std::copy_n(
            layer->queries.data() + ((t + first) * layer->n_query_heads + query) * layer->dim,
            layer->dim, made.queries.data() + (t * n_heads * group + head * group + g) * dim);
      }
    }
  }
  return made;
}

/// @brief The factor on q·k that captured heads were made with.
inline float captured_scale(const std::vector<attention_data>& captured) {
  return 1.0F / std::sqrt(static_cast<float>(captured.front().dim));
}

}  // namespace wavekv_bench
