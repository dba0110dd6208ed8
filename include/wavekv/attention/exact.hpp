// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>

#include <wavekv/attention/node_formulas.hpp>
#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/attention/query_rows.hpp>
#include <wavekv/attention/token_runs.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/cpu/simd.hpp>

/// @file exact.hpp
/// @brief Decode attention of a few queries over a run of rows: exactly over tokens, or estimated over the
/// summaries of clusters. Both read every row once, from memory, and add to a partial softmax.
///
/// Online softmax by chunks of rows, as in FlashAttention (arXiv 2205.14135). Scratch is on the stack (a few KB);
/// nothing is allocated. Bit for bit the same however many threads run, as long as runs are cut the same way.

namespace wavekv {

/// @brief Whether rows are added to a partial softmax or taken out of it again.
enum class accumulation { add, subtract };

namespace detail {

inline constexpr std::size_t chunk_queries = 8;  ///< queries that share a chunk's scratch

/// How often row r counts: once for a token, once per token for a cluster.
struct counted_once {};

/// Adds up to chunk_rows rows of known logits to the states of up to chunk_queries queries.
/// @param add_rows  add_rows(weights): adds the weighted values to the numerators, weights [n_queries, chunk_rows]
template <class Sizes, class AddRows>
void accumulate_chunk(const partial_softmax_view& state, const float* logits,
                      std::size_t logits_stride, const Sizes& sizes, std::size_t n,
                      accumulation mode, const AddRows& add_rows) noexcept {
  constexpr bool has_sizes = !std::is_same_v<Sizes, counted_once>;
  HWY_ALIGN float weights[chunk_queries * chunk_rows];
  for (std::size_t g = 0; g < state.n_queries; ++g) {
    const float* row = logits + g * logits_stride;
    float* weight = weights + g * chunk_rows;
    raise_max(state, g, simd::reduce_max(row, n));
    if (state.is_empty(g)) {  // nothing but -inf so far: e^(-inf - -inf) would be NaN
      std::fill_n(weight, n, 0.0F);
      continue;
    }
    float sum = simd::exp_below(row, weight, n, state.max[g]);
    if constexpr (has_sizes) {
      sum = 0.0F;
      for (std::size_t r = 0; r < n; ++r) {
        weight[r] *= static_cast<float>(sizes[r]);
        sum += weight[r];
      }
    }
    if (mode == accumulation::subtract) {
      simd::scale(weight, n, -1.0F);
      sum = -sum;
    }
    state.denominator[g] += sum;
  }
  add_rows(weights);
}

/// As above, of rows that lie behind each other.
template <class Sizes, scalar S>
void accumulate_run(const partial_softmax_view& state, const float* logits,
                    std::size_t logits_stride, const Sizes& sizes, const S* values, std::size_t n,
                    accumulation mode, simd::read_ahead* then) noexcept {
  accumulate_chunk(state, logits, logits_stride, sizes, n, mode, [&](const float* weights) {
    simd::add_weighted_rows(weights, state.n_queries, chunk_rows, values, n, state.value_dim,
                            state.numerator, state.numerator_stride, then);
  });
}

/// Calls chunk(first row, rows, first query, queries) until all rows and queries are covered.
template <class Chunk>
void by_chunks(std::size_t n_rows, std::size_t n_queries, const Chunk& chunk) {
  for (std::size_t r = 0; r < n_rows; r += chunk_rows) {
    for (std::size_t g = 0; g < n_queries; g += chunk_queries) {
      chunk(r, std::min(chunk_rows, n_rows - r), g, std::min(chunk_queries, n_queries - g));
    }
  }
}

/// The sizes from row r on.
template <class Sizes>
Sizes sizes_from(const Sizes& sizes, std::size_t r) noexcept {
  if constexpr (std::is_same_v<Sizes, counted_once>) {
    return sizes;
  } else {
    return sizes + r;
  }
}

template <class Sizes, scalar S>
void accumulate_logits(const partial_softmax_view& state, const float* logits,
                       std::size_t logits_stride, const Sizes& sizes, const S* values,
                       std::size_t n, accumulation mode, simd::read_ahead* then) noexcept {
  by_chunks(n, state.n_queries,
            [&](std::size_t r, std::size_t n_rows, std::size_t g, std::size_t n_q) {
              accumulate_run(state.part(g, n_q), logits + g * logits_stride + r, logits_stride,
                             sizes_from(sizes, r), values + r * state.value_dim, n_rows, mode,
                             g == 0 ? then : nullptr);
            });
}

/// Scaled and softcapped logits of a run of rows.
template <scalar S>
void score_run(const query_rows& queries, const S* keys, std::size_t n, float softcap,
               float* logits, std::size_t logits_stride, simd::read_ahead* then) noexcept {
  simd::score_rows(queries.data, queries.n, queries.stride, keys, n, queries.dim, logits,
                   logits_stride, then);
  if (softcap > 0.0F) {
    for (std::size_t g = 0; g < queries.n; ++g)
      simd::softcap(logits + g * logits_stride, n, softcap);
  }
}

}  // namespace detail

/// @brief Adds runs of tokens to the partial softmax of each query, exactly: the clusters of an index, say.
///
/// Runs are attended a chunk of rows at a time, however short they are, and what comes next is asked for meanwhile.
/// Complexity: n_queries · n · (key_dim + value_dim) multiply-adds and n_queries · n exponentials for n tokens in all;
/// every key and value is read once. Allocates nothing.
/// @param queries  [n_queries, key_dim], scaled; every query sees all tokens
/// @param run_at   run_at(i) -> token_run<S>, for i < n_runs; called three times each
/// @param softcap  cap of the logits; 0: none
/// @param state  n_queries states of value_dim, added to
template <class RunAt>
void attend_runs(const query_rows& queries, std::size_t n_runs, const RunAt& run_at, float softcap,
                 const partial_softmax_view& state) noexcept {
  using run_type = std::remove_cvref_t<decltype(run_at(0))>;
  using stored = std::remove_cvref_t<decltype(*run_type{}.keys)>;
  using walk_type = detail::run_walk<stored, RunAt>;
  walk_type walk(n_runs, run_at, queries.dim, state.value_dim);
  detail::run_stretches<walk_type> order(walk, queries.dim * sizeof(stored),
                                         state.value_dim * sizeof(stored));
  simd::read_ahead then(order);
  HWY_ALIGN float logits[detail::chunk_queries * detail::chunk_rows];
  std::array<run_type, detail::chunk_rows> pieces;
  std::array<const stored*, detail::chunk_rows> values;
  for (;;) {
    std::size_t n_pieces = 0;
    std::size_t n_rows = 0;
    while (n_rows < detail::chunk_rows) {
      const run_type piece = walk.take(detail::chunk_rows - n_rows);
      if (piece.n == 0) break;
      pieces[n_pieces++] = piece;
      for (std::size_t r = 0; r < piece.n; ++r)
        values[n_rows++] = piece.values + r * state.value_dim;
    }
    if (n_rows == 0) return;
    for (std::size_t g = 0; g < queries.n; g += detail::chunk_queries) {
      const std::size_t n_q = std::min(detail::chunk_queries, queries.n - g);
      const query_rows part{queries.data + g * queries.stride, n_q, queries.dim, queries.stride};
      simd::read_ahead* const ask = g == 0 ? &then : nullptr;
      std::size_t r = 0;
      for (std::size_t i = 0; i < n_pieces; r += pieces[i++].n)
        detail::score_run(part, pieces[i].keys, pieces[i].n, softcap, logits + r,
                          detail::chunk_rows, ask);
      const partial_softmax_view of_part = state.part(g, n_q);
      detail::accumulate_chunk(of_part, logits, detail::chunk_rows, detail::counted_once{}, n_rows,
                               accumulation::add, [&](const float* weights) {
                                 simd::add_weighted_rows_at(weights, n_q, detail::chunk_rows,
                                                            values.data(), n_rows,
                                                            of_part.value_dim, of_part.numerator,
                                                            of_part.numerator_stride, ask);
                               });
    }
  }
}

/// @brief As attend_runs, of one run.
/// @param keys  [n, key_dim] contiguous
/// @param values  [n, value_dim] contiguous, value_dim = state.value_dim
template <scalar S>
void attend_rows(const query_rows& queries, const S* keys, const S* values, std::size_t n,
                 float softcap, const partial_softmax_view& state) noexcept {
  attend_runs(
      queries, 1, [&](std::size_t) { return token_run<S>{keys, values, n}; }, softcap, state);
}

/// @brief Adds rows whose logits are known already to the partial softmax of each query, or takes them out.
///
/// With it a cluster that was estimated and is then read exactly is taken out again: the same logits, size and
/// mean, accumulation::subtract.
/// @param logits  [n_queries, n] with logits_stride, softcapped; -inf stands for a masked row
/// @param sizes  [n] of any arithmetic type: how often each row counts
/// @param values  [n, value_dim] contiguous: the *mean* value of each cluster
template <class Size, scalar S>
void accumulate_rows(const float* logits, std::size_t logits_stride, const Size* sizes,
                     const S* values, std::size_t n, accumulation mode,
                     const partial_softmax_view& state) noexcept {
  detail::accumulate_logits(state, logits, logits_stride, sizes, values, n, mode, nullptr);
}

/// @brief As above, every row counting once.
template <scalar S>
void accumulate_rows(const float* logits, std::size_t logits_stride, const S* values, std::size_t n,
                     accumulation mode, const partial_softmax_view& state) noexcept {
  detail::accumulate_logits(state, logits, logits_stride, detail::counted_once{}, values, n, mode,
                            nullptr);
}

/// @brief As above, of clusters whose mean values lie anywhere; bit for bit the same.
/// @param values  [n] pointers to rows of value_dim elements
/// @param then    what will be read, or null; as many bytes as the values have are asked for
template <class Size, scalar S>
void accumulate_rows_at(const float* logits, std::size_t logits_stride, const Size* sizes,
                        const S* const* values, std::size_t n, accumulation mode,
                        const partial_softmax_view& state,
                        simd::read_ahead* then = nullptr) noexcept {
  detail::by_chunks(
      n, state.n_queries, [&](std::size_t r, std::size_t n_rows, std::size_t g, std::size_t n_q) {
        const partial_softmax_view part = state.part(g, n_q);
        detail::accumulate_chunk(part, logits + g * logits_stride + r, logits_stride, sizes + r,
                                 n_rows, mode, [&](const float* weights) {
                                   simd::add_weighted_rows_at(weights, n_q, detail::chunk_rows,
                                                              values + r, n_rows, part.value_dim,
                                                              part.numerator, part.numerator_stride,
                                                              g == 0 ? then : nullptr);
                                 });
      });
}

namespace detail {

/// logits[r] += logit_variance / 2, for a run of clusters.
inline void add_half_variances(float squared_norm, const float* dispersions, std::size_t n,
                               float softcap, float* logits) noexcept {
  namespace hn = simd::detail::hn;
  constexpr simd::detail::float_tag d{};
  constexpr std::size_t lanes = simd::detail::lanes;
  if (softcap > 0.0F) {
    for (std::size_t r = 0; r < n; ++r) {
      logits[r] += 0.5F * logit_variance(squared_norm, dispersions[r], logits[r], softcap);
      logits[r] = std::min(logits[r], softcap);  // no token's logit lies above, nor their mean mass
    }
    return;
  }
  const auto factor = hn::Set(d, squared_norm);
  const auto most = hn::Set(d, max_logit_variance);
  const auto corrected = [&](auto logit, auto dispersion) HWY_ATTR {
    return hn::MulAdd(hn::Set(d, 0.5F), hn::Min(hn::Mul(factor, dispersion), most), logit);
  };
  std::size_t r = 0;
  for (; r + lanes <= n; r += lanes)
    hn::StoreU(corrected(hn::LoadU(d, logits + r), hn::LoadU(d, dispersions + r)), d, logits + r);
  if (r < n)
    simd::detail::store_first(corrected(simd::detail::load_first(logits + r, n - r),
                                        simd::detail::load_first(dispersions + r, n - r)),
                              logits + r, n - r);
}

}  // namespace detail

/// @brief The summaries of a run of clusters.
template <class Size, scalar S>
struct summary_rows {
  const S* centroids = nullptr;        ///< [n, key_dim] contiguous
  const S* value_means = nullptr;      ///< [n, value_dim] contiguous
  const Size* sizes = nullptr;         ///< [n] of any arithmetic type, tokens in each cluster
  const float* dispersions = nullptr;  ///< [n] variance of a key along a mean query direction
  std::size_t n = 0;                   ///< clusters
};

/// @brief The logits by which clusters are estimated: s = q·c, softcapped, plus half the variance of the logit
/// inside the cluster, so that size · e^s is the mass of a cluster of normally distributed logits.
///
/// Without the second term it is a lower bound (Jensen), low by e^(σ²/2) on average.
/// @param squared_norms  [n_queries] ‖scale·q‖² of each query
/// @param logits  [n_queries, n] with logits_stride, written
/// @param then  what will be read, or null; as many bytes as the centroids have are asked for
template <class Size, scalar S>
void score_summaries(const query_rows& queries, const float* squared_norms,
                     const summary_rows<Size, S>& summaries, float softcap, float* logits,
                     std::size_t logits_stride, simd::read_ahead* then = nullptr) noexcept {
  detail::score_run(queries, summaries.centroids, summaries.n, softcap, logits, logits_stride,
                    then);
  for (std::size_t g = 0; g < queries.n; ++g) {
    detail::add_half_variances(squared_norms[g], summaries.dispersions, summaries.n, softcap,
                               logits + g * logits_stride);
  }
}

/// @brief Adds a run of clusters to the partial softmax of each query through their summaries: a cluster counts as
/// size tokens of the logit that score_summaries gives it and of its mean value.
///
/// The mean value is stored instead of the value sum: the same bytes, and it fits f16 whatever the cluster's size.
/// Complexity and allocation as attend_rows.
/// @param queries  [n_queries, key_dim], scaled
/// @param softcap  cap of the logits; 0: none
/// @param logits  [n_queries, n] with logits_stride: receives the logits, which planning uses
/// @param state  n_queries states, added to
/// @param then  what will be read, or null; as many bytes as the summaries have are asked for
template <class Size, scalar S>
void estimate_rows(const query_rows& queries, const float* squared_norms,
                   const summary_rows<Size, S>& summaries, float softcap, float* logits,
                   std::size_t logits_stride, const partial_softmax_view& state,
                   simd::read_ahead* then = nullptr) noexcept {
  score_summaries(queries, squared_norms, summaries, softcap, logits, logits_stride, then);
  detail::accumulate_logits(state, logits, logits_stride, summaries.sizes, summaries.value_means,
                            summaries.n, accumulation::add, then);
}

/// @brief Logits alone of a run of rows (tokens or summaries), scaled and softcapped; for planning.
/// @param logits  [n_queries, n] with logits_stride
template <scalar S>
void score_logits(const query_rows& queries, const S* keys, std::size_t n, float softcap,
                  float* logits, std::size_t logits_stride) noexcept {
  detail::score_run(queries, keys, n, softcap, logits, logits_stride, nullptr);
}

}  // namespace wavekv
