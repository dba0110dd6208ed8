// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <wavekv/buffer/concepts.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/errors.hpp>

#include "conformance/eviction_law.hpp"

/// @file buffer_law.hpp
/// @brief The law of wavekv::placement_policy. Run your own policy through it.

namespace wavekv_test {

/// @brief Tiers of a placement under test, segments' rows that were kept in them, and readers that find out whether they
/// are still what they were.
template <wavekv::placement_policy Placement, class T, wavekv::eviction_policy Eviction>
class kept_segments {
 public:
  using tiers_type = typename Placement::template tiers<T, Eviction>;
  using handle = typename tiers_type::handle;
  using lease = typename tiers_type::lease;
  static_assert(wavekv::block_tiers<tiers_type, T>);
  static_assert(tiers_type::always_fast || wavekv::slow_block_tiers<tiers_type, T>);

  static constexpr std::size_t key_dim = 24;
  static constexpr std::size_t value_dim = 40;
  static constexpr std::size_t width = key_dim + value_dim;

  /// @brief A block that was found, and what it must show.
  struct held_block {
    lease found;
    std::size_t n_tokens = 0;
    const T* expected = nullptr;
  };

  /// @brief One segment's rows: what they must be, and the handle of what was kept.
  struct segment {
    std::vector<T> rows;
    std::vector<wavekv::block> blocks;
    handle kept;
  };

  explicit kept_segments(const typename Placement::options_type& options)
      : tiers_(options, key_dim, value_dim) {}

  [[nodiscard]] tiers_type& tiers() noexcept { return tiers_; }

  /// @brief Keeps random rows, cut into blocks of different lengths that lie behind each other.
  std::unique_ptr<segment> keep(std::mt19937_64& random, std::size_t n_blocks) {
    auto made = std::make_unique<segment>();
    std::size_t offset = 0;
    for (std::size_t index = 0; index < n_blocks; ++index) {
      const std::size_t n_tokens = random() % 4 == 0 ? 1 + random() % 60 : 1 + random() % 9;
      made->blocks.push_back({index, offset, n_tokens});
      offset += n_tokens * width;
    }
    wavekv::aligned_storage<T> rows(offset);
    for (std::size_t i = 0; i < offset; ++i) {
      rows[i] = wavekv::from_float<T>(static_cast<float>(random() % 256) - 128.0F);
    }
    made->rows.assign(rows.data(), rows.data() + offset);
    made->kept = tiers_.keep(std::move(rows), made->blocks);
    return made;
  }

  /// @brief Reads a block from wherever it is, and offers it to the block cache if it came from the slow tier.
  /// @param held  where its lease goes, if it was found; else it is released at once
  verdict read(const segment& from, std::size_t index, std::mt19937_64& random,
               std::vector<held_block>* held = nullptr) {
    const wavekv::block& which = from.blocks[index];
    const T* expected = from.rows.data() + which.offset;
    bool was_held = true;
    if constexpr (!tiers_type::always_fast) was_held = tiers_.holds(from.kept, which);
    const lease found = tiers_.look_up(from.kept, which);
    ++(was_held == static_cast<bool>(found) ? n_foretold : n_surprises);
    if (found) {
      verdict seen = shows(found, which.n_tokens, expected);
      if (held != nullptr) {
        held->push_back({found, which.n_tokens, expected});
      } else {
        tiers_.release(std::span<const lease>(&found, 1));
      }
      return seen;
    }
    if constexpr (tiers_type::always_fast) {
      return "always_fast, but look_up does not find a block";
    } else {
      return fetch(from, which, random);
    }
  }

  /// @brief Whether a lease shows these rows: [n_tokens, key_dim], then [n_tokens, value_dim].
  verdict shows(const lease& found, std::size_t n_tokens, const T* expected) {
    std::size_t n = 0;
    bool fits = true;
    bool is_same = true;
    tiers_.for_runs(found, n_tokens, [&](const wavekv::token_run<T>& run) {
      fits = fits && run.n != 0 && run.n <= n_tokens - n;
      if (!fits) return;
      is_same = is_same &&
                std::memcmp(run.keys, expected + n * key_dim, run.n * key_dim * sizeof(T)) == 0 &&
                std::memcmp(run.values, expected + n_tokens * key_dim + n * value_dim,
                            run.n * value_dim * sizeof(T)) == 0;
      n += run.n;
    });
    if (!fits || n != n_tokens) return "for_runs shows more or fewer tokens than the block has";
    return is_same ? "" : "a block that is found differs from the rows that were kept";
  }

  /// @brief Copies a random part of the rows.
  verdict copy(const segment& from, std::mt19937_64& random) {
    const std::size_t offset = random() % from.rows.size();
    std::vector<T> got(random() % (from.rows.size() - offset + 1));
    tiers_.copy(from.kept, offset, got);
    const bool is_same = got.empty() || std::memcmp(got.data(), from.rows.data() + offset,
                                                    got.size() * sizeof(T)) == 0;
    return is_same ? "" : "copy differs from the rows that were kept";
  }

  std::atomic<std::size_t> n_foretold{0};   ///< answers of look_up that holds gave before
  std::atomic<std::size_t> n_surprises{0};  ///< others

 private:
  verdict fetch(const segment& from, const wavekv::block& which, std::mt19937_64& random) {
    const std::size_t unit = tiers_.alignment();
    if (unit == 0 || (unit & (unit - 1)) != 0) return "alignment is no power of two";
    const std::uint64_t first = which.offset * sizeof(T);
    const std::uint64_t begin = first / unit * unit;
    const std::uint64_t end = (first + which.n_tokens * width * sizeof(T) + unit - 1) / unit * unit;
    const std::size_t room = std::max(unit, alignof(T));
    std::vector<std::byte> memory(end - begin + room, std::byte{0x5A});
    const auto at = reinterpret_cast<std::uintptr_t>(memory.data());
    std::byte* to = memory.data() + ((at + room - 1) / room * room - at);
    const wavekv::slow_read read =
        tiers_.fetch(from.kept, begin, std::span(to, static_cast<std::size_t>(end - begin)));
    if (read.to.data() != to || read.to.size() != end - begin) {
      return "fetch does not read to where it was told";
    }
    if (random() % 16 != 0) {
      read();
    } else {  // a read is a view, and may be made by anybody
      const wavekv::slow_read other = read;
      std::thread([&other] { other(); }).join();
    }
    T* rows = reinterpret_cast<T*>(to + (first - begin));
    const std::size_t n_bytes = which.n_tokens * width * sizeof(T);
    if (std::memcmp(rows, from.rows.data() + which.offset, n_bytes) != 0) {
      return "a block that was fetched differs from the rows that were kept";
    }
    try {
      tiers_.check(from.kept, which, rows);
    } catch (const wavekv::io_error&) {
      return "check refuses what was kept";
    }
    std::byte& changed = to[(first - begin) + random() % n_bytes];
    const auto difference = static_cast<std::byte>(1U << random() % 8);
    changed ^= difference;
    bool is_refused = false;
    try {
      tiers_.check(from.kept, which, rows);
    } catch (const wavekv::io_error&) {
      is_refused = true;
    }
    changed ^= difference;
    if (!is_refused) return "check accepts a block of which a bit has changed";
    tiers_.admit(from.kept, which, rows);
    return {};
  }

  tiers_type tiers_;
};

/// @brief Whatever is kept can be read, in whichever tier it is, bit for bit, from several threads at once and while more
/// is kept and given up; check accepts what fetch brings, and nothing else; a block that was looked up stays readable until
/// it is released, whatever is admitted meanwhile; handles outlive moves and their neighbours.
template <wavekv::placement_policy Placement, class T, wavekv::eviction_policy Eviction>
verdict placement_law(const typename Placement::options_type& options = {},
                      std::uint64_t seed = 1) {
  using segments_type = kept_segments<Placement, T, Eviction>;
  using segment = typename segments_type::segment;
  using lease = typename segments_type::lease;
  using handle = typename segments_type::handle;
  constexpr std::size_t n_segments = 6;
  constexpr std::size_t n_blocks = 12;
  segments_type kept(options);
  std::mt19937_64 random(seed);
  std::vector<std::unique_ptr<segment>> segments;
  for (std::size_t s = 0; s < n_segments; ++s) {
    segments.push_back(kept.keep(random, n_blocks));
    handle moved = std::move(segments.back()->kept);
    handle nothing;
    segments.back()->kept = std::move(nothing);
    segments.back()->kept = std::move(moved);
  }
  const auto flush = [&] {
    if constexpr (requires { kept.tiers().flush(); }) kept.tiers().flush();
  };

  // Alone, and then with others: any block and any part, some as soon as they were kept.
  const auto walk = [&](std::uint64_t own, std::size_t n_steps) -> verdict {
    std::mt19937_64 steps(seed + own);
    std::unique_ptr<segment> mine;
    for (std::size_t i = 0; i < n_steps; ++i) {
      if (i % 50 == 49) {
        mine = kept.keep(steps, 5);
        if (i % 100 == 99) flush();
      }
      const segment& from = mine && i % 3 == 0 ? *mine : *segments[steps() % n_segments];
      verdict broken = i % 10 == 9 ? kept.copy(from, steps)
                                   : kept.read(from, steps() % from.blocks.size(), steps);
      if (!broken.empty()) return broken;
    }
    return {};
  };
  if (verdict broken = walk(100, 400); !broken.empty()) return broken;
  if (kept.n_surprises > kept.n_foretold / 10) return "holds foretells look_up badly";
  std::vector<verdict> verdicts(3);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < verdicts.size(); ++t) {
    threads.emplace_back([&, t] { verdicts[t] = walk(200 + t, 300); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const verdict& one : verdicts) {
    if (!one.empty()) return "with several threads: " + one;
  }

  // Blocks that are held, more of them than any cache would keep for this alone, while others come.
  for (const bool flushed : {false, true}) {
    if (flushed) flush();
    for (const std::size_t most : {1U, 7U, 100U}) {
      std::vector<typename segments_type::held_block> held;
      verdict broken;
      for (std::size_t i = 0; i < 3 * most + 30 && broken.empty(); ++i) {
        broken = kept.read(*segments[random() % n_segments], random() % n_blocks, random,
                           held.size() < most ? &held : nullptr);
        for (const auto& one : held) {
          if (!broken.empty()) break;
          broken = kept.shows(one.found, one.n_tokens, one.expected);
          if (!broken.empty()) broken = "while it is held: " + broken;
        }
      }
      std::vector<lease> leases;
      for (const auto& one : held) leases.push_back(one.found);
      kept.tiers().release(leases);
      if (!broken.empty()) return broken;
    }
  }
  kept.tiers().release(std::span<const lease>());

  // Rows are given up one by one, by moves, too; the others stay readable, and new ones take their place.
  for (std::size_t s = 0; s + 1 < n_segments; ++s) {
    const std::unique_ptr<segment> added = kept.keep(random, 3);
    if (s % 2 == 0) {
      segments[s].reset();
    } else {
      segments[s]->kept = handle();
    }
    for (std::size_t b = 0; b < n_blocks; ++b) {
      const segment& last = *segments[n_segments - 1];
      verdict broken = kept.read(last, b, random);
      if (broken.empty()) broken = kept.copy(last, random);
      if (broken.empty()) broken = kept.read(*added, b % 3, random);
      if (!broken.empty()) return "when other rows were given up: " + broken;
    }
  }
  return {};
}

}  // namespace wavekv_test
