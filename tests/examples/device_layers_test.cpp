// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The parts of the model on a device, emulated, against those on the CPU or the definition.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cuda/device_block.hpp>

#include "device_machine.hpp"
#include "error.hpp"
#include "linear.cuh"
#include "norm.cuh"
#include "norm.hpp"
#include "rope.cuh"
#include "rope.hpp"
#include "sliding_window.cuh"
#include "sliding_window.hpp"

namespace {

using runtime_type = test::emulated_runtime;
using block = wavekv::device::device_block<runtime_type>;

constexpr runtime_type::stream_type stream{};
const wavekv::testing::emulation_options anyhow{.order = wavekv::testing::schedule::random};

std::vector<float> random_numbers(std::size_t n, float scale = 1) {
  static std::mt19937 random(5);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(n);
  for (float& each : x) each = normal(random);
  return x;
}

block to_device(runtime_type& runtime, const std::vector<float>& x) {
  block memory(runtime, x.size() * sizeof(float), stream);
  runtime.copy_in(memory.data(), x.data(), memory.bytes(), stream);
  return memory;
}

std::vector<float> to_host(runtime_type& runtime, const block& memory) {
  std::vector<float> x(memory.bytes() / sizeof(float));
  runtime.copy_out(x.data(), memory.data(), memory.bytes(), stream);
  return x;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double{a[i]} - b[i]);
    largest = std::max(largest, std::isnan(difference) ? INFINITY : difference);
  }
  return largest;
}

/// A matrix in a stored type, and the floats it stands for.
template <class T>
struct stored_matrix {
  stored_matrix(std::size_t n_rows, std::size_t n_cols) {
    for (const float x : random_numbers(n_rows * n_cols)) {
      elements.push_back(wavekv::from_float<T>(x));
      floats.push_back(wavekv::to_float(elements.back()));
    }
    ref = {sizeof(T) == 4                   ? transformer::dtype::f32
           : std::is_same_v<T, wavekv::f16> ? transformer::dtype::f16
                                            : transformer::dtype::bf16,
           reinterpret_cast<const std::byte*>(elements.data()), n_rows, n_cols};
  }
  std::vector<T> elements;
  std::vector<float> floats;
  transformer::matrix_ref ref;
};

/// The largest error of y = Wx + b, in units of |W||x|.
template <class T>
double product_error(float scale, bool adds) {
  constexpr std::size_t n_tokens = 3;
  constexpr std::size_t n_in = 40;
  const stored_matrix<T> upper(30, n_in);
  const stored_matrix<T> lower(600, n_in);
  const std::size_t n_out = 630;
  const auto bias = random_numbers(600, scale);
  auto x = random_numbers(n_tokens * n_in, scale);
  std::fill_n(x.begin() + n_in, n_in, 0.0F);  // a row of zeros
  const auto before = random_numbers(n_tokens * n_out, scale);

  runtime_type runtime(anyhow);
  test::plain_product multiply(runtime);
  const transformer::linear both[] = {{upper.ref, {}}, {lower.ref, bias}};
  const transformer::device_linear<runtime_type> layer(runtime, stream, both, "both");
  transformer::product_scratch<runtime_type> scratch;
  scratch.reserve(runtime, n_tokens, n_in, n_out, stream);
  const block in = to_device(runtime, x);
  const block out = to_device(runtime, before);
  transformer::apply(runtime, multiply, layer, scratch, in.as<const float>(), n_tokens,
                     out.as<float>(), adds, stream);
  const auto y = to_host(runtime, out);

  double largest = 0;
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t r = 0; r < n_out; ++r) {
      const float* row = r < 30 ? &upper.floats[r * n_in] : &lower.floats[(r - 30) * n_in];
      double expected = (r < 30 ? 0.0 : double{bias[r - 30]}) + (adds ? before[t * n_out + r] : 0);
      double size = std::abs(expected);
      for (std::size_t i = 0; i < n_in; ++i) {
        expected += double{row[i]} * x[t * n_in + i];
        size += std::abs(double{row[i]} * x[t * n_in + i]);
      }
      const double error = std::abs(y[t * n_out + r] - expected) / std::max(size, 1e-30);
      largest = std::max(largest, std::isnan(error) ? INFINITY : error);
    }
  }
  return largest;
}

}  // namespace

// A bf16 pair says 16 bits: what is left of an element is at most 2^-17 of it. An f16 pair would say 22, and then sums
// in float are what errs.
TEST_CASE("products are as good as the terms of the activations, whatever their size") {
  for (const float scale : {1e-12F, 1e-3F, 1.0F, 1e6F, 1e20F}) {
    for (const bool adds : {false, true}) {
      CAPTURE(scale);
      CAPTURE(adds);
      CHECK(product_error<float>(scale, adds) < 1e-6);
      CHECK(product_error<wavekv::bf16>(scale, adds) < 0x1p-17);
      CHECK(product_error<wavekv::f16>(scale, adds) < 1e-6);
    }
  }
}

TEST_CASE("layers that no product takes are refused") {
  runtime_type runtime(anyhow);
  const stored_matrix<float> a(8, 12);
  const stored_matrix<float> b(8, 16);
  const stored_matrix<wavekv::f16> c(8, 16);
  const auto load = [&](std::vector<transformer::linear> layers) {
    return transformer::device_linear<runtime_type>(runtime, stream, layers, "o_proj");
  };
  CHECK_THROWS_WITH_AS(load({{a.ref, {}}}),
                       "o_proj: has 12 inputs; --device cuda takes multiples of 8",
                       transformer::model_error);
  CHECK_THROWS_WITH_AS(load({{b.ref, {}}, {c.ref, {}}}),
                       "o_proj: matrices of one input are stored in different types; "
                       "--device cuda takes one type",
                       transformer::model_error);
}

TEST_CASE("RMSNorm as on the CPU") {
  for (const std::size_t dim : {8, 256, 1000}) {
    const auto x = random_numbers(5 * dim, 3);
    const auto weights = random_numbers(dim);
    std::vector<float> expected(x.size());
    transformer::rms_norm(weights, 1e-6F, x.data(), 5, expected.data());

    runtime_type runtime(anyhow);
    const block of_weights = to_device(runtime, weights);
    const block values = to_device(runtime, x);
    transformer::rms_norm_kernel kernel;
    kernel.weights = of_weights.as<float>();
    kernel.epsilon = 1e-6F;
    kernel.dim = static_cast<unsigned>(dim);
    kernel.x = values.as<float>();
    kernel.y = values.as<float>();
    runtime.launch(stream, {5, 1}, kernel);
    CHECK(largest_difference(to_host(runtime, values), expected) < 1e-5);
  }
}

TEST_CASE("heads are normed and rotated as on the CPU, far positions and scaled frequencies too") {
  constexpr std::size_t n = 4;
  constexpr std::size_t n_heads = 3;
  constexpr std::size_t width = 5;  // heads of a row: the values' too
  for (const std::size_t dim : {16, 72, 256}) {
    for (const std::size_t first : {0, 77, 200'000}) {
      for (const bool norms : {false, true}) {
        CAPTURE(dim);
        CAPTURE(first);
        CAPTURE(norms);
        transformer::rope_config config;
        config.scaling = transformer::rope_config::kind::llama3;
        config.factor = 8;
        const auto frequencies = transformer::rope_frequencies(config, dim);
        const auto rows = random_numbers(n * width * dim);
        const auto query_norm = random_numbers(dim);
        const auto key_norm = random_numbers(dim);
        auto expected = rows;
        for (std::size_t t = 0; t < n; ++t) {
          for (std::size_t h = 0; norms && h < n_heads; ++h) {
            float* head = &expected[(t * width + h) * dim];
            transformer::rms_norm(h < 2 ? query_norm : key_norm, 1e-5F, head, 1, head);
          }
          const transformer::rope_table table(frequencies, first + t, 1);
          table.rotate(&expected[t * width * dim], n_heads);
        }

        runtime_type runtime(anyhow);
        const block values = to_device(runtime, rows);
        const block of_queries = to_device(runtime, query_norm);
        const block of_keys = to_device(runtime, key_norm);
        const block of_frequencies = to_device(runtime, frequencies);
        const block cosines(runtime, n * dim / 2 * sizeof(float), stream);
        const block sines(runtime, n * dim / 2 * sizeof(float), stream);
        const block position(runtime, sizeof(std::uint32_t), stream);
        const auto at = static_cast<std::uint32_t>(first);
        runtime.copy_in(position.data(), &at, sizeof(at), stream);
        transformer::rope_table_kernel table;
        table.first_position = position.as<std::uint32_t>();
        table.frequencies = of_frequencies.as<float>();
        table.half = static_cast<unsigned>(dim / 2);
        table.cosines = cosines.as<float>();
        table.sines = sines.as<float>();
        runtime.launch(stream, {n, 1}, table);
        transformer::heads_kernel kernel;
        kernel.heads = values.as<float>();
        kernel.stride = width * dim;
        kernel.n_query_heads = 2;
        kernel.head_dim = static_cast<unsigned>(dim);
        kernel.query_norm = norms ? of_queries.as<float>() : nullptr;
        kernel.key_norm = norms ? of_keys.as<float>() : nullptr;
        kernel.epsilon = 1e-5F;
        kernel.cosines = table.cosines;
        kernel.sines = table.sines;
        runtime.launch(stream, {n, n_heads}, kernel);
        CHECK(largest_difference(to_host(runtime, values), expected) < 1e-5);
      }
    }
  }
}

TEST_CASE("every query sees its window and no more, as on the CPU; a fork goes its own way") {
  constexpr transformer::attention_shape shape{4, 2, 24};
  constexpr std::size_t n = 330;
  constexpr std::size_t query_width = shape.n_query_heads * shape.head_dim;
  constexpr std::size_t kv_width = shape.n_kv_heads * shape.head_dim;
  constexpr std::size_t stride = query_width + 2 * kv_width;
  const auto rows = random_numbers(n * stride);
  std::vector<float> queries, keys, values;
  for (std::size_t t = 0; t < n; ++t) {
    const float* row = rows.data() + t * stride;
    queries.insert(queries.end(), row, row + query_width);
    keys.insert(keys.end(), row + query_width, row + query_width + kv_width);
    values.insert(values.end(), row + query_width + kv_width, row + stride);
  }
  for (const std::size_t window : {1, 24, 128, 299, 1000}) {
    for (const std::size_t chunk : {7, 100, 330}) {
      CAPTURE(window);
      CAPTURE(chunk);
      transformer::sliding_window expected_layer(shape, window);
      std::vector<float> expected(n * query_width);

      runtime_type runtime(anyhow);
      const block in = to_device(runtime, rows);
      const block out(runtime, expected.size() * sizeof(float), stream);
      const block position(runtime, sizeof(std::uint32_t), stream);
      std::vector<transformer::device_window<runtime_type>> layers;
      layers.emplace_back(runtime, shape, window, stream);
      for (std::size_t at = 0; at < n; at += chunk) {
        const std::size_t size = std::min(chunk, n - at);
        const float* const first = in.as<const float>() + at * stride;
        const transformer::head_rows heads{first, first + query_width,
                                           first + query_width + kv_width, stride};
        const auto begin = static_cast<std::uint32_t>(at);
        runtime.copy_in(position.data(), &begin, sizeof(begin), stream);
        const auto* const told = position.as<const std::uint32_t>();
        if (at == chunk) {  // appended only, and from here on a fork
          expected_layer.append(size, keys.data() + at * kv_width, values.data() + at * kv_width);
          layers.emplace_back(runtime, layers[0], stream);
          layers[1].append(runtime, size, heads, told, stream);
          runtime.fill(out.as<float>() + at * query_width, 0, size * query_width * sizeof(float),
                       stream);
          continue;
        }
        expected_layer.append_and_attend(size, queries.data() + at * query_width,
                                         keys.data() + at * kv_width, values.data() + at * kv_width,
                                         expected.data() + at * query_width);
        layers.back().attend(runtime, size, heads, told, out.as<float>() + at * query_width,
                             stream);
        layers.back().append(runtime, size, heads, told, stream);
      }
      CHECK(largest_difference(to_host(runtime, out), expected) < 1e-5);
    }
  }
}
