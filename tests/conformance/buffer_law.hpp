// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/eviction.hpp>

#include "conformance/eviction_law.hpp"

/// @file buffer_law.hpp
/// @brief The laws of wavekv::transfer_engine and wavekv::placement_policy. Run your own policy through them.

namespace wavekv_test {

/// @brief After wait() every started fetch has run, once; the first exception comes out of start() or wait(),
/// the others have run all the same or were never started; and the engine can be used again.
template <wavekv::transfer_engine Transfer>
verdict transfer_law() {
  Transfer engine;
  engine.wait();  // nothing under way
  for (const int n : {1, 0, 7, 40}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(n));
    for (auto& run : runs) engine.start([&run] { ++run; });
    engine.wait();
    for (const auto& run : runs) {
      if (run != 1) return "a started fetch did not run exactly once before wait() returned";
    }
  }
  std::atomic<int> started{0};
  std::atomic<int> ended{0};
  bool thrown = false;
  try {
    for (int i = 0; i < 9; ++i) {
      ++started;
      engine.start([&ended, i] {
        ++ended;
        if (i == 4) throw std::runtime_error("fetch failed");
      });
    }
  } catch (const std::runtime_error&) {
    thrown = true;  // an engine without threads lets it out at once
  }
  try {
    engine.wait();
  } catch (const std::runtime_error& error) {
    if (std::string(error.what()) != "fetch failed") return "wait() throws another exception";
    thrown = true;
  }
  if (!thrown) return "a fetch's exception is lost";
  if (started != ended) return "after an exception a started fetch has not returned";
  std::atomic<bool> again{false};
  engine.start([&again] { again = true; });
  engine.wait();
  return again ? "" : "the engine does not work any more after an exception";
}

/// @brief Whatever is kept can be read, in whichever tier it is, bit for bit, from several threads at once;
/// a block that was admitted or not is never another's; handles outlive moves and their neighbours.
template <wavekv::placement_policy Placement, class T, wavekv::eviction_policy Eviction>
verdict placement_law() {
  using tiers_type = typename Placement::template tiers<T, Eviction>;
  using handle = typename tiers_type::handle;
  static_assert(wavekv::block_tiers<tiers_type, T>);
  tiers_type tiers;
  constexpr std::size_t n_rows = 6;
  constexpr std::size_t n_blocks = 10;
  constexpr std::size_t n_elements = 96;
  const auto element = [](std::size_t rows, std::size_t i) {
    return wavekv::from_float<T>(static_cast<float>(rows * 8 + i % 8));
  };
  std::vector<std::unique_ptr<handle>> handles;
  for (std::size_t r = 0; r < n_rows; ++r) {
    wavekv::aligned_storage<T> rows(n_blocks * n_elements);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = element(r, i);
    handles.push_back(std::make_unique<handle>(tiers.keep(std::move(rows))));
    handle moved = std::move(*handles.back());
    *handles.back() = std::move(moved);
  }
  std::atomic<int> n_wrong{0};
  std::atomic<int> n_missing{0};
  const auto read = [&](std::size_t r, std::size_t b) {
    // Blocks of uneven sizes: b has 8 · (b + 1) elements.
    const wavekv::block which{b * n_elements, 8 * (b + 1)};
    std::vector<T> arrived(which.n_elements);
    const T* rows = tiers.lookup(*handles[r], which);
    if (rows == nullptr) {
      ++n_missing;
      tiers.fetch(*handles[r], which, arrived.data());
      rows = arrived.data();
    }
    for (std::size_t i = 0; i < which.n_elements; ++i) {
      const T expected = element(r, which.offset + i);
      if (wavekv::to_float(rows[i]) != wavekv::to_float(expected)) ++n_wrong;
    }
    if (rows == arrived.data()) tiers.admit(*handles[r], which, rows);
  };
  const auto walk = [&](std::size_t seed) {
    for (std::size_t i = 0; i < 400; ++i) {
      const std::size_t at = (i * 7 + seed * 13) % (n_rows * n_blocks);
      read(at % n_rows, at / n_rows % (8));
    }
  };
  walk(0);
  std::vector<std::thread> threads;
  for (std::size_t t = 1; t < 3; ++t) threads.emplace_back(walk, t);
  for (std::thread& thread : threads) thread.join();
  if (n_wrong != 0) return "a block differs from the rows that were kept";
  if (tiers_type::always_fast && n_missing != 0) return "always_fast, but lookup answered null";
  // Rows are given up one by one; the others stay readable.
  for (std::size_t r = 0; r + 1 < n_rows; ++r) {
    handles[r].reset();
    for (std::size_t b = 0; b < 8; ++b) read(n_rows - 1, b);
  }
  return n_wrong == 0 ? "" : "a block changed when other rows were given up";
}

}  // namespace wavekv_test
