// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <thrust/sort.h>
#include <unistd.h>

#include "cuda/emulated_block.hpp"
#include "cuda/emulated_runtime.hpp"

// The emulated device does what it promises: each word computes what it should, and what is forgotten in a kernel or on the
// host shows.

namespace {

using namespace wavekv;
using namespace wavekv::testing;

constexpr schedule schedules[] = {schedule::forwards, schedule::backwards, schedule::random};

/// @brief A kernel of one lambda.
template <unsigned NThreads, class Work>
struct lambda_kernel {
  static constexpr unsigned n_threads = NThreads;
  Work work;
  std::size_t bytes;

  [[nodiscard]] std::size_t shared_bytes() const { return bytes; }
  template <class Block>
  void operator()(Block& b) const {
    work(b);
  }
};
template <unsigned NThreads = 64, class Work>
lambda_kernel<NThreads, Work> kernel_of(Work work, std::size_t shared_bytes = 0) {
  return {work, shared_bytes};
}

template <class T = float, class Block>
T* shared_as(Block& b) {
  return reinterpret_cast<T*>(b.shared());
}

/// @brief What emulate throws, as text; empty if nothing.
template <class Kernel>
std::string complaint(const Kernel& kernel, schedule order = schedule::forwards,
                      device::grid blocks = {}) {
  try {
    emulate(blocks, kernel, order);
  } catch (const emulation_error& e) {
    return e.what();
  }
  return "";
}
bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

template <class T>
std::vector<T> random_numbers(std::size_t n, T low, T high, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::vector<T> x(n);
  for (T& each : x) {
    each = static_cast<T>(low + (high - low) * std::generate_canonical<double, 32>(random));
  }
  return x;
}

// ------------------------------------------------------------------------------------- a block's words

TEST_CASE("A thread knows its place") {
  struct place {
    unsigned thread, n_threads, lane, warp, n_warps, x, y, n_x, n_y;
    bool operator==(const place&) const = default;
  };
  for (const schedule order : schedules) {
    std::vector<place> seen(std::size_t{96} * 6);
    place* const out = seen.data();
    emulate({3, 2}, kernel_of<96>([out](auto& b) {
              out[(b.block_y() * 3 + b.block_x()) * 96 + b.thread()] = {
                  b.thread(),  b.n_threads(), b.lane(),       b.warp(),      b.n_warps(),
                  b.block_x(), b.block_y(),   b.n_blocks_x(), b.n_blocks_y()};
            }),
            order);
    for (unsigned i = 0; i < seen.size(); ++i) {
      const unsigned t = i % 96;
      CHECK(seen[i] == place{t, 96, t % 32, t / 32, 3, i / 96 % 3, i / 96 / 3, 3, 2});
    }
  }
}

TEST_CASE("Blocks and threads take their turns as the schedule says") {
  const auto turns = [](schedule order, std::uint64_t seed) {
    std::vector<unsigned> seen;
    auto* const out = &seen;
    emulate({5, 3}, kernel_of<64>([out](auto& b) {
              out->push_back((b.block_y() * 5 + b.block_x()) * 64 + b.thread());
            }),
            order, seed);
    return seen;
  };
  std::vector<unsigned> all(std::size_t{15} * 64);
  std::iota(all.begin(), all.end(), 0U);
  CHECK(turns(schedule::forwards, 1) == all);
  const std::vector<unsigned> first = turns(schedule::random, 1);
  CHECK(first != all);
  CHECK(first == turns(schedule::random, 1));
  CHECK(first != turns(schedule::random, 2));
  CHECK(std::is_permutation(first.begin(), first.end(), all.begin(), all.end()));
  std::reverse(all.begin(), all.end());
  CHECK(turns(schedule::backwards, 1) == all);
}

TEST_CASE("sync and sync_warp: what was written before is seen after") {
  for (const schedule order : schedules) {
    std::vector<unsigned> seen(128);
    unsigned* const out = seen.data();
    emulate({},
            kernel_of<128>(
                [out](auto& b) {
                  auto* const s = shared_as<unsigned>(b);
                  const unsigned t = b.thread();
                  s[t] = t;
                  b.sync();
                  const unsigned across = s[127 - t];
                  b.sync();
                  s[t] = across;
                  b.sync_warp();
                  out[t] = s[t ^ 5U];
                },
                128 * sizeof(unsigned)),
            order);
    for (unsigned t = 0; t < 128; ++t) CHECK(seen[t] == 127 - (t ^ 5U));
  }
}

TEST_CASE_TEMPLATE("shuffle and shuffle_xor", T, float, int, unsigned, double, std::uint64_t) {
  for (const schedule order : schedules) {
    std::vector<T> seen(std::size_t{4} * 64);
    T* const out = seen.data();
    emulate({}, kernel_of([out](auto& b) {
              const T mine = static_cast<T>(b.thread()) + T{1000};
              const unsigned t = b.thread();
              out[4 * t] = b.shuffle(mine, (b.lane() * 7 + 3) % 32);
              out[4 * t + 1] = b.shuffle(mine, 31);
              out[4 * t + 2] = b.shuffle_xor(mine, 1);
              out[4 * t + 3] = b.shuffle_xor(mine, 21);
            }),
            order);
    for (unsigned t = 0; t < 64; ++t) {
      const unsigned warp = t / 32 * 32;
      const auto of = [](unsigned thread) { return static_cast<T>(thread) + T{1000}; };
      CHECK(seen[4 * t] == of(warp + (t % 32 * 7 + 3) % 32));
      CHECK(seen[4 * t + 1] == of(warp + 31));
      CHECK(seen[4 * t + 2] == of(t ^ 1U));
      CHECK(seen[4 * t + 3] == of(t ^ 21U));
    }
  }
}

TEST_CASE("ballot") {
  for (const schedule order : schedules) {
    std::vector<std::uint32_t> seen(64);
    std::uint32_t* const out = seen.data();
    emulate({}, kernel_of([out](auto& b) { out[b.thread()] = b.ballot(b.thread() % 5 == 0); }),
            order);
    for (unsigned t = 0; t < 64; ++t) {
      std::uint32_t bits = 0;
      for (unsigned lane = 0; lane < 32; ++lane) {
        bits |= std::uint32_t{(t / 32 * 32 + lane) % 5 == 0} << lane;
      }
      CHECK(seen[t] == bits);
    }
  }
}

TEST_CASE("warp_sum and warp_max of floats: in the order of halves, quarters, ...") {
  const std::vector<float> x = random_numbers<float>(64, -1000.0F, 1000.0F);
  std::vector<float> sums = x;
  for (unsigned mask = 16; mask > 0; mask /= 2) {
    const std::vector<float> before = sums;
    for (unsigned t = 0; t < 64; ++t) sums[t] = before[t] + before[t ^ mask];
  }
  for (const schedule order : schedules) {
    std::vector<float> seen(128);
    emulate({}, kernel_of([in = x.data(), out = seen.data()](auto& b) {
              out[2 * b.thread()] = b.warp_sum(in[b.thread()]);
              out[2 * b.thread() + 1] = b.warp_max(in[b.thread()]);
            }),
            order);
    for (unsigned t = 0; t < 64; ++t) {
      CHECK(seen[2 * t] == sums[t]);
      CHECK(seen[2 * t + 1] ==
            *std::max_element(x.begin() + t / 32 * 32, x.begin() + t / 32 * 32 + 32));
    }
  }
}

TEST_CASE("warp_sum and warp_max of integers; sums wrap") {
  for (const schedule order : schedules) {
    std::vector<int> signed_seen(64);
    std::vector<unsigned> unsigned_seen(64);
    emulate({}, kernel_of<32>([s = signed_seen.data(), u = unsigned_seen.data()](auto& b) {
              const int i = static_cast<int>(b.lane());
              s[2 * i] = b.warp_sum(i - 20);
              s[2 * i + 1] = b.warp_max(-i - 7);
              u[2 * i] = b.warp_sum(0x4000'0000U + b.lane());
              u[2 * i + 1] = b.warp_max(0x8000'0000U + b.lane());
            }),
            order);
    for (unsigned i = 0; i < 32; ++i) {
      CHECK(signed_seen[2 * i] == 31 * 16 - 20 * 32);
      CHECK(signed_seen[2 * i + 1] == -7);
      CHECK(unsigned_seen[2 * i] == 31U * 16U);  // 32 · 2^30 is 0 modulo 2^32
      CHECK(unsigned_seen[2 * i + 1] == 0x8000'001FU);
    }
  }
}

TEST_CASE("Atomics return the old value; load_fresh and load16 read") {
  for (const schedule order : schedules) {
    unsigned sum = 0;
    unsigned long long wide = 0xFFFF'FFFFU;
    unsigned largest = 7;
    unsigned bits = 0;
    unsigned token = 64;  // handed from thread to thread
    unsigned long long wide_token = 64;
    std::array<unsigned, 64> old{};
    std::array<unsigned, 64> taken{};
    const std::vector<float> source = random_numbers<float>(256, -1.0F, 1.0F);
    std::vector<float> copied(256);
    struct alignas(16) {
      float x[256];
    } aligned{};
    std::copy(source.begin(), source.end(), aligned.x);
    emulate({},
            kernel_of([&sum, &wide, &largest, &bits, &token, &wide_token, o = old.data(),
                       t = taken.data(), in = aligned.x, out = copied.data()](auto& b) {
              o[b.thread()] = b.atomic_add(&sum, 2U);
              b.atomic_add(&wide, 1ULL);
              b.atomic_max(&largest, b.thread());
              b.atomic_or(&bits, 1U << b.lane());
              t[b.thread()] = b.atomic_exchange(&token, b.thread());
              b.atomic_exchange(&wide_token, 1ULL + b.thread());
              b.fence();
              const device::words4 w = b.load16(in + 4 * b.thread());
              std::memcpy(out + 4 * b.thread(), w.word, 16);
              if (b.load_fresh(&sum) < 2 || b.load_fresh(&wide) == 0) o[0] = 1;
              b.await_previous();
              b.release_next();
            }),
            order);
    CHECK(sum == 128);
    CHECK(wide == 0xFFFF'FFFFULL + 64);
    CHECK(largest == 63);
    CHECK(bits == 0xFFFF'FFFFU);
    std::sort(old.begin(), old.end());
    for (unsigned t = 0; t < 64; ++t) CHECK(old[t] == 2 * t);
    // Whoever came last left its number; every other one was seen by its successor.
    CHECK(wide_token == 1ULL + token);
    std::vector<unsigned> seen(taken.begin(), taken.end());
    seen.push_back(token);
    std::sort(seen.begin(), seen.end());
    for (unsigned t = 0; t <= 64; ++t) CHECK(seen[t] == t);
    CHECK(copied == source);
  }
}

TEST_CASE_TEMPLATE("pack rounds, unpack gives it back", T, bf16, f16) {
  const std::vector<float> x = random_numbers<float>(64, -300.0F, 300.0F);
  std::vector<float> seen(64);
  std::vector<std::uint32_t> words(32);
  emulate({}, kernel_of<32>([in = x.data(), out = seen.data(), w = words.data()](auto& b) {
            const unsigned i = b.lane();
            w[i] = b.template pack<T>(in[2 * i], in[2 * i + 1]);
            b.template unpack<T>(w[i], out[2 * i], out[2 * i + 1]);
          }));
  for (unsigned i = 0; i < 64; ++i) {
    CHECK((words[i / 2] >> i % 2 * 16 & 0xFFFFU) == from_float<T>(x[i]).bits);
    CHECK(seen[i] == to_float(from_float<T>(x[i])));
  }
}

// Fragments are filled here with the formulas of the PTX manual, section "Matrix Fragments for mma.m16n8k16 with floating
// point type": a_i of i = 0 ... 7, b_i of i = 0 ... 3, c_i of i = 0 ... 3, for group = lane >> 2 and within = lane % 4.
TEST_CASE_TEMPLATE("multiply is a matrix product", T, bf16, f16) {
  constexpr unsigned n_warps = 2;
  const auto rounded = [](std::vector<float> x) {
    for (float& each : x) each = to_float(from_float<T>(each));
    return x;
  };
  const std::vector<float> left = rounded(random_numbers<float>(n_warps * 16 * 16, -2.0F, 2.0F, 1));
  const std::vector<float> right = rounded(random_numbers<float>(n_warps * 16 * 8, -2.0F, 2.0F, 2));
  const std::vector<float> start = random_numbers<float>(n_warps * 16 * 8, -2.0F, 2.0F, 3);
  for (const schedule order : schedules) {
    std::vector<float> product(n_warps * 16 * 8);
    emulate({},
            kernel_of<32 * n_warps>([l = left.data(), r = right.data(), s = start.data(),
                                     out = product.data()](auto& block) {
              const unsigned group = block.lane() >> 2U;
              const unsigned within = block.lane() % 4;
              const float* const lw = l + std::size_t{block.warp()} * 16 * 16;
              const float* const rw = r + std::size_t{block.warp()} * 16 * 8;
              const std::size_t tile = std::size_t{block.warp()} * 16 * 8;
              std::uint32_t a[4] = {};
              std::uint32_t b[2] = {};
              float d[4] = {};
              for (unsigned i = 0; i < 8; ++i) {
                const unsigned row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
                const unsigned k = within * 2 + i % 2 + (i < 4 ? 0 : 8);
                a[i / 2] |= std::uint32_t{from_float<T>(lw[row * 16 + k]).bits} << i % 2 * 16;
              }
              for (unsigned i = 0; i < 4; ++i) {
                const unsigned k = within * 2 + i % 2 + (i < 2 ? 0 : 8);
                b[i / 2] |= std::uint32_t{from_float<T>(rw[k * 8 + group]).bits} << i % 2 * 16;
              }
              const auto place = [&](unsigned i) {
                return tile + (i < 2 ? group : group + 8) * 8 + within * 2 + i % 2;
              };
              for (unsigned i = 0; i < 4; ++i) d[i] = s[place(i)];
              block.template multiply<T>(d, a, b);
              block.template multiply<T>(d, a, b);
              for (unsigned i = 0; i < 4; ++i) out[place(i)] = d[i];
            }),
            order);
    for (std::size_t i = 0; i < product.size(); ++i) {
      const std::size_t warp = i / 128;
      const std::size_t row = i / 8 % 16;
      const std::size_t column = i % 8;
      double exact = start[i];
      double size = std::abs(exact);
      for (std::size_t k = 0; k < 16; ++k) {
        const double term =
            double{left[(warp * 16 + row) * 16 + k]} * right[(warp * 16 + k) * 8 + column];
        exact += 2 * term;
        size += 2 * std::abs(term);
      }
      CHECK(std::abs(product[i] - exact) <= 32 * 0x1p-24 * size);
    }
  }
}

TEST_CASE("The helpers of block.hpp, in every schedule") {
  const std::vector<float> x = random_numbers<float>(256, -1.0F, 1.0F);
  std::optional<float> first_sum;
  for (const schedule order : schedules) {
    std::vector<float> sums(256);
    std::vector<unsigned> scans(512);
    std::vector<unsigned> last_blocks;
    struct work {
      const float* in;
      float* sums;
      unsigned* scans;
      unsigned* counter;
      std::vector<unsigned>* last_blocks;
      struct memory {
        float* sums;
        unsigned* scan;
        unsigned* arrival;
        std::size_t used;
        explicit memory(std::byte* base = nullptr) {
          device::shared_arena arena(base);
          sums = arena.take<float>(8);
          scan = arena.take<unsigned>(8);
          arrival = arena.take<unsigned>(1);
          used = arena.used();
        }
      };
      void operator()(emulated_block& b) const {
        const memory m(b.shared());
        const unsigned t = b.thread();
        sums[t] = device::block_sum(b, in[t], m.sums);
        unsigned total = 0;
        scans[2 * t] = device::block_scan(b, t % 7, m.scan, total);
        scans[2 * t + 1] = total;
        for (int round = 0; round < 2; ++round) {  // the counter is ready for the next time
          if (device::arrives_last(b, counter + round, b.n_blocks_x(), m.arrival) && t == 0) {
            last_blocks->push_back(b.block_x());
          }
        }
      }
    };
    unsigned counters[2] = {};
    emulate({5},
            kernel_of<256>(work{x.data(), sums.data(), scans.data(), counters, &last_blocks},
                           work::memory().used),
            order);
    const double exact = std::accumulate(x.begin(), x.end(), 0.0);
    unsigned before = 0;
    for (unsigned t = 0; t < 256; ++t) {
      CHECK(sums[t] == sums[0]);
      CHECK(sums[t] == doctest::Approx(exact).epsilon(1e-4));
      CHECK(scans[2 * t] == before);
      before += t % 7;
    }
    for (unsigned t = 0; t < 256; ++t) CHECK(scans[2 * t + 1] == before);
    CHECK(last_blocks.size() == 2);
    CHECK(counters[0] == 0);
    CHECK(counters[1] == 0);
    if (order == schedule::forwards) CHECK(last_blocks == std::vector<unsigned>{4, 4});
    if (order == schedule::backwards) CHECK(last_blocks == std::vector<unsigned>{0, 0});
    // A fixed order of summation: the same bits whoever comes first.
    CHECK(std::bit_cast<std::uint32_t>(sums[0]) ==
          std::bit_cast<std::uint32_t>(first_sum.value_or(sums[0])));
    first_sum = sums[0];
  }
}

// ------------------------------------------------------------------------------- what is forgotten shows

TEST_CASE("Shared memory is indeterminate at the start of every block, and ends where it ends") {
  std::vector<std::uint32_t> seen(std::size_t{4} * 64);
  emulate({4}, kernel_of(
                   [out = seen.data()](auto& b) {
                     auto* const s = shared_as<std::uint32_t>(b);
                     out[b.block_x() * 64 + b.thread()] = s[b.thread()];
                     CHECK(std::isnan(shared_as(b)[b.thread()]));
                     CHECK(reinterpret_cast<std::uintptr_t>(b.shared()) % 16 == 0);
                     s[b.thread()] = b.thread();
#if WAVEKV_TEST_ASAN
                     CHECK(__asan_address_is_poisoned(b.shared() + 64 * 4 - 1) == 0);
                     CHECK(__asan_address_is_poisoned(b.shared() + 64 * 4) != 0);
#endif
                   },
                   64 * 4));
  CHECK(std::all_of(seen.begin(), seen.end(), [](std::uint32_t x) { return x == 0xFFFF'FFFFU; }));

  emulate({}, kernel_of([](auto& b) { CHECK(b.shared() == nullptr); }));
  if (WAVEKV_TEST_ASAN == 0) {  // which would end the program
    CHECK(contains(complaint(kernel_of([](auto& b) { shared_as<char>(b)[100] = 1; }, 100)),
                   "block (0, 0) wrote past its 100 bytes of shared memory"));
  }
}

TEST_CASE("A missing sync shows in some schedule") {
  const auto neighbours = [](bool with_sync, schedule order) {
    std::vector<unsigned> seen(64);
    emulate({},
            kernel_of(
                [with_sync, out = seen.data()](auto& b) {
                  auto* const s = shared_as<unsigned>(b);
                  s[b.thread()] = b.thread();
                  if (with_sync) b.sync();
                  out[b.thread()] = s[(b.thread() + 1) % 64];
                },
                64 * sizeof(unsigned)),
            order);
    return seen;
  };
  std::set<std::vector<unsigned>> with;
  std::set<std::vector<unsigned>> without;
  for (const schedule order : schedules) {
    with.insert(neighbours(true, order));
    without.insert(neighbours(false, order));
  }
  CHECK(with.size() == 1);
  CHECK(without.size() == 3);
}

TEST_CASE("A sum in the order of arrival shows") {
  const std::vector<float> x = random_numbers<float>(64, -1000.0F, 1000.0F);
  std::set<float> sums;
  for (const schedule order : schedules) {
    float sum = 0.0F;
    emulate({}, kernel_of([in = x.data(), &sum](auto& b) { sum += in[b.thread()]; }), order);
    sums.insert(sum);
  }
  CHECK(sums.size() > 1);
}

TEST_CASE("Asynchronous copies: waited for they are there; else they may not be") {
  struct alignas(16) rows {
    float x[4 * 64 * 4];
  } from{};
  std::iota(std::begin(from.x), std::end(from.x), 0.0F);
  // Four groups for each thread; reads the first `n_read` after waiting for all but `n_pending`, or not at all.
  const auto run = [&]<int NPending>(std::integral_constant<int, NPending>, bool wait, bool sync,
                                     unsigned n_read, schedule order, std::uint64_t seed) {
    unsigned n_wrong = 0;
    emulate({},
            kernel_of(
                [&n_wrong, in = from.x, wait, sync, n_read](auto& b) {
                  auto* const s = shared_as(b);
                  for (unsigned group = 0; group < 4; ++group) {
                    const unsigned at = (group * 64 + b.thread()) * 4;
                    b.copy_async16(s + at, in + at);
                    b.commit_copies();
                  }
                  if (wait) b.template wait_copies<NPending>();
                  if (sync) b.sync();
                  for (unsigned i = 0; i < n_read * 64 * 4; ++i) {
                    const bool mine = i / 4 % 64 == b.thread();
                    if ((sync || mine) && !(s[i] == in[i])) ++n_wrong;
                  }
                },
                sizeof(rows)),
            order, seed);
    return n_wrong;
  };
  const std::integral_constant<int, 0> all;
  const std::integral_constant<int, 1> all_but_one;
  for (const schedule order : schedules) {
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      CHECK(run(all, true, true, 4, order, seed) == 0);
      CHECK(run(all, true, false, 4, order, seed) == 0);  // its own
      CHECK(run(all_but_one, true, true, 3, order, seed) == 0);
      CHECK(run(all_but_one, true, true, 4, order, seed) > 0);
      CHECK(run(all, false, true, 4, order, seed) > 0);
    }
  }
  // At random some are early.
  CHECK(run(all, false, true, 4, schedule::random, 1) <
        run(all, false, true, 4, schedule::forwards, 1));

  // What is not committed is not waited for.
  float seen = 0.0F;
  emulate({}, kernel_of<32>(
                  [&seen, in = from.x](auto& b) {
                    if (b.thread() == 0) {
                      b.copy_async16(b.shared(), in);
                      b.template wait_copies<0>();
                      seen = *shared_as(b);
                    }
                  },
                  16));
  CHECK(std::isnan(seen));
}

TEST_CASE("Copies and loads of 16 bytes are of aligned ones, and copies go to shared memory") {
  struct alignas(16) {
    std::byte x[64];
  } memory{};
  std::byte* const p = memory.x;
  CHECK(contains(complaint(kernel_of([p](auto& b) { b.load16(p + 8); })), "load16"));
  CHECK(contains(complaint(kernel_of([p](auto& b) { b.copy_async16(b.shared() + 4, p); }, 64)),
                 "aligned to 16"));
  CHECK(contains(complaint(kernel_of([p](auto& b) { b.copy_async16(b.shared(), p + 4); }, 64)),
                 "aligned to 16"));
  CHECK(contains(complaint(kernel_of([p](auto& b) { b.copy_async16(b.shared() + 64, p); }, 64)),
                 "outside the 64 bytes"));
  CHECK(contains(complaint(kernel_of([p](auto& b) { b.copy_async16(p, p + 16); }, 64)), "outside"));
}

TEST_CASE("Lanes that part, and warps that leave others waiting") {
  for (const schedule order : schedules) {
    const auto early_end = kernel_of([](auto& b) {
      if (b.thread() == 37) return;
      b.sync();
    });
    const std::string text = complaint(early_end, order, {2, 2});
    CHECK(contains(text, "warp 1 of block ("));
    CHECK(contains(text, "diverges"));
    CHECK(contains(text, "its end"));
    CHECK(contains(text, "emulator_test.cpp:"));

    CHECK(contains(complaint(kernel_of([](auto& b) {
                               if (b.lane() < 16) {
                                 b.sync();
                               } else {
                                 b.sync_warp();
                               }
                             }),
                             order),
                   "diverges"));
    const auto same_word_twice = kernel_of([](auto& b) {  // not in CHECK, which is all one place
      if (b.lane() < 16) {
        b.shuffle(1.0F, 0);
      } else {
        b.shuffle(2.0F, 0);
      }
    });
    CHECK(contains(complaint(same_word_twice, order), "diverges"));
    CHECK(contains(complaint(kernel_of([](auto& b) {
                               if (b.warp() == 1) b.sync();
                             }),
                             order),
                   "warp 1 of block (0, 0) waits in sync while warp 0 has come to its end"));
    CHECK(contains(complaint(kernel_of([](auto& b) { b.shuffle(1.0F, b.lane() + 1); }), order),
                   "lane 32 of 32"));
    CHECK(contains(complaint(kernel_of([](auto& b) { b.shuffle_xor(1.0F, 32); }), order),
                   "shuffle_xor"));

    // Whole warps may go their own ways between the block's meetings.
    CHECK(complaint(kernel_of([](auto& b) {
                      if (b.warp() == 1) {
                        b.sync_warp();
                        b.warp_sum(1.0F);
                        b.sync();
                      } else {
                        b.sync();
                      }
                    }),
                    order)
              .empty());
  }
}

/// @brief A kernel that may start before the launch before it has ended.
struct overlapping {
  static constexpr unsigned n_threads = 32;
  static constexpr bool overlaps = true;
  bool waits;
  [[nodiscard]] static std::size_t shared_bytes() { return 0; }
  void operator()(emulated_block& b) const {
    if (waits) b.await_previous();
  }
};

TEST_CASE("A kernel that overlaps waits for the launch before it") {
  CHECK(complaint(overlapping{true}).empty());
  CHECK(contains(complaint(overlapping{false}), "never calls await_previous"));
}

TEST_CASE("What a thread throws reaches the caller; the others are unwound") {
  for (const schedule order : schedules) {
    for (unsigned who : {0U, 31U, 40U, 63U}) {
      int n_inside = 0;
      const auto throws = kernel_of([&n_inside, who](auto& b) {
        struct presence {
          int& n;
          explicit presence(int& counted) : n(++counted) {}
          ~presence() { --n; }
        } const here(n_inside);
        b.sync();
        b.warp_sum(1.0F);
        if (b.thread() == who) throw std::out_of_range("from the kernel");
        b.sync();
      });
      CHECK_THROWS_AS(emulate({3}, throws, order), std::out_of_range);
      CHECK(n_inside == 0);
      // The next launch finds everything in order.
      int n_threads = 0;
      emulate({3}, kernel_of<96>([&n_threads](auto& b) {
                b.sync();
                ++n_threads;
              }),
              order);
      CHECK(n_threads == 3 * 96);
    }
  }
  CHECK(contains(complaint(kernel_of([](auto&) { emulate({}, kernel_of([](auto&) {})); })),
                 "a kernel launches a kernel"));
}

TEST_CASE("Each host thread has its own fibers") {
  std::array<float, 4> sums{};
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (float& sum : sums) {
    threads.emplace_back([&sum] {
      emulate({10}, kernel_of<256>(
                        [&sum](auto& b) { sum = device::block_sum(b, 1.0F, shared_as(b)); }, 32));
    });
  }
  for (std::thread& t : threads) t.join();
  CHECK(sums == std::array{256.0F, 256.0F, 256.0F, 256.0F});
}

// ------------------------------------------------------------------------------------------ the runtime

/// @brief Device memory of floats, given back at the end of its scope.
class floats {
 public:
  floats(const emulated_runtime& r, std::size_t n, emulated_stream stream = {})
      : runtime_(r),
        n_(n),
        stream_(stream),
        data_(static_cast<float*>(r.allocate(n * 4, stream))) {}
  floats(const floats&) = delete;
  floats& operator=(const floats&) = delete;
  ~floats() { runtime_.deallocate(data_, n_ * 4, stream_); }

  float* data() const { return data_; }
  std::vector<float> on_host(emulated_stream stream) const {
    std::vector<float> x(n_);
    runtime_.copy_out(x.data(), data_, n_ * 4, stream);
    return x;
  }

 private:
  emulated_runtime runtime_;
  std::size_t n_;
  emulated_stream stream_;
  float* data_;
};

/// @brief to[i] = from[i] + add for 64 floats.
auto adds(const float* from, float* to, float add) {
  return kernel_of([from, to, add](auto& b) { to[b.thread()] = from[b.thread()] + add; });
}

TEST_CASE("Copies, fills and launches of one stream are done in order") {
  for (const bool in_turn : {false, true}) {
    const emulated_runtime r({.seed = 3, .streams_in_turn = in_turn});
    const emulated_stream s = r.make_stream();
    const floats x(r, 64, s);
    const floats y(r, 64, s);
    CHECK(reinterpret_cast<std::uintptr_t>(x.data()) % 256 == 0);
    for (const float each : x.on_host(s)) CHECK(std::isnan(each));

    std::vector<float> host(64, 1.0F);
    r.copy_in(x.data(), host.data(), 256, s);
    std::fill(host.begin(), host.end(), 50.0F);  // has been read already
    r.launch(s, {}, adds(x.data(), y.data(), 2.0F));
    r.fill(x.data(), 0, 128, s);
    r.copy(x.data() + 48, y.data(), 16 * 4, s);
    std::vector<float> expected(64, 1.0F);
    std::fill_n(expected.begin(), 32, 0.0F);
    std::fill_n(expected.begin() + 48, 16, 3.0F);
    CHECK(x.on_host(s) == expected);
    CHECK(y.on_host(s) == std::vector<float>(64, 3.0F));
    r.launch(s, {0, 5}, adds(nullptr, nullptr, 0.0F));
    r.synchronize(s);
  }
}

TEST_CASE("Nothing is done before the host waits") {
  const emulated_runtime r;
  bool done = false;
  r.with_policy({}, [&done](const auto&) { done = true; });
  emulated_event e;
  r.record(e, {});
  r.wait(r.side_stream(), e);
  CHECK(!done);
  r.synchronize(r.side_stream());
  CHECK(done);
}

TEST_CASE("with_policy runs Thrust's algorithms in the stream") {
  const emulated_runtime r;
  const floats x(r, 64);
  const std::vector<float> host = random_numbers<float>(64, 0.0F, 1.0F);
  r.copy_in(x.data(), host.data(), 256, {});
  r.with_policy({}, [p = x.data()](const auto& policy) { thrust::sort(policy, p, p + 64); });
  std::vector<float> expected = host;
  std::sort(expected.begin(), expected.end());
  CHECK(x.on_host({}) == expected);
}

TEST_CASE("Two streams without an event between them: it shows in some seeds") {
  const auto read = [](bool with_event, bool in_turn, std::uint64_t seed) {
    const emulated_runtime r({.seed = seed, .streams_in_turn = in_turn});
    const emulated_stream side = r.side_stream();
    const floats x(r, 64);
    r.fill(x.data(), 0, 256, {});
    r.synchronize({});
    for (int i = 0; i < 3; ++i) r.launch({}, {}, adds(x.data(), x.data(), 1.0F));
    emulated_event e;
    r.record(e, {});
    const emulated_event moved = std::move(e);
    r.launch({}, {}, adds(x.data(), x.data(), 0.0F));
    r.wait(side, emulated_event());  // never recorded: past
    if (with_event) r.wait(side, moved);
    const float seen = x.on_host(side)[0];
    r.synchronize({});
    return seen;
  };
  std::set<float> without;
  for (std::uint64_t seed = 0; seed < 32; ++seed) {
    CHECK(read(true, false, seed) == 3.0F);
    CHECK(read(false, true, seed) == 3.0F);
    without.insert(read(false, false, seed));
  }
  CHECK(without == std::set<float>{0.0F, 1.0F, 2.0F, 3.0F});
}

TEST_CASE("An event marks what was given before it, and can be recorded again") {
  for (std::uint64_t seed = 0; seed < 16; ++seed) {
    const emulated_runtime r({.seed = seed});
    std::vector<int> done;
    const auto note = [&](emulated_stream s, int what) {
      r.with_policy(s, [&done, what](const auto&) { done.push_back(what); });
    };
    const emulated_stream other = r.make_stream();
    emulated_event e;
    note({}, 1);
    r.record(e, {});
    r.wait(other, e);
    note(other, 2);
    note({}, 3);
    r.record(e, other);  // does not move the wait above
    r.wait(r.side_stream(), e);
    note(r.side_stream(), 4);
    r.synchronize(r.side_stream());
    const auto at = [&](int what) { return std::find(done.begin(), done.end(), what); };
    CHECK(at(1) < at(2));
    CHECK(at(2) < at(4));
    CHECK(at(4) != done.end());
    r.synchronize_all();
    CHECK(done.size() == 4);
  }
}

TEST_CASE("Memory: the budget, what is in use, and its return in the stream's order") {
  const emulated_runtime r({.memory_budget = 1000});
  CHECK(r.allocate(0, {}) == nullptr);
  r.deallocate(nullptr, 0, {});
  void* const p = r.allocate(600, {});
  CHECK(r.bytes_in_use() == 600);
  try {
    static_cast<void>(r.allocate(401, {}));
    FAIL("over the budget");
  } catch (const cuda_error& e) {
    CHECK(e.code() == 2);
    CHECK(e.call() == "cudaMallocAsync");
  }
  CHECK(r.bytes_in_use() == 600);
  float seen = 0.0F;
  r.fill(p, 0, 600, {});
  r.with_policy({}, [&seen, p](const auto&) { seen = *static_cast<float*>(p) + 1.0F; });
  r.deallocate(p, 600, {});  // after the work above
  CHECK(r.bytes_in_use() == 0);
  void* const q = r.allocate(1000, {});
  CHECK(q != p);
  r.synchronize({});
  CHECK(seen == 1.0F);
  r.deallocate(q, 1000, {});
  CHECK(r.bytes_in_use() == 0);
  CHECK(r.peak_bytes_in_use() == 1000);
  r.set_memory_budget(10);
  CHECK_THROWS_AS(static_cast<void>(r.allocate(11, {})), cuda_error);
#if WAVEKV_TEST_ASAN
  auto* const hidden = static_cast<std::byte*>(r.allocate(10, {}));
  CHECK(__asan_address_is_poisoned(hidden) != 0);  // from the host
  int n_poisoned = -1;
  r.with_policy({}, [&n_poisoned, hidden](const auto&) {
    n_poisoned =
        __asan_address_is_poisoned(hidden + 9) + 2 * __asan_address_is_poisoned(hidden + 10);
  });
  r.synchronize({});
  CHECK(n_poisoned == 2);
  r.deallocate(hidden, 10, {});
#endif
}

TEST_CASE("The host's mistakes are told by what waits next") {
  const emulated_runtime r;
  const emulated_stream none{7};
  const floats x(r, 64);
  float host[65] = {};
  CHECK_THROWS_AS(r.synchronize(none), emulation_error);
  CHECK_THROWS_AS(r.copy_out(host, x.data() + 1, 256, {}), emulation_error);
  CHECK_THROWS_AS(r.copy_out(host, host, 4, {}), emulation_error);
  r.copy_in(host, host, 4, {});
  CHECK_THROWS_AS(r.synchronize({}), emulation_error);
  r.copy_in(x.data() + 60, host, 20, {});
  CHECK_THROWS_AS(r.synchronize({}), emulation_error);
  r.copy(x.data(), x.data() + 1, 8, {});
  CHECK_THROWS_AS(r.synchronize({}), emulation_error);
  r.deallocate(x.data(), 255, {});
  CHECK_THROWS_AS(r.synchronize({}), emulation_error);
  r.deallocate(host, 4, {});
  CHECK_THROWS_AS(r.synchronize({}), emulation_error);
  const emulated_runtime another;
  emulated_event e;
  another.record(e, {});
  CHECK_THROWS_AS(r.wait({}, e), emulation_error);
  if (WAVEKV_TEST_ASAN == 0) {
    char* const p = static_cast<char*>(r.allocate(100, {}));
    r.with_policy({}, [p](const auto&) { p[100] = 0; });
    r.deallocate(p, 100, {});
    CHECK_THROWS_AS(r.synchronize({}), emulation_error);
  }
  r.synchronize({});
}

TEST_CASE("A kernel's error is told by synchronize; what comes after it is done") {
  for (const schedule order : schedules) {
    const emulated_runtime r({.order = order});
    const floats x(r, 64);
    r.fill(x.data(), 0, 256, {});
    r.launch({}, {}, kernel_of([](auto& b) {
               if (b.lane() > 3) b.sync();
             }));
    r.launch({}, {}, adds(x.data(), x.data(), 1.0F));
    CHECK_THROWS_AS(r.synchronize({}), emulation_error);
    CHECK(x.on_host({})[5] == 1.0F);
    CHECK_THROWS_AS(r.launch({}, {}, kernel_of([](auto&) {}, 300 * 1024)), cuda_error);
    CHECK(r.n_multiprocessors() == 4);
  }
}

TEST_CASE("Several host threads use one runtime") {
  const emulated_runtime r;
  std::array<std::vector<float>, 4> results;
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (std::vector<float>& result : results) {
    threads.emplace_back([&result, r] {
      const emulated_stream s = r.make_stream();
      const floats x(r, 64, s);
      r.fill(x.data(), 0, 256, s);
      for (int i = 0; i < 20; ++i) r.launch(s, {}, adds(x.data(), x.data(), 1.0F));
      result = x.on_host(s);
    });
  }
  for (std::thread& t : threads) t.join();
  for (const std::vector<float>& result : results) CHECK(result == std::vector<float>(64, 20.0F));
}

TEST_CASE("Memory that is never given back ends the program with the last copy of the runtime") {
  const auto ends_by_itself = [](auto program) {
    const pid_t child = fork();
    if (child == 0) {
      std::signal(SIGABRT, SIG_DFL);  // doctest's handler would report a failure
      std::fclose(stderr);
      program();
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  };
  CHECK(ends_by_itself([] {
    const emulated_runtime r;
    const floats x(r, 64);
  }));
  CHECK(!ends_by_itself([] {
    const emulated_runtime r;
    static_cast<void>(r.allocate(4, {}));
  }));
  CHECK(!ends_by_itself([] {
    const emulated_runtime r;
    r.launch({}, {}, kernel_of([](auto&) { throw std::runtime_error("nobody waited for this"); }));
  }));
}

}  // namespace
