// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
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
///
/// Where blocks may be missing in the fast tier, a worker begins its next search while they travel, and ends the one
/// before it then: transfers of one search overlap with the whole of the next.
/// @tparam T        storage scalar
/// @tparam Buffer   a wave_buffer
/// @tparam Summary  what clusters are scored by
template <scalar T, class Buffer, class Summary = mean_summary>
class search_runner {
 public:
  using search_type = group_search<T, Buffer, Summary>;
  using reader_type = typename search_type::reader_type;

  /// @brief One search to run.
  struct request {
    typename search_type::input_type input;
    std::uint64_t seed = 0;  ///< of what is sampled
  };

  /// @brief Runs every request and calls finish(i, merged partial softmax) once for each, on any worker.
  /// Blocks: until all are done. Allocates: only while the state grows.
  /// @return what all of them did
  template <class Bound, executor Executor, class Finish>
  step_stats run(std::span<const request> requests, const Bound& bound, reader_type& reader,
                 Executor& executor, Finish&& finish) {
    static_assert(!verifying_bound<Bound> || !detail::scores_clusters<Summary>,
                  "attend: a bound that checks its answers needs an index of mean_summary: what "
                  "other summaries score has no expected error to draw by");
    const std::size_t n_workers = executor.concurrency();
    grow(workers_, n_workers);
    grow(stats_, requests.size());
    std::fill_n(stats_.begin(), requests.size(), step_stats{});
    if constexpr (!reader_type::always_fast) {
      grow(used_, requests.size());
    }
    search_limits limits;
    for (const request& asked : requests) {
      search_type::widen(limits, asked.input);
    }
    for (worker_state& worker : workers_) {
      worker.template reserve<Bound>(limits);
    }
    const bool whole = n_workers == 1 || requests.size() >= 4 * n_workers;
    const std::size_t n_searches = whole ? n_workers * searches_per_worker : requests.size();
    grow(searches_, n_searches);
    reserve_searches(n_searches, limits);
    if (!whole) {
      reserve_room(shared_.active, requests.size());
      reserve_room(shared_.accepted, requests.size());
      reserve_room(shared_.tasks, requests.size() * limits.n_parts);
    }
    try {
      if (whole) {
        solve_whole(requests, bound, reader, executor, finish);
      } else {
        shared_.begin(0, requests.size(), 0);
        solve(requests, bound, reader, executor, shared_, finish);
      }
    } catch (...) {
      for (search_type& search : searches_) {
        search.abandon(reader);
      }
      throw;
    }
    step_stats sum;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      sum += stats_[i];
    }
    return sum;
  }

  /// @brief What the last run did for one of its requests.
  [[nodiscard]] const step_stats& stats_of(std::size_t i) const noexcept { return stats_[i]; }
  /// @brief The clusters that one of them read exactly, where blocks may be missing in the fast tier.
  [[nodiscard]] const std::vector<used_cluster>& used_by(std::size_t i) const noexcept {
    return used_[i];
  }

 private:
  // Where blocks may have to be waited for, a worker goes on with its next search meanwhile.
  static constexpr std::size_t searches_per_worker = reader_type::always_fast ? 1 : 2;

  // What the searches of one solve() share; only the thread that calls solve() changes it.
  struct solve_state {
    std::size_t first = 0;               // of the requests
    std::size_t first_search = 0;        // that the first request has
    std::vector<std::size_t> active;     // searches not accepted yet
    std::vector<std::uint8_t> accepted;  // [active]
    std::vector<std::pair<std::uint32_t, std::uint32_t>>
        tasks;  // (search, part) of every active search

    // Takes requests [first_request, first_request + n).
    void begin(std::size_t first_request, std::size_t n, std::size_t search) {
      first = first_request;
      first_search = search;
      active.resize(n);
      for (std::size_t i = 0; i < n; ++i) {
        active[i] = i;
      }
    }
  };

  struct worker_state {
    typename search_type::lane_type lane;
    std::vector<float> merged;
    error_sampler<T, Buffer, Summary> sampler;
    // The searches that this worker does whole: one in hand, others whose blocks are on their way.
    std::array<solve_state, searches_per_worker> own;
    std::size_t in_hand = 0;

    template <class Bound>
    void reserve(const search_limits& limits) {
      lane.reserve(limits.n_segment_clusters);
      reserve_room(merged, limits.group_size * (limits.value_dim + 2));
      for (solve_state& state : own) {
        reserve_room(state.active, 1);
        reserve_room(state.accepted, 1);
        reserve_room(state.tasks, limits.n_parts);
        state.active.clear();  // an exception may have left some
      }
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

  // Every worker takes whole searches, and ends one whose blocks had to be waited for when it has begun the next.
  template <class Bound, class Executor, class Finish>
  void solve_whole(std::span<const request> requests, const Bound& bound, reader_type& reader,
                   Executor& executor, Finish& finish) {
    executor.parallel_for(requests.size(), [&](std::size_t i, std::size_t worker) {
      this_thread alone{worker};
      worker_state& mine = workers_[worker];
      solve_state& state = mine.own[mine.in_hand];
      state.begin(i, 1, worker * searches_per_worker + mine.in_hand);
      if constexpr (searches_per_worker == 1) {
        solve(requests, bound, reader, alone, state, finish);
      } else {
        start_round(requests, bound, 0, reader, alone, state);
        mine.in_hand = 1 - mine.in_hand;
        end_search(requests, bound, reader, alone, mine.own[mine.in_hand], finish);
      }
    });
    if constexpr (searches_per_worker != 1) {
      executor.parallel_for(workers_.size(), [&](std::size_t other, std::size_t worker) {
        this_thread alone{worker};
        for (solve_state& state : workers_[other].own) {
          end_search(requests, bound, reader, alone, state, finish);
        }
      });
    }
  }

  template <class Bound, class Executor, class Finish>
  void solve(std::span<const request> requests, const Bound& bound, reader_type& reader,
             Executor& executor, solve_state& state, Finish& finish) {
    start_round(requests, bound, 0, reader, executor, state);
    end_search(requests, bound, reader, executor, state, finish);
  }

  // From the end of the first round on, whose beginning has been made.
  template <class Bound, class Executor, class Finish>
  void end_search(std::span<const request> requests, const Bound& bound, reader_type& reader,
                  Executor& executor, solve_state& state, Finish& finish) {
    for (int round = 0; !state.active.empty();) {
      end_round(requests, bound, round++, reader, executor, state, finish);
      if (!state.active.empty()) {
        start_round(requests, bound, round, reader, executor, state);
      }
    }
  }

  // The bound as it is after some rounds.
  template <class Bound>
  static Bound rule_of(const Bound& bound, [[maybe_unused]] int round) {
    Bound rule = bound;
    if constexpr (verifying_bound<Bound>) {
      for (int i = 0; i < round; ++i) {
        rule = rule.tightened();
      }
    }
    return rule;
  }

  // All that can be done with what is in the fast tier; what is not is on its way afterwards.
  template <class Bound, class Executor>
  void start_round(std::span<const request> requests, const Bound& bound, int round,
                   reader_type& reader, Executor& executor, solve_state& state) {
    const bool last = is_last(bound, round);
    executor.parallel_for(state.active.size(), [&](std::size_t i, std::size_t /*worker*/) {
      search_type& search = searches_[state.first_search + state.active[i]];
      search.begin(requests[state.first + state.active[i]].input);
      if (!last) {
        if constexpr (!reader_type::always_fast) {
          search.prefetch(reader);
        }
        search.open_top();
      }
    });
    list_tasks(state);
    if (last) {
      read_everything(state, reader, executor);
    } else {
      search_levels(state, rule_of(bound, round), reader, executor);
    }
  }

  // What has arrived, then the answers. Searches that were not accepted stay active.
  template <class Bound, class Executor, class Finish>
  void end_round(std::span<const request> requests, const Bound& bound, int round,
                 reader_type& reader, Executor& executor, solve_state& state, Finish& finish) {
    const bool last = is_last(bound, round);
    const Bound rule = rule_of(bound, round);
    state.accepted.assign(state.active.size(), 0);
    executor.parallel_for(state.active.size(), [&](std::size_t i, std::size_t worker) {
      const std::size_t at = state.first + state.active[i];
      search_type& search = searches_[state.first_search + state.active[i]];
      search.arrive(reader);
      state.accepted[i] =
          conclude(search, requests[at], stats_[at], rule, round, last, reader, workers_[worker],
                   [&](const partial_softmax_view& merged) { finish(at, merged); });
      search.close(reader);
      if constexpr (!reader_type::always_fast) {
        search.list_used(used_[at]);
      }
    });
    std::size_t left = 0;
    for (std::size_t i = 0; i < state.active.size(); ++i) {
      if (state.accepted[i] == 0) {
        state.active[left++] = state.active[i];
      }
    }
    state.active.resize(left);
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

  void list_tasks(solve_state& state) {
    state.tasks.clear();
    for (const std::size_t search : state.active) {
      const std::size_t n_parts = searches_[state.first_search + search].n_parts();
      for (std::size_t part = 0; part < n_parts; ++part) {
        state.tasks.emplace_back(static_cast<std::uint32_t>(search),
                                 static_cast<std::uint32_t>(part));
      }
    }
  }

  template <class Executor, class Stage>
  void for_parts(const solve_state& state, Executor& executor, Stage&& stage) {
    executor.parallel_for(state.tasks.size(), [&](std::size_t i, std::size_t worker) {
      const auto [search, part] = state.tasks[i];
      stage(searches_[state.first_search + search], std::size_t{part}, workers_[worker]);
    });
  }

  template <class Executor>
  void read_everything(const solve_state& state, reader_type& reader, Executor& executor) {
    for_parts(state, executor, [&](search_type& search, std::size_t part, worker_state& worker) {
      search.scan_all(part, reader, worker.lane);
    });
  }

  template <class Bound, class Executor>
  void search_levels(const solve_state& state, const Bound& rule, reader_type& reader,
                     Executor& executor) {
    constexpr bool accumulate = !detail::drops<Bound>();
    std::size_t n_levels = 0;
    for (const std::size_t search : state.active) {
      n_levels = std::max(n_levels, searches_[state.first_search + search].n_levels());
    }
    for_parts(state, executor, [](search_type& search, std::size_t part, worker_state& /*worker*/) {
      search.template scan<accumulate>(part);
    });
    for (std::size_t level = n_levels; level-- > 0;) {
      executor.parallel_for(state.active.size(), [&](std::size_t i, std::size_t /*worker*/) {
        search_type& search = searches_[state.first_search + state.active[i]];
        if (level >= search.n_levels()) {  // a sequence without segments has no levels
          return;
        }
        search.plan(level, rule);
        if (level == 0) {
          search.look_up(reader);
        }
      });
      for_parts(state, executor,
                [&](search_type& search, std::size_t part, worker_state& /*worker*/) {
                  if (level >= search.n_levels()) {
                    return;
                  }
                  if (level > 0) {
                    search.template descend<accumulate>(part, level);
                  } else {
                    search.template read<accumulate>(part);
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
        const sample_key key{asked.seed, input.place, static_cast<std::uint32_t>(input.head),
                             static_cast<std::uint32_t>(round)};
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
    done.predicted_error = detail::scaled_error(rule, done.predicted_error);
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
  std::vector<std::vector<used_cluster>> used_;
  solve_state shared_;
};

}  // namespace wavekv
