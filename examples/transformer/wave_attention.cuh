// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include <wavekv/cache/kv_cache.cuh>

#include "bounds.cuh"
#include "linear.cuh"
#include "sliding_window.cuh"
#include "wave_attention.hpp"

/// @file wave_attention.cuh
/// @brief The full-attention layers on a device: the twin of wave_attention.hpp. wavekv's calls are here.

namespace transformer {

/// @brief A sequence whose full-attention layers live in a wavekv::kv_cache on a device. Everything goes to one stream.
/// @tparam Cache a wavekv::kv_cache on a device; must outlive this object
template <class Cache>
class device_attention {
 public:
  using stream_type = typename Cache::stream_type;
  using runtime_type = typename Cache::runtime_type;

  device_attention(Cache& cache, any_bound bound, stream_type stream)
      : cache_(&cache),
        stream_(stream),
        sequence_(cache.create(stream)),
        bound_(std::move(bound)) {}

  /// @brief A fork of `other` that is answered by another bound.
  /// @param probes  asks every question a second time, of full attention over the same cache, and records how far the two
  ///                answers lie apart: too slow to be timed, and nothing that can be captured
  device_attention(const device_attention& other, any_bound bound, bool probes)
      : cache_(other.cache_),
        stream_(other.stream_),
        sequence_(cache_->fork(other.sequence_, stream_)),
        bound_(std::move(bound)),
        probes_(probes) {}

  ~device_attention() { cache_->release(sequence_, stream_); }
  device_attention(const device_attention&) = delete;
  device_attention& operator=(const device_attention&) = delete;

  /// @brief A prompt chunk: appends n tokens and attends each to everything up to itself.
  /// @param out  [n, n_query_heads, head_dim]
  void prefill(std::size_t layer, std::size_t n, const head_rows& in, float* out) {
    cache_->prefill(sequence_, layer, queries(in, n), keys(in, n), values(in, n), output(out, n),
                    stream_);
  }

  /// @brief A prompt chunk whose attention nobody reads. Its queries teach the clustering, as those of prefill do.
  void append(std::size_t layer, std::size_t n, const head_rows& in) {
    cache_->append(sequence_, layer, keys(in, n), values(in, n), queries(in, n), stream_);
  }

  /// @brief The prompt is complete: what waits in the tail becomes part of the index.
  void end_prompt() {
    cache_->seal(sequence_, stream_);
    (void)cache_->collect(
        stream_);  // throws what the device saw; counts of a prompt nobody asks for
  }

  /// @brief Makes room for the next step, outside of any capture.
  /// @return whether steps captured before this call may still be replayed
  bool make_room() {
    const std::size_t needed = cache_->length(sequence_) + 1;
    if (workspace_ && workspace_->n_tokens() >= needed) return true;
    workspace_.emplace(cache_->make_workspace(1, needed + more_tokens, stream_));
    return false;
  }

  /// @brief Room for a token in every layer's tail, for append in a capture.
  void make_room_for_replay() { advance(0); }

  /// @brief Books the token that a replayed step has appended.
  void replayed() { advance(1); }

  /// @brief One layer's step: first the token's own key and value, then the question. After make_room.
  void decode(std::size_t layer, const head_rows& in, float* out) {
    cache_->append(sequence_, layer, keys(in, 1), values(in, 1), stream_);
    std::visit(
        [&](const auto& bound) {
          cache_->attend(sequence_, layer, queries(in, 1), output(out, 1), bound, *workspace_,
                         stream_);
        },
        bound_);
    if (probes_) probe(layer, in, out);
  }

  /// @brief What the step's layers did goes into the record.  Blocks: until the stream has come here.
  /// @throw wavekv::value_error when the model computed something that is not finite
  void end_step() {
    wavekv::step_stats step = std::exchange(probed_, {});
    step += cache_->collect(stream_);
    record_.total += step;
    record_.predicted_errors.push_back(step.predicted_error);
  }

  [[nodiscard]] bool probes() const noexcept { return probes_; }

  /// @brief What decode did so far; of errors one number a step, that of the worst layer.
  [[nodiscard]] const decode_record& record() const noexcept { return record_; }

 private:
  using const_view = wavekv::device_view<const float, 3>;

  static constexpr std::size_t more_tokens = 4096;  // that a workspace is larger than it has to be

  const wavekv::geometry& sizes() const { return cache_->geometry(); }
  static const_view heads(const float* first, std::size_t n, std::size_t n_heads, std::size_t dim,
                          std::size_t stride) {
    return {first, {n, n_heads, dim}, {stride, dim, 1}};
  }
  const_view queries(const head_rows& in, std::size_t n) const {
    return heads(in.queries, n, sizes().n_query_heads, sizes().key_dim, in.stride);
  }
  const_view keys(const head_rows& in, std::size_t n) const {
    return heads(in.keys, n, sizes().n_kv_heads, sizes().key_dim, in.stride);
  }
  const_view values(const head_rows& in, std::size_t n) const {
    return heads(in.values, n, sizes().n_kv_heads, sizes().value_dim, in.stride);
  }
  wavekv::device_view<float, 3> output(float* out, std::size_t n) const {
    return wavekv::device_nhd(out, n, sizes().n_query_heads, sizes().value_dim);
  }

  void advance(std::size_t n) {
    const wavekv::query_run run{sequence_, n};
    cache_->advance(std::span(&run, 1), stream_);
  }

  void probe(std::size_t layer, const head_rows& in, const float* out) {
    runtime_type runtime = cache_->options().runtime;
    const std::size_t n = sizes().n_query_heads * sizes().value_dim;
    std::vector<float> found(n);
    std::vector<float> expected(n);
    runtime.copy_out(found.data(), out, n * sizeof(float), stream_);
    probed_ += cache_->collect(stream_);
    float* const exact = exact_.template reserve<float>(runtime, n, stream_);
    cache_->attend(sequence_, layer, queries(in, 1), output(exact, 1), wavekv::exact{}, *workspace_,
                   stream_);
    runtime.copy_out(expected.data(), exact, n * sizeof(float), stream_);
    (void)cache_->collect(stream_);  // not what was read to check the answer
    for (std::size_t head = 0; head < n; head += sizes().value_dim)
      record_.true_errors.push_back(
          relative_error(found.data() + head, expected.data() + head, sizes().value_dim));
  }

  Cache* cache_;
  stream_type stream_;
  wavekv::sequence_id sequence_;
  any_bound bound_;
  bool probes_ = false;
  std::optional<typename Cache::workspace_type> workspace_;
  growing_block<runtime_type> exact_;
  wavekv::step_stats probed_;  // of the step's layers so far, where each is asked a second time
  decode_record record_;
};

}  // namespace transformer
