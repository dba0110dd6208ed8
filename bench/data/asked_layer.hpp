// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <span>
#include <vector>

#include <wavekv/cache/kv_cache.hpp>
#include <wavekv/index/bounds/exact.hpp>

#include "data/attention_data.hpp"
#include "data/questions.hpp"

/// @file asked_layer.hpp
/// @brief Questions to a layer's cache: what each step did, and how far its answer lies from full attention's.

namespace wavekv_bench {

/// @brief Questions to a layer, and full attention's answers.
struct asked_layer {
  const attention_data* data = nullptr;
  std::vector<std::size_t> tokens;           ///< whose queries are asked
  std::vector<std::vector<float>> expected;  ///< [n_questions][n_query_heads · dim]
};

/// @brief What one question did. Views only.
struct asked_step {
  const wavekv::step_stats& stats;
  std::span<const float> errors;  ///< [n_query_heads] relative errors of the output
  float worst = 0.0F;             ///< of them
  double time_us = 0.0;
};

/// @brief Asks a cache that holds a layer one token's query.
template <class Cache, class Bound>
wavekv::step_stats ask(Cache& cache, wavekv::sequence_id sequence, const attention_data& data,
                       std::size_t token, std::vector<float>& out, const Bound& bound) {
  out.resize(data.n_query_heads * data.dim);
  return cache.attend(sequence, 0, data.query_view(token, 1),
                      wavekv::nhd(out.data(), 1, data.n_query_heads, data.dim),
                      wavekv::tensor_view<float, 2>{}, bound);
}

/// @brief Full attention's answers to n questions, by a cache that holds the layer.
template <class Cache>
asked_layer ask_exactly(Cache& cache, wavekv::sequence_id sequence, const attention_data& data,
                        std::size_t n_questions) {
  asked_layer layer{&data, question_tokens(data, n_questions), {}};
  for (const std::size_t token : layer.tokens) {
    ask(cache, sequence, data, token, layer.expected.emplace_back(), wavekv::exact{});
  }
  return layer;
}

/// @brief Asks a cache that holds a layer all of its questions, one at a time; take(asked_step) is called for each.
/// @return what all steps did
template <class Cache, class Bound, class Take>
wavekv::step_stats ask_each(Cache& cache, wavekv::sequence_id sequence, const asked_layer& layer,
                            const Bound& bound, Take&& take) {
  const attention_data& data = *layer.data;
  wavekv::step_stats total;
  std::vector<float> out;
  std::vector<float> errors(data.n_query_heads);
  for (std::size_t i = 0; i < layer.tokens.size(); ++i) {
    const auto start = std::chrono::steady_clock::now();
    const wavekv::step_stats step = ask(cache, sequence, data, layer.tokens[i], out, bound);
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
    for (std::size_t head = 0; head < data.n_query_heads; ++head) {
      errors[head] =
          relative_error(&out[head * data.dim], &layer.expected[i][head * data.dim], data.dim);
    }
    take(asked_step{step, errors, std::ranges::max(errors), time.count()});
    total += step;
  }
  return total;
}

/// @brief The part of the tokens that was read exactly.
inline double read_share(const wavekv::step_stats& total) {
  return static_cast<double>(total.tokens_read) / static_cast<double>(total.tokens_held);
}

/// @brief Bytes read, as a part of those of all K and V in bf16.
inline double bytes_share(const wavekv::step_stats& total, const attention_data& data) {
  return static_cast<double>(total.bytes_read) /
         (static_cast<double>(total.tokens_held) * 2.0 *
          static_cast<double>(data.dim * sizeof(wavekv::bf16)));
}

}  // namespace wavekv_bench
