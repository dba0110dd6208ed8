// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <wavekv/wavekv.hpp>

#include "data/attention_data.hpp"

/// @file decoder.hpp
/// @brief One layer of one sequence that decodes a trace, whatever its buffer: caches of several types behind one interface.

namespace wavekv_bench {

/// @brief Where a decoder's blocks live.
struct decoder_options {
  std::size_t fast_bytes = 0;
  std::size_t write_back_bytes = std::size_t{256} << 20U;
  std::filesystem::path store{};
  std::size_t n_threads = 1;
};

/// @brief A cache that decodes.
class decoder {
 public:
  decoder() = default;
  decoder(const decoder&) = delete;
  decoder& operator=(const decoder&) = delete;
  decoder(decoder&&) = delete;
  decoder& operator=(decoder&&) = delete;
  virtual ~decoder() = default;

  /// @brief Appends tokens [first, end) of the data as a prompt, and seals it.
  virtual void read_prompt(const attention_data& data, std::size_t first, std::size_t end) = 0;
  virtual void save(const std::filesystem::path& path) = 0;
  virtual void load(const std::filesystem::path& path) = 0;
  /// @brief Goes back to the end of the prompt, on a fork.
  virtual void restart() = 0;
  /// @brief Appends one token of the data.
  virtual void append(const attention_data& data, std::size_t token) = 0;
  /// @brief Asks with the token's queries; out: [n_query_heads, dim].
  virtual wavekv::step_stats attend(const attention_data& data, std::size_t token, float* out) = 0;
  /// @brief Starts reading what the last step used.
  virtual void prefetch() = 0;
  [[nodiscard]] virtual wavekv::statistics stats() const = 0;
  [[nodiscard]] virtual wavekv::cache_statistics cache_stats() const = 0;
};

/// @brief A decoder over one type of cache: one layer, one thread or several, the default index and bound.
template <class Buffer>
class cache_decoder final : public decoder {
 public:
  using cache_type = wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, Buffer>;

  cache_decoder(const wavekv::geometry& sizes, const decoder_options& options)
      : cache_(sizes, cache_options(options)),
        prompt_(cache_.create()),
        sequence_(cache_.fork(prompt_)) {}

  void read_prompt(const attention_data& data, std::size_t first, std::size_t end) override {
    constexpr std::size_t chunk = 8192;
    for (; first < end; first += chunk) {
      const std::size_t n = std::min(chunk, end - first);
      cache_.append(prompt_, 0, data.key_view(first, n), data.value_view(first, n),
                    data.query_view(first, n));
    }
    cache_.seal(prompt_);
    if constexpr (tiered) cache_.flush();
    restart();
  }
  void save(const std::filesystem::path& path) override { cache_.save(prompt_, path, "bench"); }
  void load(const std::filesystem::path& path) override {
    const auto loaded = cache_.load(path, "bench");
    cache_.release(std::exchange(prompt_, loaded));
    restart();
  }
  void restart() override {
    const auto fork = cache_.fork(prompt_);
    cache_.release(std::exchange(sequence_, fork));
  }
  void append(const attention_data& data, std::size_t token) override {
    cache_.append(sequence_, 0, data.key_view(token, 1), data.value_view(token, 1));
  }
  wavekv::step_stats attend(const attention_data& data, std::size_t token, float* out) override {
    return cache_.attend(sequence_, 0, data.query_view(token, 1),
                         wavekv::nhd(out, 1, data.n_query_heads, data.dim));
  }
  void prefetch() override { cache_.prefetch(sequence_, 0); }
  [[nodiscard]] wavekv::statistics stats() const override { return cache_.stats(sequence_); }
  [[nodiscard]] wavekv::cache_statistics cache_stats() const override { return cache_.stats(); }

 private:
  static constexpr bool tiered =
      !std::is_same_v<typename Buffer::placement_type, wavekv::placement::resident>;

  static typename cache_type::options_type cache_options(const decoder_options& options) {
    typename cache_type::options_type made;
    made.executor = wavekv::openmp_executor(options.n_threads);
    if constexpr (tiered) {
      made.placement.fast_bytes = options.fast_bytes;
      made.placement.write_back_bytes = options.write_back_bytes;
      if constexpr (requires { made.placement.store.path; }) {
        made.placement.store.path = options.store;
      }
    }
    return made;
  }

  cache_type cache_;
  wavekv::sequence_id prompt_;
  wavekv::sequence_id sequence_;  // a fork of it, which decodes
};

/// @brief A decoder by name: "resident", or eviction/transfer such as "lru/threads". Null for a name that is not known.
std::unique_ptr<decoder> make_decoder(const std::string& name, const wavekv::geometry& sizes,
                                      const decoder_options& options);

/// @brief The names that make_decoder knows, resident left out.
std::vector<std::string> decoder_names();

}  // namespace wavekv_bench
