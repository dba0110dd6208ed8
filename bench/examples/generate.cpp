// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// wavekv_bench_generate: decode and prefill of the example transformer on a random 1B-parameter Llama, made on the
// spot, against what the machine reads and multiplies.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <Eigen/Core>
#include <nlohmann/json.hpp>
#include <omp.h>

#include <wavekv/wavekv.hpp>

#include "data/memory.hpp"
#include "examples/random_llama.hpp"
#include "generation.hpp"
#include "interrupt.hpp"
#include "linear.hpp"
#include "model.hpp"
#include "safetensors.hpp"
#include "sampler.hpp"
#include "wave_attention.hpp"

namespace {

using namespace wavekv_bench;
using clock_type = std::chrono::steady_clock;
using nlohmann::json;
using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr double target_share = 0.7;  // of the bandwidth when decoding, of the GEMM in prefill
constexpr std::size_t sweep_bytes = std::size_t{512} << 20U;

struct options {
  std::filesystem::path directory = std::filesystem::temp_directory_path();
  std::filesystem::path make;
  std::filesystem::path model;
  std::filesystem::path json_file;
  std::vector<std::size_t> threads;
  std::size_t prompt_tokens = 512;
  std::size_t steps = 24;
  std::size_t repetitions = 5;
  bool is_short = false;
};

template <class F>
double seconds(const F& f) {
  const auto began = clock_type::now();
  f();
  return std::chrono::duration<double>(clock_type::now() - began).count();
}

double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

double least(const std::vector<double>& values) { return *std::ranges::min_element(values); }

void stop_if_interrupted() {
  if (transformer::interrupted()) throw transformer::interrupted_error();
}

/// A directory of its own, gone with the object.
class temporary_directory {
 public:
  explicit temporary_directory(const std::filesystem::path& parent) {
    std::string name = (parent / "wavekv-generate-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr)
      throw std::runtime_error(parent.string() + ": cannot make a directory in it");
    path_ = name;
  }
  ~temporary_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

 private:
  std::filesystem::path path_;
};

// --- memory --------------------------------------------------------------------------------------

/// Reads a buffer as memory_sweep does, but each MB as four streams side by side, without prefetches. Which is faster
/// depends on the machine (on a shared Zen 3 this one, 1.3 to 1.7 times); the limit of a decode step is the faster.
class stream_sweep {
 public:
  stream_sweep() : words_(sweep_bytes / sizeof(std::uint32_t)) {
    for (std::size_t i = 0; i < words_.size(); ++i) words_[i] = static_cast<std::uint32_t>(i);
  }

  template <class Executor>
  std::uint32_t read(Executor& executor) const {
    constexpr std::size_t part = (std::size_t{1} << 20U) / sizeof(std::uint32_t);
    std::atomic<std::uint32_t> all{0};
    executor.parallel_for(words_.size() / part, [&](std::size_t task, std::size_t /*worker*/) {
      all.fetch_xor(read_part(words_.data() + task * part, part / 4), std::memory_order_relaxed);
    });
    return all.load();
  }

 private:
  static std::uint32_t read_part(const std::uint32_t* words, std::size_t stream) noexcept {
    namespace hn = hwy::HWY_NAMESPACE;
    const hn::ScalableTag<std::uint32_t> d;
    const std::size_t step = hn::MaxLanes(d);
    auto a = hn::Zero(d);
    auto b = a;
    for (std::size_t i = 0; i < stream; i += 2 * step) {
      for (std::size_t s = 0; s < 4; ++s) {
        a = hn::Xor(a, hn::LoadU(d, words + s * stream + i));
        b = hn::Xor(b, hn::LoadU(d, words + s * stream + i + step));
      }
    }
    return hn::GetLane(hn::SumOfLanes(d, hn::Xor(a, b)));
  }

  wavekv::aligned_storage<std::uint32_t> words_;
};

// --- decode --------------------------------------------------------------------------------------

struct decode_result {
  std::vector<double> sweeps;         // seconds of memory_sweep over sweep_bytes
  std::vector<double> stream_sweeps;  // and of stream_sweep
  std::vector<double> steps;          // seconds of one step
  double prefill_tokens_s = 0;
};

using cache_type = wavekv::kv_cache<>;

transformer::session start(const transformer::model& model, cache_type& cache) {
  return model.start(
      std::make_unique<transformer::wave_attention<cache_type>>(cache, cache_type::bound_type{}));
}

/// One step that nobody times: it reads all weights from the disk.
void load_weights(transformer::model& model) {
  cache_type cache(transformer::cache_geometry(model.config(), model.n_full_layers()));
  auto session = start(model, cache);
  model.decode(session, 0);
}

/// Prompt and steps as wavekv_generate runs them, with memory read both ways before every third step.
decode_result decode(transformer::model& model, const memory_sweep& sweep,
                     const stream_sweep& streams, const options& options, std::size_t n_threads) {
  cache_type cache(transformer::cache_geometry(model.config(), model.n_full_layers()));
  auto session = start(model, cache);
  std::vector<transformer::token_id> prompt(options.prompt_tokens + 1);
  for (std::size_t i = 0; i < prompt.size(); ++i)
    prompt[i] =
        static_cast<transformer::token_id>(i * 7919 % 256);  // bytes, as its tokenizer makes

  decode_result result;
  const double prefill = transformer::read_prompt(model, session, prompt, 2048);
  result.prefill_tokens_s = static_cast<double>(options.prompt_tokens) / prefill;

  wavekv::openmp_executor executor(n_threads);
  transformer::sampler greedy({});
  transformer::token_id token = prompt.back();
  constexpr std::size_t n_warm_up = 2;
  std::uint32_t all_read = 0;
  for (std::size_t i = 0; i < n_warm_up + options.steps; ++i) {
    stop_if_interrupted();
    if (i % 3 == 0) {
      result.sweeps.push_back(seconds([&] { all_read ^= sweep.read(executor); }));
      result.stream_sweeps.push_back(seconds([&] { all_read ^= streams.read(executor); }));
    }
    std::span<const float> logits;
    const double step = seconds([&] { logits = model.decode(session, token); });
    token = greedy.choose(logits);
    if (i >= n_warm_up) result.steps.push_back(step);
  }
  if (all_read == 1) std::puts("");  // keeps the sweeps
  return result;
}

// --- prefill projections ---------------------------------------------------------------------------

struct projections_result {
  std::vector<double> ours;  // seconds of all projections of one layer
  std::vector<double> gemm;
  double flop = 0;
};

std::vector<transformer::linear> projections_of(const transformer::checkpoint& weights,
                                                const llama_shape& shape, std::size_t layer) {
  const std::string name = "model.layers." + std::to_string(layer) + ".";
  const auto matrix = [&](const char* which, std::size_t n_out, std::size_t n_in) {
    return transformer::linear{weights.matrix(name + which + ".weight", n_out, n_in), {}};
  };
  const std::size_t hidden = shape.hidden_size;
  const std::size_t query_width = shape.n_query_heads * shape.head_dim;
  const std::size_t kv_width = shape.n_kv_heads * shape.head_dim;
  return {matrix("self_attn.q_proj", query_width, hidden),
          matrix("self_attn.k_proj", kv_width, hidden),
          matrix("self_attn.v_proj", kv_width, hidden),
          matrix("self_attn.o_proj", hidden, query_width),
          matrix("mlp.gate_proj", shape.intermediate_size, hidden),
          matrix("mlp.up_proj", shape.intermediate_size, hidden),
          matrix("mlp.down_proj", hidden, shape.intermediate_size)};
}

/// The example's projections, each time of another layer, so that weights come from memory as in a prefill; beside
/// them Eigen's product of the same shapes with weights that are floats already.
projections_result project(const llama_shape& shape, const options& options) {
  const transformer::checkpoint weights(options.model);
  std::vector<row_major> widened;
  std::size_t width = 0;
  projections_result result;
  for (const auto& each : projections_of(weights, shape, 0)) {
    row_major matrix(each.weight.n_rows, each.weight.n_cols);
    for (std::size_t r = 0; r < each.weight.n_rows; ++r)
      transformer::copy_row(each.weight, r, matrix.row(static_cast<Eigen::Index>(r)).data());
    widened.push_back(std::move(matrix));
    width = std::max({width, each.weight.n_rows, each.weight.n_cols});
    result.flop += 2.0 * static_cast<double>(options.prompt_tokens * each.weight.n_rows) *
                   static_cast<double>(each.weight.n_cols);
  }
  const auto n = static_cast<Eigen::Index>(options.prompt_tokens);
  const std::vector<float> x(options.prompt_tokens * width, 0.5F);
  std::vector<float> y(options.prompt_tokens * width);
  for (std::size_t i = 0; i < options.repetitions; ++i) {
    stop_if_interrupted();
    const auto layer = projections_of(weights, shape, i % shape.n_layers);
    result.ours.push_back(seconds([&] {
      for (const auto& each : layer)
        transformer::apply(each, x.data(), options.prompt_tokens, y.data());
    }));
    result.gemm.push_back(seconds([&] {
      for (const auto& each : widened) {
        const Eigen::Map<const row_major> in(x.data(), n, each.cols());
        Eigen::Map<row_major> out(y.data(), n, each.rows());
        out.noalias() = in * each.transpose();
      }
    }));
  }
  return result;
}

// --- the program -----------------------------------------------------------------------------------

json measure(transformer::model& model, const llama_shape& shape, const memory_sweep& sweep,
             const stream_sweep& streams, const options& options, std::size_t n_threads) {
  omp_set_num_threads(static_cast<int>(n_threads));
  const decode_result decoded = decode(model, sweep, streams, options, n_threads);
  const projections_result projected = project(shape, options);
  const double bytes = static_cast<double>(shape.matrix_elements() * sizeof(wavekv::bf16));
  const auto read = [](double time) { return static_cast<double>(sweep_bytes) / time / 1e9; };
  const auto weights = [&](double time) { return bytes / time / 1e9; };
  const auto gflops = [&](double time) { return projected.flop / time / 1e9; };
  const double step = median(decoded.steps);
  const double best_step = least(decoded.steps);
  const double sweep_rate = read(median(decoded.sweeps));
  const double stream_rate = read(median(decoded.stream_sweeps));
  const double read_rate = std::max(sweep_rate, stream_rate);
  const double best_read_rate = read(std::min(least(decoded.sweeps), least(decoded.stream_sweeps)));
  const double ours = gflops(median(projected.ours));
  const double gemm = gflops(median(projected.gemm));
  return {{"threads", n_threads},
          {"read_gb_s", read_rate},
          {"read_gb_s_best", best_read_rate},
          {"memory_sweep_gb_s", sweep_rate},
          {"stream_sweep_gb_s", stream_rate},
          {"decode_tokens_s", 1 / step},
          {"decode_tokens_s_best", 1 / best_step},
          {"decode_gb_s", weights(step)},
          {"decode_share", weights(step) / read_rate},
          {"decode_share_best", weights(best_step) / best_read_rate},
          {"prefill_tokens", options.prompt_tokens},
          {"prefill_tokens_s", decoded.prefill_tokens_s},
          {"gemm_gflops", gemm},
          {"projections_gflops", ours},
          {"projections_share", ours / gemm},
          {"projections_share_best", least(projected.gemm) / least(projected.ours)}};
}

void print_head() {
  std::puts("| threads | read GB/s | decode tokens/s | weights GB/s | share | of the best | GEMM "
            "GFLOP/s | projections GFLOP/s | share | prefill tokens/s |");
  std::puts("|---|---|---|---|---|---|---|---|---|---|");
}

void print_row(const json& run) {
  const auto of = [&](const char* key) { return run.at(key).get<double>(); };
  std::printf("| %.0f | %.1f | %.2f | %.1f | %.0f %% | %.0f %% | %.1f | %.1f | %.0f %% | %.1f |\n",
              of("threads"), of("read_gb_s"), of("decode_tokens_s"), of("decode_gb_s"),
              100 * of("decode_share"), 100 * of("decode_share_best"), of("gemm_gflops"),
              of("projections_gflops"), 100 * of("projections_share"), of("prefill_tokens_s"));
  std::fflush(stdout);
}

void parse_command_line(CLI::App& app, options& options) {
  app.add_option("--directory", options.directory,
                 "Where the checkpoint is made, in a directory that is deleted again")
      ->capture_default_str()
      ->check(CLI::ExistingDirectory);
  app.add_option("--make", options.make,
                 "Only make the checkpoint, in this directory, and leave it there: for "
                 "wavekv_generate --model");
  app.add_option("--model", options.model, "Measure a checkpoint that --make left")
      ->check(CLI::ExistingDirectory)
      ->excludes("--make");
  app.add_option("--threads", options.threads, "Numbers of threads (default: 1 and all cores)")
      ->check(CLI::Range(1, 4096));
  app.add_option("--steps", options.steps, "Decode steps that are timed")
      ->capture_default_str()
      ->check(CLI::Range(1, 100'000));
  app.add_option("--prompt", options.prompt_tokens, "Tokens of the prompt")
      ->capture_default_str()
      ->check(CLI::Range(16, 100'000));
  app.add_flag("--short", options.is_short, "A short prompt and few steps");
  app.add_option("--json", options.json_file, "Write all figures to this file");
}

int run(options options) {
  const llama_shape shape;
  constexpr std::uint64_t seed = 1;
  if (!options.make.empty()) {
    std::filesystem::create_directories(options.make);
    write_random_llama(options.make, shape, seed);
    return 0;
  }
  if (options.is_short) {
    options.prompt_tokens = 128;
    options.steps = 9;
    options.repetitions = 3;
  }
  if (options.threads.empty()) {
    options.threads = {1};
    if (omp_get_num_procs() > 1)
      options.threads.push_back(static_cast<std::size_t>(omp_get_num_procs()));
  }
  std::optional<temporary_directory> temporary;
  double making = 0;
  if (options.model.empty()) {
    temporary.emplace(options.directory);
    options.model = temporary->path();
    making = seconds([&] { write_random_llama(options.model, shape, seed); });
  }
  stop_if_interrupted();
  json results = {
      {"benchmark", "generate"},
      {"model",
       {{"parameters", shape.n_parameters()},
        {"weight_bytes", shape.n_parameters() * sizeof(wavekv::bf16)},
        {"bytes_per_token", shape.matrix_elements() * sizeof(wavekv::bf16)},
        {"layers", shape.n_layers},
        {"hidden", shape.hidden_size},
        {"vocab", shape.vocab_size}}},
      {"seconds_to_make", making},
      {"targets", {{"decode_share", target_share}, {"projections_share", target_share}}},
      {"runs", json::array()}};
  std::printf("%zu parameters, bf16, made in %.1f s; prompt of %zu tokens; medians of %zu steps\n",
              shape.n_parameters(), making, options.prompt_tokens, options.steps);
  print_head();
  transformer::model model(options.model);
  load_weights(model);
  const memory_sweep sweep(sweep_bytes);
  const stream_sweep streams;
  for (const std::size_t n_threads : options.threads) {
    results["runs"].push_back(measure(model, shape, sweep, streams, options, n_threads));
    print_row(results["runs"].back());
  }
  if (!options.json_file.empty()) {
    std::ofstream out(options.json_file);
    out << results.dump(2) << '\n';
    if (!out) throw std::runtime_error(options.json_file.string() + ": cannot write");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures the example transformer on a random Llama of 1.24e9 parameters.");
  options options;
  parse_command_line(app, options);
  CLI11_PARSE(app, argc, argv);
  transformer::catch_interrupts();
  try {
    return run(std::move(options));
  } catch (const transformer::interrupted_error&) {
    return transformer::interrupted_status;
  } catch (const std::exception& e) {
    std::fflush(stdout);
    std::fprintf(stderr, "wavekv_bench_generate: %s\n", e.what());
    return 1;
  }
}
