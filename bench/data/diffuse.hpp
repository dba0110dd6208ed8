// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <sstream>
#include <utility>
#include <vector>

#include "data/attention_data.hpp"

/// @file diffuse.hpp
/// @brief Keys, values and queries whose attention is spread over much of the context.

namespace wavekv_bench {

/// @brief Normal numbers, nearly (a sum of four uniforms, cut off at ± 3.5 deviations): the same on every machine,
/// and fast enough for gigabytes of keys.
class normal_source {
 public:
  explicit normal_source(std::uint64_t seed) : state_(seed * 0xD1342543DE82EF95ULL + 1) {}

  void fill(float* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint64_t bits = mixed(state_ + static_cast<std::uint64_t>(i) * step);
      const auto sum = static_cast<std::int32_t>((bits & 0xFFFFU) + ((bits >> 16U) & 0xFFFFU) +
                                                 ((bits >> 32U) & 0xFFFFU) + (bits >> 48U));
      out[i] = static_cast<float>(sum - 131070) * (1.0F / 37837.2F);
    }
    state_ += static_cast<std::uint64_t>(n) * step;
  }

  std::vector<float> numbers(std::size_t n, float deviation = 1.0F) {
    std::vector<float> out(n);
    fill(out.data(), n);
    for (float& number : out) number *= deviation;
    return out;
  }

  /// @brief Uniform in [0, n).
  std::size_t below(std::size_t n) {
    return static_cast<std::size_t>(mixed(state_ += step) >> 11U) % n;
  }

 private:
  static constexpr std::uint64_t step = 0x9E3779B97F4A7C15ULL;

  // splitmix64 (Steele, Lea, Flood 2014)
  static std::uint64_t mixed(std::uint64_t z) noexcept {
    z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27U)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31U);
  }

  std::uint64_t state_;
};

/// @brief How diffuse data are made.
struct diffuse_options {
  std::size_t n_query_heads = 8;
  std::size_t n_kv_heads = 2;
  std::size_t dim = 128;
  float temperature = 10.0F;  ///< length of the queries; 7: more diffuse, 14: sharp in some heads
  std::size_t n_topics = 512;
  std::size_t topic_tokens = 24;  ///< a text stays with a topic so long
  std::uint64_t seed = 1;

  /// @brief What the data are called.
  [[nodiscard]] std::string name() const {
    std::ostringstream text;
    text << "diffuse " << temperature;
    return text.str();
  }
};

/// @brief Makes diffuse data piece by piece, so that a long context never lies in memory as floats.
///
/// Per KV head: each run of topic_tokens tokens draws one of n_topics topics. A token's state is
/// u = 0.7·topic + 0.5·drift + 0.5·noise, the drift an AR(1) process with coefficient 0.9; its key is u in a
/// power-law spectrum, k_i = u_i / √(i+1). Its value is a mean + 0.5·(the topic's value) + 0.4·W·u[0..16) + noise:
/// partly a linear function of the key, as a model's are. A query lies along a random topic with as much
/// noise, in a flatter spectrum (i+1)^-0.1, times a temperature that grows by head within the group. At the default
/// temperature 90 % of the mass lies on 22 to 56 % of 32K tokens by head, half of it on 0.1 to 7 % (tokens_holding).
class diffuse_source {
 public:
  explicit diffuse_source(const diffuse_options& options) : options_(options) {
    normal_source random(options.seed);
    for (std::size_t i = 0; i < options.dim; ++i) {
      key_spectrum_.push_back(std::pow(static_cast<float>(i + 1), -0.5F));
      query_spectrum_.push_back(std::pow(static_cast<float>(i + 1), -0.1F));
    }
    for (std::size_t head = 0; head < options.n_kv_heads; ++head) {
      heads_.push_back(
          {normal_source(random.below(std::size_t{1} << 40U)),
           random.numbers(options.n_topics * options.dim),
           random.numbers(options.n_topics * options.dim), random.numbers(options.dim, 0.5F),
           random.numbers(n_mixed * options.dim, 0.25F), std::vector<float>(options.dim, 0.0F), 0});
    }
  }

  [[nodiscard]] const diffuse_options& options() const noexcept { return options_; }

  /// @brief The next n tokens. Complexity: O(n · n_kv_heads · dim · 20).
  attention_data next(std::size_t n, bool with_queries) {
    attention_data data;
    data.name = options_.name();
    data.n_tokens = n;
    data.n_query_heads = options_.n_query_heads;
    data.n_kv_heads = options_.n_kv_heads;
    data.dim = options_.dim;
    data.keys.resize(n * options_.n_kv_heads * options_.dim);
    data.values.resize(data.keys.size());
    for (std::size_t token = 0; token < n; ++token) {
      for (std::size_t head = 0; head < options_.n_kv_heads; ++head) {
        const std::size_t row = (token * options_.n_kv_heads + head) * options_.dim;
        make_token(heads_[head], (n_made_ + token) % options_.topic_tokens == 0,
                   data.keys.data() + row, data.values.data() + row);
      }
    }
    n_made_ += n;
    if (with_queries) data.queries = queries(n);
    return data;
  }

  /// @brief Queries alone, [n, n_query_heads, dim]: what is asked does not depend on where.
  std::vector<float> queries(std::size_t n) {
    const std::size_t group = options_.n_query_heads / options_.n_kv_heads;
    std::vector<float> out(n * options_.n_query_heads * options_.dim);
    float* row = out.data();
    for (std::size_t token = 0; token < n; ++token) {
      for (std::size_t i = 0; i < options_.n_query_heads; ++i, row += options_.dim) {
        head_state& head = heads_[i / group];
        const float length =
            options_.temperature * 0.6F * (0.85F + 0.1F * static_cast<float>(i % group));
        const float* topic = &head.topics[head.random.below(options_.n_topics) * options_.dim];
        head.random.fill(row, options_.dim);
        for (std::size_t j = 0; j < options_.dim; ++j)
          row[j] = length * (topic[j] + row[j]) * query_spectrum_[j];
      }
    }
    return out;
  }

 private:
  static constexpr std::size_t n_mixed = 16;  // elements of the state that values see

  struct head_state {
    normal_source random;
    std::vector<float> topics;        // [n_topics, dim]
    std::vector<float> topic_values;  // [n_topics, dim]
    std::vector<float> mean_value;    // [dim]
    std::vector<float> mixing;        // W transposed, [n_mixed, dim]
    std::vector<float> drift;         // [dim]
    std::size_t topic;
  };

  void make_token(head_state& head, bool new_topic, float* key, float* value) {
    const std::size_t dim = options_.dim;
    if (new_topic) head.topic = head.random.below(options_.n_topics);
    const float* topic = &head.topics[head.topic * dim];
    const float* topic_value = &head.topic_values[head.topic * dim];
    noise_.resize(3 * dim);
    head.random.fill(noise_.data(), 3 * dim);
    for (std::size_t i = 0; i < dim; ++i) {
      head.drift[i] = 0.9F * head.drift[i] + 0.436F * noise_[i];
      key[i] = 0.7F * topic[i] + 0.5F * head.drift[i] + 0.5F * noise_[dim + i];
      value[i] = head.mean_value[i] + 0.5F * topic_value[i] + 0.6F * noise_[2 * dim + i];
    }
    for (std::size_t j = 0; j < n_mixed && j < dim; ++j) {
      const float* column = &head.mixing[j * dim];
      for (std::size_t i = 0; i < dim; ++i) value[i] += 0.4F * key[j] * column[i];
    }
    for (std::size_t i = 0; i < dim; ++i) key[i] *= key_spectrum_[i];
  }

  diffuse_options options_;
  std::vector<float> key_spectrum_;
  std::vector<float> query_spectrum_;
  std::vector<head_state> heads_;
  std::vector<float> noise_;
  std::size_t n_made_ = 0;
};

/// @brief Diffuse data of n tokens with their queries.
inline attention_data make_diffuse(std::size_t n_tokens, const diffuse_options& options = {}) {
  return diffuse_source(options).next(n_tokens, true);
}

}  // namespace wavekv_bench
