// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cache/kv_cache.hpp>
#include <wavekv/index/consecutive.hpp>

#include "support/model.hpp"

/// @file plain_rule.hpp
/// @brief A selection rule without an engine: the scores of all pages, a choice among them, attention over what was chosen, in
/// double.

namespace wavekv_test {

/// @brief One layer's prompt in a cache of some rule, and in plain vectors. Two segments are sealed, the rest waits.
/// @tparam Index  an index of pages: its clusterer is consecutive
template <class Index>
class plain_rule {
 public:
  using index_type = typename Index::template with_segment_size<wavekv::segment_size<256, 64>>;
  using cache_type = wavekv::kv_cache<float, index_type>;
  using summary_type = typename Index::summary_type;
  static_assert(std::is_same_v<typename Index::clusterer_type, wavekv::consecutive>);

  static constexpr std::size_t n_tokens = 700;
  static constexpr std::size_t segment_tokens = 256;
  static constexpr std::size_t n_segments = 2;
  static constexpr std::size_t any_bytes = SIZE_MAX;  ///< of a rule whose bytes depend on the query

  plain_rule(random_engine& random, std::size_t group_size, float softcap = 0.0F)
      : sizes_(geometry_of(group_size, softcap)),
        keys_(
            make_keys(random, key_family::clustered, n_tokens, sizes_.n_kv_heads, sizes_.key_dim)),
        values_(normal_rows(random, n_tokens * sizes_.n_kv_heads * sizes_.value_dim)),
        queries_(normal_rows(random, sizes_.n_query_heads * sizes_.key_dim, 1.5F)),
        cache_(sizes_),
        sequence_(cache_.create()) {
    append_rows(cache_, sequence_, 0, keys_, values_);
    REQUIRE(cache_.stats(sequence_).segments == n_segments);
    scores_.resize(sizes_.n_query_heads);
    for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) score(head);
    const std::size_t per_page = (sizes_.key_dim + sizes_.value_dim + 3) * sizeof(float);
    const std::size_t per_segment = sizeof(float) + segment_tokens * sizeof(std::uint16_t);
    CHECK(cache_.stats(sequence_).index_bytes ==
          sizes_.n_kv_heads * (n_pages() * per_page + n_segments * per_segment) + kept_bytes_);
  }

  /// @brief New queries of a KV head, to be asked next.
  void ask_anew(random_engine& random, std::size_t head) {
    const std::vector<float> drawn =
        normal_rows(random, sizes_.group_size() * sizes_.key_dim, 1.5F);
    std::ranges::copy(drawn, queries_.begin() + static_cast<std::ptrdiff_t>(head * drawn.size()));
    score(head);
  }

  [[nodiscard]] wavekv::sequence_id sequence() const { return sequence_; }
  [[nodiscard]] const wavekv::geometry& sizes() const { return sizes_; }
  [[nodiscard]] std::size_t n_pages() const { return pages_.size(); }
  [[nodiscard]] std::size_t page_tokens(std::size_t page) const { return pages_[page].n; }
  /// @brief A page's score for a query head.
  [[nodiscard]] float score(std::size_t query_head, std::size_t page) const {
    return scores_[query_head][page];
  }
  /// @brief Tokens beside the index: sink, window, and what waits.
  [[nodiscard]] std::size_t n_steady() const { return n_tokens - n_segments * segment_tokens; }

  /// @brief The part of a query head's mass that lies on each page by its score, beside the true mass of the steady tokens.
  [[nodiscard]] std::vector<double> shares(std::size_t query_head) const {
    std::vector<double> masses;
    double all = 0.0;
    for (std::size_t t = 0; t < n_tokens; ++t) {
      if (page_of(t) == none) all += std::exp(logit(query_head, t));
    }
    for (std::size_t page = 0; page < n_pages(); ++page) {
      masses.push_back(static_cast<double>(page_tokens(page)) *
                       std::exp(static_cast<double>(capped(score(query_head, page)))));
      all += masses.back();
    }
    for (double& mass : masses) mass /= all;
    return masses;
  }

  /// @brief Holds the cache's answer to attention over the steady tokens and what choose(KV head) lists; checks the books.
  /// @param score_bytes  read of the index for one KV head
  template <class Bound, class Choose>
  void check(const Bound& bound, std::size_t score_bytes, const Choose& choose) {
    const auto [found, stats] = attend_counted(cache_, sequence_, 0, queries_, bound);
    std::size_t n_read = 0;
    for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
      const std::vector<std::size_t> chosen = choose(head);
      std::vector<bool> is_read(n_pages(), false);
      for (const std::size_t page : chosen) is_read[page] = true;
      for (std::size_t page = 0; page < n_pages(); ++page)
        n_read += is_read[page] ? page_tokens(page) : 0;
      n_read += n_steady();
      for (std::size_t g = 0; g < sizes_.group_size(); ++g) {
        const std::size_t query_head = head * sizes_.group_size() + g;
        check_head(found, query_head, [&](std::size_t token, std::size_t page) {
          return page == none || is_read[page] ? std::exp(logit(query_head, token)) : 0.0;
        });
      }
    }
    CHECK(stats.tokens_read == n_read);
    const std::size_t row = (sizes_.key_dim + sizes_.value_dim) * sizeof(float);
    if (score_bytes != any_bytes) {
      CHECK(stats.bytes_read == n_read * row + sizes_.n_kv_heads * score_bytes);
    }
    CHECK(stats.clusters_estimated == 0);
  }

  /// @brief Holds the cache's answer to a sum over the steady tokens, by their logits, and the pages of one token that have a score, by
  /// that.
  template <class Bound>
  void check_weighted(const Bound& bound) {
    const auto [found, stats] = attend_counted(cache_, sequence_, 0, queries_, bound);
    std::size_t n_estimated = 0;
    for (std::size_t page = 0; page < n_pages(); ++page) {
      for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
        bool is_found = false;
        for (std::size_t g = 0; g < sizes_.group_size(); ++g) {
          is_found = is_found || std::isfinite(score(head * sizes_.group_size() + g, page));
        }
        n_estimated += is_found ? 1 : 0;
      }
    }
    for (std::size_t query_head = 0; query_head < sizes_.n_query_heads; ++query_head) {
      check_head(found, query_head, [&](std::size_t token, std::size_t page) {
        return std::exp(page == none ? logit(query_head, token)
                                     : static_cast<double>(score(query_head, page)));
      });
    }
    CHECK(stats.clusters_estimated == n_estimated);
    CHECK(stats.tokens_read == sizes_.n_kv_heads * n_steady());
  }

 private:
  static constexpr std::size_t none = SIZE_MAX;
  struct token_page {
    std::size_t first = 0;  // token
    std::size_t n = 0;
  };

  static wavekv::geometry geometry_of(std::size_t group_size, float softcap) {
    wavekv::geometry sizes;
    sizes.n_layers = 1;
    sizes.n_kv_heads = 2;
    sizes.n_query_heads = 2 * group_size;
    sizes.key_dim = 32;
    sizes.value_dim = 16;
    sizes.logit_softcap = softcap;
    return sizes;
  }

  [[nodiscard]] float capped(float logit) const {
    const float cap = sizes_.logit_softcap;
    return cap > 0.0F ? cap * std::tanh(logit / cap) : logit;
  }

  [[nodiscard]] double logit(std::size_t query_head, std::size_t token) const {
    const std::size_t head = query_head / sizes_.group_size();
    double sum = 0.0;
    for (std::size_t i = 0; i < sizes_.key_dim; ++i) {
      sum += static_cast<double>(queries_[query_head * sizes_.key_dim + i]) *
             static_cast<double>(keys_[(token * sizes_.n_kv_heads + head) * sizes_.key_dim + i]);
    }
    sum *= static_cast<double>(sizes_.logit_scale());
    const auto cap = static_cast<double>(sizes_.logit_softcap);
    return cap > 0.0 ? cap * std::tanh(sum / cap) : sum;
  }

  [[nodiscard]] std::size_t page_of(std::size_t token) const {
    for (std::size_t p = 0; p < pages_.size(); ++p) {
      if (token >= pages_[p].first && token < pages_[p].first + pages_[p].n) return p;
    }
    return none;
  }

  // Pages of both segments and their scores for the head's queries.
  void score(std::size_t head) {
    constexpr std::size_t per_page = Index::cluster_count_type::tokens_at(0);
    constexpr std::size_t n_each = (segment_tokens + per_page - 1) / per_page;
    const std::size_t group = sizes_.group_size();
    std::vector<float> queries(
        queries_.begin() + static_cast<std::ptrdiff_t>(head * group * sizes_.key_dim),
        queries_.begin() + static_cast<std::ptrdiff_t>((head + 1) * group * sizes_.key_dim));
    for (float& x : queries) x *= sizes_.logit_scale();
    for (std::size_t g = 0; g < group; ++g) scores_[head * group + g].clear();
    pages_.clear();
    for (std::size_t s = 0; s < n_segments; ++s) {
      const std::size_t first = 4 + s * segment_tokens;  // behind the sink
      std::vector<float> keys;
      std::vector<float> values;
      std::vector<std::uint32_t> first_token(n_each + 1, 0);
      for (std::size_t t = 0; t < segment_tokens; ++t) {
        const std::size_t row = (first + t) * sizes_.n_kv_heads + head;
        keys.insert(keys.end(), keys_.begin() + static_cast<std::ptrdiff_t>(row * sizes_.key_dim),
                    keys_.begin() + static_cast<std::ptrdiff_t>((row + 1) * sizes_.key_dim));
        values.insert(values.end(),
                      values_.begin() + static_cast<std::ptrdiff_t>(row * sizes_.value_dim),
                      values_.begin() + static_cast<std::ptrdiff_t>((row + 1) * sizes_.value_dim));
        ++first_token[t * n_each / segment_tokens + 1];
      }
      std::partial_sum(first_token.begin(), first_token.end(), first_token.begin());
      for (std::size_t p = 0; p < n_each; ++p) {
        pages_.push_back(
            {first + first_token[p], std::size_t{first_token[p + 1]} - first_token[p]});
      }
      wavekv::cluster_rows rows;
      rows.keys = keys.data();
      rows.values = values.data();
      rows.key_dim = sizes_.key_dim;
      rows.value_dim = sizes_.value_dim;
      rows.first_token = first_token;
      std::vector<float> found(group * n_each);
      const summary_type summary;
      const typename summary_type::kept kept = summary.keep(rows);
      kept_bytes_ += wavekv::detail::kept_bytes(kept);
      summary.score(kept, {queries.data(), group, sizes_.key_dim, sizes_.key_dim}, found.data(),
                    n_each);
      for (std::size_t g = 0; g < group; ++g) {
        auto& to = scores_[head * group + g];
        to.insert(to.end(), found.begin() + static_cast<std::ptrdiff_t>(g * n_each),
                  found.begin() + static_cast<std::ptrdiff_t>((g + 1) * n_each));
      }
    }
  }

  // weight(token, page): what a token counts in the softmax, not normalised.
  template <class Weight>
  void check_head(const outputs& found, std::size_t query_head, const Weight& weight_of) const {
    std::vector<double> numerator(sizes_.value_dim, 0.0);
    double denominator = 0.0;
    const std::size_t head = query_head / sizes_.group_size();
    for (std::size_t t = 0; t < n_tokens; ++t) {
      const double weight = weight_of(t, page_of(t));
      denominator += weight;
      for (std::size_t i = 0; i < sizes_.value_dim; ++i) {
        numerator[i] +=
            weight *
            static_cast<double>(values_[(t * sizes_.n_kv_heads + head) * sizes_.value_dim + i]);
      }
    }
    INFO("query head ", query_head);
    // Float rows, some 700 products of 32: a few hundred roundings of 2^-24 of logits up to 10.
    for (std::size_t i = 0; i < sizes_.value_dim; ++i) {
      CHECK(static_cast<double>(found.out[query_head * sizes_.value_dim + i]) ==
            doctest::Approx(numerator[i] / denominator).epsilon(1e-4).scale(1.0));
    }
    CHECK(static_cast<double>(found.lse[query_head]) ==
          doctest::Approx(std::log(denominator)).epsilon(1e-5));
  }

  wavekv::geometry sizes_;
  std::vector<float> keys_;
  std::vector<float> values_;
  std::vector<float> queries_;  // [n_query_heads, key_dim]
  cache_type cache_;
  wavekv::sequence_id sequence_;
  std::vector<token_page> pages_;
  std::size_t kept_bytes_ = 0;              // by the summary, of all that was scored
  std::vector<std::vector<float>> scores_;  // [n_query_heads][n_pages]
};

/// @brief What top_k reads: heads name their best pages in turn, strides of what is left over the heads.
template <class Index>
std::vector<std::size_t> choose_top_k(const plain_rule<Index>& rule, std::size_t kv_head,
                                      std::size_t n_tokens) {
  const std::size_t group = rule.sizes().group_size();
  const double mean_size = 512.0 / static_cast<double>(rule.n_pages());
  auto left = static_cast<double>(n_tokens);
  std::vector<bool> is_read(rule.n_pages(), false);
  std::vector<std::size_t> chosen;
  for (std::size_t n_each = 0; left > 0.0 && n_each < rule.n_pages();) {
    n_each += std::max({static_cast<std::size_t>(left / (mean_size * static_cast<double>(group))),
                        n_each / 16, std::size_t{1}});
    for (std::size_t g = 0; g < group; ++g) {
      const auto score = [&](std::size_t page) { return rule.score(kv_head * group + g, page); };
      std::vector<std::size_t> best(rule.n_pages());
      std::iota(best.begin(), best.end(), std::size_t{0});
      std::ranges::sort(best, [&](std::size_t a, std::size_t b) {
        return score(a) > score(b) || (score(a) == score(b) && a < b);
      });
      best.resize(std::min(n_each, best.size()));
      std::ranges::sort(best);
      for (const std::size_t page : best) {
        if (score(page) > -std::numeric_limits<float>::infinity() && !is_read[page] && left > 0.0) {
          is_read[page] = true;
          chosen.push_back(page);
          left -= static_cast<double>(rule.page_tokens(page));
        }
      }
    }
  }
  return chosen;
}

}  // namespace wavekv_test
