// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <vector>

#include <wavekv/attention/query_rows.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/random.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/consecutive.hpp>
#include <wavekv/index/frontier.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/summary.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/wave_index.hpp>

/// @file lsh_sampling.hpp
/// @brief MagicPIG: tokens are sampled by hash tables, and weighted by how likely that was.

namespace wavekv::baselines {

/// @brief Keeps tables of hashed keys; scores the tokens that share the query's code in two tables or more by their logit less the
/// logarithm of how likely that is. Models cluster_summary, of clusters of one token: estimated through these scores, the tokens
/// that were found stand for those that were not.
///
/// A code is the signs of Bits random projections of a key less the segment's mean key; the probability of a common sign is
/// p = 1 - angle / π, of a token to be found u = 1 - (1 - p^Bits)^Tables - Tables · p^Bits · (1 - p^Bits)^(Tables - 1).
/// The logit of a model that bends it (logit_softcap) is bent after the weight is in it: not for such models.
/// Memory: Tables · 2 bytes a token, 2^Bits · 4 bytes a table, and the keys as bf16; the projections once a thread.
/// @tparam Bits  projections of each of the Tables (at least 2), 1 to 16
/// Source: MagicPIG, arXiv 2410.16179, sections 4.1 to 4.3 (ten bits, 150 tables).
template <std::size_t Bits = 10, std::size_t Tables = 150>
struct lsh_tables {
  static_assert(Bits >= 1 && Bits <= 16 && Tables >= 2, "lsh_tables: Bits 1 to 16, Tables from 2");
  static constexpr std::size_t n_codes = std::size_t{1} << Bits;

  struct kept {
    std::vector<std::uint32_t> first;   ///< [Tables, n_codes + 1] of each code's tokens
    std::vector<std::uint16_t> tokens;  ///< [Tables, n_tokens] by code
    std::vector<float> mean;            ///< [key_dim]
    aligned_storage<bf16> keys;         ///< [n_tokens, key_dim]
    std::vector<float> lengths;         ///< [n_tokens] of the keys less the mean
    [[nodiscard]] std::size_t bytes() const noexcept {
      return (first.size() + mean.size() + lengths.size()) * sizeof(float) +
             tokens.size() * sizeof(std::uint16_t) + keys.bytes();
    }
  };

  /// @brief The projections of all tables, [Tables · Bits, dim]: the same for all keys of a length. Each thread makes its own, once.
  static const std::vector<float>& projections(std::size_t dim) {
    thread_local std::vector<float> rows;
    if (rows.size() == Tables * Bits * dim) return rows;
    rows.resize(Tables * Bits * dim);
    for (std::size_t i = 0; i < rows.size(); i += 2) {  // pairs of normal numbers (Box and Muller)
      const auto bits = philox(0x6D61'6769'6370'6967ULL, {static_cast<std::uint32_t>(i), 0, 0, 0});
      const float radius = std::sqrt(-2.0F * std::log(1.0F - unit_float(bits[0])));
      const float angle = 2.0F * std::numbers::pi_v<float> * unit_float(bits[1]);
      rows[i] = radius * std::cos(angle);
      if (i + 1 < rows.size()) rows[i + 1] = radius * std::sin(angle);
    }
    return rows;
  }

  /// @brief The code of a row in each table.
  static void codes_of(const float* row, std::size_t dim, std::span<std::uint16_t, Tables> codes) {
    std::array<float, Tables * Bits> along;
    simd::score_rows(row, 1, dim, projections(dim).data(), along.size(), dim, along.data(),
                     along.size());
    for (std::size_t table = 0; table < Tables; ++table) {
      std::uint32_t code = 0;
      for (std::size_t bit = 0; bit < Bits; ++bit) {
        code |= along[table * Bits + bit] > 0.0F ? 1U << bit : 0U;
      }
      codes[table] = static_cast<std::uint16_t>(code);
    }
  }

  /// @brief How likely a token is found whose key, less the mean, has this cosine with the query.
  static double probability(double cosine) {
    const double same_sign = 1.0 - std::acos(std::clamp(cosine, -1.0, 1.0)) / std::numbers::pi;
    const double code = std::pow(same_sign, static_cast<double>(Bits));
    // 1 - (1 - code)^L - L·code·(1 - code)^(L-1), without the cancellation where code is small
    return -std::expm1(static_cast<double>(Tables - 1) * std::log1p(-code) +
                       std::log1p(static_cast<double>(Tables - 1) * code));
  }

  /// @brief Hashes the mean keys of clusters. Complexity: O(n_tokens · Tables · Bits · key_dim).  @throw std::bad_alloc
  [[nodiscard]] kept keep(const cluster_rows& clusters) const {
    const std::size_t dim = clusters.key_dim;
    const std::size_t n = clusters.n_clusters();
    kept made;
    std::vector<float> keys = clusters.mean_keys();
    std::vector<double> sum(dim, 0.0);
    for (std::size_t i = 0; i < n * dim; ++i) {
      sum[i % dim] += static_cast<double>(keys[i]);
    }
    made.keys = aligned_storage<bf16>(n * dim);
    simd::from_float(made.keys.data(), keys.data(), n * dim);
    for (const double x : sum) made.mean.push_back(static_cast<float>(x / static_cast<double>(n)));
    std::vector<std::array<std::uint16_t, Tables>> codes(n);
    for (std::size_t c = 0; c < n; ++c) {
      float* const key = keys.data() + c * dim;
      for (std::size_t i = 0; i < dim; ++i) {
        key[i] -= made.mean[i];
      }
      made.lengths.push_back(std::sqrt(product(key, key, dim)));
      codes_of(key, dim, codes[c]);
    }
    made.first.assign(Tables * (n_codes + 1), 0);
    made.tokens.resize(Tables * n);
    for (std::size_t table = 0; table < Tables; ++table) {
      std::uint32_t* const first = made.first.data() + table * (n_codes + 1);
      for (std::size_t c = 0; c < n; ++c) ++first[codes[c][table] + 1];
      for (std::size_t code = 0; code < n_codes; ++code) first[code + 1] += first[code];
      std::vector<std::uint32_t> next(first, first + n_codes);
      for (std::size_t c = 0; c < n; ++c) {
        made.tokens[table * n + next[codes[c][table]]++] = static_cast<std::uint16_t>(c);
      }
    }
    return made;
  }

  /// Complexity: O(Tables · Bits · key_dim + tokens in the query's buckets + found · key_dim) a query head.
  std::size_t score(const kept& of, const query_rows& queries, float* scores,
                    std::size_t stride) const {
    thread_local std::vector<std::uint8_t> n_common;  // tables shared with the query, up to 3
    thread_local std::vector<std::uint16_t> found;
    std::array<std::uint16_t, Tables> codes;
    const std::size_t n_tokens = of.lengths.size();
    std::size_t bytes = Tables * Bits * queries.dim * sizeof(float);  // of the projections
    for (std::size_t g = 0; g < queries.n; ++g) {
      const float* const query = queries.data + g * queries.stride;
      float* const row = scores + g * stride;
      std::fill_n(row, n_tokens, -std::numeric_limits<float>::infinity());
      n_common.assign(n_tokens, 0);
      found.clear();
      codes_of(query, queries.dim, codes);
      for (std::size_t table = 0; table < Tables; ++table) {
        const std::uint32_t* const first = of.first.data() + table * (n_codes + 1) + codes[table];
        bytes += (first[1] - first[0]) * sizeof(std::uint16_t) + 2 * sizeof(std::uint32_t);
        for (std::uint32_t i = first[0]; i < first[1]; ++i) {
          const std::uint16_t token = of.tokens[table * n_tokens + i];
          n_common[token] = static_cast<std::uint8_t>(std::min(n_common[token] + 1, 3));
          if (n_common[token] == 2) found.push_back(token);
        }
      }
      const float along_mean = product(query, of.mean.data(), queries.dim);
      const float length = std::sqrt(product(query, query, queries.dim));
      for (const std::uint16_t token : found) {
        const float logit = product(query, of.keys.data() + token * queries.dim, queries.dim);
        const float both = length * of.lengths[token];
        const float cosine = both > 0.0F ? (logit - along_mean) / both : 0.0F;
        row[token] =
            logit -
            static_cast<float>(std::log(std::max(probability(static_cast<double>(cosine)), 1e-30)));
      }
      bytes += found.size() * (queries.dim * sizeof(bf16) + sizeof(float));
    }
    return bytes;
  }

 private:
  template <class T>
  static float product(const float* query, const T* row, std::size_t dim) {
    float sum = 0.0F;
    simd::score_rows(query, 1, dim, row, 1, dim, &sum, 1);
    return sum;
  }
};

/// @brief Takes what the tables found, and nothing else; models estimation_bound.
struct lsh_sampling {
  static constexpr bool drops = true;

  void plan(const frontier& nodes, std::span<zone> zones) const noexcept {
    std::ranges::fill(zones, zone::dropped);
    for (std::size_t g = 0; g < nodes.group_size; ++g) {
      for (std::size_t i = 0; i < nodes.n_nodes; ++i) {
        if (nodes.nearness(g)[i] > -std::numeric_limits<float>::infinity())
          zones[i] = zone::estimation;
      }
    }
  }
};

/// @brief MagicPIG's tables over single tokens.
using lsh_sampling_index =
    wave_index<segment_size<>, tokens_per_cluster<1>, consecutive, lsh_sampling, lsh_tables<>>;

}  // namespace wavekv::baselines
