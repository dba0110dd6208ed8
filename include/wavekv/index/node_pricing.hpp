// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <wavekv/attention/node_formulas.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/frontier.hpp>

/// @file node_pricing.hpp
/// @brief What a node of the tree weighs for a query, how far its estimate may err, and how near its tokens may come.
///
/// Over arrays, in vector arithmetic; a test holds it to the formulas of node_formulas.hpp.

namespace wavekv {

/// @brief One query head's side of a frontier.
struct head_prices {
  const float* logits = nullptr;  ///< [n_nodes] of the estimates
  float variance = 0.0F;          ///< of a logit, per unit of dispersion
  float log_normalizer = 0.0F;    ///< of the head's softmax
  float relative = 1.0F;          ///< length of a value's deviation beside the output's
  float* share = nullptr;         ///< [n_nodes] written: the node's part of the softmax
  float* error = nullptr;         ///< [n_nodes] written: relative · share · expected_error
  float* nearness = nullptr;      ///< [n_nodes] written: expected_largest_logit
};

/// @brief Prices all nodes for one query head.
/// Complexity: O(n_nodes), two exponentials, a logarithm and two roots a node. Allocates: nothing.
/// @param sizes        [n_nodes] tokens under each node
/// @param dispersions  [n_nodes]
inline void price_nodes(const float* sizes, const float* dispersions, std::size_t n_nodes,
                        float softcap, const head_prices& head) noexcept {
  namespace hn = simd::detail::hn;
  constexpr simd::detail::float_tag d{};
  constexpr std::size_t lanes = simd::detail::lanes;
  const auto half = hn::Set(d, 0.5F);
  const auto along = hn::Set(d, head.variance);
  const auto limit = hn::Set(d, softcap > 0.0F ? std::min(max_expected_variance, softcap * softcap)
                                               : max_expected_variance);
  const auto followed = hn::Set(d, max_logit_variance);
  const auto normalizer = hn::Set(d, head.log_normalizer);
  const auto relative = hn::Set(d, head.relative);
  const auto price = [&](auto size, auto dispersion, auto logit, const auto& store) HWY_ATTR {
    size = hn::Max(size, hn::Set(d, 1.0F));  // of what lies past the end, too
    const auto variance = hn::Min(hn::Mul(along, dispersion), limit);
    const auto share = hn::Mul(size, simd::detail::exp(hn::Sub(logit, normalizer)));
    // e^v - 1 = x·(x + 2) with x = e^(v/2) - 1
    const auto x = simd::detail::expm1(hn::Mul(half, variance));
    const auto scatter = hn::Div(hn::Mul(x, hn::Add(x, hn::Set(d, 2.0F))), size);
    const auto bias = hn::Mul(half, x);
    const auto error = hn::Mul(hn::Mul(relative, share), hn::Sqrt(hn::MulAdd(bias, bias, scatter)));
    const auto mean = hn::NegMulAdd(half, hn::Min(variance, followed), logit);
    const auto reach = hn::Sqrt(hn::Mul(hn::Add(variance, variance), simd::detail::log(size)));
    store(share, error, hn::Add(mean, reach));
  };
  std::size_t i = 0;
  for (; i + lanes <= n_nodes; i += lanes) {
    price(hn::LoadU(d, sizes + i), hn::LoadU(d, dispersions + i), hn::LoadU(d, head.logits + i),
          [&](auto share, auto error, auto nearness) HWY_ATTR {
            hn::StoreU(share, d, head.share + i);
            hn::StoreU(error, d, head.error + i);
            hn::StoreU(nearness, d, head.nearness + i);
          });
  }
  if (i < n_nodes) {
    const std::size_t n = n_nodes - i;
    price(simd::detail::load_first(sizes + i, n), simd::detail::load_first(dispersions + i, n),
          simd::detail::load_first(head.logits + i, n),
          [&](auto share, auto error, auto nearness) HWY_ATTR {
            simd::detail::store_first(share, head.share + i, n);
            simd::detail::store_first(error, head.error + i, n);
            simd::detail::store_first(nearness, head.nearness + i, n);
          });
  }
}

/// @brief What one query head's nodes leave in the estimation zone and in the dropped zone.
struct settled_nodes {
  float squared_error = 0.0F;          ///< sum of error² over the estimated
  float typical_squared_error = 0.0F;  ///< sum of typical_square over the estimated
  float followed_dispersion = 0.0F;    ///< sum of share · min(dispersion, limit) over the estimated
  float dropped_share = 0.0F;          ///< sum of share over the dropped
};

/// @brief Sums up a head's prices by zone.
/// Complexity: O(n_nodes). Allocates: nothing.
/// @param zones             [n_nodes]
/// @param dispersions       [n_nodes]
/// @param most_dispersion   what of a dispersion an estimate follows at most: see query_leaning
/// @param relative          as the errors were priced by
inline settled_nodes settle_nodes(const zone* zones, const float* dispersions, std::size_t n_nodes,
                                  const float* share, const float* error, float most_dispersion,
                                  float relative) noexcept {
  namespace hn = simd::detail::hn;
  constexpr simd::detail::float_tag d{};
  constexpr hn::Rebind<std::uint8_t, simd::detail::float_tag> bytes{};
  constexpr hn::RebindToUnsigned<simd::detail::float_tag> words{};
  constexpr std::size_t lanes = simd::detail::lanes;
  const auto* codes = reinterpret_cast<const std::uint8_t*>(zones);
  const auto estimated = hn::Set(words, static_cast<std::uint32_t>(zone::estimation));
  const auto dropped = hn::Set(words, static_cast<std::uint32_t>(zone::dropped));
  const auto most = hn::Set(d, most_dispersion);
  const auto length = hn::Set(d, relative);
  const auto least = hn::Set(d, least_square);
  auto squares = hn::Zero(d);
  auto typical = hn::Zero(d);
  auto followed = hn::Zero(d);
  auto lost = hn::Zero(d);
  std::size_t i = 0;
  for (; i + lanes <= n_nodes; i += lanes) {
    const auto code = hn::PromoteTo(words, hn::LoadU(bytes, codes + i));
    const auto stays = hn::RebindMask(d, hn::Eq(code, estimated));
    const auto shares = hn::LoadU(d, share + i);
    const auto errors = hn::IfThenElseZero(stays, hn::LoadU(d, error + i));
    const auto square = hn::Mul(errors, errors);
    const auto weight = hn::Mul(length, shares);
    const auto most_square = hn::Mul(weight, weight);
    squares = hn::Add(square, squares);
    typical = hn::MulAdd(square, hn::Div(most_square, hn::Add(hn::Add(square, most_square), least)),
                         typical);
    followed = hn::MulAdd(hn::IfThenElseZero(stays, shares),
                          hn::Min(hn::LoadU(d, dispersions + i), most), followed);
    lost = hn::Add(lost, hn::IfThenElseZero(hn::RebindMask(d, hn::Eq(code, dropped)), shares));
  }
  settled_nodes sums{simd::detail::sum(squares), simd::detail::sum(typical),
                     simd::detail::sum(followed), simd::detail::sum(lost)};
  for (; i < n_nodes; ++i) {
    if (zones[i] == zone::estimation) {
      sums.squared_error += error[i] * error[i];
      sums.typical_squared_error += typical_square(error[i], relative * share[i]);
      sums.followed_dispersion += share[i] * std::min(dispersions[i], most_dispersion);
    } else if (zones[i] == zone::dropped) {
      sums.dropped_share += share[i];
    }
  }
  return sums;
}

}  // namespace wavekv
