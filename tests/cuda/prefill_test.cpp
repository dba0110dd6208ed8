// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/attention/prefill.cuh>
#include <wavekv/cache/layer_writer.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/spherical_kmeans.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/wave_index.hpp>

#include "archetypes/executors.hpp"
#include "cuda/emulated_runtime.hpp"
#include "cuda/uploaded_layer.hpp"
#include "reference/fresh_seed.hpp"
#include "support/model.hpp"
#include "support/rows.hpp"

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::geometry;
using wavekv::device::element_kind;
using wavekv::testing::emulated_runtime;
using wavekv::testing::emulation_options;
using wavekv::testing::schedule;
namespace device = wavekv::device;

namespace {

constexpr schedule all_schedules[] = {schedule::forwards, schedule::backwards, schedule::random};

// What a layer holds before and after a chunk is put behind its tail.
struct chunk_case {
  std::size_t n_cached = 0;  // tokens before the chunk: sink, segments of at most 96, tail
  std::size_t n_tail = 0;    // of them, how many stay in the tail; all of them: nothing is sealed
  std::size_t n_chunk = 1;
  std::size_t n_sink = 4;
  float growth = 0.0F;       // of a logit from one token to the next, beside what is drawn
  float query_sigma = 1.0F;  // typical size of a query's elements
};

// One layer, in the CPU's form: the chunk is part of its tail.
template <class S>
class held_layer {
 public:
  using cluster_count = wavekv::tokens_per_cluster<8, 32>;
  using index = wavekv::wave_index<wavekv::segment_size<96, 32>, cluster_count,
                                   wavekv::spherical_kmeans<2>, wavekv::error_bound<>>;
  using writer = wavekv::layer_writer<S, index, wavekv::wave_buffer<>, any_executor>;

  held_layer(const geometry& sizes, const chunk_case& held, random_engine& random)
      : sizes_(sizes),
        reader_({}, sizes.key_dim, sizes.value_dim),
        writer_(sizes_, held.n_sink, held.n_tail, executor_, reader_),
        growth_(held.growth) {
    state_.sink = state_.tail =
        wavekv::token_rows<S>(sizes.n_kv_heads, sizes.key_dim, sizes.value_dim);
    if (held.n_cached > held.n_tail) {
      append(random, state_.tail, held.n_cached);
      writer_.commit(state_, 0, held.n_cached, false, wavekv::tensor_view<const float, 3>());
      for (auto& prepared : writer_.prepare_rest(state_)) writer::commit_seal(state_, 0, prepared);
      append(random, state_.tail, held.n_chunk);
      state_.tail.commit(held.n_chunk);
    } else {  // as a device's layer begins: its first tokens are the sink's
      const std::size_t n = held.n_cached + held.n_chunk;
      const std::size_t n_sink = std::min(n, held.n_sink);
      append(random, state_.sink, n_sink);
      state_.sink.commit(n_sink);
      append(random, state_.tail, n - n_sink);
      state_.tail.commit(n - n_sink);
    }
    shape_.n_kv_heads = static_cast<unsigned>(sizes.n_kv_heads);
    shape_.group_size = static_cast<unsigned>(sizes.group_size());
    shape_.key_dim = static_cast<unsigned>(sizes.key_dim);
    shape_.value_dim = static_cast<unsigned>(sizes.value_dim);
    shape_.n_levels = cluster_count::n_levels;
    shape_.softcap = sizes.logit_softcap;
  }

  const geometry& sizes() const { return sizes_; }
  const device::model_shape& shape() const { return shape_; }
  const naive_layer& tokens() const { return tokens_; }
  const typename writer::layer_type& state() const { return state_; }

 private:
  void append(random_engine& random, wavekv::token_rows<S>& rows, std::size_t n) {
    const std::size_t width = sizes_.n_kv_heads * sizes_.key_dim;
    auto keys = make_keys(random, key_family::clustered, n, sizes_.n_kv_heads, sizes_.key_dim);
    for (std::size_t i = 0; growth_ != 0.0F && i < keys.size(); i += sizes_.key_dim) {
      keys[i] = growth_ * static_cast<float>(length_of(sizes_, tokens_) + i / width);
    }
    const auto values = normal_rows(random, n * sizes_.n_kv_heads * sizes_.value_dim);
    wavekv::detail::stage_rows(rows, wavekv::nhd(keys.data(), n, sizes_.n_kv_heads, sizes_.key_dim),
                               wavekv::nhd(values.data(), n, sizes_.n_kv_heads, sizes_.value_dim));
    append_naively<S>(tokens_, keys, values);
  }

  geometry sizes_;
  any_executor executor_;
  typename writer::reader_type reader_;
  writer writer_;
  typename writer::layer_type state_;
  naive_layer tokens_;
  device::model_shape shape_;
  float growth_;
};

// How a caller lays an array [n, n_heads, dim] out.
struct layout {
  element_kind kind = element_kind::float32;
  bool heads_first = false;
  std::size_t padding = 0;  // elements behind each row: odd, and few rows are aligned
};

std::string_view name_of(element_kind kind) {
  return kind == element_kind::float32 ? "float" : kind == element_kind::bf16 ? "bf16" : "f16";
}

// Such an array in device memory. What is no element's is poison, and has to stay that.
class caller_array {
 public:
  caller_array(emulated_runtime runtime, const layout& how, std::size_t n, std::size_t n_heads,
               std::size_t dim)
      : runtime_(std::move(runtime)), how_(how), n_(n), n_heads_(n_heads), dim_(dim) {
    const std::size_t row = dim + how.padding;
    rows_.kind = how.kind;
    rows_.head_stride = how.heads_first ? n * row : row;
    rows_.row_stride = how.heads_first ? row : n_heads * row;
    bytes_.assign(n * n_heads * row * size(), std::byte{wavekv::testing::poison});
    rows_.data = runtime_.allocate(bytes_.size(), {});
  }
  caller_array(const caller_array&) = delete;
  caller_array& operator=(const caller_array&) = delete;
  ~caller_array() { runtime_.deallocate(rows_.data, bytes_.size(), {}); }

  const device::caller_rows& rows() const { return rows_; }

  // Writes [n, n_heads, dim], and leaves in it what the array's kind keeps of it.
  void put(std::vector<float>& elements) {
    visit([&](std::size_t i, std::byte* at) {
      std::byte* const in_host = bytes_.data() + (at - static_cast<std::byte*>(rows_.data));
      const auto store = [&]<class E>(E element) {
        std::memcpy(in_host, &element, sizeof element);
        elements[i] = wavekv::to_float(element);
      };
      if (how_.kind == element_kind::bf16) {
        store(wavekv::from_float<bf16>(elements[i]));
      } else if (how_.kind == element_kind::f16) {
        store(wavekv::from_float<f16>(elements[i]));
      } else {
        store(elements[i]);
      }
    });
    runtime_.copy_in(rows_.data, bytes_.data(), bytes_.size(), {});
  }

  std::vector<float> get() {
    std::vector<std::byte> seen(bytes_.size());
    runtime_.copy_out(seen.data(), rows_.data, seen.size(), {});
    std::vector<float> elements(n_ * n_heads_ * dim_);
    visit([&](std::size_t i, std::byte* at) {
      std::byte* const in_host = seen.data() + (at - static_cast<std::byte*>(rows_.data));
      const auto load = [&]<class E>(E element) {
        std::memcpy(&element, in_host, sizeof element);
        elements[i] = wavekv::to_float(element);
      };
      if (how_.kind == element_kind::bf16) {
        load(bf16{});
      } else if (how_.kind == element_kind::f16) {
        load(f16{});
      } else {
        load(0.0F);
      }
      std::fill_n(in_host, size(), std::byte{wavekv::testing::poison});
    });
    CHECK(std::ranges::all_of(seen,
                              [](std::byte b) { return b == std::byte{wavekv::testing::poison}; }));
    return elements;
  }

 private:
  std::size_t size() const { return how_.kind == element_kind::float32 ? 4 : 2; }

  template <class Visit>
  void visit(const Visit& element) const {
    for (std::size_t i = 0; i < n_ * n_heads_ * dim_; ++i) {
      const std::size_t at = i / (n_heads_ * dim_) * rows_.row_stride +
                             i / dim_ % n_heads_ * rows_.head_stride + i % dim_;
      element(i, static_cast<std::byte*>(rows_.data) + at * size());
    }
  }

  emulated_runtime runtime_;
  layout how_;
  std::size_t n_;
  std::size_t n_heads_;
  std::size_t dim_;
  device::caller_rows rows_;
  std::vector<std::byte> bytes_;
};

struct answer {
  outputs rows;
  device::step_counts counts;
};

// The chunk's answers. lse is [n_query_heads, n_queries] in device memory, with a gap.
template <class S>
answer attend(const held_layer<S>& layer, std::vector<float>& queries, const layout& query_layout,
              const layout& out_layout, const emulation_options& options) {
  const geometry& sizes = layer.sizes();
  const std::size_t n_heads = sizes.n_query_heads;
  const std::size_t n = queries.size() / (n_heads * sizes.key_dim);
  emulated_runtime runtime(options);
  const uploaded_layer<S, typename held_layer<S>::cluster_count, emulated_runtime> uploaded(
      runtime, layer.shape(), layer.state());
  caller_array query_array(runtime, query_layout, n, n_heads, sizes.key_dim);
  caller_array out(runtime, out_layout, n, n_heads, sizes.value_dim);
  caller_array lse(runtime, {element_kind::float32, true, 1}, n, n_heads, 1);
  caller_array sinks(runtime, {}, 1, n_heads, 1);
  query_array.put(queries);
  device::answer_arrays to;
  to.out = out.rows();
  to.lse = static_cast<float*>(lse.rows().data);
  to.lse_strides[0] = lse.rows().row_stride;
  to.lse_strides[1] = lse.rows().head_stride;
  if (!sizes.sink_logits.empty()) {
    std::vector<float> logits = sizes.sink_logits;
    sinks.put(logits);
    to.sink_logits = static_cast<const float*>(sinks.rows().data);
  }
  answer result{outputs(sizes, 0), {}};
  auto* const report =
      static_cast<device::step_counts*>(runtime.allocate(sizeof(device::step_counts), {}));
  runtime.fill(report, 0, sizeof(device::step_counts), {});
  device::launch_prefill<S>(runtime, layer.shape(), uploaded.view(), static_cast<std::uint32_t>(n),
                            query_array.rows(), sizes.logit_scale(), to, report, {});
  result.rows.out = out.get();
  result.rows.lse = lse.get();
  runtime.copy_out(&result.counts, report, sizeof(device::step_counts), {});
  runtime.deallocate(report, sizeof(device::step_counts), {});
  return result;
}

// Rows of the tiles that a chunk's queries are cut into.
template <class S>
unsigned block_rows(const geometry& sizes) {
  unsigned rows = 0;
  device::with_max_dim(
      static_cast<unsigned>(std::max(sizes.key_dim, sizes.value_dim)),
      [&](auto dim) { rows = device::prefill_tiling<S, decltype(dim)::value>::block_rows; });
  return rows;
}

template <class S>
void check_counts(const held_layer<S>& layer, std::size_t n, const device::step_counts& counts) {
  const geometry& sizes = layer.sizes();
  const std::size_t before = layer.state().length() - n;
  const std::size_t group = sizes.group_size();
  std::size_t n_seen = 0;  // by the blocks of a KV head
  for (std::size_t row = 0; row < n * group; row += block_rows<S>(sizes)) {
    n_seen +=
        before + (std::min<std::size_t>(row + block_rows<S>(sizes), n * group) - 1) / group + 1;
  }
  CHECK(counts.groups == n * sizes.n_kv_heads);
  CHECK(counts.rounds == counts.groups);
  CHECK(counts.tokens_held == (n * before + n * (n + 1) / 2) * sizes.n_kv_heads);
  CHECK(counts.tokens_read == counts.tokens_held);
  CHECK(counts.bytes_read ==
        n_seen * sizes.n_kv_heads * (sizes.key_dim + sizes.value_dim) * sizeof(S));
  CHECK(counts.faults == 0);
}

// How far outputs may be off, beside the length of a typical value, and lse absolutely.
//
// Each addition of a float sum leaves 2^-24 of a logit as large as the largest; over up to 256 of them that grows to some
// 16 times as much. Two halves of a bf16 keep 2^-16 of a number: of weights; of queries, which moves logits, 8 or so here,
// by that share of them. A rounded weight is off by half an epsilon of the operand, and the output's rounding by half an
// epsilon of its kind.
template <class S>
std::pair<double, double> tolerances(const reference_attention& truth, element_kind queries,
                                     element_kind out) {
  using operand = typename device::tile_scalar<S>::operand;
  constexpr double of_operand = wavekv::scalar_traits<operand>::epsilon;
  const double of_out = out == element_kind::float32 ? 0.0
                        : out == element_kind::bf16  ? wavekv::scalar_traits<bf16>::epsilon
                                                     : wavekv::scalar_traits<f16>::epsilon;
  const bool splits_weights = sizeof(S) == 4 || of_out < of_operand;
  double largest = 8.0;
  for (const double lse : truth.lse) largest = std::max(largest, std::abs(lse));
  const double of_logits =
      largest * 0x1p-20 + (queries == device::kind_of<operand> ? 0.0 : 8 * 0x1p-16);
  const double of_weights = splits_weights ? 0x1p-16 : of_operand / 2;
  return {of_logits + of_weights + of_out / 2, of_logits};
}

template <class S>
void compare(const geometry& sizes, const chunk_case& held, const layout& query_layout,
             const layout& out_layout, std::span<const schedule> orders) {
  auto random = generator("prefill");
  random.discard(held.n_cached * 1000 + held.n_chunk);
  INFO("cached ", held.n_cached, ", in the tail ", held.n_tail, ", chunk ", held.n_chunk, ", sink ",
       held.n_sink, ", growth ", held.growth, ", dims ", sizes.key_dim, "/", sizes.value_dim,
       ", group ", sizes.group_size(), ", ", wavekv::scalar_traits<S>::name, ", queries ",
       name_of(query_layout.kind), ", out ", name_of(out_layout.kind));
  const held_layer<S> layer(sizes, held, random);
  std::vector<float> queries =
      normal_rows(random, held.n_chunk * sizes.n_query_heads * sizes.key_dim, held.query_sigma);
  for (std::size_t i = 0; held.growth != 0.0F && i < queries.size(); i += sizes.key_dim) {
    queries[i] = 1.0F / sizes.logit_scale();
  }
  outputs first(sizes, 0);
  for (const schedule order : orders) {
    emulation_options options;
    options.order = order;
    options.seed = random();
    const answer seen = attend(layer, queries, query_layout, out_layout, options);
    if (order != orders.front()) {
      CHECK(seen.rows == first);  // bit for bit
      continue;
    }
    first = seen.rows;
    const reference_attention truth = attend_naively(sizes, 0, layer.tokens(), queries);
    const auto [allowed, allowed_lse] = tolerances<S>(truth, query_layout.kind, out_layout.kind);
    const double error = largest_error(sizes, seen.rows.out, truth);
    const double lse_error = largest_lse_error(seen.rows.lse, truth);
    CHECK(error < allowed);
    CHECK(lse_error < allowed_lse);
    check_counts(layer, held.n_chunk, seen.counts);
  }
}

geometry sizes_of(std::size_t n_kv_heads, std::size_t group, std::size_t key_dim,
                  std::size_t value_dim) {
  geometry sizes;
  sizes.n_kv_heads = n_kv_heads;
  sizes.n_query_heads = n_kv_heads * group;
  sizes.key_dim = key_dim;
  sizes.value_dim = value_dim;
  return sizes;
}

constexpr layout plain_bf16{element_kind::bf16, false, 0};
constexpr layout plain_f16{element_kind::f16, false, 0};
constexpr layout plain_float{element_kind::float32, false, 0};

}  // namespace

TEST_CASE("prefill of an empty layer, at the edges of every tile") {
  std::size_t turn = 0;
  const auto compare_sizes = [&](std::size_t dim, std::initializer_list<std::size_t> sizes) {
    for (const std::size_t n : sizes) {
      const schedule order = all_schedules[turn++ % 3];
      compare<bf16>(sizes_of(1, 1, dim, dim), {0, 0, n, turn % 2 * 4}, plain_bf16,
                    turn % 4 < 2 ? plain_bf16 : plain_float, std::span(&order, 1));
    }
  };
  compare_sizes(64, {1, 2, 15, 16, 17, 33, 63, 64, 65, 68, 69, 127, 128, 129, 132, 133, 193});
  compare_sizes(128, {1, 3, 4, 5, 16, 31, 32, 33, 36, 37, 63, 64, 65, 128, 129});
  compare_sizes(256, {1, 15, 16, 17, 20, 21, 33, 64, 65});
}

TEST_CASE("prefill behind segments and tails that end at a tile's edges") {
  std::size_t turn = 0;
  for (const std::size_t n_rest : {32, 33, 63, 64, 65, 95}) {
    for (const std::size_t n_tail : {0, 1, 30, 62, 64}) {
      const schedule order = all_schedules[turn++ % 3];
      compare<bf16>(sizes_of(1, 1, 64, 64), {4 + turn % 2 * 96 + n_rest + n_tail, n_tail, 1 + turn},
                    plain_bf16, plain_bf16, std::span(&order, 1));
    }
  }
}

TEST_CASE("prefill of a layer with segments: scalars, kinds of queries and answers, layouts") {
  const geometry sizes = sizes_of(2, 4, 64, 64);
  const chunk_case held{4 + 3 * 96 - 2 + 13, 13, 37};  // its tail lies around the ring's end
  const schedule once[] = {schedule::random};
  compare<bf16>(sizes, held, plain_bf16, plain_bf16, all_schedules);
  compare<bf16>(sizes, held, {element_kind::float32, true, 3}, plain_float, all_schedules);
  compare<bf16>(sizes, held, {element_kind::f16, true, 8}, {element_kind::f16, true, 1}, once);
  compare<f16>(sizes, held, {element_kind::f16, false, 1}, plain_f16, all_schedules);
  compare<f16>(sizes, held, plain_float, {element_kind::float32, true, 4}, once);
  compare<f16>(sizes, held, {element_kind::bf16, true, 0}, {element_kind::bf16, true, 3}, once);
  compare<float>(sizes, held, plain_float, {element_kind::float32, false, 5}, all_schedules);
  compare<float>(sizes, held, plain_bf16, plain_f16, once);
}

TEST_CASE("prefill: dims and groups") {
  const chunk_case held{4 + 96 + 40, 8, 21};
  const schedule once[] = {schedule::random};
  compare<bf16>(sizes_of(1, 7, 128, 128), held, plain_bf16, plain_bf16, all_schedules);
  compare<f16>(sizes_of(1, 12, 72, 40), held, plain_float, plain_float, all_schedules);
  compare<bf16>(sizes_of(1, 4, 40, 72), held, plain_bf16, plain_float, once);
  compare<bf16>(sizes_of(2, 1, 8, 128), held, plain_bf16, plain_bf16, once);
  compare<bf16>(sizes_of(1, 16, 256, 256), {40, 40, 9}, plain_bf16, plain_bf16, once);
  compare<f16>(sizes_of(1, 1, 256, 136), held, plain_f16, plain_float, once);
  compare<float>(sizes_of(1, 3, 72, 40), held, plain_float, plain_float, once);
  compare<float>(sizes_of(1, 2, 200, 256), {40, 40, 17}, plain_float, plain_float, once);
  compare<bf16>(sizes_of(1, 33, 32, 24), {0, 0, 5}, plain_bf16, plain_bf16, once);
}

TEST_CASE("prefill: softcap, learned sinks, a scale") {
  const chunk_case held{4 + 96 + 40, 8, 21};
  geometry sizes = sizes_of(2, 2, 64, 64);
  sizes.logit_softcap = 2.0F;
  sizes.scale = 0.25F;
  compare<bf16>(sizes, held, plain_bf16, plain_float, all_schedules);
  sizes.sink_logits = {-3.0F, 0.0F, 2.5F, 30.0F};
  compare<f16>(sizes, held, plain_f16, plain_f16, all_schedules);
  sizes.logit_softcap = 0.0F;
  compare<float>(sizes, held, plain_float, plain_float, all_schedules);
}

TEST_CASE("prefill: logits that rise or fall from token to token, by little and by much") {
  const geometry sizes = sizes_of(1, 2, 64, 64);
  std::size_t turn = 0;
  for (const float growth : {0.02F, 0.2F, 2.0F, -0.2F, -2.0F}) {
    const schedule order = all_schedules[turn++ % 3];
    const chunk_case held{0, 0, 140, 4, growth};
    compare<bf16>(sizes, held, plain_bf16, plain_float, std::span(&order, 1));
    compare<f16>(sizes, held, plain_f16, plain_f16, std::span(&order, 1));
    compare<float>(sizes, held, plain_float, plain_float, std::span(&order, 1));
  }
}

TEST_CASE("prefill: queries far outside of what a 16-bit operand can say") {
  const schedule once[] = {schedule::random};
  for (const float size : {1e-20F, 1e-7F, 1e6F, 1e20F}) {
    geometry sizes = sizes_of(1, 2, 64, 64);
    sizes.scale = 0.125F / size;
    const chunk_case held{0, 0, 20, 4, 0.0F, size};
    compare<f16>(sizes, held, plain_float, plain_float, once);
    compare<bf16>(sizes, held, plain_float, plain_bf16, once);
    compare<float>(sizes, held, plain_float, plain_float, once);
  }
}

TEST_CASE("prefill reports a query that is not finite") {
  const geometry sizes = sizes_of(2, 3, 64, 64);
  auto random = generator("prefill faults");
  const held_layer<bf16> layer(sizes, {0, 0, 20}, random);
  for (const element_kind kind : {element_kind::bf16, element_kind::f16, element_kind::float32}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> queries = normal_rows(random, 20 * sizes.n_query_heads * sizes.key_dim);
      queries[random() % queries.size()] = bad;
      const answer seen = attend(layer, queries, {kind, false, 0}, plain_float, {});
      CHECK(seen.counts.faults == static_cast<unsigned>(device::fault::query_not_finite));
    }
  }
}

TEST_CASE("prefill of no tokens launches nothing") {
  emulated_runtime runtime;
  device::model_shape shape;
  shape.key_dim = shape.value_dim = 64;
  device::launch_prefill<bf16>(runtime, shape,
                               static_cast<const device::layer_view<bf16>*>(nullptr), 0, {}, 1.0F,
                               {}, nullptr, {});
  runtime.synchronize({});
}
