// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/index/cluster_request.hpp>
#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/sealer.cuh>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/spherical_kmeans.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/wave_index.hpp>

#include "cuda/emulated_runtime.hpp"
#include "cuda/seal_harness.hpp"
#include "reference/fresh_seed.hpp"
#include "support/rows.hpp"

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::tokens_per_cluster;
using wavekv::testing::emulation_options;
using wavekv::testing::schedule;

namespace {

template <class ClusterCount, class Clusterer = wavekv::query_metric_kmeans<3>>
using index_of = wavekv::wave_index<wavekv::segment_size<8192, 1024>, ClusterCount, Clusterer,
                                    wavekv::error_bound<>>;

// One head's input as the device saw it, and the same in double.
struct head_input {
  std::size_t n = 0;
  std::size_t key_dim = 0;
  std::size_t width = 0;
  std::vector<double> rows;    // [n, width]
  std::vector<double> metric;  // [key_dim, key_dim] normalised; the identity if unknown

  template <class T>
  static head_input of(const seal_input& input, std::size_t item, std::size_t head, T /*scalar*/) {
    head_input made{input.n_tokens, input.shape.key_dim, input.width(), {}, {}};
    made.rows.resize(made.n * made.width);
    std::transform(
        input.row(item, head, 0), input.row(item, head, 0) + made.rows.size(), made.rows.begin(),
        [](float x) { return static_cast<double>(wavekv::to_float(wavekv::from_float<T>(x))); });
    made.metric.assign(made.key_dim * made.key_dim, 0.0);
    for (std::size_t i = 0; i < made.key_dim; ++i) made.metric[i * made.key_dim + i] = 1.0;
    if (!input.metrics.empty()) input.metrics[head].normalized(made.metric);
    return made;
  }
  // xᵀ·M·x / key_dim
  [[nodiscard]] double seen(const std::vector<double>& x) const {
    double sum = 0;
    for (std::size_t i = 0; i < key_dim; ++i) {
      double row = 0;
      for (std::size_t j = 0; j < key_dim; ++j) row += metric[i * key_dim + j] * x[j];
      sum += row * x[i];
    }
    return sum / static_cast<double>(key_dim);
  }
  [[nodiscard]] double largest() const {
    double most = 0;
    for (const double x : rows) most = std::max(most, std::abs(x));
    return most;
  }
};

// A tree of which every link is sound.
template <class T>
void check_structure(const sealed_head<T>& sealed, const head_input& from,
                     std::span<const std::size_t> per_node) {
  std::vector<bool> seen(from.n);
  for (const std::uint16_t token : sealed.order) {
    REQUIRE(token < from.n);
    REQUIRE(!seen[token]);
    seen[token] = true;
  }
  for (std::size_t i = 0; i < from.n; ++i) {
    for (std::size_t j = 0; j < from.width; ++j) {
      REQUIRE(static_cast<double>(wavekv::to_float(sealed.rows[i * from.width + j])) ==
              from.rows[sealed.order[i] * from.width + j]);
    }
  }
  std::size_t n_children = from.n;
  std::vector<double> child_sizes(from.n, 1.0);
  for (std::size_t l = 0; l < sealed.levels.size(); ++l) {
    const sealed_level<T>& level = sealed.levels[l];
    REQUIRE(level.n_nodes >= 1);
    REQUIRE(level.n_nodes <= (from.n + per_node[l] - 1) / per_node[l]);
    REQUIRE(level.first_child.front() == 0);
    REQUIRE(level.first_child.back() == n_children);
    std::vector<double> sizes;
    for (std::size_t i = 0; i < level.n_nodes; ++i) {
      REQUIRE(level.first_child[i] < level.first_child[i + 1]);
      sizes.push_back(std::accumulate(child_sizes.begin() + level.first_child[i],
                                      child_sizes.begin() + level.first_child[i + 1], 0.0));
      REQUIRE(static_cast<double>(level.sizes[i]) == sizes.back());
      // children, and so tokens of a cluster, in the order of their ids: stable
      for (std::uint32_t c = level.first_child[i] + 1; l == 0 && c < level.first_child[i + 1];
           ++c) {
        REQUIRE(sealed.order[c - 1] < sealed.order[c]);
      }
    }
    n_children = level.n_nodes;
    child_sizes = sizes;
  }
}

// Tokens under each node, as tree positions.
template <class T>
std::vector<std::uint32_t> first_tokens(const sealed_head<T>& sealed, std::size_t level) {
  std::vector<std::uint32_t> first = sealed.levels[level].first_child;
  for (std::size_t l = level; l-- > 0;) {
    for (std::uint32_t& i : first) i = sealed.levels[l].first_child[i];
  }
  return first;
}

// What T rounds small numbers by.
template <class T>
double smallest() {
  return std::is_same_v<T, f16> ? 0x1p-24 : std::is_same_v<T, bf16> ? 0x1p-133 : 0x1p-149;
}

// All numbers against their definitions in double.
template <class T>
void check_statistics(const sealed_head<T>& sealed, const head_input& from) {
  const auto eps = static_cast<double>(wavekv::scalar_traits<T>::epsilon);
  const double float_eps = 0x1p-23;
  const double largest = from.largest();
  const std::size_t width = from.width;
  const std::size_t key_dim = from.key_dim;
  std::vector<double> products(key_dim * width, 0.0);  // of the levels so far
  std::vector<double> value_squares(width - key_dim, 0.0);
  std::vector<double> means_below = {};
  std::vector<double> sizes_below(from.n, 1.0);
  for (std::size_t i = 0; i < from.n; ++i) {
    means_below.insert(means_below.end(),
                       from.rows.begin() + static_cast<std::ptrdiff_t>(sealed.order[i] * width),
                       from.rows.begin() +
                           static_cast<std::ptrdiff_t>((sealed.order[i] + std::size_t{1}) * width));
  }
  const std::vector<double> tokens = means_below;
  for (std::size_t l = 0; l < sealed.levels.size(); ++l) {
    const sealed_level<T>& level = sealed.levels[l];
    const std::vector<std::uint32_t> first = first_tokens(sealed, l);
    std::vector<double> means(level.n_nodes * width, 0.0);
    const double summed_eps =
        l == 0 ? 1e-14 : static_cast<double>(l) * float_eps;  // what is averaged are floats
    double weight = 0.0;
    double rounding_sum = 0.0;
    for (std::size_t node = 0; node < level.n_nodes; ++node) {
      double* mean = means.data() + node * width;
      const double size = first[node + 1] - first[node];
      for (std::uint32_t t = first[node]; t < first[node + 1]; ++t) {
        for (std::size_t j = 0; j < width; ++j) mean[j] += tokens[t * width + j] / size;
      }
      std::vector<double> deviation(key_dim);
      double dispersion = 0.0;
      for (std::uint32_t t = first[node]; t < first[node + 1]; ++t) {
        for (std::size_t j = 0; j < key_dim; ++j) deviation[j] = tokens[t * width + j] - mean[j];
        dispersion += from.seen(deviation) / size;
      }
      double off = 0.0;
      for (std::size_t j = 0; j < width; ++j) {
        const auto stored = static_cast<double>(wavekv::to_float(level.rows[node * width + j]));
        double magnitude = 0.0;  // that of what was added up, on any level
        for (std::uint32_t t = first[node]; t < first[node + 1]; ++t) {
          magnitude += std::abs(tokens[t * width + j]) / size;
        }
        const double bound = (0.5 * eps + 2.0 * float_eps) * std::abs(mean[j]) +
                             summed_eps * magnitude + smallest<T>();
        off = std::max(off, std::abs(stored - mean[j]) / bound);
        if (j < key_dim) {
          // what rounds is the mean as a float
          deviation[j] = stored - static_cast<double>(static_cast<float>(mean[j]));
        }
      }
      CHECK(off <= 1.0);
      const double rounding = from.seen(deviation);
      const double noise =
          4.0 * float_eps * largest + 1e-22;  // a mean, as a float; what squares in float leave
      const double root = std::sqrt(dispersion + rounding);
      const double bound = 2e-4 * root + noise;
      CHECK(std::abs(std::sqrt(static_cast<double>(level.dispersions[node])) - root) <= bound);
      weight += size * static_cast<double>(level.dispersions[node]);
      rounding_sum += size * rounding;
      for (std::uint32_t c = level.first_child[node]; c < level.first_child[node + 1]; ++c) {
        for (std::size_t j = key_dim; j < width; ++j) {
          value_squares[j - key_dim] +=
              sizes_below[c] * std::pow(means_below[c * width + j] - mean[j], 2);
        }
        for (std::size_t i = 0; i < key_dim; ++i) {
          const double left = sizes_below[c] * (means_below[c * width + i] - mean[i]);
          for (std::size_t j = 0; j < width; ++j) {
            products[i * width + j] += left * (means_below[c * width + j] - mean[j]);
          }
        }
      }
    }
    if (weight > 1e-30) {
      CHECK(static_cast<double>(level.weight) == doctest::Approx(weight).epsilon(1e-5));
      double off = 0.0;
      for (std::size_t i = 0; i < key_dim; ++i) {
        for (std::size_t j = 0; j < width; ++j) {
          const double expected = products[i * width + j] + (i == j ? rounding_sum : 0.0);
          // By Cauchy-Schwarz no sum of products is larger than the root of its squares'. Deviations are good to some
          // sixteen bits, and to what a mean is rounded by.
          const double left = std::sqrt(products[i * width + i]);
          const double right =
              std::sqrt(j < key_dim ? products[j * width + j] : value_squares[j - key_dim]);
          const double noise = 4.0 * float_eps * largest * std::sqrt(static_cast<double>(from.n));
          double bound = 1e-4 * left * right + noise * (left + right) + noise * noise;
          if (i == j) {
            bound +=
                1e-3 * rounding_sum + noise * std::sqrt(rounding_sum) + 2.0 * float_eps * weight;
          }
          off = std::max(
              off, std::abs(static_cast<double>(level.products[i * width + j]) - expected) / bound);
        }
      }
      CHECK(off <= 1.0);
    } else {
      CHECK(level.weight == 0.0F);
      CHECK(std::ranges::all_of(level.products, [](float x) { return x == 0.0F; }));
    }
    means_below = means;
    sizes_below.assign(level.sizes.begin(), level.sizes.end());
  }
  double spread = 0.0;
  for (std::size_t j = key_dim; j < width; ++j) {
    double mean = 0.0;
    for (std::size_t t = 0; t < from.n; ++t)
      mean += from.rows[t * width + j] / static_cast<double>(from.n);
    for (std::size_t t = 0; t < from.n; ++t) {
      spread += std::pow(from.rows[t * width + j] - mean, 2) / static_cast<double>(from.n);
    }
  }
  CHECK(std::abs(static_cast<double>(sealed.value_spread) - std::sqrt(spread)) <=
        1e-4 * std::sqrt(spread) +
            4.0 * float_eps * largest * std::sqrt(static_cast<double>(width)));
}

// The cluster of each token.
template <class T>
std::vector<std::uint32_t> clusters_of(const sealed_head<T>& sealed, std::size_t n) {
  std::vector<std::uint32_t> clusters(n);
  const auto& first = sealed.levels[0].first_child;
  for (std::uint32_t c = 0; c + 1 < first.size(); ++c) {
    for (std::uint32_t i = first[c]; i < first[c + 1]; ++i) clusters[sealed.order[i]] = c;
  }
  return clusters;
}

template <class Clusterer, class T>
std::vector<std::uint32_t> cpu_clusters(const seal_input& input, std::size_t item, std::size_t head,
                                        std::size_t per_cluster, T scalar) {
  const head_input from = head_input::of(input, item, head, scalar);
  std::vector<float> keys;
  std::vector<float> values;
  for (std::size_t i = 0; i < from.rows.size(); ++i) {
    (i % from.width < from.key_dim ? keys : values).push_back(static_cast<float>(from.rows[i]));
  }
  wavekv::cluster_request request;
  request.keys = keys.data();
  request.key_dim = from.key_dim;
  request.values = values.data();
  request.value_dim = from.width - from.key_dim;
  request.n_tokens = from.n;
  request.n_clusters = (from.n + per_cluster - 1) / per_cluster;
  request.metric = input.metrics.empty() ? nullptr : &input.metrics[head];
  wavekv::clustering_scratch scratch;
  std::vector<std::uint32_t> clusters(from.n);
  Clusterer{}.cluster(request, clusters, scratch);
  return clusters;
}

// What query_metric_kmeans makes small: squared distances from the clusters' means, relative to those from the mean of all.
double misfit_of_clusters(const std::vector<std::uint32_t>& clusters, const head_input& from) {
  const auto squares = [&](const std::vector<std::uint32_t>& groups) {
    const std::size_t n_groups = *std::ranges::max_element(groups) + std::size_t{1};
    std::vector<double> sums(n_groups * from.width);
    std::vector<double> counts(n_groups);
    for (std::size_t t = 0; t < from.n; ++t) {
      counts[groups[t]] += 1.0;
      for (std::size_t j = 0; j < from.width; ++j)
        sums[groups[t] * from.width + j] += from.rows[t * from.width + j];
    }
    std::array<double, 2> square{};
    std::vector<double> key(from.key_dim);
    const double unit = 1.0 / std::pow(from.largest(), 2);
    for (std::size_t t = 0; t < from.n; ++t) {
      for (std::size_t j = 0; j < from.width; ++j) {
        const double off =
            (from.rows[t * from.width + j] - sums[groups[t] * from.width + j] / counts[groups[t]]) *
            std::sqrt(unit);
        if (j < from.key_dim) {
          key[j] = off;
        } else {
          square[1] += off * off;
        }
      }
      square[0] += from.seen(key);
    }
    return square;
  };
  const auto inside = squares(clusters);
  const auto all = squares(std::vector<std::uint32_t>(from.n, 0));
  return inside[0] / all[0] + 0.25 * inside[1] / all[1];
}
template <class T>
double misfit_of(const sealed_head<T>& sealed, const head_input& from) {
  return misfit_of_clusters(clusters_of(sealed, from.n), from);
}
template <class Clusterer, class T>
double misfit_on_cpu(const seal_input& input, std::size_t item, std::size_t head,
                     std::size_t per_cluster, T scalar) {
  return misfit_of_clusters(cpu_clusters<Clusterer>(input, item, head, per_cluster, scalar),
                            head_input::of(input, item, head, scalar));
}

// What spherical_kmeans makes small: 1 − the cosine between a key and the sum of its cluster, on average.
double angle_of(const std::vector<std::uint32_t>& clusters, const head_input& from) {
  const std::size_t n_clusters = *std::ranges::max_element(clusters) + std::size_t{1};
  std::vector<double> sums(n_clusters * from.key_dim);
  for (std::size_t t = 0; t < from.n; ++t) {
    for (std::size_t j = 0; j < from.key_dim; ++j)
      sums[clusters[t] * from.key_dim + j] += from.rows[t * from.width + j];
  }
  double total = 0.0;
  for (std::size_t t = 0; t < from.n; ++t) {
    double dot = 0.0;
    double key = 0.0;
    double sum = 0.0;
    for (std::size_t j = 0; j < from.key_dim; ++j) {
      const double k = from.rows[t * from.width + j];
      const double c = sums[clusters[t] * from.key_dim + j];
      dot += k * c;
      key += k * k;
      sum += c * c;
    }
    total += 1.0 - dot / std::sqrt(key * sum);
  }
  return total / static_cast<double>(from.n);
}

template <class T, class Index>
std::vector<std::vector<sealed_head<T>>> sealed_and_checked(const seal_input& input,
                                                            const emulation_options& options) {
  using count = typename Index::cluster_count_type;
  std::array<std::size_t, count::n_levels> per_node{};
  for (std::size_t l = 0; l < count::n_levels; ++l) per_node[l] = count::tokens_at(l);
  auto sealed = seal_on_device<T, Index>(input, options);
  for (std::size_t item = 0; item < input.n_items; ++item) {
    for (std::size_t head = 0; head < input.shape.n_kv_heads; ++head) {
      CAPTURE(item);
      CAPTURE(head);
      const head_input from = head_input::of(input, item, head, T{});
      check_structure(sealed[item][head], from, per_node);
      check_statistics(sealed[item][head], from);
    }
  }
  return sealed;
}

}  // namespace

TEST_CASE("every number of a sealed segment is what its own clusters say") {
  auto random = generator("sealed");
  SUBCASE("flat, bf16") {
    const seal_input input = make_input(random, key_family::clustered, 300, 2, 2, 64, 64, true);
    sealed_and_checked<bf16, index_of<tokens_per_cluster<16>>>(input, {.seed = random()});
  }
  SUBCASE("two levels, bf16, the usual shape of rows") {
    const seal_input input = make_input(random, key_family::needle, 1100, 1, 1, 128, 128, true);
    sealed_and_checked<bf16, index_of<tokens_per_cluster<16, 128>>>(
        input, {.order = schedule::backwards, .seed = random()});
  }
  SUBCASE("three levels, float, odd sizes, no metric") {
    const seal_input input = make_input(random, key_family::uniform, 777, 1, 3, 48, 80, false);
    sealed_and_checked<float, index_of<tokens_per_cluster<8, 40, 200>>>(
        input, {.order = schedule::random, .seed = random()});
  }
  SUBCASE("three levels, f16, keys longer than values") {
    const seal_input input = make_input(random, key_family::clustered, 500, 2, 1, 136, 24, true);
    sealed_and_checked<f16, index_of<tokens_per_cluster<4, 32, 128>>>(
        input, {.order = schedule::random, .seed = random()});
  }
  SUBCASE("the widest rows, float") {
    const seal_input input = make_input(random, key_family::clustered, 150, 1, 1, 256, 256, true);
    sealed_and_checked<float, index_of<tokens_per_cluster<16, 64>>>(input, {.seed = random()});
  }
  SUBCASE("spherical") {
    const seal_input input = make_input(random, key_family::clustered, 600, 1, 2, 64, 48, false);
    sealed_and_checked<bf16, index_of<tokens_per_cluster<16, 128>, wavekv::spherical_kmeans<4>>>(
        input, {.order = schedule::backwards, .seed = random()});
  }
}

TEST_CASE("keys of any family, with either clusterer") {
  auto random = generator("families");
  for (const key_family family : all_families) {
    CAPTURE(name_of(family));
    const bool with_metric = random() % 2 == 0;
    const seal_input input =
        make_input(random, family, 210 + random() % 50, 1, 1, 32, 40, with_metric);
    const emulation_options options{.order = static_cast<schedule>(random() % 3), .seed = random()};
    sealed_and_checked<float, index_of<tokens_per_cluster<8, 64>>>(input, options);
    sealed_and_checked<bf16, index_of<tokens_per_cluster<8, 64>, wavekv::spherical_kmeans<3>>>(
        input, options);
  }
}

TEST_CASE("copies of one key are one cluster, on every level") {
  auto random = generator("copies");
  const seal_input input = make_input(random, key_family::equal, 200, 1, 1, 32, 32, false);
  const auto sealed =
      seal_on_device<bf16, index_of<tokens_per_cluster<8, 64>, wavekv::spherical_kmeans<3>>>(
          input, {.seed = random()});
  for (const auto& level : sealed[0][0].levels) CHECK(level.n_nodes == 1);
}

TEST_CASE("few tokens") {
  auto random = generator("few");
  for (const std::size_t n : {1, 2, 3, 8, 9, 31, 33}) {
    CAPTURE(n);
    const seal_input input = make_input(random, key_family::uniform, n, 2, 2, 16, 24, true);
    const emulation_options options{.order = static_cast<schedule>(random() % 3), .seed = random()};
    sealed_and_checked<float, index_of<tokens_per_cluster<8, 32>>>(input, options);
    sealed_and_checked<bf16, index_of<tokens_per_cluster<1, 4>>>(input, options);
    sealed_and_checked<bf16, index_of<tokens_per_cluster<16>, wavekv::spherical_kmeans<2>>>(
        input, options);
  }
}

TEST_CASE("an offset far larger than what tells keys apart is no harm") {
  auto random = generator("offset");
  seal_input input = make_input(random, key_family::clustered, 300, 1, 1, 64, 64, true);
  const std::vector<float> offset = normal_rows(random, input.width(), 1000.0F);
  for (std::size_t i = 0; i < input.rows.size(); ++i) input.rows[i] += offset[i % input.width()];
  const auto sealed =
      sealed_and_checked<float, index_of<tokens_per_cluster<4, 64>>>(input, {.seed = random()});
  // The same clusters as without it, or nearly as good.
  CHECK(misfit_of(sealed[0][0], head_input::of(input, 0, 0, 1.0F)) <=
        1.05 * misfit_on_cpu<wavekv::query_metric_kmeans<3>>(input, 0, 0, 4, 1.0F));
}

TEST_CASE("magnitudes near the ends of float's range") {
  auto random = generator("extreme");
  for (const float scale : {1e20F, 1e-20F, 1e37F, 1e-38F}) {
    CAPTURE(scale);
    seal_input input = make_input(random, key_family::clustered, 200, 1, 1, 32, 32, true);
    for (float& x : input.rows) x *= scale * 0.1F;
    const auto sealed =
        seal_on_device<float, index_of<tokens_per_cluster<4, 64>>>(input, {.seed = random()});
    const std::array<std::size_t, 2> per_node{4, 64};
    check_structure(sealed[0][0], head_input::of(input, 0, 0, 1.0F), per_node);
    for (const auto& level : sealed[0][0].levels) {
      const auto is_finite = [](float x) { return std::isfinite(x); };
      CHECK(std::ranges::all_of(level.rows, is_finite));
      CHECK(std::ranges::all_of(level.dispersions, is_finite));
      CHECK(std::ranges::all_of(level.products, is_finite));
      CHECK(std::isfinite(level.weight));
    }
    CHECK(std::isfinite(sealed[0][0].value_spread));
    CHECK(misfit_of(sealed[0][0], head_input::of(input, 0, 0, 1.0F)) <=
          1.05 * misfit_on_cpu<wavekv::query_metric_kmeans<3>>(input, 0, 0, 4, 1.0F));
  }
}

TEST_CASE("clusters are as tight as those of the CPU") {
  auto random = generator("quality");
  for (const key_family family : {key_family::uniform, key_family::clustered, key_family::needle}) {
    CAPTURE(name_of(family));
    const seal_input input = make_input(random, family, 1000, 1, 1, 64, 64, true);
    const head_input from = head_input::of(input, 0, 0, bf16{});
    const auto seen =
        seal_on_device<bf16, index_of<tokens_per_cluster<16>, wavekv::query_metric_kmeans<5>>>(
            input, {.seed = random()});
    const double misfit = misfit_of(seen[0][0], from);
    const double of_cpu = misfit_on_cpu<wavekv::query_metric_kmeans<5>>(input, 0, 0, 16, bf16{});
    CHECK(misfit <= 1.05 * of_cpu);
    const auto spherical =
        seal_on_device<bf16, index_of<tokens_per_cluster<16>, wavekv::spherical_kmeans<10>>>(
            input, {.seed = random()});
    CHECK(angle_of(clusters_of(spherical[0][0], from.n), from) <=
          1.05 *
              angle_of(cpu_clusters<wavekv::spherical_kmeans<10>>(input, 0, 0, 16, bf16{}), from));
  }
}

TEST_CASE(
    "the result depends on the tokens alone: not on schedules, nor on what is sealed beside them") {
  auto random = generator("deterministic");
  const seal_input input = make_input(random, key_family::clustered, 400, 3, 2, 48, 40, true);
  using index = index_of<tokens_per_cluster<16, 64>>;
  const auto first =
      seal_on_device<bf16, index>(input, {.order = schedule::forwards, .seed = random()});
  CHECK(first ==
        seal_on_device<bf16, index>(input, {.order = schedule::backwards, .seed = random()}));
  CHECK(first == seal_on_device<bf16, index>(input, {.order = schedule::random, .seed = random()}));
  const auto alone =
      seal_on_device<bf16, index>(input.only(1), {.order = schedule::random, .seed = random()});
  CHECK(first[1] == alone[0]);
}

TEST_CASE("items of different sizes are refused, none are nothing to do") {
  using runtime_type = wavekv::testing::emulated_runtime;
  wavekv::device::model_shape shape{.n_kv_heads = 2, .key_dim = 16, .value_dim = 16};
  wavekv::device::sealer<bf16, index_of<tokens_per_cluster<16>>, runtime_type> sealer(
      runtime_type{}, shape);
  sealer.seal({}, nullptr, {});
  std::vector<wavekv::device::seal_item<bf16>> items(2);
  items[0].n_tokens = 8;
  items[1].n_tokens = 9;
  CHECK_THROWS_AS(sealer.seal(items, nullptr, {}), wavekv::shape_error);
  items[0].n_tokens = items[1].n_tokens = 65537;
  CHECK_THROWS_WITH_AS(
      sealer.seal(items, nullptr, {}),
      "sealer: an item has 65537 tokens; allowed: 1 to 65536, as many as the first has, 65537",
      wavekv::shape_error);
}
