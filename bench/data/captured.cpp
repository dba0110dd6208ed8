// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "data/captured.hpp"

#include <algorithm>
#include <fstream>
#include <memory>
#include <span>
#include <stdexcept>
#include <utility>

#include <nlohmann/json.hpp>

#include <wavekv/wavekv.hpp>

#include "config.hpp"
#include "full_attention.hpp"
#include "model.hpp"
#include "needle.hpp"
#include "tokenizer.hpp"
#include "wave_attention.hpp"

namespace wavekv_bench {
namespace {

using transformer::attention_input;

/// Full attention of a prompt that keeps a copy of all it is given.
class recording_attention final : public transformer::wave_attention<wavekv::kv_cache<>> {
 public:
  using base = transformer::wave_attention<wavekv::kv_cache<>>;

  recording_attention(wavekv::kv_cache<>& cache, std::vector<attention_data>& layers)
      : base(cache, wavekv::exact{}), layers_(layers) {}

  void prefill(const attention_input& in, float* out) override {
    record(in);
    base::prefill(in, out);
  }
  void append(const attention_input& in) override { record(in); }  // nobody will ask this layer

 private:
  void record(const attention_input& in) {
    attention_data& layer = layers_[in.layer];
    const auto add = [&](std::vector<float>& to, const float* from, std::size_t n_heads) {
      to.insert(to.end(), from, from + in.n_tokens * n_heads * layer.dim);
    };
    add(layer.queries, in.queries, layer.n_query_heads);
    add(layer.keys, in.keys, layer.n_kv_heads);
    add(layer.values, in.values, layer.n_kv_heads);
    layer.n_tokens += in.n_tokens;
  }

  std::vector<attention_data>& layers_;
};

/// A haystack of n_tokens tokens whose last ones ask for some of its needles, each with the answer.
std::vector<transformer::token_id> haystack_with_questions(const std::filesystem::path& model,
                                                           const std::filesystem::path& text,
                                                           std::size_t n_tokens,
                                                           std::uint64_t seed) {
  transformer::tokenizer tokenizer(model);
  transformer::needle_maker maker(tokenizer, transformer::haystack_text(text),
                                  transformer::needle_words(model));
  const std::size_t n_needles = transformer::default_needles(n_tokens);
  const std::size_t n_asked = std::min<std::size_t>(400, n_tokens / 4);
  auto hay = maker.make(n_tokens - n_asked, n_needles, seed);
  std::vector<transformer::token_id> asked;
  for (std::size_t i = 0; asked.size() < n_asked; ++i) {
    const auto& needle = hay.needles[(7 * i + 3) % hay.needles.size()];
    const auto question = maker.question(needle.word);
    const auto answer = tokenizer.encode(needle.number);
    asked.insert(asked.end(), question.begin(), question.end());
    asked.insert(asked.end(), answer.begin(), answer.end());
  }
  hay.tokens.insert(hay.tokens.end(), asked.begin(),
                    asked.begin() + static_cast<std::ptrdiff_t>(n_asked));
  return hay.tokens;
}

std::string file_name(const std::string& prefix, std::size_t layer, const char* part) {
  return prefix + "." + std::to_string(layer) + "." + part;
}

void write_floats(const std::string& path, const std::vector<float>& numbers) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(numbers.data()),
             static_cast<std::streamsize>(numbers.size() * sizeof(float)));
  if (!file) throw std::runtime_error(path + ": cannot write");
}

std::vector<float> read_floats(const std::string& path, std::size_t n) {
  std::vector<float> numbers(n);
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(numbers.data()),
            static_cast<std::streamsize>(n * sizeof(float)));
  if (!file) throw std::runtime_error(path + ": cannot read " + std::to_string(n) + " floats");
  return numbers;
}

}  // namespace

std::vector<std::string> captured_names(const std::filesystem::path& model) {
  std::vector<std::string> names;
  for (const transformer::layer_config& layer : transformer::read_config(model).layers) {
    if (!layer.sliding) names.push_back("model layer " + std::to_string(names.size()));
  }
  return names;
}

std::vector<attention_data> capture_model(const std::filesystem::path& directory,
                                          const std::filesystem::path& haystack,
                                          std::size_t n_tokens, std::uint64_t seed) {
  transformer::model model(directory);
  const auto tokens = haystack_with_questions(directory, haystack, n_tokens, seed);
  const auto& config = model.config();
  const std::vector<std::string> names = captured_names(directory);
  std::vector<attention_data> layers(names.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i].name = names[i];
    layers[i].n_query_heads = config.n_query_heads;
    layers[i].n_kv_heads = config.n_kv_heads;
    layers[i].dim = config.head_dim;
  }
  wavekv::kv_cache<> cache(transformer::cache_geometry(config, model.n_full_layers()));
  auto session = model.start(std::make_unique<recording_attention>(cache, layers));
  constexpr std::size_t chunk = 2048;
  for (std::size_t first = 0; first < tokens.size(); first += chunk)
    model.prefill(session,
                  std::span(tokens).subspan(first, std::min(chunk, tokens.size() - first)));
  return layers;
}

void write_captured(const std::string& prefix, const std::vector<attention_data>& layers) {
  auto sizes = nlohmann::json::array();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const attention_data& layer = layers[i];
    sizes.push_back({{"name", layer.name},
                     {"n_tokens", layer.n_tokens},
                     {"n_query_heads", layer.n_query_heads},
                     {"n_kv_heads", layer.n_kv_heads},
                     {"dim", layer.dim}});
    write_floats(file_name(prefix, i, "q"), layer.queries);
    write_floats(file_name(prefix, i, "k"), layer.keys);
    write_floats(file_name(prefix, i, "v"), layer.values);
  }
  std::ofstream file(prefix + ".json");
  file << sizes.dump(1) << '\n';
  if (!file) throw std::runtime_error(prefix + ".json: cannot write");
}

std::vector<attention_data> read_captured(const std::string& prefix) {
  std::ifstream file(prefix + ".json");
  if (!file) throw std::runtime_error(prefix + ".json: cannot open");
  std::vector<attention_data> layers;
  for (const auto& sizes : nlohmann::json::parse(file)) {
    attention_data layer;
    layer.name = sizes.at("name");
    layer.n_tokens = sizes.at("n_tokens");
    layer.n_query_heads = sizes.at("n_query_heads");
    layer.n_kv_heads = sizes.at("n_kv_heads");
    layer.dim = sizes.at("dim");
    const std::size_t i = layers.size();
    const std::size_t n = layer.n_tokens * layer.dim;
    layer.queries = read_floats(file_name(prefix, i, "q"), n * layer.n_query_heads);
    layer.keys = read_floats(file_name(prefix, i, "k"), n * layer.n_kv_heads);
    layer.values = read_floats(file_name(prefix, i, "v"), n * layer.n_kv_heads);
    layers.push_back(std::move(layer));
  }
  return layers;
}

}  // namespace wavekv_bench
