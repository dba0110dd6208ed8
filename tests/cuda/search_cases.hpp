// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "cuda/twin_layers.hpp"

/// @file search_cases.hpp
/// @brief Random layers and queries for tests of searches on the device.

namespace wavekv_test {

/// @brief One search test: what is attended, and how the device runs.
struct search_case {
  wavekv::geometry sizes;
  layer_contents what;
  std::size_t n_levels = 1;
  std::size_t most_queries = 1;
  wavekv::testing::schedule order{};
  device_options options;
  std::uint64_t seed = 0;

  /// @brief What to say when a check fails.
  [[nodiscard]] std::string text() const {
    return std::to_string(sizes.n_query_heads) + " heads over " + std::to_string(sizes.n_kv_heads) +
           ", dims " + std::to_string(sizes.key_dim) + "/" + std::to_string(sizes.value_dim) +
           ", softcap " + std::to_string(sizes.logit_softcap) + ", " +
           std::to_string(what.n_tokens) + " tokens" +
           (what.all_in_sink ? ", all in the sink" : "") + ", " +
           std::string(name_of(what.family)) + ", levels " + std::to_string(n_levels) +
           ", splits " + std::to_string(options.n_splits) + ", order " +
           std::to_string(static_cast<int>(order)) + ", seed " + std::to_string(seed);
  }
};

/// @brief A random case. The i-th has the i-th dims, lengths and schedule of a list, by turns, and the rest at random.
/// @param families  to choose from
inline search_case random_case(random_engine& random, std::size_t i,
                               std::span<const key_family> families = all_families) {
  constexpr std::size_t dims[][2] = {{64, 64}, {128, 64}, {32, 96}, {72, 40}, {256, 256}};
  constexpr std::size_t groups[] = {1, 3, 4, 8, 12};
  constexpr std::size_t lengths[] = {700, 300, 1100, 3, 520, 0};
  search_case made;
  const auto& dim = dims[i % std::size(dims)];
  made.sizes.n_layers = 1;
  made.sizes.n_kv_heads = 1 + random() % 2;
  // Long heads' queries lie in shared memory: twelve are two tiles that take turns there.
  made.sizes.n_query_heads =
      made.sizes.n_kv_heads * (dim[0] == 256 ? 12 : groups[random() % std::size(groups)]);
  made.sizes.key_dim = dim[0];
  made.sizes.value_dim = dim[1];
  made.sizes.logit_softcap = random() % 3 == 0 ? 5.0F : 0.0F;
  made.what.n_tokens = lengths[i % std::size(lengths)];
  if (made.what.n_tokens > 100) made.what.n_tokens += random() % 64;
  if (dim[0] == 256) made.what.n_tokens = std::min<std::size_t>(made.what.n_tokens, 300);
  made.what.all_in_sink = made.what.n_tokens == 3 && random() % 2 == 0;
  made.what.family = families[random() % families.size()];
  made.n_levels = 1 + (i + random() % 3) % 3;
  made.most_queries = 1 + random() % 3;
  made.order = static_cast<wavekv::testing::schedule>(i % 3);
  made.options.n_splits = 1 + static_cast<unsigned>(random() % 4);
  made.options.seed = random();
  made.options.sequence = static_cast<std::uint32_t>(random() % 100);
  made.seed = random();
  return made;
}

/// @brief What two answers to the same queries may differ by: see rounding.
template <class S>
struct closeness {
  double out = 0.0;  ///< of a row
  double lse = 0.0;

  /// @param more  what an answer's own rounding is larger by
  closeness(const search_case& which, const twin_layers<S>& twins,
            const std::vector<float>& queries, double more = 1.0)
      : out(more * rounding<S>(longest_logit(which.sizes, twins.tokens(), queries)) *
            longest_value(which.sizes, twins.tokens())),
        lse(out == 0.0 ? 0.0 : out / longest_value(which.sizes, twins.tokens())) {}
};

/// @brief Calls visit(twins, queries) with the layer of a case, and queries of it.
template <class S, class Visit>
void with_twins(const search_case& which, Visit&& visit) {
  wavekv::testing::emulation_options options;
  options.order = which.order;
  options.seed = which.seed;
  const auto visit_with = [&](auto counts) {
    twin_layers<S> twins(counts, which.sizes, which.what, which.seed,
                         wavekv::testing::emulated_runtime(options));
    random_engine random(which.seed + 1);
    const std::size_t n = std::min(which.most_queries, twins.most_queries());
    visit(twins, normal_rows(random, n * which.sizes.n_query_heads * which.sizes.key_dim, 1.5F));
  };
  switch (which.n_levels) {
  case 1:
    visit_with(wavekv::tokens_per_cluster<8>{});
    break;
  case 2:
    visit_with(wavekv::tokens_per_cluster<8, 64>{});
    break;
  default:
    visit_with(wavekv::tokens_per_cluster<4, 16, 64>{});
  }
}

}  // namespace wavekv_test
