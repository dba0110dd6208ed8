// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "accuracy/tasks/rule_cache.hpp"
#include "full_attention.hpp"

/// @file side_by_side.hpp
/// @brief A sequence in several caches at once: a prompt is read once for all rules.

namespace wavekv_bench {

/// @brief A sequence of which every cache keeps its own copy and index.
///
/// Full attention of a prompt is the same whatever chooses later, so that the first cache computes it and the others take keys,
/// values and queries along; chunks as even_chunks makes them, so that all seal alike. Rules answer by forks of their part: answered_by. Decoding without one is the first part's.
class side_by_side final : public transformer::full_attention {
 public:
  using attention = transformer::full_attention;

  /// @brief An empty sequence in each of the caches, at least one, which must outlive it.
  explicit side_by_side(std::vector<rule_cache*> caches) : caches_(std::move(caches)) {
    for (rule_cache* cache : caches_) parts_.push_back(cache->start(0));
  }

  void prefill(const transformer::attention_input& in, float* out) override {
    parts_.front()->prefill(in, out);
    for (const auto& part : others()) part->append(in);
  }
  void append(const transformer::attention_input& in) override {
    for (const auto& part : parts_) part->append(in);
  }
  void decode(const transformer::attention_input& in, float* out) override {
    parts_.front()->decode(in, out);
    for (const auto& part : others()) part->append(in);
  }
  void end_prompt() override {
    for (const auto& part : parts_) part->end_prompt();
  }
  [[nodiscard]] std::unique_ptr<attention> fork() const override {
    std::unique_ptr<side_by_side> forked(new side_by_side);
    forked->caches_ = caches_;
    for (const auto& part : parts_) forked->parts_.push_back(part->fork());
    return forked;
  }

  /// @brief A fork of one cache's part, answered by a rule of it as it is for a context of n_tokens.
  [[nodiscard]] std::unique_ptr<attention> answered_by(const rule_cache& cache, std::size_t rule,
                                                       std::size_t n_tokens) const {
    for (std::size_t i = 0; i < caches_.size(); ++i)
      if (caches_[i] == &cache) return caches_[i]->fork(*parts_[i], rule, n_tokens);
    return nullptr;
  }

 private:
  side_by_side() = default;

  [[nodiscard]] std::span<const std::unique_ptr<attention>> others() const {
    return std::span(parts_).subspan(1);
  }

  std::vector<rule_cache*> caches_;
  std::vector<std::unique_ptr<attention>> parts_;  // one a cache
};

}  // namespace wavekv_bench
