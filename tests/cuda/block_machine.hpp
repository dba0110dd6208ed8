// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <numeric>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/context/fiber.hpp>
#include <sys/mman.h>
#include <unistd.h>

#include <wavekv/core/errors.hpp>
#include <wavekv/cuda/block.hpp>

#include "cuda/poisoned_bytes.hpp"

/// @file block_machine.hpp
/// @brief Runs the threads of a block on the CPU: they are fibers of one host thread, which switch only where they must
/// wait for each other.
///
/// Between two meetings (sync, shuffle, ...) the 32 lanes of a warp run one after the other, and so do the warps; a
/// schedule says in which order. A kernel whose result depends on the order lacks a meeting. What a kernel must not do
/// here although a GPU may allow it: wait in a loop for another thread or block.

#if WAVEKV_TEST_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

/// @brief Before a function whose own memory accesses need no check, and which runs at each switch of threads.
#define WAVEKV_TEST_UNCHECKED __attribute__((no_sanitize("address", "undefined")))

namespace wavekv::testing {

/// @brief The order in which blocks, warps and lanes get their turn.
enum class schedule : std::uint8_t { forwards, backwards, random };

/// @brief A kernel, or the host code around it, broke a rule of block.hpp or runtime.hpp.
struct emulation_error : std::logic_error {
  using std::logic_error::logic_error;
};

/// @brief SplitMix64: random bits that are cheap enough to draw at every meeting.
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
class random_bits {
 public:
  explicit random_bits(std::uint64_t seed) : state_(seed) {}

  /// @brief The next 64 bits.
  std::uint64_t operator()() {
    state_ += 0x9E37'79B9'7F4A'7C15U;
    std::uint64_t z = (state_ ^ (state_ >> 30U)) * 0xBF58'476D'1CE4'E5B9U;
    z = (z ^ (z >> 27U)) * 0x94D0'49BB'1331'11EBU;
    return z ^ (z >> 31U);
  }
  /// @brief A number in [0, n).
  std::uint64_t below(std::uint64_t n) { return (*this)() % n; }

 private:
  std::uint64_t state_;
};

/// @brief Where threads meet; the end of the kernel is one such place.
enum class meeting : std::uint8_t {
  end,
  sync,
  sync_warp,
  shuffle,
  shuffle_xor,
  ballot,
  warp_sum,
  warp_max,
  multiply
};

/// @brief The word for it in block.hpp.
inline std::string_view name_of(meeting at) {
  constexpr std::array<std::string_view, 9> names = {"its end",  "sync",        "sync_warp",
                                                     "shuffle",  "shuffle_xor", "ballot",
                                                     "warp_sum", "warp_max",    "multiply"};
  return names[static_cast<std::size_t>(at)];
}

/// @brief The fibers of one host thread and the block that they run; fibers and their stacks are kept between launches.
class block_machine {
 public:
  /// @brief What each thread does.
  using body = void (*)(const void* kernel, block_machine& machine, unsigned thread);
  /// @brief What a launch asks for.
  struct launch {
    device::grid blocks;
    unsigned n_threads;
    std::size_t shared_bytes;
    const void* kernel;
    body run;
    bool overlaps;  // with the launch before: each block must wait for it somewhere
  };

  /// @brief This host thread's.
  static block_machine& of_this_thread() {
    static thread_local block_machine machine;
    return machine;
  }
  block_machine(const block_machine&) = delete;
  block_machine& operator=(const block_machine&) = delete;
  ~block_machine() {
    stopping_ = true;
    for (thread_fiber& f : fibers_) {
      if (f.context) jump(host_, f);
      if (f.mapped == nullptr) continue;
#if WAVEKV_TEST_ASAN
      // The frame in which a fiber ends is not left in the usual way, and someone else may get this memory.
      __asan_unpoison_memory_region(f.stack_bottom, f.stack_size);
#endif
      ::munmap(f.mapped, stack_bytes + guard_bytes());
    }
  }

  /// @brief Runs all blocks, one after the other. Passes on what a thread throws; the other threads are unwound.
  void run(const launch& what, schedule order, std::uint64_t seed) {
    if (running_) throw emulation_error("a kernel launches a kernel");
    const auto n_blocks = std::uint64_t{what.blocks.x} * what.blocks.y;
    if (n_blocks == 0) throw emulation_error("a grid without blocks");
    for (unsigned t = 0; t < what.n_threads; ++t) prepare(t);
    launch_ = what;
    order_ = order;
    random_ = random_bits(seed);
    shared_ = poisoned_bytes(what.shared_bytes, 16);
    failure_ = nullptr;

    std::uint64_t step = 1;
    std::uint64_t first = 0;
    if (order == schedule::backwards) {
      step = n_blocks - 1;
      first = n_blocks - 1;
    } else if (order == schedule::random) {
      first = random_.below(n_blocks);
      do {
        step = 1 + random_.below(n_blocks);
      } while (std::gcd(step, n_blocks) != 1);
    }
    running_ = true;
    for (std::uint64_t i = 0, block = first; i < n_blocks && !failure_;
         ++i, block = (block + step) % n_blocks) {
      block_x_ = static_cast<unsigned>(block % what.blocks.x);
      block_y_ = static_cast<unsigned>(block / what.blocks.x);
      shared_.fill_with_poison();
      ready_ = all_warps();
      waiting_ = 0;
      awaited_ = false;
      start_turn_of_a_warp();
      jump(host_, fibers_[thread_of_turn()]);
      if (!failure_) check_after_block();
    }
    running_ = false;
    unwinding_ = false;
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  friend class emulated_block;  // its words are the machine's, seen from one thread

  static constexpr unsigned lanes = device::warp_size;
  static constexpr unsigned max_threads = 1024;
  static constexpr std::size_t stack_bytes = std::size_t{WAVEKV_TEST_ASAN ? 256 : 128} * 1024;

  /// @brief Somewhere to jump to: a fiber, or the host's own stack.
  struct jump_target {
    boost::context::fiber context;
    void* fake_stack = nullptr;  // ASan's
    const void* stack_bottom = nullptr;
    std::size_t stack_size = 0;
  };
  struct pending_copy {
    std::byte* to;
    const std::byte* from;
    unsigned group;
  };
  struct thread_fiber : jump_target {
    unsigned thread = 0;
    bool inside = false;  // of the kernel: to be unwound when another thread fails
    unsigned group = 0;   // of the copies started next
    std::vector<pending_copy> copies;
    void* mapped = nullptr;
  };
  /// @brief Unwinds a thread whose block has failed elsewhere.
  struct abandoned {};
  /// @brief Stacks outlive their fibers.
  struct keep_stack {
    void deallocate(boost::context::stack_context&) const noexcept {}
  };

  block_machine() = default;

  static std::size_t guard_bytes() { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

  /// @brief Gives thread t a fiber, unless it has one.
  void prepare(unsigned t) {
    thread_fiber& f = fibers_[t];
    if (f.context) return;
    f.thread = t;
    if (f.mapped == nullptr) {
      void* const mapped = ::mmap(nullptr, stack_bytes + guard_bytes(), PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapped == MAP_FAILED) throw std::bad_alloc();
      ::mprotect(mapped, guard_bytes(), PROT_NONE);
      f.mapped = mapped;
    }
    // Stacks that all began at the same offset of a page would share a few sets of the first cache.
    const std::size_t colour = std::size_t{t % 32} * 128;
    auto* const bottom = static_cast<std::byte*>(f.mapped) + guard_bytes();
    f.stack_bottom = bottom;
    f.stack_size = stack_bytes;
    boost::context::stack_context stack;
    stack.size = stack_bytes - colour;
    stack.sp = bottom + stack.size;
    f.context = boost::context::fiber(
        std::allocator_arg, boost::context::preallocated(stack.sp, stack.size, stack), keep_stack{},
        [this, &f](boost::context::fiber&& from) {
          landed(f, std::move(from));
          live(f);
#if WAVEKV_TEST_ASAN
          __sanitizer_start_switch_fiber(nullptr, host_.stack_bottom, host_.stack_size);
#endif
          jumped_from_ = &f;
          return std::move(host_.context);
        });
  }

  /// @brief Returns when someone jumps back.
  WAVEKV_TEST_UNCHECKED void jump(jump_target& from, jump_target& to) {
    jumped_from_ = &from;
#if WAVEKV_TEST_ASAN
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_size);
#endif
    landed(from, std::move(to.context).resume());
  }
  /// @brief After every jump, on the stack that was jumped to.
  WAVEKV_TEST_UNCHECKED void landed([[maybe_unused]] jump_target& here,
                                    boost::context::fiber from) {
#if WAVEKV_TEST_ASAN
    __sanitizer_finish_switch_fiber(here.fake_stack, &jumped_from_->stack_bottom,
                                    &jumped_from_->stack_size);
#endif
    jumped_from_->context = std::move(from);
  }

  /// @brief What a fiber does: the same thread of one block after the other.
  void live(thread_fiber& self) {
    while (!stopping_) {
      jump_target* to = nullptr;
      try {
        self.inside = true;
        self.group = 0;
        self.copies.clear();
        launch_.run(launch_.kernel, *this, self.thread);
        // Nobody waits for these, but what they read must be there.
        perform_copies(self, [](const pending_copy&) { return true; });
        self.inside = false;
        arrive(meeting::end, std::source_location{});
        to = &next();
      } catch (const abandoned&) {  // the failure is another thread's, and told already
      } catch (...) {
        failure_ = std::current_exception();
        unwinding_ = true;
      }
      self.inside = false;
      jump(self, unwinding_ ? next_to_unwind() : *to);
    }
  }

  // --- whose turn it is

  [[nodiscard]] std::uint32_t all_warps() const {
    return ~std::uint32_t{0} >> (lanes - launch_.n_threads / lanes);
  }
  /// @brief Lanes get their turn in the order first, first + step, ... modulo 32, step odd.
  [[nodiscard]] unsigned thread_of_turn() const {
    return warp_ * lanes + (first_lane_ + turn_ * lane_step_) % lanes;
  }
  void start_turn_of_a_warp() {
    turn_ = 0;
    if (order_ == schedule::forwards) {
      warp_ = static_cast<unsigned>(std::countr_zero(ready_));
      first_lane_ = 0;
      lane_step_ = 1;
    } else if (order_ == schedule::backwards) {
      warp_ = lanes - 1 - static_cast<unsigned>(std::countl_zero(ready_));
      first_lane_ = lanes - 1;
      lane_step_ = lanes - 1;
    } else {
      const std::uint64_t bits = random_();
      first_lane_ = bits % lanes;
      lane_step_ = (bits >> 8U) % lanes | 1U;
      std::uint32_t left = ready_;
      for (auto skip = (bits >> 16U) % static_cast<unsigned>(std::popcount(ready_)); skip > 0;
           --skip) {
        left &= left - 1;
      }
      warp_ = static_cast<unsigned>(std::countr_zero(left));
    }
  }

  /// @brief The thread that runs has come to a meeting. True if it is the last of its warp: it has all operands.
  bool arrive(meeting at, const std::source_location& place) {
    if (turn_ == 0) {
      meeting_ = at;
      place_ = place;
    } else if (at != meeting_ || place.line() != place_.line() ||
               place.column() != place_.column() ||
               (place.file_name() != place_.file_name() &&
                std::string_view(place.file_name()) != place_.file_name())) {
      disagree(at, place);
    }
    return turn_ + 1 == lanes;
  }

  /// @brief Who runs when the thread that runs has come to its meeting.
  jump_target& next() {
    if (++turn_ < lanes) return fibers_[thread_of_turn()];
    const std::uint32_t bit = std::uint32_t{1} << warp_;
    if (meeting_ == meeting::sync) {
      waiting_ |= bit;
      ready_ &= ~bit;
    } else if (meeting_ == meeting::end) {
      ready_ &= ~bit;
    }
    if (ready_ == 0) {
      if (waiting_ == 0) return host_;
      if (waiting_ != all_warps()) left_alone();
      std::swap(ready_, waiting_);
    }
    start_turn_of_a_warp();
    return fibers_[thread_of_turn()];
  }
  /// @brief Gives the turn away; returns when the meeting is over.
  void move_on(unsigned thread) {
    jump_target& to = next();
    thread_fiber& self = fibers_[thread];
    if (&to != &self) jump(self, to);
    if (unwinding_) abandon();
  }
  /// @brief A thread that is still in the kernel, or else the host.
  jump_target& next_to_unwind() {
    for (unsigned t = 0; t < launch_.n_threads; ++t) {
      if (fibers_[t].inside) return fibers_[t];
    }
    return host_;
  }

  void check_after_block() {
    std::string wrong;
    if (shared_.overrun()) {
      wrong =
          wavekv::detail::message(" wrote past its ", shared_.size(), " bytes of shared memory");
    } else if (launch_.overlaps && !awaited_) {
      wrong = " overlaps with the launch before it and never calls await_previous";
    }
    if (!wrong.empty()) failure_ = std::make_exception_ptr(emulation_error(where() + wrong));
  }

  [[nodiscard]] std::string where() const {
    return wavekv::detail::message("block (", block_x_, ", ", block_y_, ")");
  }
  // What throws is out of line: the address sanitizer makes a function that builds messages a slow one.
  [[noreturn, gnu::noinline]] static void abandon() { throw abandoned{}; }
  [[noreturn, gnu::noinline]] void left_alone() const {
    throw emulation_error(wavekv::detail::message(
        "warp ", std::countr_zero(waiting_), " of ", where(), " waits in sync while warp ",
        std::countr_zero(all_warps() & ~waiting_), " has come to its end"));
  }
  [[noreturn, gnu::noinline]] void disagree(meeting at, const std::source_location& place) const {
    const auto name = [](meeting m, const std::source_location& p) {
      return m == meeting::end ? std::string(name_of(m))
                               : wavekv::detail::message(name_of(m), " (", p.file_name(), ":",
                                                         p.line(), ":", p.column(), ")");
    };
    throw emulation_error(wavekv::detail::message(
        "warp ", warp_, " of ", where(), " diverges: lane ", first_lane_, " has come to ",
        name(meeting_, place_), ", lane ", thread_of_turn() % lanes, " to ", name(at, place)));
  }

  // --- asynchronous copies

  /// @brief Copies 16 bytes at a moment of its choice, but not before now and not after the wait for the current group. In
  /// the plain schedules that is as late as possible.
  void start_copy(thread_fiber& f, void* to, const void* from) {
    std::memset(to, poison, 16);
    f.copies.push_back({static_cast<std::byte*>(to), static_cast<const std::byte*>(from), f.group});
    if (order_ == schedule::random && random_() % 4 == 0) {
      perform(f.copies.back());
      f.copies.pop_back();
    }
  }
  void commit_copies(thread_fiber& f) {
    ++f.group;
    if (order_ == schedule::random && random_() % 4 == 0) {
      perform_copies(f, [this](const pending_copy&) { return random_() % 2 == 0; });
    }
  }
  /// @brief Waits until at most n committed groups are on their way.
  void wait_copies(thread_fiber& f, unsigned n) {
    perform_copies(f, [&](const pending_copy& c) { return f.group - c.group > n; });
  }
  static void perform(const pending_copy& c) { std::memcpy(c.to, c.from, 16); }
  template <class Now>
  static void perform_copies(thread_fiber& f, Now now) {
    std::erase_if(f.copies, [&](const pending_copy& c) {
      const bool performed = now(c);
      if (performed) perform(c);
      return performed;
    });
  }

  launch launch_{};
  schedule order_ = schedule::forwards;
  random_bits random_{0};
  poisoned_bytes shared_;
  unsigned block_x_ = 0;
  unsigned block_y_ = 0;
  bool awaited_ = false;  // one of the block's threads has called await_previous

  std::uint32_t ready_ = 0;    // bit w: warp w can run
  std::uint32_t waiting_ = 0;  // in sync
  unsigned warp_ = 0;          // whose turn it is
  unsigned turn_ = 0;          // the how manieth of its lanes
  unsigned first_lane_ = 0;
  unsigned lane_step_ = 1;
  meeting meeting_ = meeting::end;  // where its lanes have come to
  std::source_location place_;

  // Operands of the warp whose turn it is; results last until all its lanes have come to the next meeting.
  std::array<std::uint64_t, lanes> operands_{};
  std::array<unsigned, lanes> sources_{};
  std::array<const std::uint32_t*, lanes> left_{};
  std::array<const std::uint32_t*, lanes> right_{};
  std::array<float*, lanes> sums_{};
  std::array<std::uint64_t, max_threads> results_{};

  std::exception_ptr failure_;
  bool running_ = false;
  bool unwinding_ = false;
  bool stopping_ = false;
  jump_target* jumped_from_ = nullptr;
  jump_target host_;
  std::vector<thread_fiber> fibers_ = std::vector<thread_fiber>(max_threads);
};

}  // namespace wavekv::testing
