// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <wavekv/attention/query_rows.hpp>
#include <wavekv/baselines/top_k.hpp>
#include <wavekv/cpu/simd.hpp>
#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/consecutive.hpp>
#include <wavekv/index/detail/lloyd.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/summary.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/wave_index.hpp>

/// @file product_quantised.hpp
/// @brief PQCache: tokens ranked by product-quantised keys.

namespace wavekv::baselines {

/// @brief Keeps each cluster's mean key as one code a part of its elements, codebooks by k-means; scores by the logit of what the codes
/// stand for. Models cluster_summary; of clusters of one token, as the paper's.
///
/// The codebooks are the segment's own. Memory: Parts bytes a cluster, and Parts · 2^Bits · key_dim / Parts floats.
/// @tparam Parts  of a key, as even as can be; 1 or more, at most key_dim of them are used
/// @tparam Bits   of a code, 1 to 8
/// Source: PQCache, arXiv 2407.12820, sections 3.2 and 4.1 (two parts of six bits).
template <std::size_t Parts = 2, std::size_t Bits = 6>
struct product_quantised {
  static_assert(Parts >= 1, "product_quantised: Parts must be at least 1");
  static_assert(Bits >= 1 && Bits <= 8, "product_quantised: Bits must be 1 to 8");
  static constexpr std::size_t n_codes = std::size_t{1} << Bits;

  struct kept {
    std::vector<std::uint8_t> codes;  ///< [n_parts, n_clusters]
    std::vector<float> codebook;      ///< [n_codes, elements] of each part in turn
    std::vector<std::size_t> first;   ///< [n_parts + 1] element of a key
    std::size_t n_clusters = 0;

    [[nodiscard]] std::size_t bytes() const noexcept {
      return codes.size() + codebook.size() * sizeof(float) + first.size() * sizeof(std::size_t);
    }
  };

  /// Complexity: O(n_clusters · 2^Bits · key_dim), ten times.  @throw std::bad_alloc
  [[nodiscard]] kept keep(const cluster_rows& clusters) const {
    const std::size_t dim = clusters.key_dim;
    const std::size_t n = clusters.n_clusters();
    const std::size_t n_parts = std::min(Parts, dim);
    kept made;
    made.n_clusters = n;
    made.codes.resize(n_parts * n);
    for (std::size_t part = 0; part <= n_parts; ++part) {
      made.first.push_back(part * dim / n_parts);
    }
    const std::vector<float> means = clusters.mean_keys();
    std::vector<float> points(n * dim);  // one part's elements, packed
    clustering_scratch scratch;
    std::vector<std::uint32_t> assignment(n);
    for (std::size_t part = 0; part < n_parts; ++part) {
      const std::size_t width = made.first[part + 1] - made.first[part];
      for (std::size_t i = 0; i < n; ++i) {
        std::copy_n(means.data() + i * dim + made.first[part], width, points.data() + i * width);
      }
      std::size_t n_used = detail::trivial_clustering(n, n_codes, assignment);
      if (n_used == 0) {
        detail::lloyd<detail::lloyd_kind::euclidean> run(
            points.data(), n, width, n_codes, assignment, detail::seeding::half_far_apart, scratch);
        n_used = run.run(n_iterations);
      }
      add_codebook(points, width, assignment, n_used, made.codebook);
      std::ranges::copy(assignment, made.codes.begin() + static_cast<std::ptrdiff_t>(part * n));
    }
    return made;
  }

  /// Complexity: O((clusters · parts + 2^Bits · key_dim) · group size).
  std::size_t score(const kept& of, const query_rows& queries, float* scores,
                    std::size_t stride) const {
    const std::size_t n_parts = of.first.size() - 1;
    for (std::size_t g = 0; g < queries.n; ++g) {
      float* const row = scores + g * stride;
      const float* book = of.codebook.data();
      for (std::size_t part = 0; part < n_parts; ++part) {
        const std::size_t width = of.first[part + 1] - of.first[part];
        float products[n_codes];
        simd::score_rows(queries.data + g * queries.stride + of.first[part], 1, queries.stride,
                         book, n_codes, width, products, n_codes);
        const std::uint8_t* const codes = of.codes.data() + part * of.n_clusters;
        if (part == 0) {
          for (std::size_t i = 0; i < of.n_clusters; ++i) row[i] = products[codes[i]];
        } else {
          for (std::size_t i = 0; i < of.n_clusters; ++i) row[i] += products[codes[i]];
        }
        book += n_codes * width;
      }
    }
    return of.codes.size() + of.codebook.size() * sizeof(float);
  }

 private:
  static constexpr int n_iterations = 10;

  // A part's codebook, behind the others: the mean of each code's points; zero for codes that none has.
  static void add_codebook(const std::vector<float>& points, std::size_t width,
                           std::span<const std::uint32_t> assignment, std::size_t n_used,
                           std::vector<float>& to) {
    std::vector<double> sums(n_used * width, 0.0);
    std::vector<std::size_t> counts(n_used, 0);
    for (std::size_t i = 0; i < assignment.size(); ++i) {
      ++counts[assignment[i]];
      for (std::size_t j = 0; j < width; ++j) {
        sums[assignment[i] * width + j] += static_cast<double>(points[i * width + j]);
      }
    }
    const std::size_t begin = to.size();
    to.resize(begin + n_codes * width, 0.0F);
    for (std::size_t code = 0; code < n_used; ++code) {
      for (std::size_t j = 0; j < width; ++j) {
        to[begin + code * width + j] =
            static_cast<float>(sums[code * width + j] / static_cast<double>(counts[code]));
      }
    }
  }
};

/// @brief Every token ranked by two codes of six bits, 2,048 of them read.
using product_quantised_index =
    wave_index<segment_size<>, tokens_per_cluster<1>, consecutive, top_k, product_quantised<>>;

}  // namespace wavekv::baselines
