// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// wavekv as one of the peers of bench/peers: a C interface that wavekv_library.py calls. Keys and values come as bf16,
// [head, token, dim], in the caller's memory: the same numbers that every peer is given. Functions that return int
// return 0, or -1 when something was thrown; wavekv_peer_error() then says what. Not for several callers at once.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <wavekv/wavekv.hpp>

#include "data/diffuse.hpp"
#include "data/memory.hpp"

namespace {

using namespace wavekv_bench;
using clock_type = std::chrono::steady_clock;

std::size_t n_active_threads = 1;
std::string last_error;

std::size_t n_cores() { return std::max<std::size_t>(2, std::thread::hardware_concurrency()); }

/// A team whose size is set between calls, so that one cache serves every number of threads.
struct adjustable_executor {
  static std::size_t concurrency() noexcept { return n_cores(); }
  template <class F>
  void parallel_for(std::size_t n, F&& f) const {
    wavekv::openmp_executor(n_active_threads).parallel_for(n, f);
  }
};

/// Threads made for one call and gone after it: they leave no team spinning beside whoever is timed next.
struct passing_threads {
  std::size_t n_threads;

  template <class F>
  void parallel_for(std::size_t n, F&& f) const {
    std::vector<std::jthread> team;
    for (std::size_t worker = 0; worker < n_threads; ++worker) {
      team.emplace_back([&f, n, worker, n_workers = n_threads] {
        for (std::size_t task = worker; task < n; task += n_workers) f(task, worker);
      });
    }
  }
};

/// What was thrown becomes last_error and -1.
template <class F>
int guarded(F&& f) noexcept {
  try {
    f();
    return 0;
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "unknown exception";
  }
  return -1;
}

const memory_sweep& cold_memory() {
  static const memory_sweep memory;
  return memory;
}

}  // namespace

extern "C" {

/// @brief Sizes of one model.
struct wavekv_peer_shape {
  std::size_t n_layers;
  std::size_t n_kv_heads;
  std::size_t group_size;
  std::size_t dim;
};

/// @brief A bound with its parameters; a negative parameter stands for the bound's default.
struct wavekv_peer_bound {
  int rule;  ///< 0 exact, 1 fixed_budget, 2 error_bound, 3 verified_bound
  float epsilon;
  float delta;
};

/// @brief What a step did.
struct wavekv_peer_step {
  std::uint64_t groups;
  std::uint64_t capped;
  std::uint64_t tokens_held;
  std::uint64_t tokens_read;
  std::uint64_t bytes_read;
  float predicted_error;
  float sampled_error;
};

}  // extern "C"

namespace {

wavekv::geometry geometry_of(const wavekv_peer_shape& shape) {
  wavekv::geometry sizes;
  sizes.n_layers = shape.n_layers;
  sizes.n_query_heads = shape.n_kv_heads * shape.group_size;
  sizes.n_kv_heads = shape.n_kv_heads;
  sizes.key_dim = sizes.value_dim = shape.dim;
  return sizes;
}

/// Keys or values of tokens [first, first + n) out of memory that holds `stride` tokens a head.
wavekv::tensor_view<const wavekv::bf16, 3> rows(const wavekv_peer_shape& shape,
                                                const std::uint16_t* data, std::size_t stride,
                                                std::size_t first, std::size_t n) {
  return {reinterpret_cast<const wavekv::bf16*>(data) + first * shape.dim,
          {n, shape.n_kv_heads, shape.dim},
          {shape.dim, stride * shape.dim, 1}};
}

/// A cache of any index with one sequence.
class any_cache {
 public:
  explicit any_cache(const wavekv_peer_shape& shape) : shape_(shape) {}
  any_cache(const any_cache&) = delete;
  any_cache& operator=(const any_cache&) = delete;
  virtual ~any_cache() = default;

  using kv_view = wavekv::tensor_view<const wavekv::bf16, 3>;

  virtual void append(std::size_t layer, kv_view keys, kv_view values, const float* queries) = 0;
  virtual void seal() = 0;
  virtual void truncate(std::size_t n_tokens) = 0;
  virtual void prefill(std::size_t layer, const float* queries, kv_view keys, kv_view values,
                       float* out) = 0;
  virtual wavekv::step_stats attend(std::size_t layer, const float* query,
                                    const wavekv_peer_bound& bound, float* out) = 0;
  [[nodiscard]] virtual wavekv::statistics stats() const = 0;

  [[nodiscard]] const wavekv_peer_shape& shape() const noexcept { return shape_; }

 private:
  wavekv_peer_shape shape_;
};

template <std::size_t... TokensPerCluster>
class cache_of final : public any_cache {
 public:
  explicit cache_of(const wavekv_peer_shape& shape)
      : any_cache(shape), cache_(geometry_of(shape)), sequence_(cache_.create()) {}

  void append(std::size_t layer, kv_view keys, kv_view values, const float* queries) override {
    if (queries != nullptr) {
      cache_.append(sequence_, layer, keys, values, query_view(queries, keys.extent(0)));
    } else {
      cache_.append(sequence_, layer, keys, values);
    }
  }
  void seal() override { cache_.seal(sequence_); }
  void truncate(std::size_t n_tokens) override { cache_.truncate(sequence_, n_tokens); }
  void prefill(std::size_t layer, const float* queries, kv_view keys, kv_view values,
               float* out) override {
    const std::size_t n = keys.extent(0);
    cache_.prefill(sequence_, layer, query_view(queries, n), keys, values, out_view(out, n));
  }
  [[nodiscard]] wavekv::statistics stats() const override { return cache_.stats(sequence_); }

  wavekv::step_stats attend(std::size_t layer, const float* query, const wavekv_peer_bound& bound,
                            float* out) override {
    switch (bound.rule) {
    case 0:
      return ask(layer, query, wavekv::exact{}, out);
    case 1:
      return ask(layer, query, wavekv::fixed_budget{}, out);
    case 2: {
      wavekv::error_bound<> rule;
      if (bound.epsilon >= 0) rule.epsilon = bound.epsilon;
      return ask(layer, query, rule, out);
    }
    case 3: {
      wavekv::verified_bound<> rule;
      if (bound.epsilon >= 0) rule.epsilon = rule.rule.epsilon = bound.epsilon;
      if (bound.delta >= 0) rule.delta = bound.delta;
      return ask(layer, query, rule, out);
    }
    default:
      throw std::invalid_argument("rule is " + std::to_string(bound.rule) + "; allowed: 0 to 3");
    }
  }

 private:
  using cache_type =
      wavekv::kv_cache<wavekv::bf16,
                       wavekv::wave_index<wavekv::segment_size<8192, 1024>,
                                          wavekv::tokens_per_cluster<TokensPerCluster...>>,
                       wavekv::wave_buffer<>, wavekv::cpu<adjustable_executor>>;

  [[nodiscard]] std::size_t n_query_heads() const noexcept {
    return shape().n_kv_heads * shape().group_size;
  }
  [[nodiscard]] auto query_view(const float* queries, std::size_t n) const {
    return wavekv::nhd(queries, n, n_query_heads(), shape().dim);
  }
  [[nodiscard]] auto out_view(float* out, std::size_t n) const {
    return wavekv::nhd(out, n, n_query_heads(), shape().dim);
  }
  template <class Bound>
  wavekv::step_stats ask(std::size_t layer, const float* query, const Bound& bound, float* out) {
    return cache_.attend(sequence_, layer, query_view(query, 1), out_view(out, 1), bound);
  }

  cache_type cache_;
  wavekv::sequence_id sequence_;
};

any_cache& cache_from(void* handle) { return *static_cast<any_cache*>(handle); }

}  // namespace

extern "C" {

/// @brief What the last function that returned -1 or null met.
const char* wavekv_peer_error() { return last_error.c_str(); }

/// @brief How many threads the functions below use.
void wavekv_peer_set_threads(std::size_t n) { n_active_threads = n; }

/// @brief Reads 128 MB on all cores, so that nothing else is left in their caches.
void wavekv_peer_sweep() {
  const passing_threads team{n_cores()};
  const volatile std::uint32_t kept = cold_memory().read(team);
  (void)kept;
}

/// @brief Bytes per second of one sequential read of 128 MB.
double wavekv_peer_read_bandwidth() {
  const adjustable_executor team;
  const auto began = clock_type::now();
  const volatile std::uint32_t kept = cold_memory().read(team);
  (void)kept;
  const std::chrono::duration<double> took = clock_type::now() - began;
  return static_cast<double>(cold_memory().bytes()) / took.count();
}

/// @brief Diffuse data (bench/data/diffuse.hpp).
/// @param keys, values  [n_kv_heads, n_tokens, dim], written as bf16
/// @param queries       [n_queries, n_query_heads, dim], written
int wavekv_peer_diffuse(const wavekv_peer_shape* shape, std::uint64_t seed, std::size_t n_tokens,
                        std::uint16_t* keys, std::uint16_t* values, std::size_t n_queries,
                        float* queries) {
  return guarded([&] {
    diffuse_options options;
    options.n_query_heads = shape->n_kv_heads * shape->group_size;
    options.n_kv_heads = shape->n_kv_heads;
    options.dim = shape->dim;
    options.seed = seed;
    diffuse_source source(options);
    for (std::size_t first = 0; first < n_tokens;) {
      const attention_data chunk =
          source.next(std::min<std::size_t>(2048, n_tokens - first), false);
      const auto store = [&](const std::vector<float>& from, std::uint16_t* to) {
        for (std::size_t token = 0; token < chunk.n_tokens; ++token) {
          for (std::size_t head = 0; head < shape->n_kv_heads; ++head) {
            const float* row = &from[(token * shape->n_kv_heads + head) * shape->dim];
            std::uint16_t* place = to + (head * n_tokens + first + token) * shape->dim;
            for (std::size_t i = 0; i < shape->dim; ++i)
              place[i] = wavekv::from_float<wavekv::bf16>(row[i]).bits;
          }
        }
      };
      store(chunk.keys, keys);
      store(chunk.values, values);
      first += chunk.n_tokens;
    }
    std::ranges::copy(source.queries(n_queries), queries);
  });
}

/// @brief A cache with one empty sequence, or null.
/// @param levels  of the index: 1 is <16>, 2 is <16, 128>, 3 is <16, 128, 1024>
void* wavekv_peer_create(const wavekv_peer_shape* shape, int levels) {
  any_cache* made = nullptr;
  guarded([&] {
    if (levels == 1) made = new cache_of<16>(*shape);
    if (levels == 2) made = new cache_of<16, 128>(*shape);
    if (levels == 3) made = new cache_of<16, 128, 1024>(*shape);
    if (made == nullptr)
      throw std::invalid_argument("levels is " + std::to_string(levels) + "; allowed: 1 to 3");
  });
  return made;
}

void wavekv_peer_destroy(void* cache) { delete static_cast<any_cache*>(cache); }

/// @brief Appends tokens [first, first + n).
/// @param keys, values  [n_kv_heads, stride, dim] of bf16
/// @param queries       [n, n_query_heads, dim] for the query metric, or null
int wavekv_peer_append(void* cache, std::size_t layer, const std::uint16_t* keys,
                       const std::uint16_t* values, std::size_t stride, std::size_t first,
                       std::size_t n, const float* queries) {
  return guarded([&] {
    any_cache& to = cache_from(cache);
    to.append(layer, rows(to.shape(), keys, stride, first, n),
              rows(to.shape(), values, stride, first, n), queries);
  });
}

/// @brief Seals what waits in every layer.
int wavekv_peer_seal(void* cache) {
  return guarded([&] { cache_from(cache).seal(); });
}

/// @brief Keeps the first n tokens of every layer.
int wavekv_peer_truncate(void* cache, std::size_t n) {
  return guarded([&] { cache_from(cache).truncate(n); });
}

/// @brief Exact causal attention of tokens [first, first + n) over the cache and themselves, then append.
/// @param queries, out  [n, n_query_heads, dim]
int wavekv_peer_prefill(void* cache, std::size_t layer, const std::uint16_t* keys,
                        const std::uint16_t* values, std::size_t stride, std::size_t first,
                        std::size_t n, const float* queries, float* out) {
  return guarded([&] {
    any_cache& to = cache_from(cache);
    to.prefill(layer, queries, rows(to.shape(), keys, stride, first, n),
               rows(to.shape(), values, stride, first, n), out);
  });
}

/// @brief One step.
/// @param query, out  [n_query_heads, dim]
int wavekv_peer_attend(void* cache, std::size_t layer, const float* query,
                       const wavekv_peer_bound* bound, float* out, wavekv_peer_step* step) {
  return guarded([&] {
    const wavekv::step_stats done = cache_from(cache).attend(layer, query, *bound, out);
    *step = {done.groups,     done.capped,          done.tokens_held,  done.tokens_read,
             done.bytes_read, done.predicted_error, done.sampled_error};
  });
}

/// @brief Bytes of K and V of sealed tokens; of summaries and tree; of what is learnt of queries and clusters.
int wavekv_peer_memory(void* cache, std::uint64_t* kv, std::uint64_t* index,
                       std::uint64_t* learnt) {
  return guarded([&] {
    const wavekv::statistics held = cache_from(cache).stats();
    *kv = held.kv_bytes;
    *index = held.index_bytes;
    *learnt = held.learnt_bytes;
  });
}

/// @brief Sealed segments of all layers, or 0.
std::size_t wavekv_peer_segments(void* cache) {
  std::size_t n = 0;
  guarded([&] { n = static_cast<std::size_t>(cache_from(cache).stats().segments); });
  return n;
}

/// @brief Steps of a decoding model: each appends one token to every layer and attends there with the default bound.
/// @param keys, values  [n_kv_heads, stride, dim] of bf16; tokens first, first + 1, … are appended
/// @param queries       [n_queries, n_query_heads, dim], asked in turn
/// @param seconds       [n_steps], written
int wavekv_peer_decode(void* cache, const std::uint16_t* keys, const std::uint16_t* values,
                       std::size_t stride, std::size_t first, std::size_t n_steps,
                       const float* queries, std::size_t n_queries, double* seconds) {
  return guarded([&] {
    any_cache& to = cache_from(cache);
    const std::size_t row = to.shape().n_kv_heads * to.shape().group_size * to.shape().dim;
    std::vector<float> out(row);
    const wavekv_peer_bound by_default{2, -1, -1};
    for (std::size_t i = 0; i < n_steps; ++i) {
      const auto began = clock_type::now();
      for (std::size_t layer = 0; layer < to.shape().n_layers; ++layer) {
        to.append(layer, rows(to.shape(), keys, stride, first + i, 1),
                  rows(to.shape(), values, stride, first + i, 1), nullptr);
        to.attend(layer, queries + (first + i) % n_queries * row, by_default, out.data());
      }
      seconds[i] = std::chrono::duration<double>(clock_type::now() - began).count();
    }
  });
}

/// @brief Spherical k-means of 10 iterations on the calling thread; returns the number of clusters, or 0.
/// @param keys        [n, dim]
/// @param assignment  [n], written
std::size_t wavekv_peer_cluster(const float* keys, std::size_t n, std::size_t dim,
                                std::size_t n_clusters, std::uint32_t* assignment) {
  static wavekv::clustering_scratch scratch;
  std::size_t n_made = 0;
  guarded([&] {
    wavekv::cluster_request request;
    request.keys = keys;
    request.key_dim = dim;
    request.n_tokens = n;
    request.n_clusters = n_clusters;
    n_made = wavekv::spherical_kmeans<10>{}.cluster(request, {assignment, n}, scratch);
  });
  return n_made;
}

/// @brief The compiler this was built with.
const char* wavekv_peer_compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

}  // extern "C"
