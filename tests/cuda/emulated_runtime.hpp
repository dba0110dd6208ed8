// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <iterator>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <thrust/system/cpp/execution_policy.h>

#include <wavekv/core/errors.hpp>
#include <wavekv/cuda/block.hpp>
#include <wavekv/cuda/errors.hpp>
#include <wavekv/cuda/runtime.hpp>

#include "cuda/emulated_block.hpp"

/// @file emulated_runtime.hpp
/// @brief The device_runtime of <wavekv/cuda/runtime.hpp> on the CPU, for tests. Work is done as late as a GPU might do it:
/// not when it is given to a stream, but when the host waits for some stream, and then the streams take turns at random.
///
/// Under the address sanitizer the host cannot touch device memory at all; only what runs in a stream can.

namespace wavekv::testing {

/// @brief How an emulated_runtime behaves.
struct emulation_options {
  schedule order = schedule::forwards;  ///< of a launch's blocks and threads
  std::uint64_t seed = 1;               ///< of all that is random
  bool streams_in_turn = false;         ///< all work in the order in which the host gave it
  std::size_t memory_budget = std::numeric_limits<std::size_t>::max();  ///< bytes of device memory
  unsigned n_multiprocessors = 4;                                       ///< what it says it has
  std::size_t shared_bytes_limit = 227 * 1024;  ///< shared memory of a block, at most
};

/// @brief A stream of an emulated_runtime; value-initialised, its default stream.
struct emulated_stream {
  unsigned number = 0;
  friend bool operator==(emulated_stream, emulated_stream) = default;
};

/// @brief A mark in a stream of an emulated_runtime.
class emulated_event {
 public:
  emulated_event() = default;
  emulated_event(emulated_event&& other) noexcept { swap(other); }
  emulated_event& operator=(emulated_event&& other) noexcept {
    emulated_event(std::move(other)).swap(*this);
    return *this;
  }

 private:
  friend class emulated_runtime;
  void swap(emulated_event& other) noexcept {
    std::swap(owner_, other.owner_);
    std::swap(stream_, other.stream_);
    std::swap(n_tasks_, other.n_tasks_);
  }

  const void* owner_ = nullptr;  // the runtime's state; null where never recorded
  unsigned stream_ = 0;
  std::uint64_t n_tasks_ = 0;  // that the stream had been given
};

/// @brief Work that was given to a stream while it was captured; as often as one likes it is given again. Copies are one.
class emulated_graph {
 public:
  emulated_graph() = default;
  /// @brief Pieces of work.
  [[nodiscard]] std::size_t size() const { return work_ == nullptr ? 0 : work_->size(); }

 private:
  friend class emulated_runtime;
  std::shared_ptr<const std::vector<std::function<void()>>> work_;
};

/// @brief A device on the CPU; models device::device_runtime. Copies share one device; may be used from several threads.
///
/// What goes wrong in a stream is thrown by the function that waits while it happens. When the last copy goes, the work
/// that is left is done, and memory that was never given back ends the program.
class emulated_runtime {
 public:
  using stream_type = emulated_stream;
  using event_type = emulated_event;

  explicit emulated_runtime(const emulation_options& options = {})
      : state_(std::make_shared<state>(options)) {}

  /// @brief Poisoned memory, at once. Throws cuda_error with code 2 over the budget; null for 0 bytes.
  [[nodiscard]] void* allocate(std::size_t bytes, stream_type stream) const {
    const auto lock = guard();
    state_->refuse_capture(stream, "cudaMallocAsync");
    return bytes == 0 ? nullptr : state_->allocate(bytes);
  }
  /// @brief Gives it back once the stream has come here; the budget has it again at once. A pointer that is not
  /// allocated, or of another size, is told by the next function that waits.
  void deallocate(void* p, std::size_t bytes, stream_type stream) const noexcept {
    const auto lock = guard();
    if (p != nullptr) state_->deallocate(p, bytes, stream);
  }

  /// @brief Host to device; the bytes are read now.
  void copy_in(void* to, const void* from, std::size_t bytes, stream_type stream) const {
    refuse_capture(stream, "copy_in");
    if (bytes == 0) return;
    const auto* const first = static_cast<const std::byte*>(from);
    state_->give(stream, [s = state_.get(), to, read = std::vector(first, first + bytes)] {
      s->check_device(to, read.size(), "copy_in to");
      std::memcpy(to, read.data(), read.size());
    });
  }
  /// @brief Device to host; blocks until done.
  void copy_out(void* to, const void* from, std::size_t bytes, stream_type stream) const {
    refuse_capture(stream, "copy_out");
    if (bytes != 0) {
      state_->give(stream, [s = state_.get(), to, from, bytes] {
        s->check_device(from, bytes, "copy_out from");
        std::memcpy(to, from, bytes);
      });
    }
    synchronize(stream);
  }
  /// @brief Device to device; the two do not overlap.
  void copy(void* to, const void* from, std::size_t bytes, stream_type stream) const {
    if (bytes == 0) return;
    state_->give(stream, [s = state_.get(), to, from, bytes] {
      s->check_device(to, bytes, "copy to");
      s->check_device(from, bytes, "copy from");
      if (static_cast<std::byte*>(to) < static_cast<const std::byte*>(from) + bytes &&
          static_cast<const std::byte*>(from) < static_cast<std::byte*>(to) + bytes) {
        throw emulation_error("copy between places that overlap");
      }
      std::memcpy(to, from, bytes);
    });
  }
  /// @brief Sets each byte to the low byte of `byte`.
  void fill(void* p, int byte, std::size_t bytes, stream_type stream) const {
    if (bytes == 0) return;
    state_->give(stream, [s = state_.get(), p, byte, bytes] {
      s->check_device(p, bytes, "fill of");
      std::memset(p, byte, bytes);
    });
  }

  /// @brief Launches a kernel; nothing where the grid is empty. Throws cuda_error for too much shared memory.
  template <class Kernel>
  void launch(stream_type stream, device::grid blocks, const Kernel& kernel) const {
    static_assert(std::is_trivially_copyable_v<Kernel>, "a kernel's arguments travel as bytes");
    if (blocks.x == 0 || blocks.y == 0) return;
    if (kernel.shared_bytes() > state_->options.shared_bytes_limit) {
      throw cuda_error("cudaFuncSetAttribute", 1, "invalid argument");
    }
    state_->give(stream, [s = state_.get(), blocks, kernel] {
      emulate(blocks, kernel, s->options.order, s->random());
    });
  }

  /// @brief Calls a copy of `work` with a policy of Thrust's sequential system, when the stream has come here. So what it
  /// captures by reference must live until then, and it has nothing to return.
  template <class Work>
  void with_policy(stream_type stream, Work&& work) const {
    static_assert(std::is_void_v<decltype(work(thrust::cpp::par))>,
                  "a result would have to wait for the device");
    refuse_capture(stream, "thrust");
    state_->give(stream, [w = std::decay_t<Work>(std::forward<Work>(work))]() mutable {
      w(thrust::cpp::par);
    });
  }

  /// @brief The event marks what the stream was given so far.
  void record(event_type& event, stream_type stream) const {
    const auto lock = guard();
    state_->refuse_capture(stream, "cudaEventRecord");
    event.owner_ = state_.get();
    event.stream_ = stream.number;
    event.n_tasks_ = state_->check(stream).n_given;
  }
  /// @brief What follows in the stream waits for the event; an event never recorded is past.
  void wait(stream_type stream, const event_type& event) const {
    if (event.owner_ == nullptr) return;
    if (event.owner_ != state_.get()) throw emulation_error("wait for an event of another runtime");
    refuse_capture(stream, "cudaStreamWaitEvent");
    state_->give(stream, nullptr, event.stream_, event.n_tasks_);
  }
  /// @brief Blocks the host until the stream is done; throws what went wrong.
  void synchronize(stream_type stream) const {
    const auto lock = guard();
    state_->refuse_capture(stream, "cudaStreamSynchronize");
    auto& s = state_->check(stream);
    state_->run_until([&s, goal = s.n_given] { return s.n_done >= goal; });
  }

  /// @brief From now on launches, copies and fills of the stream are written down instead of done. All else is refused while
  /// that lasts, with CUDA's code for it: also what CUDA would let pass, but no library should do.
  void begin_capture(stream_type stream) const {
    const auto lock = guard();
    state_->refuse_capture(stream, "cudaStreamBeginCapture");
    state_->check(stream).captured.emplace();
  }
  /// @brief What was written down.
  [[nodiscard]] emulated_graph end_capture(stream_type stream) const {
    const auto lock = guard();
    auto& captured = state_->check(stream).captured;
    if (!captured) throw cuda_error("cudaStreamEndCapture", 1, "invalid argument");
    emulated_graph graph;
    graph.work_ = std::make_shared<const std::vector<std::function<void()>>>(std::move(*captured));
    captured.reset();
    return graph;
  }
  /// @brief Gives a graph's work to a stream.
  void launch_graph(const emulated_graph& graph, stream_type stream) const {
    refuse_capture(stream, "cudaGraphLaunch");
    for (std::size_t i = 0; i < graph.size(); ++i) state_->give(stream, (*graph.work_)[i]);
  }
  /// @brief Whether the stream is being captured.
  [[nodiscard]] bool is_capturing(stream_type stream) const {
    const auto lock = guard();
    return state_->check(stream).captured.has_value();
  }

  /// @brief A stream for work beside the caller's, the same one for all copies.
  [[nodiscard]] stream_type side_stream() const noexcept { return {1}; }
  /// @brief Another stream, as a user might have one.
  [[nodiscard]] stream_type make_stream() const {
    const auto lock = guard();
    state_->streams.emplace_back();
    return {static_cast<unsigned>(state_->streams.size() - 1)};
  }
  /// @brief As the options say.
  [[nodiscard]] unsigned n_multiprocessors() const noexcept {
    return state_->options.n_multiprocessors;
  }

  /// @brief Does all work of all streams.
  void synchronize_all() const {
    const auto lock = guard();
    state_->run_until([s = state_.get()] { return s->idle(); });
  }
  /// @brief Bytes allocated and not given back, in the order of the host's calls.
  [[nodiscard]] std::size_t bytes_in_use() const {
    const auto lock = guard();
    return state_->bytes_in_use;
  }
  /// @brief The most there were.
  [[nodiscard]] std::size_t peak_bytes_in_use() const {
    const auto lock = guard();
    return state_->peak_bytes_in_use;
  }
  /// @brief Allocations that succeed from now on; the next one finds no memory, whatever the budget.
  void set_allocations_left(std::size_t n) const {
    const auto lock = guard();
    state_->allocations_left = n;
  }
  /// @brief What allocate may have in use from now on.
  void set_memory_budget(std::size_t bytes) const {
    const auto lock = guard();
    state_->options.memory_budget = bytes;
  }

 private:
  /// @brief A piece of work, or the wait for another stream to have done so many.
  struct task {
    std::function<void()> work;  // empty: only the wait
    unsigned awaited_stream = 0;
    std::uint64_t awaited_tasks = 0;
    std::uint64_t number = 0;  // counts what the host gave, over all streams
  };
  struct queue {
    std::list<task> tasks;
    std::uint64_t n_given = 0;
    std::uint64_t n_done = 0;
    std::optional<std::vector<std::function<void()>>> captured;  // set while it is captured
  };
  struct allocation {
    poisoned_bytes memory;
    std::list<task>
        release;  // made beforehand, because deallocate may not throw; empty: given back
  };

  struct state {
    explicit state(const emulation_options& given) : options(given), random(given.seed) {}
    state(const state&) = delete;
    state& operator=(const state&) = delete;
    ~state() {
      try {
        while (!idle()) run_until([this] { return idle(); });
        if (failure) std::rethrow_exception(failure);
        if (bytes_in_use != 0) {
          throw emulation_error(
              wavekv::detail::message(bytes_in_use, " bytes were never given back"));
        }
      } catch (const std::exception& e) {
        if (std::uncaught_exceptions() == 0) {  // else there is a first error to be seen
          std::fprintf(stderr, "emulated_runtime, at its end: %s\n", e.what());
          std::abort();
        }
      }
      show_memory(true);
    }

    queue& check(stream_type stream) {
      if (stream.number >= streams.size()) {
        throw emulation_error(
            wavekv::detail::message("stream ", stream.number, " of ", streams.size()));
      }
      return streams[stream.number];
    }

    void refuse_capture(stream_type stream, const char* call) {
      if (check(stream).captured) {
        throw cuda_error(call, 900, "operation not permitted when stream is capturing");
      }
    }

    void give(stream_type stream, std::function<void()> work, unsigned awaited_stream = 0,
              std::uint64_t awaited_tasks = 0) {
      const std::lock_guard lock(mutex);
      queue& q = check(stream);
      if (q.captured) {
        q.captured->push_back(std::move(work));
        return;
      }
      q.tasks.push_back({std::move(work), awaited_stream, awaited_tasks, n_given++});
      ++q.n_given;
    }

    void* allocate(std::size_t bytes) {
      if (bytes > options.memory_budget || bytes_in_use > options.memory_budget - bytes ||
          allocations_left == 0) {
        throw cuda_error("cudaMallocAsync", 2, "out of memory");
      }
      --allocations_left;
      allocation made{poisoned_bytes(bytes, 256), {}};
      std::byte* const p = made.memory.data();
      made.release.push_back({[this, p] { release(p); }, 0, 0, 0});
      allocations.emplace(p, std::move(made));
      bytes_in_use += bytes;
      peak_bytes_in_use = std::max(peak_bytes_in_use, bytes_in_use);
      if (depth == 0) show_memory(false, p);
      return p;
    }
    void deallocate(void* p, std::size_t bytes, stream_type stream) {
      const auto at = allocations.find(static_cast<std::byte*>(p));
      if (at == allocations.end() || at->second.release.empty() ||
          at->second.memory.size() != bytes) {
        fail(std::make_exception_ptr(emulation_error(wavekv::detail::message(
            "deallocate of ", bytes, " bytes at ", p, ", which is no allocation of this size"))));
        return;
      }
      queue& q = check(stream);
      if (q.captured) {
        fail(std::make_exception_ptr(emulation_error("deallocate while the stream is captured")));
      }
      at->second.release.front().number = n_given++;
      q.tasks.splice(q.tasks.end(), at->second.release);
      ++q.n_given;
      bytes_in_use -= bytes;
    }
    void release(std::byte* p) {
      const auto at = allocations.find(p);
      const allocation was = std::move(at->second);
      allocations.erase(at);
      was.memory.fill_with_poison();  // a late reader without ASan has something to notice
      if (was.memory.overrun()) {
        throw emulation_error(
            wavekv::detail::message("something wrote past the ", was.memory.size(),
                                    " bytes of device memory at ", static_cast<void*>(p)));
      }
    }

    void check_device(const void* p, std::size_t bytes, const char* what) const {
      auto after = allocations.upper_bound(static_cast<std::byte*>(const_cast<void*>(p)));
      if (after == allocations.begin() || !std::prev(after)->second.memory.contains(p, bytes)) {
        throw emulation_error(wavekv::detail::message(what, " ", bytes, " bytes at ", p,
                                                      ", not inside memory of the device"));
      }
    }

    void fail(const std::exception_ptr& e) {
      if (!failure) failure = e;
    }
    [[nodiscard]] bool idle() const {
      return std::all_of(streams.begin(), streams.end(),
                         [](const queue& q) { return q.tasks.empty(); });
    }

    /// @brief Does one piece of work after the other; throws at the first that fails.
    template <class Done>
    void run_until(Done done) {
      // Between taking turns after each piece and staying with one stream as long as it has work.
      const std::uint64_t loyalty = random.below(5);
      if (depth++ == 0) show_memory(true);
      try {
        while (!done()) run_one(loyalty);
      } catch (...) {
        fail(std::current_exception());
      }
      if (--depth == 0) show_memory(false);
      if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
    }
    void run_one(std::uint64_t loyalty) {
      const auto ready = [this](unsigned i) {
        return !streams[i].tasks.empty() &&
               streams[streams[i].tasks.front().awaited_stream].n_done >=
                   streams[i].tasks.front().awaited_tasks;
      };
      const auto n = static_cast<unsigned>(streams.size());
      unsigned chosen = n;
      if (!options.streams_in_turn && last < n && ready(last) && random.below(4) < loyalty) {
        chosen = last;
      } else {
        std::uint64_t n_seen = 0;
        for (unsigned i = 0; i < n; ++i) {
          if (!ready(i)) continue;
          const bool take = options.streams_in_turn
                                ? chosen == n || streams[i].tasks.front().number <
                                                     streams[chosen].tasks.front().number
                                : random.below(++n_seen) == 0;
          if (take) chosen = i;
        }
      }
      if (chosen == n) throw emulation_error("the streams wait for each other");
      last = chosen;
      queue& q = streams[chosen];
      std::list<task> one;
      one.splice(one.begin(), q.tasks, q.tasks.begin());
      ++q.n_done;
      if (one.front().work) one.front().work();
    }

    /// @brief Lets code touch device memory, or hides it: all of it, or one allocation.
    void show_memory([[maybe_unused]] bool visible,
                     [[maybe_unused]] std::byte* only = nullptr) const {
#if WAVEKV_TEST_ASAN
      for (const auto& [p, a] : allocations) {
        if (only != nullptr && only != p) continue;
        if (visible) {
          __asan_unpoison_memory_region(p, a.memory.size());
        } else {
          __asan_poison_memory_region(p, a.memory.size());
        }
      }
#endif
    }

    emulation_options options;
    random_bits random;
    std::recursive_mutex mutex;  // recursive: what with_policy runs may allocate
    std::deque<queue> streams = std::deque<queue>(2);  // the default one, the side stream, others
    std::map<std::byte*, allocation, std::less<>> allocations;
    std::size_t allocations_left = std::numeric_limits<std::size_t>::max();
    std::size_t bytes_in_use = 0;
    std::size_t peak_bytes_in_use = 0;
    std::uint64_t n_given = 0;
    unsigned last = 0;  // stream that ran
    unsigned depth = 0;
    std::exception_ptr failure;  // not yet told
  };

  [[nodiscard]] std::unique_lock<std::recursive_mutex> guard() const {
    return std::unique_lock(state_->mutex);
  }
  void refuse_capture(stream_type stream, const char* call) const {
    const auto lock = guard();
    state_->refuse_capture(stream, call);
  }

  std::shared_ptr<state> state_;
};

static_assert(device::device_runtime<emulated_runtime>);

}  // namespace wavekv::testing
