// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/core/scalar.hpp>
#include <wavekv/index/query_metric.hpp>
#include <wavekv/index/sealer.cuh>

#include "cuda/emulated_runtime.hpp"
#include "support/rows.hpp"

/// @file seal_harness.hpp
/// @brief Seals on the emulated device and brings back what came of it.

namespace wavekv_test {

/// @brief What is sealed: items of n_tokens, all KV heads.
struct seal_input {
  wavekv::device::model_shape shape;
  std::size_t n_tokens = 0;
  std::size_t n_items = 1;
  std::vector<float> rows;                    ///< [n_items, n_kv_heads, n_tokens, width]
  std::vector<wavekv::query_metric> metrics;  ///< [n_kv_heads], or empty

  [[nodiscard]] std::size_t width() const { return shape.width(); }
  float* row(std::size_t item, std::size_t head, std::size_t token) {
    return rows.data() + ((item * shape.n_kv_heads + head) * n_tokens + token) * width();
  }
  [[nodiscard]] const float* row(std::size_t item, std::size_t head, std::size_t token) const {
    return rows.data() + ((item * shape.n_kv_heads + head) * n_tokens + token) * width();
  }
  /// @brief One item by itself.
  [[nodiscard]] seal_input only(std::size_t item) const {
    seal_input one = *this;
    const std::size_t n = shape.n_kv_heads * n_tokens * width();
    one.n_items = 1;
    one.rows.assign(rows.begin() + static_cast<std::ptrdiff_t>(item * n),
                    rows.begin() + static_cast<std::ptrdiff_t>((item + 1) * n));
    return one;
  }
};

/// @brief Keys of a family and values that have to do with them.
inline seal_input make_input(random_engine& random, key_family family, std::size_t n_tokens,
                             std::size_t n_items, unsigned n_heads, unsigned key_dim,
                             unsigned value_dim, bool with_metric) {
  seal_input input;
  input.shape.n_kv_heads = n_heads;
  input.shape.key_dim = key_dim;
  input.shape.value_dim = value_dim;
  input.n_tokens = n_tokens;
  input.n_items = n_items;
  const std::vector<float> keys = make_keys(random, family, n_items * n_tokens, n_heads, key_dim);
  input.rows = normal_rows(random, n_items * n_heads * n_tokens * input.width());
  for (std::size_t item = 0; item < n_items; ++item) {
    for (std::size_t head = 0; head < n_heads; ++head) {
      for (std::size_t token = 0; token < n_tokens; ++token) {
        float* row = input.row(item, head, token);
        const float* key = keys.data() + ((item * n_tokens + token) * n_heads + head) * key_dim;
        std::copy_n(key, key_dim, row);
        for (std::size_t i = 0; i < value_dim; ++i) {
          row[key_dim + i] = 0.5F * row[key_dim + i] + key[i % key_dim];
        }
      }
    }
  }
  if (with_metric) {
    for (std::size_t head = 0; head < n_heads; ++head) {
      input.metrics.emplace_back(key_dim);
      std::vector<float> queries = normal_rows(random, 64 * key_dim);
      for (std::size_t i = 0; i < queries.size(); ++i) {  // most of them look along few directions
        queries[i] *= i % key_dim < key_dim / 4 ? 3.0F : 0.3F;
      }
      input.metrics.back().add<float>(tokens_of(queries, 0, 64, 1, key_dim), 0.1F);
    }
  }
  return input;
}

/// @brief One level of one head, as the device wrote it.
template <class T>
struct sealed_level {
  std::uint32_t n_nodes = 0;
  std::vector<T> rows;
  std::vector<float> sizes;
  std::vector<float> dispersions;
  std::vector<std::uint32_t> first_child;
  std::vector<float> products;  ///< [key_dim, width] learnt
  float weight = 0.0F;
  friend bool operator==(const sealed_level&, const sealed_level&) = default;
};

/// @brief One head of one item, as the device wrote it.
template <class T>
struct sealed_head {
  std::vector<T> rows;
  std::vector<std::uint16_t> order;
  float value_spread = 0.0F;
  std::vector<sealed_level<T>> levels;
  friend bool operator==(const sealed_head&, const sealed_head&) = default;
};

/// @brief Device memory for the length of a test.
template <class Runtime>
class device_memory {
 public:
  explicit device_memory(Runtime runtime) : runtime_(std::move(runtime)) {}
  device_memory(const device_memory&) = delete;
  device_memory& operator=(const device_memory&) = delete;
  ~device_memory() {
    for (const auto& [p, bytes] : pieces_) runtime_.deallocate(p, bytes, {});
  }

  void* take(std::size_t bytes) {
    pieces_.emplace_back(runtime_.allocate(bytes, {}), bytes);
    return pieces_.back().first;
  }
  template <class T>
  T* upload(const std::vector<T>& from) {
    auto* const p = static_cast<T*>(take(from.size() * sizeof(T)));
    runtime_.copy_in(p, from.data(), from.size() * sizeof(T), {});
    return p;
  }
  template <class T>
  std::vector<T> download(const T* from, std::size_t n) {
    std::vector<T> to(n);
    runtime_.copy_out(to.data(), from, n * sizeof(T), {});
    return to;
  }

 private:
  Runtime runtime_;
  std::vector<std::pair<void*, std::size_t>> pieces_;
};

/// @brief The raw sums of a metric, [key_dim, key_dim], as the device keeps them.
inline std::vector<float> raw_products(const wavekv::query_metric& metric, float& weight) {
  std::vector<double> normal(metric.key_dim() * metric.key_dim());
  metric.normalized(normal);
  std::vector<float> products(normal.size());
  const double mean = metric.trace() / static_cast<double>(metric.key_dim());
  for (std::size_t i = 0; i < normal.size(); ++i) {
    const double unit = i % (metric.key_dim() + 1) == 0 ? 1.0 : 0.0;
    products[i] = static_cast<float>(
        ((1.0 + wavekv::query_metric::ridge) * normal[i] - wavekv::query_metric::ridge * unit) *
        mean * 8.0);
  }
  weight = 8.0F;
  return products;
}

/// @brief Seals on a device of its own; the ring wraps round, the segment's memory is poisoned before.
/// @return [n_items][n_kv_heads]
template <class T, class Index>
std::vector<std::vector<sealed_head<T>>> seal_on_device(
    const seal_input& input, const wavekv::testing::emulation_options& options) {
  using namespace wavekv::device;
  using count = typename Index::cluster_count_type;
  using runtime_type = wavekv::testing::emulated_runtime;
  runtime_type runtime(options);
  device_memory memory(runtime);
  model_shape shape = input.shape;
  shape.n_levels = count::n_levels;
  const std::size_t n_heads = shape.n_kv_heads;
  const std::size_t width = shape.width();
  const std::size_t n = input.n_tokens;

  metric_view metric;
  if (!input.metrics.empty()) {
    std::vector<float> products;
    std::vector<float> weights(n_heads);
    for (std::size_t head = 0; head < n_heads; ++head) {
      const std::vector<float> of_head = raw_products(input.metrics[head], weights[head]);
      products.insert(products.end(), of_head.begin(), of_head.end());
    }
    metric = {memory.upload(products), memory.upload(weights)};
  }
  std::vector<seal_item<T>> items(input.n_items);
  for (std::size_t i = 0; i < items.size(); ++i) {
    seal_item<T>& item = items[i];
    item.ring.capacity = static_cast<std::uint32_t>(n + 5 + i);
    item.first_position = static_cast<std::uint32_t>(2 * n + 3 * i + 1);
    item.n_tokens = static_cast<std::uint32_t>(n);
    std::vector<T> ring(n_heads * item.ring.capacity * width);
    for (std::size_t head = 0; head < n_heads; ++head) {
      for (std::size_t t = 0; t < n; ++t) {
        const std::size_t slot = (item.first_position + t) % item.ring.capacity;
        std::transform(input.row(i, head, t), input.row(i, head, t) + width,
                       ring.data() + (head * item.ring.capacity + slot) * width,
                       [](float x) { return wavekv::from_float<T>(x); });
      }
    }
    item.ring.rows = memory.upload(ring);
    device_arena arena(memory.take(segment_bytes<T, count>(shape, n)));
    item.segment = lay_out_segment<T, count>(arena, shape, item.first_position, n);
    item.learnt.products =
        static_cast<float*>(memory.take(learnt_view::n_products(shape) * sizeof(float)));
    item.learnt.weights =
        static_cast<float*>(memory.take(n_heads * count::n_levels * sizeof(float)));
    item.metric = metric;
  }
  using sealer_type = sealer<T, Index, runtime_type>;
  void* const workspace = memory.take(sealer_type::workspace_bytes(shape, n, items.size()));
  sealer_type(runtime, shape).seal(items, workspace, {});

  std::vector<std::vector<sealed_head<T>>> sealed(items.size(),
                                                  std::vector<sealed_head<T>>(n_heads));
  for (std::size_t i = 0; i < items.size(); ++i) {
    const seal_item<T>& item = items[i];
    const segment_view<T>& segment = item.segment;
    for (std::size_t head = 0; head < n_heads; ++head) {
      sealed_head<T>& to = sealed[i][head];
      to.rows = memory.download(segment.rows + head * n * width, n * width);
      to.order = memory.download(segment.order + head * n, n);
      to.value_spread = memory.download(segment.value_spread + head, 1)[0];
      for (std::size_t l = 0; l < count::n_levels; ++l) {
        const level_view<T>& level = segment.levels[l];
        sealed_level<T> found;
        found.n_nodes = memory.download(level.n_nodes + head, 1)[0];
        const std::size_t nodes = std::min(found.n_nodes, level.capacity);
        found.rows = memory.download(level.rows + head * level.capacity * width, nodes * width);
        found.sizes = memory.download(level.sizes + head * level.capacity, nodes);
        found.dispersions = memory.download(level.dispersions + head * level.capacity, nodes);
        found.first_child =
            memory.download(level.first_child + head * (level.capacity + 1), nodes + 1);
        const std::size_t at = head * count::n_levels + l;
        const std::size_t n_products = std::size_t{shape.key_dim} * width;
        found.products = memory.download(item.learnt.products + at * n_products, n_products);
        found.weight = memory.download(item.learnt.weights + at, 1)[0];
        to.levels.push_back(std::move(found));
      }
    }
  }
  return sealed;
}

}  // namespace wavekv_test
