// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/cpu/executor.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/error_sampler.hpp>
#include <wavekv/index/group_search.hpp>

/// @file search_runner.hpp
/// @brief Runs the searches of one attend on an executor, whole or in parts.

namespace wavekv {

/// @brief Runs group searches, and repeats those whose answer a verifying bound does not accept.
///
/// With many groups a worker takes a whole search, which keeps its data in that core's cache; with few,
/// all workers share the parts of each, so that batch 1 uses every core. Both ways do the same
/// arithmetic in the same order: results do not depend on the choice or on the number of workers.
template <scalar T, class Buffer>
class search_runner {
 public:
  using search_type = group_search<T, Buffer>;
  using reader_type = typename search_type::reader_type;

  /// @brief One search to run.
  struct request {
    typename search_type::input_type input;
    sample_key key;
  };

  /// @brief Runs every request and calls finish(i, merged partial softmax) once for each, on any worker.
  /// Blocks: until all are done. Allocates: only while the state grows.
  /// @return what all of them did
  template <class Bound, executor Executor, class Finish>
  step_stats run(std::span<const request> requests, const Bound& bound, reader_type& reader,
                 Executor& executor, Finish&& finish) {
    const std::size_t n_workers = executor.concurrency();
    grow(workers_, n_workers);
    grow(stats_, requests.size());
    std::fill_n(stats_.begin(), requests.size(), step_stats{});
    search_limits limits;
    for (const request& asked : requests) {
      search_type::widen(limits, asked.input);
    }
    for (worker_state& worker : workers_) {
      worker.template reserve<Bound>(limits);
    }
    if (n_workers == 1 || requests.size() >= 4 * n_workers) {
      grow(searches_, n_workers);
      reserve_searches(n_workers, limits);
      executor.parallel_for(requests.size(), [&](std::size_t i, std::size_t worker) {
        this_thread alone{worker};
        solve(requests, i, 1, worker, bound, reader, alone, workers_[worker].shared, finish);
      });
    } else {
      grow(searches_, requests.size());
      reserve_searches(requests.size(), limits);
      reserve_room(shared_.active, requests.size());
      reserve_room(shared_.accepted, requests.size());
      reserve_room(shared_.tasks, requests.size() * limits.n_parts);
      solve(requests, 0, requests.size(), 0, bound, reader, executor, shared_, finish);
    }
    step_stats sum;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      sum += stats_[i];
    }
    return sum;
  }

  /// @brief What the last run did for one of its requests.
  [[nodiscard]] const step_stats& stats_of(std::size_t i) const noexcept { return stats_[i]; }

 private:
  // What the searches of one solve() share; only the thread that calls solve() changes it.
  struct solve_state {
    std::vector<std::size_t> active;     // searches not accepted yet
    std::vector<std::uint8_t> accepted;  // [active]
    std::vector<std::pair<std::uint32_t, std::uint32_t>>
        tasks;  // (search, part) of every active search
  };

  struct worker_state {
    typename search_type::lane_type lane;
    std::vector<block> blocks;
    std::vector<float> merged;
    error_sampler<T, Buffer> sampler;
    solve_state shared;

    template <class Bound>
    void reserve(const search_limits& limits) {
      reserve_room(blocks, limits.n_segment_clusters);
      reserve_room(lane.here, limits.n_segment_clusters);
      reserve_room(lane.arrived, limits.n_segment_clusters);
      reserve_room(merged, limits.group_size * (limits.value_dim + 2));
      reserve_room(shared.active, 1);
      reserve_room(shared.accepted, 1);
      reserve_room(shared.tasks, limits.n_parts);
      if constexpr (verifying_bound<Bound>) {
        sampler.reserve(limits);
      }
    }
  };

  // Does all tasks here, as the worker it is told to be.
  struct this_thread {
    std::size_t worker;
    template <class Task>
    void parallel_for(std::size_t n, Task&& task) const {
      for (std::size_t i = 0; i < n; ++i) {
        task(i, worker);
      }
    }
  };

  template <class Array>
  static void grow(Array& array, std::size_t n) {
    if (array.size() < n) {
      array.resize(n);
    }
  }

  void reserve_searches(std::size_t n, const search_limits& limits) {
    for (std::size_t i = 0; i < n; ++i) {
      searches_[i].reserve(limits);
    }
  }

  // Solves requests [first, first + n) with searches_ from first_search on.
  template <class Bound, class Executor, class Finish>
  void solve(std::span<const request> requests, std::size_t first, std::size_t n,
             std::size_t first_search, const Bound& bound, reader_type& reader, Executor& executor,
             solve_state& shared, Finish& finish) {
    shared.active.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
      shared.active[i] = i;
    }
    Bound rule = bound;
    for (int round = 0; !shared.active.empty(); ++round) {
      const bool last = is_last(bound, round);
      shared.accepted.assign(shared.active.size(), 0);
      executor.parallel_for(shared.active.size(), [&](std::size_t i, std::size_t /*worker*/) {
        search_type& search = searches_[first_search + shared.active[i]];
        search.begin(requests[first + shared.active[i]].input);
        if (!last) {
          search.open_top();
        }
      });
      list_tasks(shared, first_search);
      if (last) {
        read_everything(shared, first_search, reader, executor);
      } else {
        search_levels(shared, first_search, rule, reader, executor);
      }
      executor.parallel_for(shared.active.size(), [&](std::size_t i, std::size_t worker) {
        const std::size_t at = first + shared.active[i];
        shared.accepted[i] =
            conclude(searches_[first_search + shared.active[i]], requests[at], stats_[at], rule,
                     round, last, reader, workers_[worker],
                     [&](const partial_softmax_view& merged) { finish(at, merged); });
      });
      std::size_t left = 0;
      for (std::size_t i = 0; i < shared.active.size(); ++i) {
        if (shared.accepted[i] == 0) {
          shared.active[left++] = shared.active[i];
        }
      }
      shared.active.resize(left);
      if constexpr (verifying_bound<Bound>) {
        rule = rule.tightened();
      }
    }
  }

  // Whether this round reads everything, and so ends the search for certain.
  template <class Bound>
  static bool is_last(const Bound& bound, int round) {
    if constexpr (verifying_bound<Bound>) {
      return round >= bound.max_rounds();
    } else {
      return detail::reads_everything<Bound>();
    }
  }

  void list_tasks(solve_state& shared, std::size_t first_search) {
    shared.tasks.clear();
    for (const std::size_t search : shared.active) {
      const std::size_t n_parts = searches_[first_search + search].n_parts();
      for (std::size_t part = 0; part < n_parts; ++part) {
        shared.tasks.emplace_back(static_cast<std::uint32_t>(search),
                                  static_cast<std::uint32_t>(part));
      }
    }
  }

  template <class Executor, class Stage>
  void for_parts(const solve_state& shared, std::size_t first_search, Executor& executor,
                 Stage&& stage) {
    executor.parallel_for(shared.tasks.size(), [&](std::size_t i, std::size_t worker) {
      const auto [search, part] = shared.tasks[i];
      stage(searches_[first_search + search], std::size_t{part}, workers_[worker]);
    });
  }

  template <class Executor>
  void read_everything(const solve_state& shared, std::size_t first_search, reader_type& reader,
                       Executor& executor) {
    for_parts(shared, first_search, executor,
              [&](search_type& search, std::size_t part, worker_state& worker) {
                search.scan_all(part, reader, worker.lane, worker.blocks);
              });
  }

  template <class Bound, class Executor>
  void search_levels(const solve_state& shared, std::size_t first_search, const Bound& rule,
                     reader_type& reader, Executor& executor) {
    constexpr bool accumulate = !detail::drops<Bound>();
    std::size_t n_levels = 0;
    for (const std::size_t search : shared.active) {
      n_levels = std::max(n_levels, searches_[first_search + search].n_levels());
    }
    for_parts(shared, first_search, executor,
              [](search_type& search, std::size_t part, worker_state& /*worker*/) {
                search.template scan<accumulate>(part);
              });
    for (std::size_t level = n_levels; level-- > 0;) {
      executor.parallel_for(shared.active.size(), [&](std::size_t i, std::size_t /*worker*/) {
        search_type& search = searches_[first_search + shared.active[i]];
        if (level < search.n_levels()) {  // a sequence without segments has no levels
          search.plan(level, rule);
        }
      });
      for_parts(shared, first_search, executor,
                [&](search_type& search, std::size_t part, worker_state& worker) {
                  if (level >= search.n_levels()) {
                    return;
                  }
                  if (level > 0) {
                    search.template descend<accumulate>(part, level);
                  } else {
                    search.template read<accumulate>(part, reader, worker.lane, worker.blocks);
                  }
                });
    }
  }

  // Merges a search's parts, has a verifying bound check them, and hands the answer on if it stands.
  template <class Bound, class Hand>
  bool conclude(search_type& search, const request& asked, step_stats& stats, const Bound& rule,
                int round, bool last, reader_type& reader, worker_state& worker, Hand&& hand_on) {
    const auto& input = search.input();
    worker.merged.resize(input.group_size * (input.value_dim + 2));
    const partial_softmax_view merged =
        view_partial(worker.merged.data(), input.group_size, input.value_dim);
    search.merge(merged);
    float sampled_error = 0.0F;
    bool accepted = true;
    if constexpr (verifying_bound<Bound>) {
      if (!last) {
        sample_key key = asked.key;
        key.round = static_cast<std::uint32_t>(round);
        for (const float error : worker.sampler.sample(
                 search, merged, rule.n_samples(), rule.confidence_deviations(), key, reader,
                 worker.lane, [&](float sampled) { return rule.accepts(sampled); })) {
          accepted = accepted && rule.accepts(error);
          sampled_error = std::max(sampled_error, error);
        }
      }
    }
    step_stats done = search.stats();
    done.sampled_error = sampled_error;
    done.capped = detail::meets(rule, done.predicted_error) ? 0 : 1;
    if (!accepted) {  // its work counts, its errors and zones do not
      done.groups = done.tokens_held = done.capped = 0;
      done.predicted_error = done.sampled_error = done.dropped_mass = 0.0F;
    }
    stats += done;
    if (accepted) {
      hand_on(merged);
    }
    return accepted;
  }

  std::vector<worker_state> workers_;
  std::vector<search_type> searches_;
  std::vector<step_stats> stats_;
  solve_state shared_;
};

}  // namespace wavekv
