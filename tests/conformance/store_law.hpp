// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/core/errors.hpp>

#include "conformance/eviction_law.hpp"

/// @file store_law.hpp
/// @brief The law of wavekv::block_store. Run your own store through it.

namespace wavekv_test {

/// @brief Whatever was written is read, from any part, until its region is given up, whatever other regions do
/// meanwhile and on which threads; reads at multiples of the alignment may reach past a region's end up to the next one,
/// all others that reach past it throw io_error; regions move.
template <wavekv::block_store Store>
verdict store_law(const typename Store::options_type& options = {}, std::uint64_t seed = 1) {
  Store store(options);
  const std::size_t unit = store.alignment();
  if (unit == 0 || (unit & (unit - 1)) != 0 || unit > 4096) {
    return "alignment() is no power of two up to 4096";
  }
  const auto next_multiple = [&](std::size_t n) { return (n + unit - 1) / unit * unit; };
  std::atomic<int> n_wrong{0};
  std::atomic<int> n_refused{0};
  std::atomic<int> n_past_end{0};
  const auto work = [&](std::uint64_t own) {
    std::mt19937_64 random(seed + own);
    struct written {
      typename Store::region where;
      std::vector<std::byte> bytes;
    };
    std::vector<written> held;
    std::vector<std::byte> got;
    for (int i = 0; i < 300; ++i) {
      if (held.size() < 3 || (held.size() < 12 && random() % 2 == 0)) {
        const std::size_t sizes[] = {1, 511, 4096, 8192, 5000, 100000, 1 + random() % 20000};
        std::vector<std::byte> bytes(sizes[random() % std::size(sizes)]);
        for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
        typename Store::region where = store.write(bytes);
        held.push_back({std::move(where), std::move(bytes)});
      } else if (random() % 3 == 0) {
        std::swap(held[random() % held.size()], held.back());
        held.pop_back();
      }
      const written& one = held[random() % held.size()];
      const std::size_t from = random() % one.bytes.size();
      got.assign(1 + random() % (one.bytes.size() - from), std::byte{0x5A});
      store.read(one.where, from, got);
      if (!std::equal(got.begin(), got.end(),
                      one.bytes.begin() + static_cast<std::ptrdiff_t>(from))) {
        ++n_wrong;
      }
      // At multiples of the alignment, to memory at one.
      const std::size_t begin = from / unit * unit;
      const std::size_t end = next_multiple(
          begin + 1 + random() % (random() % 2 == 0 ? one.bytes.size() - begin : unit));
      got.assign(end - begin + 2 * unit, std::byte{0x5A});
      const auto at = reinterpret_cast<std::uintptr_t>(got.data());
      const std::span<std::byte> aligned(got.data() + (next_multiple(at) - at), end - begin);
      try {
        store.read(one.where, begin, aligned);
        const std::size_t n = std::min(aligned.size(), one.bytes.size() - begin);
        if (!std::equal(aligned.begin(), aligned.begin() + static_cast<std::ptrdiff_t>(n),
                        one.bytes.begin() + static_cast<std::ptrdiff_t>(begin))) {
          ++n_wrong;
        }
      } catch (const wavekv::io_error&) {
        ++n_refused;
      }
      // A byte too far: past the last multiple, or past the end of the region to memory that lies nowhere in particular.
      const std::size_t too_far =
          random() % 2 == 0 ? next_multiple(one.bytes.size()) + 1 : one.bytes.size() + 1;
      try {
        got.resize(too_far - from + 1);
        store.read(one.where, from, std::span(got).subspan(1));
        ++n_past_end;
      } catch (const wavekv::io_error&) {}
      try {
        got.resize(1);
        store.read(one.where, next_multiple(one.bytes.size()) + unit, got);
        ++n_past_end;
      } catch (const wavekv::io_error&) {}
    }
    if (own == 0) store.flush();
    for (const written& one : held) {
      got.resize(one.bytes.size());
      store.read(one.where, 0, got);
      if (got != one.bytes) ++n_wrong;
    }
  };
  work(0);
  std::vector<std::thread> threads;
  for (std::uint64_t t = 1; t < 4; ++t) threads.emplace_back(work, t);
  for (std::thread& thread : threads) thread.join();
  if (n_wrong != 0) return "what is read is not what was written";
  if (n_refused != 0) return "a read at multiples of the alignment is refused";
  if (n_past_end != 0) return "reading past a region's end throws no io_error";
  if (store.alignment() != unit) return "alignment() changes";
  const typename Store::region nothing = store.write({});
  std::vector<std::byte> none;
  store.read(nothing, 0, none);
  return {};
}

}  // namespace wavekv_test
