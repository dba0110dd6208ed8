// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include <wavekv/attention/query_rows.hpp>
#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/frontier.hpp>
#include <wavekv/index/summary.hpp>

/// @file concepts.hpp
/// @brief The slots of a wave_index as concepts. A type of your own fits a slot when it has the
/// expressions of the table; nothing is inherited. `tests/conformance` holds the law of each.

namespace wavekv {

/// @brief How many tokens are sealed together.
///
/// | expression    | returns       | semantics                                                            |
/// |---------------|---------------|----------------------------------------------------------------------|
/// | `S::prefill`  | `std::size_t` | tokens of a segment while a prompt is read; 1 to 65,536              |
/// | `S::decode`   | `std::size_t` | tokens of a segment while decoding; 1 to `S::prefill`                |
template <class S>
concept segment_sizes = requires {
  { S::prefill } -> std::convertible_to<std::size_t>;
  { S::decode } -> std::convertible_to<std::size_t>;
  requires S::decode >= 1 && S::decode <= S::prefill&& S::prefill <= 65536;
};

/// @brief How many tokens a node of each tree level holds on average.
///
/// | expression              | returns       | semantics                                                  |
/// |-------------------------|---------------|------------------------------------------------------------|
/// | `C::n_levels`           | `std::size_t` | levels of the tree, 1 to 3                                 |
/// | `C::tokens_at(level)`   | `std::size_t` | tokens per node; at least 1, grows with the level (0: clusters) |
template <class C>
concept cluster_count = requires(std::size_t level) {
  { C::n_levels } -> std::convertible_to<std::size_t>;
  requires C::n_levels >= 1 && C::n_levels <= 3;
  { C::tokens_at(level) } -> std::convertible_to<std::size_t>;
};

/// @brief How keys are grouped.
///
/// | expression                               | returns       | semantics                                        |
/// |------------------------------------------|---------------|--------------------------------------------------|
/// | `c.cluster(request, assignment, scratch)`| `std::size_t` | the number n of clusters made, 1 to request.n_clusters; writes an id below n for every token; no id is left out; the same input gives the same answer on any number of threads |
///
/// | optional           | default | semantics                                                              |
/// |--------------------|---------|------------------------------------------------------------------------|
/// | `C::uses_queries`  | `false` | true: the cache gathers a query_metric from prompt queries, request.metric |
///
/// `c` is const and may be called from several threads at once, each with a scratch of its own.
template <class C>
concept clusterer = std::semiregular<C> &&
                    requires(const C& c, const cluster_request& request,
                             std::span<std::uint32_t> assignment, clustering_scratch& scratch) {
                      { c.cluster(request, assignment, scratch) } -> std::same_as<std::size_t>;
                    };

/// @brief Which clusters are read, estimated or dropped.
///
/// | expression                | returns | semantics                                                                   |
/// |---------------------------|---------|-----------------------------------------------------------------------------|
/// | `b.plan(nodes, zones)`    | `void`  | writes the zone of every node of the frontier; zones [n_nodes] come in as `zone::estimation`; called once a level, coarse to fine, only with what was opened above; must not allocate |
///
/// | optional                  | default       | semantics                                                       |
/// |---------------------------|---------------|-----------------------------------------------------------------|
/// | `B::ranking`              | `rank_by_max` | how a frontier's share and error are reduced over a query group |
/// | `B::reads_everything`     | `false`       | true: no search at all, every token is read                     |
/// | `B::drops`                | `false`       | true: some nodes are dropped; only then may `zone::dropped` be written |
/// | `b.scaled_error(error)`   | `error`       | what is reported as the predicted relative error, of the one that summaries predict: at least 0, no NaN |
/// | `b.meets(predicted)`      | `true`        | whether the predicted relative error, scaled, reaches the target; if not, step_stats::capped counts the group |
/// | `b.validate()`            | nothing       | throws config_error when a member is out of range               |
///
/// A bound is a small copyable value: its type names the rule, its members are the run-time parameters.
/// One that remembers from step to step does so behind a pointer, whose memory copies share: a frontier's `place` and `head` say
/// whose it is, and different heads plan at once. A bound that also checks its answer by sampling models verifying_bound.
template <class B>
concept estimation_bound =
    std::copyable<B> && requires(const B& b, const frontier& nodes, std::span<zone> zones) {
      { b.plan(nodes, zones) } -> std::same_as<void>;
    };

/// @brief An estimation bound that has its answer checked against tokens drawn from what was not read.
///
/// | expression                     | returns         | semantics                                              |
/// |--------------------------------|-----------------|--------------------------------------------------------|
/// | `b.n_samples()`                | `std::size_t`   | tokens to draw per query group                         |
/// | `b.accepts(error)`             | `bool`          | whether this sampled relative error keeps the promise  |
/// | `b.confidence_deviations()`    | `float`         | standard errors to add to the sampled error            |
/// | `b.tightened()`                | `B`             | a stricter bound for the next round                    |
/// | `b.max_rounds()`               | `int`           | rounds before everything is read                       |
template <class B>
concept verifying_bound = estimation_bound<B> && requires(const B& b, float error) {
  { b.n_samples() } -> std::convertible_to<std::size_t>;
  { b.accepts(error) } -> std::convertible_to<bool>;
  { b.confidence_deviations() } -> std::convertible_to<float>;
  { b.tightened() } -> std::same_as<B>;
  { b.max_rounds() } -> std::convertible_to<int>;
};

/// @brief What is kept of clusters beside their means, and how near it says that they lie to a query.
///
/// | expression                              | returns       | semantics                                                   |
/// |-----------------------------------------|---------------|-------------------------------------------------------------|
/// | `typename S::kept`                      |               | what is kept of one KV head's clusters of one segment; it does not change |
/// | `s.keep(clusters)`                      | `S::kept`     | made when the segment is sealed; may allocate               |
/// | `s.score(kept, queries, scores, stride)`| `std::size_t` | the bytes it has read; writes scores[g · stride + i], what stands for the logit of cluster i and query head g: finite, or -infinity for one that is not found; the scale is in the queries; allocates nothing after warm-up |
///
/// | optional            | default | semantics                                                                   |
/// |---------------------|---------|-----------------------------------------------------------------------------|
/// | `S::uses_queries`   | `false` | true: the cache gathers a query_metric from prompt queries, clusters.metric |
/// | `kept.bytes()`      | 0       | memory that it holds beside its own size: statistics::index_bytes           |
/// | `S::n_sample_queries` | 0     | prompt queries that it wants to see themselves, with uses_queries: clusters.metric->sample(); 0 or 2 and more |
///
/// Scores are to a frontier what logits of means are: its `nearness` is the score, `share` what softmax makes of it and the
/// cluster's size, `error` 0. `s` is const and may be called from several threads at once. mean_summary fits the slot as it
/// is: the index is made of it.
template <class S>
concept cluster_summary =
    std::same_as<S, mean_summary> ||
    (std::semiregular<S> &&
     requires(const S& s, const cluster_rows& clusters, const typename S::kept& kept,
              const query_rows& queries, float* scores, std::size_t stride) {
       { s.keep(clusters) } -> std::same_as<typename S::kept>;
       { s.score(kept, queries, scores, stride) } -> std::convertible_to<std::size_t>;
     });

namespace detail {

template <class B>
struct bound_ranking {
  using type = rank_by_max;
};
template <class B>
  requires requires { typename B::ranking; }
struct bound_ranking<B> {
  using type = typename B::ranking;
};

/// @brief The bound's ranking, or rank_by_max.
template <class B>
using bound_ranking_t = typename bound_ranking<B>::type;

/// @brief The bound's reads_everything, or false.
template <class B>
constexpr bool reads_everything() noexcept {
  if constexpr (requires { B::reads_everything; }) {
    return B::reads_everything;
  }
  return false;
}

/// @brief The bound's drops, or false.
template <class B>
constexpr bool drops() noexcept {
  if constexpr (requires { B::drops; }) {
    return B::drops;
  }
  return false;
}

/// @brief The uses_queries of a clusterer or a summary, or false.
template <class C>
constexpr bool uses_queries() noexcept {
  if constexpr (requires { C::uses_queries; }) {
    return C::uses_queries;
  }
  return false;
}

/// @brief The summary's n_sample_queries, or 0.
template <class S>
constexpr std::size_t n_sample_queries() noexcept {
  if constexpr (requires { S::n_sample_queries; }) {
    return S::n_sample_queries;
  }
  return 0;
}

/// @brief The bound's scaled_error(predicted), or predicted.
template <class B>
float scaled_error(const B& bound, float predicted) {
  if constexpr (requires { bound.scaled_error(predicted); }) {
    return bound.scaled_error(predicted);
  }
  return predicted;
}

/// @brief The bound's meets(predicted), or true.
template <class B>
bool meets(const B& bound, float predicted_error) {
  if constexpr (requires { bound.meets(predicted_error); }) {
    return bound.meets(predicted_error);
  }
  return true;
}

/// @brief Calls the bound's validate() where it has one.
template <class B>
void validate_bound(const B& bound) {
  if constexpr (requires { bound.validate(); }) {
    bound.validate();
  }
}

}  // namespace detail
}  // namespace wavekv
