// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <wavekv/wavekv.hpp>

#include "full_attention.hpp"
#include "wave_attention.hpp"

/// @file rule_cache.hpp
/// @brief A cache of one index, and the rules that answer from it.

namespace wavekv_bench {

/// @brief A cache of one index without its type. Its sequences are transformer::full_attention.
class rule_cache {
 public:
  using attention = transformer::full_attention;

  rule_cache() = default;
  rule_cache(const rule_cache&) = delete;
  rule_cache& operator=(const rule_cache&) = delete;
  rule_cache(rule_cache&&) = delete;
  rule_cache& operator=(rule_cache&&) = delete;
  virtual ~rule_cache() = default;

  /// @brief Names of the rules, in the order of their numbers.
  [[nodiscard]] virtual std::vector<std::string> rules() const = 0;
  /// @brief An empty sequence, answered by a rule.
  [[nodiscard]] virtual std::unique_ptr<attention> start(std::size_t rule) = 0;
  /// @brief A fork of a sequence of this cache, answered by a rule as it is for a context of n_tokens.
  [[nodiscard]] virtual std::unique_ptr<attention> fork(const attention& from, std::size_t rule,
                                                        std::size_t n_tokens) = 0;
  /// @brief What the decode steps of a sequence of this cache did.
  [[nodiscard]] virtual const wavekv::step_stats& steps(const attention& of) const = 0;
};

/// @brief A rule of an index.
template <class AnyBound>
struct bound_rule {
  std::string name;
  std::function<AnyBound(std::size_t n_tokens)> bound;  ///< for a context of so many tokens
};

/// @brief The rule_cache of a wavekv::kv_cache.
/// @tparam Cache     a wavekv::kv_cache
/// @tparam AnyBound  a std::variant of the bounds of its rules
template <class Cache, class AnyBound>
class index_rules final : public rule_cache {
 public:
  using options_type = typename Cache::options_type;

  index_rules(wavekv::geometry sizes, std::vector<bound_rule<AnyBound>> rules,
              options_type options = {})
      : cache_(std::move(sizes), std::move(options)), rules_(std::move(rules)) {}

  [[nodiscard]] std::vector<std::string> rules() const override {
    std::vector<std::string> names;
    for (const auto& rule : rules_) names.push_back(rule.name);
    return names;
  }
  [[nodiscard]] std::unique_ptr<attention> start(std::size_t rule) override {
    return std::make_unique<typed_attention>(cache_, rules_.at(rule).bound(0));
  }
  [[nodiscard]] std::unique_ptr<attention> fork(const attention& from, std::size_t rule,
                                                std::size_t n_tokens) override {
    return std::make_unique<typed_attention>(static_cast<const typed_attention&>(from),
                                             rules_.at(rule).bound(n_tokens));
  }
  [[nodiscard]] const wavekv::step_stats& steps(const attention& of) const override {
    return static_cast<const typed_attention&>(of).record().total;
  }

 private:
  using typed_attention = transformer::wave_attention<Cache, AnyBound>;

  Cache cache_;
  std::vector<bound_rule<AnyBound>> rules_;
};

/// @brief A rule, and where it is.
struct rule_place {
  std::string name;
  std::size_t cache = 0;  ///< number of its cache
  std::size_t rule = 0;   ///< its number there
};

/// @brief The rules that are compared, each with its cache.
struct rule_set {
  std::vector<std::unique_ptr<rule_cache>> caches;
  std::vector<rule_place> rules;  ///< in the order in which they are asked
};

/// @brief A rule_set of caches whose rules are asked as they come.
inline rule_set rules_of(std::vector<std::unique_ptr<rule_cache>> caches) {
  rule_set set;
  set.caches = std::move(caches);
  for (std::size_t i = 0; i < set.caches.size(); ++i) {
    const auto names = set.caches[i]->rules();
    for (std::size_t j = 0; j < names.size(); ++j) set.rules.push_back({names[j], i, j});
  }
  return set;
}

}  // namespace wavekv_bench
