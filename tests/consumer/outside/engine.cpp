// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Somebody's engine: an estimation bound and an executor of its own, one sequence, and the answer
// held against full attention. Exits non-zero when something does not hold.
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <mutex>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include <wavekv/wavekv.hpp>

namespace {

/// Reads every cluster that may hold at least `share` of some head's softmax; estimates the others.
struct share_bound {
  float share = 1e-2F;

  void plan(const wavekv::frontier& nodes, std::span<wavekv::zone> zones) const {
    for (std::size_t i = 0; i < nodes.n_nodes; ++i) {
      if (nodes.share()[i] >= share) zones[i] = wavekv::zone::retrieval;
    }
  }
};

/// Two threads, made anew for every step.
class two_threads {
 public:
  [[nodiscard]] std::size_t concurrency() const { return 2; }

  template <class F>
  void parallel_for(std::size_t n, F&& f) {
    ++n_calls;
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    const auto work = [&](std::size_t worker) {
      try {
        for (std::size_t task = next++; task < n; task = next++) f(task, worker);
      } catch (...) {
        const std::lock_guard lock{guard};
        if (!failure) failure = std::current_exception();
      }
    };
    {
      const std::jthread other{work, 1};
      work(0);
    }
    if (failure) std::rethrow_exception(failure);
  }

  static inline std::atomic<int> n_calls = 0;
};

constexpr std::size_t n_tokens = 3000;
constexpr std::size_t n_kv_heads = 2;
constexpr std::size_t n_query_heads = 4;
constexpr std::size_t dim = 64;

bool check(bool holds, const char* what) {
  std::printf("%s: %s\n", holds ? "holds" : "DOES NOT HOLD", what);
  return holds;
}

}  // namespace

int main() {
  static_assert(wavekv::estimation_bound<share_bound>);
  static_assert(wavekv::executor<two_threads>);

  std::mt19937 generator{7};
  std::normal_distribution<float> normal;
  const auto random = [&](std::size_t n) {
    std::vector<float> numbers(n);
    for (float& x : numbers) x = normal(generator);
    return numbers;
  };
  // Keys gather around 40 directions, as those of a trained model do.
  const auto directions = random(40 * dim);
  auto keys = random(n_tokens * n_kv_heads * dim);
  for (std::size_t row = 0; row < n_tokens * n_kv_heads; ++row) {
    const float* direction = &directions[generator() % 40 * dim];
    for (std::size_t d = 0; d < dim; ++d) {
      keys[row * dim + d] = direction[d] + 0.2F * keys[row * dim + d];
    }
  }
  const auto values = random(n_tokens * n_kv_heads * dim);
  const auto queries = random(n_query_heads * dim);

  using my_index = wavekv::wave_index<>::with_segment_size<
      wavekv::segment_size<1024, 512>>::with_bound<share_bound>;
  using my_cache =
      wavekv::kv_cache<wavekv::bf16, my_index, wavekv::wave_buffer<>, wavekv::cpu<two_threads>>;

  my_cache cache{wavekv::geometry{.n_layers = 1,
                                  .n_query_heads = n_query_heads,
                                  .n_kv_heads = n_kv_heads,
                                  .key_dim = dim,
                                  .value_dim = dim}};
  const wavekv::sequence_id sequence = cache.create();
  cache.append(sequence, 0, wavekv::nhd(keys.data(), n_tokens, n_kv_heads, dim),
               wavekv::nhd(values.data(), n_tokens, n_kv_heads, dim));

  std::vector<float> mine(n_query_heads * dim);
  std::vector<float> full(n_query_heads * dim);
  const auto query = wavekv::nhd(queries.data(), 1, n_query_heads, dim);
  const auto stats =
      cache.attend(sequence, 0, query, wavekv::nhd(mine.data(), 1, n_query_heads, dim));
  const auto n_read_by_full =
      cache
          .attend(sequence, 0, query, wavekv::nhd(full.data(), 1, n_query_heads, dim),
                  wavekv::tensor_view<float, 2>{}, wavekv::exact{})
          .tokens_read;

  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < full.size(); ++i) {
    difference += (full[i] - mine[i]) * (full[i] - mine[i]);
    norm += full[i] * full[i];
  }
  const double error = std::sqrt(difference / norm);
  std::printf("relative error %.3f; tokens read %llu of %llu\n", error,
              static_cast<unsigned long long>(stats.tokens_read),
              static_cast<unsigned long long>(n_read_by_full));

  bool holds = check(error < 0.1, "the answer is close to full attention's");
  holds &= check(stats.tokens_read < n_read_by_full, "it read fewer tokens");
  holds &= check(two_threads::n_calls > 0, "it ran on the engine's own executor");
  return holds ? 0 : 1;
}
