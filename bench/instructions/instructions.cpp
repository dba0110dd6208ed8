// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The fixed work whose instructions are counted: one layer of 2 KV heads, groups of 4, dim 128, bf16, diffuse data,
// one thread. Run by fence.py under callgrind, which counts only between the client requests below and writes one file
// for each piece of work. Without valgrind the requests do nothing and the program only prints what its steps read.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <valgrind/callgrind.h>

#include <wavekv/wavekv.hpp>

#include "data/diffuse.hpp"

namespace {

using namespace wavekv_bench;
using cache_type = wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::wave_buffer<>,
                                    wavekv::cpu<wavekv::serial_executor>>;

constexpr std::size_t n_query_heads = 8;
constexpr std::size_t n_kv_heads = 2;
constexpr std::size_t dim = 128;
constexpr std::size_t prefill_tokens = cache_type::index_type::segment_size_type::prefill;
constexpr std::size_t decode_tokens = cache_type::index_type::segment_size_type::decode;
constexpr std::size_t n_prefill_segments = 2;
constexpr std::size_t n_questions = 8;  // a single query's plan may move by more than the margin

/// Counts `work`, as callgrind's file with "Client Request: name" in it.
template <class Work>
void count(const char* name, Work&& work) {
  CALLGRIND_START_INSTRUMENTATION;
  work();
  CALLGRIND_STOP_INSTRUMENTATION;
  CALLGRIND_DUMP_STATS_AT(name);  // and from zero again
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "instructions: the work is not what it should be: %s\n", what);
  std::exit(1);
}

class layer {
 public:
  layer() : source_(data_options()), cache_(sizes()), sequence_(cache_.create()) {
    // Sink and window first: what comes after them is sealed to the last token.
    append(cache_.options().sink_tokens + cache_.options().window_tokens);
  }

  /// A prompt's chunk with its queries, one prefill segment.
  void seal_prefill(bool counted) {
    const attention_data chunk = source_.next(prefill_tokens, true);
    const auto work = [&] {
      cache_.append(sequence_, 0, chunk.key_view(0, prefill_tokens),
                    chunk.value_view(0, prefill_tokens), chunk.query_view(0, prefill_tokens));
      cache_.seal(sequence_);
    };
    sealed([&] { counted ? count("seal_prefill", work) : work(); });
  }

  /// Decoded tokens, one append each, until they are one more segment.
  void seal_decode() {
    const attention_data tokens = source_.next(decode_tokens, false);
    sealed([&] {
      count("seal_decode", [&] {
        for (std::size_t i = 0; i < decode_tokens; ++i)
          cache_.append(sequence_, 0, tokens.key_view(i, 1), tokens.value_view(i, 1));
        cache_.seal(sequence_);  // nothing is left, wherever the sealing was done
      });
    });
  }

  /// n_questions steps by one bound, and what they read.
  template <class Bound>
  void attend(const char* name, const Bound& bound) {
    if (questions_.empty()) questions_ = source_.queries(n_questions);
    ask(bound);  // after warm-up a step allocates nothing
    wavekv::step_stats read;
    count(name, [&] { read = ask(bound); });
    std::printf("%s tokens_read %llu summaries_read %llu bytes_read %llu\n", name,
                static_cast<unsigned long long>(read.tokens_read),
                static_cast<unsigned long long>(read.summaries_read),
                static_cast<unsigned long long>(read.bytes_read));
  }

 private:
  static diffuse_options data_options() {
    diffuse_options options;
    options.n_query_heads = n_query_heads;
    options.n_kv_heads = n_kv_heads;
    options.dim = dim;
    return options;
  }

  static wavekv::geometry sizes() {
    wavekv::geometry sizes;
    sizes.n_layers = 1;
    sizes.n_query_heads = n_query_heads;
    sizes.n_kv_heads = n_kv_heads;
    sizes.key_dim = sizes.value_dim = dim;
    return sizes;
  }

  void append(std::size_t n) {
    const attention_data tokens = source_.next(n, false);
    cache_.append(sequence_, 0, tokens.key_view(0, n), tokens.value_view(0, n));
  }

  template <class Work>
  void sealed(Work&& work) {
    const wavekv::statistics before = cache_.stats(sequence_);
    work();
    require(cache_.stats(sequence_).segments == before.segments + 1, "one segment more");
  }

  template <class Bound>
  wavekv::step_stats ask(const Bound& bound) {
    out_.resize(n_query_heads * dim);
    wavekv::step_stats read;
    for (std::size_t i = 0; i < n_questions; ++i) {
      read += cache_.attend(sequence_, 0,
                            wavekv::nhd<const float>(questions_.data() + i * n_query_heads * dim, 1,
                                                     n_query_heads, dim),
                            wavekv::nhd(out_.data(), 1, n_query_heads, dim), bound);
    }
    return read;
  }

  diffuse_source source_;
  cache_type cache_;
  wavekv::sequence_id sequence_;
  std::vector<float> questions_;  // [n_questions, n_query_heads, dim]
  std::vector<float> out_;        // [n_query_heads, dim]
};

}  // namespace

int main() {
  layer layer;
  layer.seal_prefill(true);
  for (std::size_t i = 1; i < n_prefill_segments; ++i) layer.seal_prefill(false);
  layer.seal_decode();
  layer.attend("attend_exact", wavekv::exact{});
  layer.attend("attend_error_bound", wavekv::error_bound<>{});
  layer.attend("attend_verified_bound", wavekv::verified_bound<>{});
  layer.attend("attend_fixed_budget", wavekv::fixed_budget{});
}
