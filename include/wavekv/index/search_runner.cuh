// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <wavekv/cuda/caller_rows.cuh>
#include <wavekv/cuda/runtime.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/error_sampler.cuh>
#include <wavekv/index/group_search.cuh>
#include <wavekv/index/query_leaning.cuh>
#include <wavekv/index/search_space.cuh>

/// @file search_runner.cuh
/// @brief The launches of one attend, in order. The twin of search_runner.hpp.

namespace wavekv::device {

/// @brief Calls visit(constant) with the smallest of 64, 128 and 256 that is at least dim.
template <class Visit>
void with_max_dim(unsigned dim, Visit&& visit) {
  if (dim <= 64) {
    visit(std::integral_constant<unsigned, 64>{});
  } else if (dim <= 128) {
    visit(std::integral_constant<unsigned, 128>{});
  } else {
    visit(std::integral_constant<unsigned, 256>{});
  }
}

/// @brief A batch to be attended.
template <class T>
struct search_batch {
  std::span<const query_run_view<T>> runs;  ///< at most lean_kernel<T>::most_runs
  caller_rows queries;                      ///< [sum of n_queries, n_query_heads, key_dim]
  float scale = 1.0F;                       ///< factor on q·k
  answer_arrays answer;
  std::uint64_t seed = 0;   ///< of what a verifying bound draws
  std::uint32_t layer = 0;  ///< whose draws differ from other layers'
};

namespace detail {

/// One plan and what it reads; round 0 scores the top level, the others find it scored.
template <unsigned MaxDim, scalar T, class Bound, device_runtime Runtime>
void launch_round(Runtime& runtime, const search_space<T>& space, const search_batch<T>& batch,
                  const Bound& rule, unsigned round, typename Runtime::stream_type stream) {
  const grid blocks{space.n_splits, space.n_searches};
  if (round == 0) {
    runtime.launch(stream, blocks, score_kernel<T, Bound, MaxDim>{space, rule});
  } else {
    runtime.launch(stream, grid{1, space.n_searches}, replan_kernel<T, Bound>{space, rule});
  }
  for (unsigned level = space.shape.n_levels - 1; level > 0; --level) {
    runtime.launch(stream, blocks, descend_kernel<T, Bound, MaxDim>{space, rule, level});
  }
  runtime.launch(stream, blocks, read_kernel<T, Bound, MaxDim>{space, rule, batch.answer});
}

}  // namespace detail

/// @brief Launches the searches of a batch: two launches more than the tree has levels, or two when the bound reads everything.
/// A bound that checks its answers takes two more than the tree has levels for each of its rounds, and two besides; the host
/// does not learn how many were needed: searches whose answer stands return from the others at once.
/// Blocks: no. Allocates: nothing.
/// @param space  for as many queries as the batch has; its memory stays in use until the stream has come here
template <scalar T, class Bound, device_runtime Runtime>
void launch_searches(Runtime& runtime, const search_space<T>& space, const search_batch<T>& batch,
                     const Bound& bound, typename Runtime::stream_type stream) {
  const model_shape& shape = space.shape;
  lean_kernel<T> lean;
  lean.space = space;
  lean.queries = batch.queries;
  lean.scale = batch.scale;
  lean.n_runs = static_cast<unsigned>(batch.runs.size());
  std::ranges::copy(batch.runs, lean.runs);
  runtime.launch(stream, grid{shape.n_levels, space.n_searches}, lean);
  const grid blocks{space.n_splits, space.n_searches};
  with_max_dim(std::max(shape.key_dim, shape.value_dim), [&](auto dim) {
    constexpr unsigned max_dim = decltype(dim)::value;
    if constexpr (wavekv::detail::reads_everything<Bound>()) {
      runtime.launch(stream, blocks, read_all_kernel<T, max_dim>{space, batch.answer});
    } else if constexpr (verifying_bound<Bound>) {
      Bound rule = bound;
      const auto n_rounds =
          static_cast<unsigned>(std::max(static_cast<int>(bound.max_rounds()), 0));
      for (unsigned round = 0; round < n_rounds; ++round, rule = rule.tightened()) {
        detail::launch_round<max_dim>(runtime, space, batch, rule, round, stream);
        const draw_key key{batch.seed, batch.layer, round};
        runtime.launch(stream, blocks,
                       check_kernel<T, Bound, max_dim>{
                           space, rule, batch.answer, key, static_cast<unsigned>(rule.n_samples()),
                           static_cast<float>(rule.confidence_deviations())});
      }
      runtime.launch(stream, blocks,
                     read_all_kernel<T, max_dim>{space, batch.answer, n_rounds == 0});
    } else {
      detail::launch_round<max_dim>(runtime, space, batch, bound, 0, stream);
    }
  });
}

}  // namespace wavekv::device
