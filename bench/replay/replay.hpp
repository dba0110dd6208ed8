// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include <wavekv/buffer/block_cache.hpp>
#include <wavekv/core/scalar.hpp>

#include "replay/trace.hpp"

/// @file replay.hpp
/// @brief A trace through the block cache, and through the best that any could have done.

namespace wavekv_bench {

/// @brief What a replay found, of the readings that count.
struct replay_result {
  std::uint64_t blocks = 0;        ///< read
  std::uint64_t hits = 0;          ///< of these, found
  std::uint64_t tokens = 0;        ///< read
  std::uint64_t tokens_found = 0;  ///< of these, in blocks (Belady: slots) that were found

  [[nodiscard]] double hit_ratio() const noexcept {
    return blocks == 0 ? 1.0 : static_cast<double>(hits) / static_cast<double>(blocks);
  }
  [[nodiscard]] double token_hit_ratio() const noexcept {
    return tokens == 0 ? 1.0 : static_cast<double>(tokens_found) / static_cast<double>(tokens);
  }
};

/// @brief The trace through wavekv's own block cache: looked up, then admitted, reading by reading, as a cache does it.
template <wavekv::eviction_policy Eviction>
replay_result replay(const block_trace& trace, std::size_t fast_bytes) {
  using cache_type = wavekv::block_cache<wavekv::bf16, Eviction>;
  cache_type cache(fast_bytes, trace.key_dim, trace.value_dim);
  std::uint32_t n_blocks = 0;
  std::uint32_t n_most_tokens = 0;
  for (const auto& reading : trace.readings) {
    for (const block_use& use : reading) {
      n_blocks = std::max(n_blocks, use.block + 1);
      n_most_tokens = std::max(n_most_tokens, use.n_tokens);
    }
  }
  wavekv::block_directory directory(n_blocks);
  const std::vector<wavekv::bf16> rows(std::size_t{n_most_tokens} *
                                       (trace.key_dim + trace.value_dim));
  replay_result result;
  std::vector<std::uint32_t> pinned;
  std::vector<block_use> missing;
  for (std::size_t r = 0; r < trace.readings.size(); ++r) {
    pinned.clear();
    missing.clear();
    for (const block_use& use : trace.readings[r]) {
      const std::uint32_t slot = cache.pin(directory, use.block);
      const bool found = slot != cache_type::nowhere;
      if (found) {
        pinned.push_back(slot);
      } else {
        missing.push_back(use);
      }
      if (r >= trace.n_warm_up) {
        ++result.blocks;
        result.hits += found ? 1 : 0;
        result.tokens += use.n_tokens;
        result.tokens_found += found ? use.n_tokens : 0;
      }
    }
    for (const block_use& use : missing)
      (void)cache.admit(directory, use.block, rows.data(), use.n_tokens);
    cache.unpin(pinned);
  }
  return result;
}

/// @brief The most that any policy could have found, knowing all that comes: Belady's rule (Belady 1966), by which what
/// is wanted latest leaves, and may not even be taken in.
///
/// Blocks are of different sizes, for which the best choice is hard to compute; here every slot of a block may come and
/// go alone, which can only find more. A block counts as found in proportion to its slots.
inline replay_result replay_belady(const block_trace& trace, std::size_t fast_bytes) {
  const wavekv::block_cache<wavekv::bf16, wavekv::detail::any_eviction> cache(
      fast_bytes, trace.key_dim, trace.value_dim);
  const std::size_t n_slots = cache.n_slots();
  const std::size_t slot_tokens = cache.slot_tokens();
  // When each use of a block is followed by the next one.
  constexpr std::uint64_t never = UINT64_MAX;
  std::vector<std::vector<std::uint64_t>> next(trace.readings.size());
  std::unordered_map<std::uint32_t, std::uint64_t> last;
  std::uint64_t time = 0;
  for (const auto& reading : trace.readings) time += reading.size();
  for (std::size_t r = trace.readings.size(); r-- > 0;) {
    next[r].resize(trace.readings[r].size());
    for (std::size_t i = trace.readings[r].size(); i-- > 0;) {
      const std::uint32_t block = trace.readings[r][i].block;
      const auto found = last.find(block);
      next[r][i] = found == last.end() ? never : found->second;
      last[block] = --time;
    }
  }
  // Of every block in the cache: when it is wanted next, and how many of its slots are there.
  struct held {
    std::uint64_t wanted;
    std::size_t n_slots;
  };
  std::unordered_map<std::uint32_t, held> in_cache;
  std::set<std::pair<std::uint64_t, std::uint32_t>> by_time;
  std::size_t n_free = n_slots;
  replay_result result;
  double hits = 0.0;
  for (std::size_t r = 0; r < trace.readings.size(); ++r) {
    for (std::size_t i = 0; i < trace.readings[r].size(); ++i) {
      const block_use& use = trace.readings[r][i];
      const std::size_t n_whole = (use.n_tokens + slot_tokens - 1) / slot_tokens;
      std::size_t n_found = 0;
      if (const auto found = in_cache.find(use.block); found != in_cache.end()) {
        n_found = found->second.n_slots;
        by_time.erase({found->second.wanted, use.block});
        n_free += n_found;
        in_cache.erase(found);
      }
      if (r >= trace.n_warm_up) {
        const double share = static_cast<double>(n_found) / static_cast<double>(n_whole);
        ++result.blocks;
        hits += share;
        result.tokens += use.n_tokens;
        result.tokens_found += static_cast<std::uint64_t>(share * use.n_tokens + 0.5);
      }
      // Back in, as far as there is something that is wanted later.
      std::size_t n_kept = std::min(n_whole, n_free);
      n_free -= n_kept;
      while (n_kept < n_whole && !by_time.empty() && by_time.rbegin()->first > next[r][i]) {
        const auto latest = std::prev(by_time.end());
        held& leaves = in_cache[latest->second];
        const std::size_t n_taken = std::min(leaves.n_slots, n_whole - n_kept);
        leaves.n_slots -= n_taken;
        n_kept += n_taken;
        if (leaves.n_slots == 0) {
          in_cache.erase(latest->second);
          by_time.erase(latest);
        }
      }
      if (n_kept != 0) {
        in_cache[use.block] = {next[r][i], n_kept};
        by_time.emplace(next[r][i], use.block);
      }
    }
  }
  result.hits = static_cast<std::uint64_t>(hits + 0.5);
  return result;
}

}  // namespace wavekv_bench
