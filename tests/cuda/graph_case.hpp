// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cache/kv_cache.cuh>

#include "cuda/device_rows.hpp"
#include "support/model.hpp"
#include "support/rows.hpp"

/// @file graph_case.hpp
/// @brief A decode step captured once and replayed against the same steps without a graph; for every runtime.

namespace wavekv_test {

/// @brief What a model's step reads and writes: fixed places in device memory, by layer.
template <class Runtime>
class step_buffers {
 public:
  using stream_type = typename Runtime::stream_type;

  step_buffers(Runtime runtime, wavekv::geometry sizes, std::size_t n, stream_type stream)
      : sizes_(std::move(sizes)),
        n_(n),
        keys_(runtime, sizes_.n_layers * key_floats(), stream),
        values_(runtime, sizes_.n_layers * value_floats(), stream),
        queries_(runtime, sizes_.n_layers * query_floats(), stream),
        out_(runtime, sizes_.n_layers * n * sizes_.n_query_heads * sizes_.value_dim, stream),
        lse_(runtime, sizes_.n_layers * n * sizes_.n_query_heads, stream) {}

  /// @brief A step's keys, values and queries, by its number.
  void fill(std::uint64_t step, stream_type stream) {
    random_engine random(step);
    keys_.write(make_keys(random, key_family::clustered, sizes_.n_layers * n_, sizes_.n_kv_heads,
                          sizes_.key_dim),
                stream);
    values_.write(normal_rows(random, sizes_.n_layers * value_floats()), stream);
    queries_.write(normal_rows(random, sizes_.n_layers * query_floats()), stream);
  }

  /// @brief One token of every sequence into every layer, and what it attends to.
  template <class Cache, class Workspace>
  void step(Cache& cache, std::span<const wavekv::query_run> batch, Workspace& workspace,
            stream_type stream) {
    for (std::size_t layer = 0; layer < sizes_.n_layers; ++layer) {
      cache.append(batch, layer,
                   wavekv::device_nhd<const float>(keys_.data() + layer * key_floats(), n_,
                                                   sizes_.n_kv_heads, sizes_.key_dim),
                   wavekv::device_nhd<const float>(values_.data() + layer * value_floats(), n_,
                                                   sizes_.n_kv_heads, sizes_.value_dim),
                   wavekv::device_view<const float, 3>{}, stream);
      const std::size_t n_heads = n_ * sizes_.n_query_heads;
      cache.attend(
          batch, layer,
          wavekv::device_nhd<const float>(queries_.data() + layer * query_floats(), n_,
                                          sizes_.n_query_heads, sizes_.key_dim),
          wavekv::device_nhd(out_.data() + layer * n_heads * sizes_.value_dim, n_,
                             sizes_.n_query_heads, sizes_.value_dim),
          wavekv::device_view<float, 2>(lse_.data() + layer * n_heads, {n_, sizes_.n_query_heads}),
          workspace, stream);
    }
  }

  /// @brief What the last step wrote. Waits for the stream.
  std::vector<float> answers(stream_type stream) {
    std::vector<float> all = out_.read(stream);
    const std::vector<float> lse = lse_.read(stream);
    all.insert(all.end(), lse.begin(), lse.end());
    return all;
  }

 private:
  [[nodiscard]] std::size_t key_floats() const { return n_ * sizes_.n_kv_heads * sizes_.key_dim; }
  [[nodiscard]] std::size_t value_floats() const {
    return n_ * sizes_.n_kv_heads * sizes_.value_dim;
  }
  [[nodiscard]] std::size_t query_floats() const {
    return n_ * sizes_.n_query_heads * sizes_.key_dim;
  }

  wavekv::geometry sizes_;
  std::size_t n_;  // sequences
  device_rows<Runtime> keys_;
  device_rows<Runtime> values_;
  device_rows<Runtime> queries_;
  device_rows<Runtime> out_;
  device_rows<Runtime> lse_;
};

/// @brief Captures {append, attend} of all layers once and replays it; a second cache does the same steps without.
/// @param recorder  `begin(stream)`, `end(stream)` and `launch(stream)` of a graph
/// @param seen_every  steps between looks at the answers: a look waits for the device
template <class Cache, class Recorder>
void check_replay(const wavekv::geometry& sizes, const typename Cache::options_type& options,
                  typename Cache::stream_type stream, Recorder& recorder,
                  const std::vector<std::size_t>& prompts, std::size_t n_steps,
                  std::size_t seen_every) {
  using runtime_type = typename Cache::runtime_type;
  runtime_type runtime = options.runtime;
  Cache replayed(sizes, options);
  Cache plain(sizes, options);
  std::vector<wavekv::query_run> in_replayed;
  std::vector<wavekv::query_run> in_plain;
  std::size_t longest = 0;
  random_engine random(17);
  for (const std::size_t n : prompts) {
    in_replayed.push_back({replayed.create(stream), 1});
    in_plain.push_back({plain.create(stream), 1});
    longest = std::max(longest, n);
    device_rows<runtime_type> keys(runtime, n * sizes.n_kv_heads * sizes.key_dim, stream);
    device_rows<runtime_type> values(runtime, n * sizes.n_kv_heads * sizes.value_dim, stream);
    for (std::size_t layer = 0; n != 0 && layer < sizes.n_layers; ++layer) {
      keys.write(make_keys(random, key_family::clustered, n, sizes.n_kv_heads, sizes.key_dim),
                 stream);
      values.write(normal_rows(random, n * sizes.n_kv_heads * sizes.value_dim), stream);
      const auto k =
          wavekv::device_nhd<const float>(keys.data(), n, sizes.n_kv_heads, sizes.key_dim);
      const auto v =
          wavekv::device_nhd<const float>(values.data(), n, sizes.n_kv_heads, sizes.value_dim);
      replayed.append(in_replayed.back().sequence, layer, k, v, stream);
      plain.append(in_plain.back().sequence, layer, k, v, stream);
    }
  }
  const std::size_t n = prompts.size();
  step_buffers<runtime_type> buffers(runtime, sizes, n, stream);
  step_buffers<runtime_type> plain_buffers(runtime, sizes, n, stream);
  auto workspace = replayed.make_workspace(n, longest + n_steps, stream);
  auto plain_workspace = plain.make_workspace(n, longest + n_steps, stream);
  for (wavekv::query_run& run : in_replayed) run.n_queries = 0;
  replayed.advance(in_replayed, stream);  // room for the first step
  for (wavekv::query_run& run : in_replayed) run.n_queries = 1;

  recorder.begin(stream);
  buffers.step(replayed, in_replayed, workspace, stream);
  recorder.end(stream);
  CHECK(replayed.length(in_replayed.front().sequence) == prompts.front());  // nothing was done
  std::size_t n_different = 0;
  for (std::size_t step = 0; step < n_steps; ++step) {
    buffers.fill(step, stream);
    recorder.launch(stream);
    replayed.advance(in_replayed, stream);
    plain_buffers.fill(step, stream);
    plain_buffers.step(plain, in_plain, plain_workspace, stream);
    if ((step + 1) % seen_every == 0 &&
        !same_bits(buffers.answers(stream), plain_buffers.answers(stream))) {
      ++n_different;
      MESSAGE("step " << step << " differs");
      if (n_different > 5) break;
    }
  }
  CHECK(n_different == 0);
  for (std::size_t i = 0; i < n; ++i) {
    const auto ended = replayed.stats(in_replayed[i].sequence, stream);
    CHECK(ended.tokens == prompts[i] + n_steps);
    CHECK(plain.length(in_plain[i].sequence) == prompts[i] + n_steps);
    CHECK(ended.segments > 0);
  }
  const wavekv::step_stats a = replayed.collect(stream);
  const wavekv::step_stats b = plain.collect(stream);
  CHECK(a.groups == n_steps * n * sizes.n_layers * sizes.n_kv_heads);
  CHECK(a.tokens_held == b.tokens_held);
  CHECK(a.tokens_read == b.tokens_read);
  CHECK(a.clusters_estimated == b.clusters_estimated);
  CHECK(a.clusters_estimated > 0);
}

}  // namespace wavekv_test
