// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <wavekv/wavekv.hpp>

#include "bounds.hpp"
#include "config.hpp"
#include "full_attention.hpp"
#include "spread_rows.hpp"

namespace transformer {

/// @brief The sizes wavekv needs. Only full-attention layers are layers of the cache.
inline wavekv::geometry cache_geometry(const model_config& config, std::size_t n_full_layers) {
  wavekv::geometry sizes;
  sizes.n_layers = n_full_layers;
  sizes.n_query_heads = config.n_query_heads;
  sizes.n_kv_heads = config.n_kv_heads;
  sizes.key_dim = config.head_dim;
  sizes.value_dim = config.head_dim;
  return sizes;
}

/// @brief What the decode steps of one sequence did.
struct decode_record {
  wavekv::step_stats total;             ///< added up over steps and layers
  std::vector<float> predicted_errors;  ///< one per step and layer: that of the worst head
  std::vector<float> true_errors;  ///< one per step, layer and query head; only with error_probe
};

/// @brief A sequence whose full-attention layers live in a wavekv::kv_cache: the calls to make, and
/// where.
/// @tparam Cache     a wavekv::kv_cache; must outlive this object
/// @tparam AnyBound  a std::variant of the bounds that may answer
template <class Cache, class AnyBound = any_bound>
class wave_attention : public full_attention {
 public:
  wave_attention(Cache& cache, AnyBound bound)
      : cache_(&cache), sequence_(cache.create()), bound_(std::move(bound)) {}

  /// @brief A fork of `other` that is answered by another bound. Sealed segments are shared, not
  /// copied; what was learnt of predictions is used for it, too: right as far as it reads as much.
  wave_attention(const wave_attention& other, AnyBound bound)
      : cache_(other.cache_),
        sequence_(other.cache_->fork(other.sequence_)),
        bound_(std::move(bound)),
        calibrations_(other.calibrations_),
        error_scales_(other.error_scales_) {}

  /// @brief Takes over a sequence of the cache: one that was loaded, say.
  wave_attention(Cache& cache, AnyBound bound, wavekv::sequence_id sequence)
      : cache_(&cache), sequence_(sequence), bound_(std::move(bound)) {}

  ~wave_attention() override { cache_->release(sequence_); }
  wave_attention(const wave_attention&) = delete;
  wave_attention& operator=(const wave_attention&) = delete;

  /// @brief Keeps at most n of each layer's prompt queries, and calibrates an error_bound with them
  /// when the prompt is complete; 0: none. Call it before the prompt.
  void calibrate_with(std::size_t n) {
    kept_queries_.clear();
    if (n > 0) kept_queries_.assign(sizes().n_layers, {n, sizes().n_query_heads * sizes().key_dim});
  }

  // A prompt is attended exactly; its queries teach the clustering what is looked for.
  void prefill(const attention_input& in, float* out) override {
    keep_queries(in);
    cache_->prefill(sequence_, in.layer, queries(in), keys(in), values(in), output(in, out));
  }

  void append(const attention_input& in) override {
    keep_queries(in);
    cache_->append(sequence_, in.layer, keys(in), values(in), queries(in));
  }

  // The prompt is complete: what waits in the tail becomes part of the index.
  void end_prompt() override {
    cache_->seal(sequence_);
    std::visit([&](const auto& bound) { calibrate(bound); }, bound_);
  }

  // A step: first the token's own key and value, then the question.
  void decode(const attention_input& in, float* out) override {
    cache_->append(sequence_, in.layer, keys(in), values(in));
    if (in.layer + 1 < sizes().n_layers) cache_->prefetch(sequence_, in.layer + 1);
    const auto step = std::visit(
        [&](const auto& bound) { return attend(in, out, of_layer(in.layer, bound)); }, bound_);
    record_.total += step;
    record_.predicted_errors.push_back(step.predicted_error);
  }

  std::unique_ptr<full_attention> fork() const override {
    return std::make_unique<wave_attention>(*this, bound_);
  }

  /// @brief Writes the sequence to a file, and with it what the engine keeps besides.
  void save(const std::filesystem::path& path, const std::string& model,
            std::span<const std::byte> engine) const {
    cache_->save(sequence_, path, model, engine);
  }

  /// @brief What decode did so far.
  const decode_record& record() const noexcept { return record_; }

  /// @brief How far predictions were off, layer by layer; empty: the prompt was not asked.
  const std::vector<wavekv::calibration>& calibrations() const noexcept { return calibrations_; }

 protected:
  template <class Bound>
  wavekv::step_stats attend(const attention_input& in, float* out, const Bound& bound) {
    return cache_->attend(sequence_, in.layer, queries(in), output(in, out),
                          wavekv::tensor_view<float, 2>{}, bound);
  }

  const wavekv::geometry& sizes() const { return cache_->geometry(); }

  decode_record record_;

 private:
  using const_view = wavekv::tensor_view<const float, 3>;

  const_view queries(const attention_input& in) const {
    return wavekv::nhd(in.queries, in.n_tokens, sizes().n_query_heads, sizes().key_dim);
  }
  const_view keys(const attention_input& in) const {
    return wavekv::nhd(in.keys, in.n_tokens, sizes().n_kv_heads, sizes().key_dim);
  }
  const_view values(const attention_input& in) const {
    return wavekv::nhd(in.values, in.n_tokens, sizes().n_kv_heads, sizes().value_dim);
  }
  wavekv::tensor_view<float, 3> output(const attention_input& in, float* out) const {
    return wavekv::nhd(out, in.n_tokens, sizes().n_query_heads, sizes().value_dim);
  }

  void keep_queries(const attention_input& in) {
    if (!kept_queries_.empty()) kept_queries_[in.layer].add(in.queries, in.n_tokens);
  }

  // Each layer's kept queries are asked by the bound and exactly.
  template <class Bound>
  void calibrate(const Bound& bound) {
    const std::vector<spread_rows> kept = std::exchange(kept_queries_, {});
    if constexpr (std::is_same_v<Bound, wavekv::error_bound<>>) {
      std::vector<wavekv::calibration> learnt;
      std::vector<float> scales;
      for (std::size_t layer = 0; layer < kept.size(); ++layer) {
        const auto asked = wavekv::nhd(kept[layer].data(), kept[layer].size(),
                                       sizes().n_query_heads, sizes().key_dim);
        learnt.push_back(wavekv::observe_errors(*cache_, sequence_, layer, asked, bound));
        scales.push_back(learnt.back().factor());
      }
      if (!kept.empty()) {
        calibrations_ = std::move(learnt);
        error_scales_ = std::move(scales);
      }
    }
  }

  template <class Bound>
  Bound of_layer(std::size_t layer, Bound bound) const {
    if constexpr (std::is_same_v<Bound, wavekv::error_bound<>>) {
      if (!error_scales_.empty()) bound.error_scale *= error_scales_[layer];
    }
    return bound;
  }

  Cache* cache_;
  wavekv::sequence_id sequence_;
  AnyBound bound_;
  std::vector<spread_rows> kept_queries_;  // one a layer, while a prompt is read
  std::vector<wavekv::calibration> calibrations_;
  std::vector<float> error_scales_;  // their factors
};

/// @brief How far two vectors of n elements lie apart, against the length of the second.
inline float relative_error(const float* found, const float* expected, std::size_t n) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < n; ++i) {
    difference += (double{found[i]} - expected[i]) * (double{found[i]} - expected[i]);
    norm += double{expected[i]} * expected[i];
  }
  return static_cast<float>(std::sqrt(difference / std::max(norm, 1e-30)));
}

/// @brief A wave_attention that asks every question a second time, of full attention over the same
/// cache, and records how far the two answers lie apart. Too slow to be timed: use it on a fork.
template <class Cache>
class error_probe final : public wave_attention<Cache> {
 public:
  using wave_attention<Cache>::wave_attention;

  void decode(const attention_input& in, float* out) override {
    wave_attention<Cache>::decode(in, out);
    const auto& sizes = this->sizes();
    exact_.resize(sizes.n_query_heads * sizes.value_dim);
    this->attend(in, exact_.data(), wavekv::exact{});
    for (std::size_t head = 0; head < sizes.n_query_heads; ++head)
      this->record_.true_errors.push_back(relative_error(
          out + head * sizes.value_dim, exact_.data() + head * sizes.value_dim, sizes.value_dim));
  }

 private:
  std::vector<float> exact_;
};

/// @brief A cache whose sealed tokens live in a file, and in memory only as far as a budget goes.
using tiered_cache =
    wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>,
                     wavekv::wave_buffer<wavekv::placement::tiered, wavekv::eviction::sieve,
                                         wavekv::transfer::threads>>;

// The programs and tests share one compiled copy; a cache is much code.
extern template class wave_attention<wavekv::kv_cache<>>;
extern template class error_probe<wavekv::kv_cache<>>;
extern template class wave_attention<tiered_cache>;
extern template class error_probe<tiered_cache>;

}  // namespace transformer
